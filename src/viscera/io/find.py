"""Which scans a folder holds, and what to call them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from viscera.errors import ImageError
from viscera.io.dicom.sniff import is_clutter, is_dicom_file

_IMAGE_SUFFIXES = (".nii.gz", ".nii", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd", ".zip")
_OTHER_SUFFIXES = (".img.gz", ".img", ".dcm", ".gz")  # of files that are not looked for by name
_VOXEL_SUFFIXES = (".img.gz", ".img", ".raw", ".zraw", ".gz")  # of files that a header file beside them names


def scan_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The scans in a folder and its sub-folders, sorted: image files, zips, and folders that hold DICOM files directly.

    Hidden files are passed over. Nothing is guessed from names: a label map lying among the scans is in the list.
    Raises ImageError if there is no folder or no scan in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder} is not a folder.")
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_clutter(name)]
        files = [Path(parent, name) for name in sorted(names) if not is_clutter(name)]
        images = [file for file in files if file.name.lower().endswith(_IMAGE_SUFFIXES)]
        found += images
        others = (f for f in files if not f.name.lower().endswith(_IMAGE_SUFFIXES + _VOXEL_SUFFIXES))
        if any(map(is_dicom_file, others)):
            found.append(Path(parent))
    if not found:
        raise ImageError(f"{folder} holds no scans: no NIfTI, NRRD or MetaImage file, no zip and no DICOM file.")
    return sorted(found)


def case_name(path: str | os.PathLike[str]) -> str:
    """The name of a scan's file or folder without its image suffixes: "ct.nii.gz" -> "ct"."""
    name = Path(path).name or Path(path).resolve().name
    for suffix in (*_IMAGE_SUFFIXES, *_OTHER_SUFFIXES):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def case_names(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """One name per scan, all different, safe as folder names.

    Scans that share a file name are told apart by their folders (a/ct.nii.gz, b/ct.nii.gz -> "a_ct", "b_ct"), and
    by a number where that is not enough.
    """
    names = [case_name(path) for path in paths]
    shared = {name for name, count in Counter(names).items() if count > 1}
    common = Path(os.path.commonpath([Path(path).absolute().parent for path in paths])) if shared else Path()
    taken: set[str] = set()
    for i, path in enumerate(paths):
        if names[i] in shared:
            names[i] = "_".join((*Path(path).absolute().parent.relative_to(common).parts, names[i]))
        wanted, number = names[i], 1
        while names[i] in taken:
            number += 1
            names[i] = f"{wanted}_{number}"
        taken.add(names[i])
    return names
