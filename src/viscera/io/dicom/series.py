"""DICOM objects as slices, slices as series, and the choice of one series."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

from viscera.errors import ImageError
from viscera.io.dicom.files import DicomObject

Vector = tuple[float, ...]

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame kinds, which go on with a dot
_IDENTITY = (
    *("StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality"),
    *("Rows", "Columns"),
)
_NOT_SCANS = {"SEG": "segmentation", "RTDOSE": "dose map", "RTIMAGE": "planning image"}
_SAME = 1e-3  # direction cosines and spacings (mm) closer than this are those of one image
_SCOUT_WORDS = {"LOCALIZER", "SCOUT", "TOPOGRAM"}


@dataclass(frozen=True)
class Slice:
    """One image plane, with the terms of DICOM; lengths in mm, positions in LPS.

    frame        its number in an object of `frames` image planes
    position     centre of the first pixel (3 numbers), None if the file does not say
    orientation  direction along a row, then along a column (6 numbers), None if the file does not say
    spacing_mm   distance between rows, then between columns (2 numbers), None if the file does not say
    """

    source: DicomObject
    frame: int
    frames: int
    position: Vector | None
    orientation: Vector | None
    spacing_mm: Vector | None
    thickness_mm: float | None
    slope: float
    intercept: float

    @property
    def missing_geometry(self) -> list[str]:
        """The elements without which the slice has no place in the patient, as far as they are missing."""
        found = {
            "ImagePositionPatient": self.position,
            "ImageOrientationPatient": self.orientation,
            "PixelSpacing": self.spacing_mm,
        }
        return [keyword for keyword, value in found.items() if value is None]


@dataclass(frozen=True)
class SeriesInfo:
    """What a user needs to tell DICOM series apart.

    number        1, 2, ... in the list
    spacing_mm    distance between rows and between columns, None if the files do not say
    thickness_mm  None if the files do not say
    """

    number: int
    uid: str
    description: str
    modality: str
    slices: int
    spacing_mm: Vector | None
    thickness_mm: float | None

    def __str__(self) -> str:
        spacing = "" if self.spacing_mm is None else " of " + " x ".join(f"{s:.3g}" for s in self.spacing_mm) + " mm"
        thickness = "" if self.thickness_mm is None else f", {self.thickness_mm:.3g} mm thick"
        return (
            f"{self.number}  {self.modality}  {self.description or '(no description)'}  "
            f"{self.slices} slice{'s' * (self.slices != 1)}{spacing}{thickness}  {self.uid or '(no UID)'}"
        )


@dataclass(frozen=True)
class Series:
    """Slices that belong to one image."""

    info: SeriesInfo
    slices: tuple[Slice, ...]


def find_series(objects: Iterable[DicomObject]) -> tuple[list[Series], Counter[str]]:
    """The image series among `objects`, and how many objects of which other kinds were left out (localizers ...).

    Slices of one series UID that differ in size, orientation or spacing cannot be one image: they become series of
    their own.
    """
    groups: dict[tuple[Any, ...], list[list[Slice]]] = {}
    left_out: Counter[str] = Counter()
    for found in objects:
        kind = _kind_left_out(found.header)
        if kind is not None:
            left_out[kind] += 1
            continue
        kin = groups.setdefault(_identity(found.header), [])
        for piece in _slices(found):
            same = next((group for group in kin if _parallel(group[0], piece)), None)
            if same is None:
                kin.append(same := [])
            same.append(piece)
    images = [pieces for kin in groups.values() for pieces in kin]
    return [_series(number, pieces) for number, pieces in enumerate(images, 1)], left_out


def choose(series: Sequence[Series], wanted: str | None, path: str) -> tuple[Series, tuple[str, ...]]:
    """The series that `wanted` names (number, UID or part of a description), or the only CT there is, with a note.

    Raises ImageError that lists them if the choice is not clear.
    """
    listing = "\n".join(f"  {one.info}" for one in series)
    if wanted is not None:
        matching = _matching(series, wanted)
        if len(matching) == 1:
            return matching[0], ()
        how_many = "no series" if not matching else f"{len(matching)} series"
        raise ImageError(
            f"--series {wanted!r} fits {how_many} of {path}; give a number, a UID or a part of a description from:\n"
            f"{listing}"
        )
    of_ct = [one for one in series if one.info.modality == "CT"]
    if len(series) == 1 or len(of_ct) == 1:
        chosen = (of_ct or series)[0]
        others = [one for one in series if one is not chosen]
        note = f"{len(others)} other series without CT images left out ({_modalities(others)})."
        return chosen, (note,) if others else ()
    raise ImageError(
        f"{path} holds {len(series)} DICOM series; choose one with --series (its number, its UID, or a part of its "
        f"description):\n{listing}"
    )


def _matching(series: Sequence[Series], wanted: str) -> list[Series]:
    exact = [one for one in series if wanted == one.info.uid or wanted == str(one.info.number)]
    return exact or [one for one in series if wanted.casefold() in one.info.description.casefold()]


def _modalities(series: Sequence[Series]) -> str:
    return ", ".join(sorted({one.info.modality for one in series}))


def _kind_left_out(header: Dataset) -> str | None:
    """What an object is if it cannot be part of a CT volume."""
    if "Rows" not in header or "Columns" not in header:
        return "object without an image"
    modality = str(header.get("Modality", ""))
    if modality in _NOT_SCANS:
        return _NOT_SCANS[modality]
    sop_class = str(header.get("SOPClassUID", ""))
    if sop_class == _SECONDARY_CAPTURE or sop_class.startswith(_SECONDARY_CAPTURE + "."):
        return "secondary capture"
    if header.get("SamplesPerPixel") not in (None, 1):
        return "colour picture"
    words = {str(word).upper() for word in _values(header, "ImageType")}
    return "localizer" if words & _SCOUT_WORDS else None


def _slices(found: DicomObject) -> list[Slice]:
    """The image planes of one object: one, or each frame of an (enhanced) multi-frame object."""
    per_frame = _items(found.header, "PerFrameFunctionalGroupsSequence") or [Dataset()]
    shared = _items(found.header, "SharedFunctionalGroupsSequence")
    out = []
    for frame, own in enumerate(per_frame):
        groups = [own, *shared[:1]]
        measures = _group(groups, "PixelMeasuresSequence", found.header)
        values = _group(groups, "PixelValueTransformationSequence", found.header)
        out.append(
            Slice(
                source=found,
                frame=frame,
                frames=len(per_frame),
                position=_numbers(_group(groups, "PlanePositionSequence", found.header), "ImagePositionPatient", 3),
                orientation=_numbers(
                    _group(groups, "PlaneOrientationSequence", found.header), "ImageOrientationPatient", 6
                ),
                spacing_mm=_numbers(measures, "PixelSpacing", 2),
                thickness_mm=(_numbers(measures, "SliceThickness", 1) or (None,))[0],
                slope=(_numbers(values, "RescaleSlope", 1) or (1.0,))[0],
                intercept=(_numbers(values, "RescaleIntercept", 1) or (0.0,))[0],
            )
        )
    return out


def _group(groups: Sequence[Dataset], keyword: str, header: Dataset) -> Dataset:
    """A functional group of a frame, else the one all frames share, else the header itself (classic objects)."""
    return next((items[0] for holder in groups if (items := _items(holder, keyword))), header)


def _items(holder: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; none if it is absent, or not a sequence as in a damaged file."""
    sequence = holder.get(keyword)
    return list(sequence) if isinstance(sequence, DicomSequence) else []


def _numbers(header: Dataset, keyword: str, count: int) -> Vector | None:
    """The `count` numbers of an element; None if it is absent, empty or not that."""
    try:
        numbers = tuple(float(value) for value in _values(header, keyword))
    except (ValueError, TypeError):
        return None
    return numbers if len(numbers) == count else None


def _values(header: Dataset, keyword: str) -> list[Any]:
    value = header.get(keyword)
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str | int | float) else list(value)


def _identity(header: Dataset) -> tuple[Any, ...]:
    """What objects of one image have in common."""
    # Anonymised files may have lost their UIDs; then the number and description have to tell series apart.
    return tuple(str(header.get(keyword, "")) for keyword in _IDENTITY)


def _parallel(a: Slice, b: Slice) -> bool:
    """Whether two slices have the same orientation and spacing."""
    return _close(a.orientation, b.orientation) and _close(a.spacing_mm, b.spacing_mm)


def _close(a: Vector | None, b: Vector | None) -> bool:
    if a is None or b is None:
        return a is b
    return all(math.isclose(x, y, abs_tol=_SAME) for x, y in zip(a, b, strict=True))


def _series(number: int, pieces: list[Slice]) -> Series:
    first = pieces[0]
    header = first.source.header
    info = SeriesInfo(
        number=number,
        uid=str(header.get("SeriesInstanceUID", "")),
        description=str(header.get("SeriesDescription", "")),
        modality=str(header.get("Modality", "") or "unknown"),
        slices=len(pieces),
        spacing_mm=first.spacing_mm,
        thickness_mm=first.thickness_mm,
    )
    return Series(info, tuple(pieces))
