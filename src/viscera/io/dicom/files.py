"""Finds DICOM objects by their content in folders and zip archives, and reads their headers."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset

from viscera.errors import ImageError
from viscera.io.dicom.sniff import SNIFFED_BYTES, is_clutter, is_dicom_file, looks_like_dicom

# A zip is read member by member in memory and never unpacked; these bounds stop archives made to exhaust it.
_ZIP_MAX_MEMBERS = 100_000
_ZIP_MAX_MEMBER_BYTES = 4 << 30
_ZIP_MAX_BYTES = 32 << 30

_HEADER_KEYWORDS = [
    "SOPClassUID", "Modality", "ImageType", "SamplesPerPixel",
    "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "InstanceNumber",
    "Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient",
    "SliceThickness", "RescaleSlope", "RescaleIntercept",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip


@dataclass(frozen=True)
class DicomObject:
    """One DICOM file or archive member.

    name    how to call it in messages
    header  the elements that matter for finding and sorting images; no pixels
    load    its bytes
    """

    name: str
    header: Dataset
    load: Callable[[], bytes]


@contextmanager
def dicom_objects(path: Path, *, recursive: bool = True) -> Iterator[list[DicomObject]]:
    """All DICOM objects of a folder (`recursive`: and its sub-folders), a zip archive or one file, sorted by name.

    Files that are no DICOM are passed over. Raises ImageError for a DICOM file or an archive that is damaged.
    """
    if path.is_dir():
        yield [found for file in _visible_files(path, recursive) if (found := _from_file(file))]
    elif zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                yield [found for member in _safe_members(archive, path) if (found := _from_zip(archive, member, path))]
        except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
            raise ImageError(
                f"{path} is a damaged or unusual zip archive ({error}). Unpack it and give the folder."
            ) from error
    else:
        yield [found for found in [_from_file(path)] if found]


def parsed(stream: BinaryIO, name: str, *, keywords: list[str] | None = None) -> Dataset:
    """The dataset in `stream`; its header alone if `keywords` are given. Raises ImageError if it is damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's remarks on small faults of the standard; we check what we use
            dataset = pydicom.dcmread(
                stream, force=True, stop_before_pixels=keywords is not None, specific_tags=keywords
            )
            for _ in dataset.iterall() if keywords else ():
                pass  # pydicom decodes an element when it is first looked at: here, where faults are caught
            return dataset
    except Exception as error:  # pydicom raises many types on damaged files
        raise ImageError(f"{name} is a damaged DICOM file ({error}). Copy or export it again.") from error


def _visible_files(folder: Path, recursive: bool) -> list[Path]:
    """All files of a folder without hidden ones, sorted."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if recursive and not is_clutter(name))
        found += [Path(parent, name) for name in sorted(names) if not is_clutter(name)]
    return found


def _from_file(path: Path) -> DicomObject | None:
    if not is_dicom_file(path):
        return None
    with path.open("rb") as file:
        return _object(file, str(path), path.read_bytes)


def _safe_members(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    """The files of an archive without clutter, sorted by name; ImageError if they are too many or too large."""
    members = [
        member
        for member in sorted(archive.infolist(), key=lambda m: m.filename)
        if not member.is_dir() and not any(map(is_clutter, PurePosixPath(member.filename).parts))
    ]
    sizes = [member.file_size for member in members]
    if len(sizes) > _ZIP_MAX_MEMBERS or sum(sizes) > _ZIP_MAX_BYTES or max(sizes, default=0) > _ZIP_MAX_MEMBER_BYTES:
        raise ImageError(
            f"{path} would unpack to {len(sizes):,} files of {sum(sizes):,} bytes, more than a CT series can need. "
            "If that is right, unpack it and give the folder."
        )
    if any(member.flag_bits & 1 for member in members):
        raise ImageError(f"{path} is protected by a password. Unpack it and give the folder.")
    return members


def _from_zip(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> DicomObject | None:
    with archive.open(member) as file:
        if not looks_like_dicom(file.read(SNIFFED_BYTES)):
            return None
    content = archive.read(member)
    return _object(BytesIO(content), f"{path}:{member.filename}", lambda: archive.read(member))


def _object(stream: BinaryIO, name: str, load: Callable[[], bytes]) -> DicomObject | None:
    """The object in `stream`; None if it only looked like DICOM at its start."""
    has_magic = stream.read(SNIFFED_BYTES)[128:] == b"DICM"
    stream.seek(0)
    try:
        header = parsed(stream, name, keywords=_HEADER_KEYWORDS)
    except ImageError:
        if has_magic:
            raise
        return None
    return DicomObject(name, header, load) if has_magic or "Modality" in header else None
