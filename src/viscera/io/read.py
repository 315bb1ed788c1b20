"""The one door through which scans come in."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from viscera.errors import ImageError
from viscera.io.dicom.sniff import is_dicom_file
from viscera.io.nifti import looks_like_nifti, read_nifti
from viscera.io.stream import ByteStream
from viscera.io.validate import validated
from viscera.io.volume import Volume

if TYPE_CHECKING:
    from viscera.io.dicom.series import SeriesInfo

_SNIFFED_BYTES = 1024


def read_volume(path: str | os.PathLike[str], *, series: str | None = None, force: bool = False) -> Volume:
    """Read one CT volume in Hounsfield units; what a file holds is told from its bytes, not from its name.

    path    .nii, .nii.gz, .hdr/.img, .nrrd, .nhdr, .mha, .mhd; DICOM: a folder (searched with its sub-folders),
            a zip, a multi-frame file, or one slice, which stands for its whole series in the same folder
    series  which DICOM series where there are several: its number in `list_series`, its UID, or a part of its
            description that no other has
    force   take images that do not look like a CT in HU, other modalities, and DICOM series with missing slices
            (which are interpolated); an unusable geometry is refused all the same

    Returns a `Volume`: int16 where that is exact, else float32, in the file's own axis order; `provenance.notes` says
    in sentences what was noticed and corrected. Raises ImageError for all that is not one readable CT volume.
    """
    return validated(_read(Path(path), series, force), force=force, in_place=True)


def list_series(path: str | os.PathLike[str]) -> list[SeriesInfo]:
    """The DICOM image series in a folder (with its sub-folders), a zip or a file; localizers and the like left out."""
    from viscera.io.dicom.read import list_dicom_series

    return list_dicom_series(_existing(Path(path)))


def read_file(path: Path) -> Volume | None:
    """A NIfTI, NRRD or MetaImage file with its numbers as they are; None if its bytes are none of these.

    Raises ImageError for a file that is empty, damaged, or not one volume of real numbers.
    """
    with ByteStream(path) as stream:
        head = stream.upto(_SNIFFED_BYTES)
    if not head:
        raise ImageError(f"{path} is empty. Copy or download it again.")
    if looks_like_nifti(head) or path.name.lower().endswith((".img", ".img.gz")):
        return read_nifti(path)

    from viscera.io.itk import itk_format, read_itk  # SimpleITK takes a while to load: only where it is needed

    image_format = itk_format(head)
    return read_itk(path, image_format) if image_format else None


def _read(path: Path, series: str | None, force: bool) -> Volume:
    if _existing(path).is_file() and (volume := read_file(path)) is not None:
        return volume

    if path.is_dir() or zipfile.is_zipfile(path) or is_dicom_file(path):
        from viscera.io.dicom.read import read_dicom  # pydicom takes a while to load: only where it is needed

        return read_dicom(path, series=series, force=force)
    raise ImageError(
        f"{path} is no image viscera knows. It reads NIfTI (.nii, .nii.gz, .hdr/.img), NRRD, MetaImage (.mha, .mhd) "
        "and DICOM (a file, a folder or a zip)."
    )


def _existing(path: Path) -> Path:
    if not path.exists():
        raise ImageError(f"{path} does not exist. Check the spelling, and that the disk is there.")
    return path
