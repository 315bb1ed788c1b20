"""A case's labels as one array of codes, whether they came as a label map or as one mask per structure.

A code stands for what is drawn at a voxel: nothing (code 0), one value, or several masks lying over each other.

    masks    liver  . L L L .        codes      . 1 2 1 .
             tumour . . T . .        meanings   0 nothing   1 {liver}   2 {liver, tumour}

Codes are exact: every label map and every mask can be read back from them. They are resampled like a label map.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from viscera.data.catalogue import Source
from viscera.data.lateral import right_half, right_of_nearest
from viscera.data.layout import Case, matches
from viscera.errors import ImageError
from viscera.io.labels import read_labels
from viscera.io.orientation import to_ras
from viscera.io.read import read_volume
from viscera.io.volume import Volume
from viscera.masks import BoolArray
from viscera.shapes import SpacingMm
from viscera.taxonomy import Side, taxonomy

CodeArray = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

Scalar = TypeVar("Scalar", bound=np.generic)

_SLAB = 32  # slices looked up at once
SAME_GRID_VOXELS = 0.1  # image and label may lie this far apart at a corner (float32 headers, rounding)


@dataclass(frozen=True, order=True)
class Drawn:
    """One thing drawn at a voxel: a source's value, and the side where the source does not say it."""

    value: str
    side: Side | None = None


Meaning = tuple[Drawn, ...]  # what one code stands for; empty for nothing


@dataclass(frozen=True, eq=False)
class Drawing:
    """The labels of one scan.

    codes     uint8 or uint16, [X, Y, Z] with RAS axes
    meanings  what each code stands for; meanings[0] is ()
    """

    codes: CodeArray
    meanings: tuple[Meaning, ...]

    def mask(self, value: str, side: Side | None = None) -> BoolArray:
        """Where `value` is drawn (on `side`, if given): bool [X, Y, Z]."""
        holds = [any(d.value == value and side in (None, d.side) for d in meaning) for meaning in self.meanings]
        return looked_up(np.array(holds, bool), self.codes)

    def values(self) -> set[str]:
        """Every value drawn somewhere."""
        return {d.value for code in np.flatnonzero(_occurring(self.codes)) for d in self.meanings[int(code)]}


def drawing_of_map(values: npt.NDArray[Any]) -> Drawing:
    """A label map [X, Y, Z] of whole numbers as codes; 0 is nothing."""
    small = values.dtype.itemsize <= 2
    present = np.flatnonzero(_occurring(values)) if small else np.unique(values)
    present = present[present != 0]
    meanings: tuple[Meaning, ...] = ((), *((Drawn(str(int(value))),) for value in present))
    dtype = _code_type(len(meanings))
    if small:
        lookup = np.zeros(65536, dtype)
        lookup[present] = np.arange(1, len(meanings), dtype=dtype)
        return Drawing(looked_up(lookup, values), meanings)
    codes = np.searchsorted(present, values).astype(dtype) + dtype(1)
    codes[values == 0] = 0
    return Drawing(codes, meanings)


def drawing_of_masks(masks: Iterator[tuple[str, BoolArray]] | Mapping[str, BoolArray]) -> Drawing:
    """Masks (bool [X, Y, Z], one shape) as codes; several under one name are joined. At least one mask."""
    codes: npt.NDArray[np.uint16] | None = None
    meanings: list[Meaning] = [()]
    known: dict[Meaning, int] = {(): 0}
    for value, mask in masks.items() if isinstance(masks, Mapping) else masks:
        if codes is None:
            codes = np.zeros(mask.shape, np.uint16)
        below = codes[mask]
        lookup = np.zeros(len(meanings), np.uint16)
        for code in np.unique(below):
            meaning = tuple(sorted({*meanings[code], Drawn(value)}))
            if meaning not in known:
                known[meaning] = len(meanings)
                meanings.append(meaning)
            lookup[code] = known[meaning]
        codes[mask] = lookup[below]
    if codes is None:
        raise ValueError("no masks")
    return _compacted(codes, meanings)


def read_image(case: Case) -> Volume:
    """The case's CT as read, in its own axis order. Raises ImageError; ValueError for a case without an image."""
    if case.image is None:
        raise ValueError(f"{case.id} has no image")
    return read_volume(case.image)


def read_drawing(case: Case, image: Volume | None) -> Drawing:
    """The first of `read_drawing_in_space`."""
    return read_drawing_in_space(case, image)[0]


def read_drawing_in_space(case: Case, image: Volume | None) -> tuple[Drawing, npt.NDArray[np.float64]]:
    """The case's labels as codes with RAS axes, and the affine of those axes.

    image  the CT as read, whose grid the labels must share; None where only labels were published
    Raises ImageError for a label that cannot be read or does not lie on the image's grid.
    """
    if not case.group.has_masks:
        label = _on_grid(case, case.labels[""], image)
        return drawing_of_map(to_ras(label)[0]), to_ras(image or label)[1]
    if image is None:
        image = _on_grid(case, next(iter(case.labels.values())), None)
    return drawing_of_masks(_masks(case, image)), to_ras(image)[1]


def _masks(case: Case, grid: Volume) -> Iterator[tuple[str, BoolArray]]:
    for structure, path in sorted(case.labels.items()):
        source = source_of(case.group.sources, structure)
        if source is not None:
            yield source.value, to_ras(_on_grid(case, path, grid))[0] != 0
    # An empty mask costs nothing and gives the drawing its shape where no mask is of interest.
    yield "", np.zeros(to_ras(grid)[0].shape, bool)


def source_of(sources: tuple[Source, ...], structure: str) -> Source | None:
    """The first source that means the mask file called `structure`; None if the table passes over it."""
    return next((source for source in sources if matches(source.value, structure)), None)


def _on_grid(case: Case, path: Path, image: Volume | None) -> Volume:
    """A label volume that lies on the image's grid."""
    if case.dataset.label_format == "png":
        from viscera.data.stacks import read_png_stack

        if image is None or case.image is None:
            raise ImageError(f"{path} is a stack of pictures and lies nowhere without its CT.")
        return read_png_stack(path, image, case.image)
    label = read_volume(path, force=True) if case.dataset.label_format == "dicom" else read_labels(path)
    if image is not None:
        require_same_grid(label, image, str(path))
    return label


def require_same_grid(label: Volume, image: Volume, name: str) -> None:
    """Raise ImageError unless both volumes have the same shape and lie over each other."""
    if label.shape != image.shape:
        raise ImageError(
            f"{name} has shape {label.shape}, its image {image.shape}. Labels must be drawn on the image's own grid."
        )
    corners = np.array([(x, y, z, 1) for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * (
        *(n - 1 for n in image.shape),
        1,
    )
    apart_mm = np.linalg.norm(corners @ (label.affine - image.affine).T, axis=1).max()
    if apart_mm > SAME_GRID_VOXELS * min(image.spacing_mm):
        raise ImageError(
            f"{name} lies up to {apart_mm:.3g} mm away from its image (another affine). Copy the image's affine into "
            "the label if its voxels are right, or resample it (nearest neighbour) if its position is."
        )


def with_sides(drawing: Drawing, sources: tuple[Source, ...], spacing_mm: SpacingMm, middle: float) -> Drawing:
    """The drawing with a side on everything that stands for both organs of a pair.

    middle  x index of the patient's mid-plane, see `lateral.midplane`
    """
    by_value = {source.value: source for source in sources}
    codes: npt.NDArray[np.uint16] = drawing.codes.astype(np.uint16)
    meanings = list(drawing.meanings)
    for right_organ, values in _pairs(by_value, drawing.values()).items():
        mask = _any_of(drawing, values)
        if all(by_value[value].is_lesion for value in values):
            # The organs have labels of their own, their lesions do not say the side.
            known_right, known_left = (
                _any_of(drawing, {v for v, s in by_value.items() if not s.is_split and organ in s.classes})
                for organ in (right_organ, taxonomy()[right_organ].pair)
            )
            right = right_of_nearest(mask, known_right, known_left, spacing_mm, middle)
        else:
            right = right_half(mask, spacing_mm, middle)
        halves: tuple[tuple[Side, BoolArray], ...] = (("right", right), ("left", mask & ~right))
        for side, half in halves:
            here = codes[half]
            lookup = np.zeros(len(meanings), np.uint16)
            for code in np.unique(here):
                lookup[code] = len(meanings)
                meanings.append(tuple(Drawn(d.value, side) if d.value in values else d for d in meanings[int(code)]))
            codes[half] = lookup[here]
    return _compacted(codes, meanings)


def organs_drawn(drawing: Drawing, sources: tuple[Source, ...]) -> BoolArray:
    """Where a class is drawn: not the bones and other context, by which the mid-plane is found."""
    return _any_of(drawing, {source.value for source in sources if source.classes or source.union})


def _pairs(by_value: Mapping[str, Source], present: set[str]) -> dict[str, set[str]]:
    """Right organ of a pair -> the values present that stand for both organs of it."""
    pairs: dict[str, set[str]] = {}
    for value in present:
        source = by_value.get(value)
        if source is not None and source.is_split:
            organ = next(key for key in source.right if key not in source.left)
            pairs.setdefault(organ, set()).add(value)
    return pairs


def _any_of(drawing: Drawing, values: set[str]) -> BoolArray:
    holds = np.array([any(d.value in values for d in meaning) for meaning in drawing.meanings], bool)
    return looked_up(holds, drawing.codes)


def _compacted(codes: npt.NDArray[np.uint16], meanings: list[Meaning]) -> Drawing:
    """Only the codes in use, equal meanings joined, in the order of their meanings; uint8 where they fit."""
    used = {meanings[int(code)] for code in np.flatnonzero(_occurring(codes))} | {()}
    ordered = sorted(used)
    place = {meaning: code for code, meaning in enumerate(ordered)}
    dtype = _code_type(len(ordered))
    lookup = np.array([place.get(meaning, 0) for meaning in meanings], dtype)  # meanings no longer in use: anything
    return Drawing(looked_up(lookup, codes), tuple(ordered))


def looked_up(table: npt.NDArray[Scalar], index: npt.NDArray[Any]) -> npt.NDArray[Scalar]:
    """``table[index]`` for an index array [X, Y, Z], slab by slab: numpy would make it eight bytes a voxel at once."""
    out = np.empty(index.shape, table.dtype)
    for z in range(0, index.shape[2], _SLAB):
        out[:, :, z : z + _SLAB] = table[index[:, :, z : z + _SLAB]]
    return out


def _occurring(values: npt.NDArray[Any]) -> BoolArray:
    """Which of the numbers from 0 to 65535 occur in a label map of at most 16 bits."""
    seen = np.zeros(65536, bool)
    for z in range(0, values.shape[2], _SLAB):
        seen[values[:, :, z : z + _SLAB]] = True
    return seen


def _code_type(count: int) -> Any:
    if count > 65536:
        raise ImageError(f"The labels hold {count} different values; is this a label map? At most 65535 are taken.")
    return np.uint8 if count <= 256 else np.uint16
