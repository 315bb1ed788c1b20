"""A DICOM series as a Volume."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from viscera.errors import ImageError
from viscera.io.dicom.files import dicom_objects
from viscera.io.dicom.pixels import stored_pixels
from viscera.io.dicom.series import Series, SeriesInfo, Slice, choose, find_series
from viscera.io.dicom.stack import Grid, regular_grid, same_place
from viscera.io.hounsfield import compact
from viscera.io.itk import LPS_TO_RAS
from viscera.io.stream import sha256_of_parts
from viscera.io.volume import AIR_HU, Provenance, Volume

_TILT_DEGREES = 0.05  # a smaller angle between the stacking direction and the slices' normal is rounding
_NOT_UNIT = 0.01  # how far the length of the normal may be from 1
_PLAUSIBLE_HU = 30_000.0  # metal on the extended CT scale stays below: a padding value above it is no measurement

_DOUBLE = "Slices given twice with equal pixels, counted once: {count}."
_BLANK = "Voxels that hold the files' padding value (outside the field of view) and count as air: {count:,}."
_LOSSY = "Files whose pixels were compressed with loss before viscera got them: {count}."

Floats = npt.NDArray[np.float64]


def list_dicom_series(path: Path) -> list[SeriesInfo]:
    """The image series in a folder, a zip or a file; localizers, secondary captures and the like are left out."""
    with dicom_objects(path) as objects:
        series, _ = find_series(objects)
    return [one.info for one in series]


def is_one_study(folder: Path) -> bool:
    """Whether the DICOM files of a folder and its sub-folders belong to one study: exports have a folder a series."""
    with dicom_objects(folder) as objects:
        studies = {str(found.header.get("StudyInstanceUID", "")) for found in objects}
    return len(studies) == 1 and "" not in studies


def read_dicom(path: Path, *, series: str | None = None, force: bool = False) -> Volume:
    """Read one series of a folder, a zip, a multi-frame file, or the series that a slice's file belongs to.

    series, force  as in `viscera.io.read.read_volume`
    Not yet checked for plausible numbers. Raises ImageError if there is not exactly one whole CT series to read.
    """
    with dicom_objects(path) as objects:
        found, left_out = find_series(objects)
        if not found:
            raise ImageError(
                f"{path} holds no images of a DICOM scan{_counted(left_out)}. Files of other formats are given one by "
                "one."
            )
        chosen, notes = choose(found, series, str(path))
        if left_out:
            notes += (f"Left out{_counted(left_out)}.",)
        if path.is_file() and len(objects) == len(chosen.slices) == 1:
            return _with_neighbours(path, force)
        return _volume(chosen, path, notes, force)


def _with_neighbours(path: Path, force: bool) -> Volume:
    """The series in the folder of `path` to which the slice in that file belongs."""
    with dicom_objects(path.parent, recursive=False) as objects:
        for series in find_series(objects)[0]:
            if any(piece.source.name == str(path) for piece in series.slices):
                count = len(series.slices)
                note = f"{path.name} is one slice of a series; all {count} slices in its folder were read."
                return _volume(series, path, (note,) if count > 1 else (), force)
    raise AssertionError("the slice was found alone, so it is found among its neighbours")


def _volume(series: Series, path: Path, notes: tuple[str, ...], force: bool) -> Volume:
    name, modality = str(path), series.info.modality
    if modality != "CT":
        if not force:
            raise ImageError(
                f"{name} is not a CT: its modality is {modality}. viscera was made for CT; "
                "--force (force=True) runs it all the same, with results nobody should trust."
            )
        notes += (f"The modality is {modality}, not CT; read because of --force.",)
    stack = _stacked(series.slices, name)
    places = same_place(stack.along)
    grid, about_grid = _grid(stack, np.unique(places, return_index=True)[1], name, force)
    planes, digest, about_pixels = _planes(stack.slices, places, name)
    array = _on_grid(planes, grid).transpose(2, 1, 0)  # [slice, row, column] -> [x along a row, y down a column, z]
    provenance = Provenance(name, "DICOM", modality, digest, (*notes, *about_grid, *about_pixels))
    return Volume(array, _affine(stack, grid), provenance)


@dataclass(frozen=True, eq=False)
class _Stack:
    """Slices sorted along their normal, and the geometry they share; LPS mm.

    positions             [n, 3] centre of each slice's first pixel
    row, column           unit vectors along a row and down a column
    row_mm, column_mm     distance between pixels along a row and down a column
    """

    slices: list[Slice]
    positions: Floats
    row: Floats
    column: Floats
    row_mm: float
    column_mm: float

    @property
    def normal(self) -> Floats:
        """Unit vector out of the slices."""
        normal = np.cross(self.row, self.column)
        unit: Floats = normal / np.linalg.norm(normal)
        return unit

    @property
    def along(self) -> Floats:
        """Place of each slice on the normal."""
        return self.positions @ self.normal


def _stacked(slices: Sequence[Slice], name: str) -> _Stack:
    """Slices in order; ImageError if one does not say where it lies."""
    for piece in slices:
        if missing := piece.missing_geometry:
            raise ImageError(
                f"{piece.source.name} has no usable {' and '.join(missing)}, so its place in the patient is unknown. "
                f"Export {name} again with geometry."
            )
    row, column = np.reshape(np.array(slices[0].orientation, np.float64), (2, 3))
    if not np.isclose(np.linalg.norm(np.cross(row, column)), 1, atol=_NOT_UNIT):
        raise ImageError(
            f"{name} gives an ImageOrientationPatient that is no pair of unit vectors: {slices[0].orientation}. "
            "Export it again with geometry."
        )
    column_mm, row_mm = np.array(slices[0].spacing_mm, np.float64)  # DICOM: between rows, then between columns
    positions = np.array([piece.position for piece in slices], np.float64)
    order = np.argsort(positions @ np.cross(row, column), kind="stable")
    return _Stack([slices[i] for i in order], positions[order], row, column, float(row_mm), float(column_mm))


def _grid(stack: _Stack, chosen: npt.NDArray[np.intp], name: str, force: bool) -> tuple[Grid, tuple[str, ...]]:
    """The volume's slices from the `chosen` ones, which lie at different places; and what is worth saying about it."""
    if len(chosen) == 1:
        thickness_mm = stack.slices[0].thickness_mm or 1.0
        note = f"A single slice; its thickness of {thickness_mm:g} mm was taken as the spacing."
        step = stack.normal * thickness_mm
        return Grid(stack.positions[0], step, np.zeros(1, np.int64), np.zeros(1)), (note,)
    pixel_mm = min(stack.row_mm, stack.column_mm)
    grid = regular_grid(stack.positions[chosen], stack.normal, pixel_mm, force=force, name=name)
    cosine = float(grid.step @ stack.normal) / float(np.linalg.norm(grid.step))
    tilt = float(np.degrees(np.arccos(min(1.0, cosine))))
    if tilt < _TILT_DEGREES:
        return grid, grid.notes
    note = (
        f"The gantry was tilted: slices lie {tilt:.1f} degrees off their normal. The grid is kept sheared; viewers "
        "made with ITK refuse that in NIfTI files and take it in .nrrd and .mha."
    )
    return grid, (*grid.notes, note)


def _planes(
    slices: list[Slice], places: npt.NDArray[np.int64], name: str
) -> tuple[npt.NDArray[Any], str, tuple[str, ...]]:
    """HU planes [place, row, column], the digest of the files, and notes; equal slices at one place count once."""
    planes: npt.NDArray[Any] = np.empty(0)
    digests: dict[str, str] = {}
    stored, source = None, None
    notes: Counter[str] = Counter()
    for number, (piece, place) in enumerate(zip(slices, places, strict=True)):
        if stored is None or piece.source is not source:
            source = piece.source
            content = source.load()
            digests[source.name] = hashlib.sha256(content).hexdigest()
            stored = stored_pixels(content, source.name)
            if len(stored.frames) != piece.frames:
                raise ImageError(
                    f"{source.name} holds {len(stored.frames)} frames, but says of {piece.frames} where they lie. "
                    f"Export {name} again as one file a slice."
                )
            notes[_LOSSY] += stored.lossy
        plane, blank = _hounsfield(stored.frames[piece.frame], piece, stored.padding)
        notes[_BLANK] += blank
        if number == 0:
            planes = np.empty((int(places[-1]) + 1, *plane.shape), plane.dtype)
        elif place == places[number - 1]:
            if not np.array_equal(planes[place], plane):
                raise ImageError(
                    f"{name} holds different slices at the same place ({piece.source.name} and another one): several "
                    "phases or reconstructions in one series. Separate them and give one."
                )
            notes[_DOUBLE] += 1
        if plane.dtype != planes.dtype:
            planes = planes.astype(np.float32, copy=False)
        planes[place] = plane
    digest = next(iter(digests.values())) if len(digests) == 1 else sha256_of_parts(digests.values())
    return planes, digest, tuple(note.format(count=count) for note, count in notes.items() if count)


def _hounsfield(stored: npt.NDArray[Any], piece: Slice, padding: int | None) -> tuple[npt.NDArray[Any], int]:
    """One stored plane in HU (int16 or float32), and how many of its voxels were padding that became air."""
    if padding is not None and padding * piece.slope + piece.intercept > _PLAUSIBLE_HU:
        blank = stored == padding
        plane, _ = compact(np.where(blank, 0, stored), piece.slope, piece.intercept)
        plane[blank] = AIR_HU
        return plane, int(blank.sum())
    return compact(stored, piece.slope, piece.intercept)[0], 0


def _on_grid(planes: npt.NDArray[Any], grid: Grid) -> npt.NDArray[Any]:
    """The given planes at the grid's slices, linearly mixed where slices were missing."""
    if np.array_equal(grid.index, np.arange(len(planes))) and not grid.weight.any():
        return planes
    out = planes[grid.index]
    for number in np.flatnonzero(grid.weight):
        below, weight = grid.index[number], grid.weight[number]
        mixed = (1 - weight) * planes[below] + weight * planes[below + 1]
        out[number] = np.rint(mixed) if planes.dtype == np.int16 else mixed
    return out


def _affine(stack: _Stack, grid: Grid) -> Floats:
    """Voxel index [x along a row, y down a column, z] -> RAS mm."""
    lps = np.eye(4)
    lps[:3] = np.column_stack([stack.row * stack.row_mm, stack.column * stack.column_mm, grid.step, grid.first])
    return LPS_TO_RAS @ lps


def _counted(left_out: Counter[str]) -> str:
    """ ": 1 x localizer, 2 x secondary capture"; empty if nothing was left out."""
    return ": " * bool(left_out) + ", ".join(f"{count} x {kind}" for kind, count in sorted(left_out.items()))
