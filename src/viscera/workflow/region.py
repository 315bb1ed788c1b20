"""Coarse to fine: a small model finds where the asked organs are, and the large one looks only there.

The small model's masks give a box with a margin; the large model is run in it. Where what it finds reaches a face of
the box that is not the body's own, the organ may go on behind it: the box grows there and the large model looks again.
Whenever the box cannot be trusted, the whole body is taken, and the reason is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil, prod

from viscera.infer.predict import InferenceSettings, predict
from viscera.infer.prepare import Prepared
from viscera.masks import MaskSet
from viscera.model.universal import UniversalModel
from viscera.post.pipeline import apply_rules
from viscera.shapes import Box, SpacingMm, Triple, triple
from viscera.taxonomy import taxonomy

MARGIN_MM = 20.0  # around what the small model found; the box grows by as much again where an organ reaches it
LOOKS = 3  # of the large model at boxes, before it takes the whole body
_WORTHWHILE = 0.9  # of the body; a larger box saves nothing


@dataclass(frozen=True)
class Region:
    """Where the large model is to look, in the network's grid.

    note  why it is the whole body after all, in a sentence; empty if it is not
    """

    box: Box
    note: str = ""


def landmarks(keys: Iterable[str]) -> list[str]:
    """The organs that tell where `keys` are: themselves, and for a tumour or cyst the organs it lies in."""
    found: set[str] = set()
    for key in keys:
        structure = taxonomy()[key]
        found |= set(structure.inside) if structure.is_lesion else {key}
    return [key for key in taxonomy().keys if key in found]


def find_region(
    coarse: UniversalModel, seen: Prepared, fine: Prepared, keys: Iterable[str], settings: InferenceSettings
) -> Region:
    """The box of `fine` that holds the organs `keys` according to the model `coarse`, which sees the scan as `seen`."""
    organs, name = landmarks(keys), coarse.config.name
    body = fine.box if fine.body is None else fine.body.box
    if unknown := [key for key in organs if key not in coarse.config.classes]:
        return Region(fine.box, f"The model {name!r} cannot find {_named(unknown)}: the whole body was taken.")
    masks, _ = apply_rules(predict(coarse, seen, organs, settings), seen.densities)
    if missing := [key for key in organs if masks.box(key).is_empty]:
        return Region(fine.box, f"The model {name!r} did not find {_named(missing)}: the whole body was taken.")
    box = masks.box(organs[0])
    for key in organs[1:]:
        box = box.union(masks.box(key))
    margin = _margin(fine.grid_spacing_mm)
    box = body.shared_with(_on_grid(box, seen.grid_spacing_mm, fine).grown(margin, within=fine.grid_shape))
    if box.is_empty or prod(box.shape) > _WORTHWHILE * prod(body.shape):
        return Region(fine.box)
    return Region(box)


def predict_within(look: Callable[[Prepared], MaskSet], whole: Prepared, first: Region) -> tuple[MaskSet, Region]:
    """What `look` finds in the region, grown where its masks reach an inner face, and the region at last.

    No mask that is returned ends at a face of the region which is not one of the body's box.
    """
    region = first
    for _ in range(LOOKS):
        masks = look(whole.within(region.box))
        grown = _grown_where_touched(masks, region.box, whole)
        if grown == region.box:
            return masks, region
        region = Region(grown, region.note)
    note = f"An organ reached the border of every region up to {LOOKS} looks: the whole body was taken."
    return look(whole), Region(whole.box, note)


def _grown_where_touched(masks: MaskSet, box: Box, whole: Prepared) -> Box:
    """`box`, farther by the margin on each face that a mask reaches and that lies within the body's box."""
    margin = _margin(whole.grid_spacing_mm)
    start, stop = list(box.start), list(box.stop)
    for key in masks:
        found = masks.box(key)
        if found.is_empty:
            continue
        for axis in range(3):
            if found.start[axis] <= box.start[axis]:
                start[axis] = max(whole.box.start[axis], box.start[axis] - margin[axis])
            if found.stop[axis] >= box.stop[axis]:
                stop[axis] = min(whole.box.stop[axis], box.stop[axis] + margin[axis])
    return Box(triple(start), triple(stop))


def _margin(spacing_mm: SpacingMm) -> Triple:
    return triple(ceil(MARGIN_MM / s) for s in spacing_mm)


def _on_grid(box: Box, spacing_mm: SpacingMm, fine: Prepared) -> Box:
    """`box` of a grid of `spacing_mm` on the grid of `fine`; both share the centre of voxel 0."""
    start = triple(int(a * s / t) for a, s, t in zip(box.start, spacing_mm, fine.grid_spacing_mm, strict=True))
    stop = triple(
        min(n, ceil(b * s / t))
        for b, s, t, n in zip(box.stop, spacing_mm, fine.grid_spacing_mm, fine.grid_shape, strict=True)
    )
    return Box(triple(map(min, start, stop)), stop)


def _named(keys: Iterable[str]) -> str:
    return ", ".join(taxonomy()[key].name for key in keys)
