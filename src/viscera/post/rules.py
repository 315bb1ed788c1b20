"""The rules of `knowledge/post.toml`, one small function each.

A rule takes the masks of a scan and the classes it is asked for, and returns the classes that it changes, computed on
the boxes around them; a rule with the argument `densities` looks at the scan, too. Axes are RAS: the first index grows
to the patient's right, the third to the head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from viscera.components import Components, components, labelled, without_small
from viscera.components import largest_component as largest_of
from viscera.io.body import find_body
from viscera.masks import BoolArray, Densities, MaskSet, SoftMask
from viscera.shapes import Box, Triple, triple
from viscera.taxonomy import taxonomy

Changes = dict[str, SoftMask]
Rule = Callable[..., Changes]


def _present(masks: MaskSet, classes: Sequence[str]) -> list[str]:
    """Those of `classes` that were computed and are not empty."""
    return [key for key in classes if key in masks and masks[key].mask.any()]


def largest_component(masks: MaskSet, classes: Sequence[str]) -> Changes:
    """Of each class only the largest component stays."""
    return {key: masks[key].with_mask(largest_of(masks[key].mask)) for key in _present(masks, classes)}


def minimum_volume(masks: MaskSet, classes: Sequence[str], volume_mm3: float) -> Changes:
    """Components smaller than `volume_mm3` go."""
    least = volume_mm3 / masks.voxel_volume_mm3
    return {key: masks[key].with_mask(without_small(masks[key].mask, least)) for key in _present(masks, classes)}


def not_in_air(masks: MaskSet, classes: Sequence[str], densities: Densities, below_hu: float) -> Changes:
    """Voxels below `below_hu` go."""
    changes = {}
    for key in _present(masks, classes):
        soft = masks[key]
        changes[key] = soft.with_mask(soft.mask & (densities.crop(soft.box) >= below_hu))
    return changes


def not_beside_body(masks: MaskSet, classes: Sequence[str], densities: Densities, below_hu: float) -> Changes:
    """Voxels of the air around the body go: what is below `below_hu` and connected, by faces, with the left, right,
    front or back side of the part that the network saw. Gas inside the body may reach the first and last slice."""
    present = _present(masks, classes)
    if not present:
        return {}
    air, count = ndimage.label(densities.hu < below_hu)
    around = np.zeros(count + 1, bool)
    for side in (air[0], air[-1], air[:, 0], air[:, -1]):
        around[side] = True
    around[0] = False
    return {key: _where(masks[key], densities.box, ~around[air]) for key in present}


def within_body(masks: MaskSet, classes: Sequence[str], densities: Densities) -> Changes:
    """Voxels beside the body go: those without body on their left and right, nor in front of and behind them."""
    present = _present(masks, classes)
    if not present:
        return {}
    inside = find_body(densities.hu, masks.spacing_mm).encloses(Box.whole(triple(densities.hu.shape)))
    return {key: _where(masks[key], densities.box, inside) for key in present}


def _where(soft: SoftMask, box: Box, keep: BoolArray) -> SoftMask:
    """The mask where `keep`, an array of `box`, is true; what lies beyond that box was not seen: it is air."""
    kept = np.zeros(soft.box.shape, bool)
    seen = soft.box.shared_with(box)
    if not seen.is_empty:
        place = seen.seen_from(soft.box.start).slices
        kept[place] = soft.mask[place] & keep[seen.seen_from(box.start).slices]
    return soft.with_mask(kept)


def plausible_density(
    masks: MaskSet, classes: Sequence[str], densities: Densities, least_hu: float, most_hu: float
) -> Changes:
    """Components whose mean density does not lie between `least_hu` and `most_hu` go."""
    changes = {}
    for key in _present(masks, classes):
        soft = masks[key]
        labels, count = labelled(soft.mask)
        mean_hu = np.asarray(ndimage.mean(densities.crop(soft.box), labels, np.arange(1, count + 1)))
        keep = np.concatenate([[False], (mean_hu >= least_hu) & (mean_hu <= most_hu)])
        changes[key] = soft.with_mask(keep[labels])
    return changes


def cut_below(masks: MaskSet, classes: Sequence[str], floor: str) -> Changes:
    """Voxels below the lowest slice of the class `floor` go; nothing happens where `floor` was not found."""
    if not _present(masks, [floor]):
        return {}
    soft = masks[floor]
    lowest = soft.box.start[2] + Box.around(soft.mask).start[2]
    changes = {}
    for key in _present(masks, classes):
        mask = masks[key].mask
        mask[:, :, : max(0, lowest - masks[key].box.start[2])] = False
        changes[key] = masks[key].with_mask(mask)
    return changes


def not_above(masks: MaskSet, classes: Sequence[str], organ: str, edge: str, least_ml: float) -> Changes:
    """Components go whose middle slice lies above the highest (`edge` "top") or the lowest ("bottom") slice of `organ`,
    of which the largest component counts. Nothing happens where that has less than `least_ml`.
    """
    if not _present(masks, [organ]):
        return {}
    largest = largest_of(masks[organ].mask)
    if largest.sum() * masks.voxel_volume_mm3 < 1000 * least_ml:
        return {}
    found = Box.around(largest)
    limit = masks[organ].box.start[2] + (found.stop[2] - 1 if edge == "top" else found.start[2])
    changes = {}
    for key in _present(masks, classes):
        soft = masks[key]
        labels, _ = labelled(soft.mask)
        middles = [soft.box.start[2] + (z.start + z.stop - 1) / 2 for *_, z in ndimage.find_objects(labels)]
        keep = np.array([False, *(middle <= limit for middle in middles)])
        changes[key] = soft.with_mask(keep[labels])
    return changes


def on_its_side(masks: MaskSet, classes: Sequence[str]) -> Changes:
    """Of a right and a left organ (`classes`), pieces go that lie beyond the partner, on the partner's own side of its
    middle, and are smaller than it; of the partner the largest component counts. Nothing happens without both.
    """
    right, left = classes
    if len(_present(masks, classes)) < 2:
        return {}
    found = {key: components(masks[key].mask) for key in classes}
    changes = {}
    for key, other, towards in ((right, left, -1), (left, right, 1)):  # the first index grows to the patient's right
        own, partner = found[key], found[other]
        largest = partner.by_size()[0] - 1
        beyond = own.centres[:, 0] + masks[key].box.start[0] - partner.centres[largest, 0] - masks[other].box.start[0]
        wrong = (towards * beyond > 0) & (own.voxels < partner.voxels[largest])
        changes[key] = masks[key].with_mask(np.array([False, *~wrong])[own.labels])
    return changes


def inside_organ(masks: MaskSet, classes: Sequence[str], grow_mm: float) -> Changes:
    """A lesion keeps only its voxels within its organs, closed and then dilated by a cube of `grow_mm` to each side.

    The organs are the `inside` of the taxonomy, taken together. Where none of them was computed the lesion stays as it
    is; where they were computed and not found, the lesion goes: there is nothing it could be a lesion of.
    """
    radius = triple(round(grow_mm / s) for s in masks.spacing_mm)
    changes = {}
    for key in _present(masks, classes):
        hosts = [host for host in taxonomy()[key].inside if host in masks]
        if not hosts:
            continue
        soft = masks[key]
        lesion = soft.mask
        tight = Box.around(lesion)
        # Closing and dilating look three radii far; a crop that much larger gives what the whole grid would.
        region = tight.shifted(soft.box.start).grown(triple(3 * r for r in radius), within=masks.shape)
        organ = np.logical_or.reduce([masks.crop(host, region) for host in hosts])
        near = closed_and_dilated(organ, radius)
        offset = triple(a - b for a, b in zip(soft.box.start, region.start, strict=True))
        kept = np.zeros_like(lesion)
        kept[tight.slices] = lesion[tight.slices] & near[tight.shifted(offset).slices]
        changes[key] = soft.with_mask(kept)
    return changes


def closed_and_dilated(mask: BoolArray, radius: Triple) -> BoolArray:
    """Closing, then dilation, of `mask` by a box of ``2 * radius + 1`` voxels; nothing lies beyond the array."""
    size = triple(2 * r + 1 for r in radius)
    # Boxes are separable, so these filters cost a pass per axis whatever the radius.
    grown = ndimage.maximum_filter(mask.view(np.uint8), size, mode="constant", cval=0)
    closed = ndimage.minimum_filter(grown, size, mode="constant", cval=0)
    out: BoolArray = ndimage.maximum_filter(closed, size, mode="constant", cval=0).view(bool)
    return out


def split_lungs(masks: MaskSet, classes: Sequence[str], second_lung_part: float, apart_mm: float) -> Changes:
    """Both lungs by their position: `classes` are the right one and the left one.

    The two are taken together. Of the two largest components the one further to the right becomes the right lung,
    if the smaller has at least `second_lung_part` of the larger's volume and their centres lie `apart_mm` apart from
    side to side. A single component that the network gave to both sides is cut at the sagittal slice where it is
    narrowest. A component of one side alone (the other lung is missing or outside the scan) goes whole to the side
    that most of its voxels were given to. Smaller components go. Nothing happens unless both classes were computed.
    """
    right, left = classes
    if right not in masks or left not in masks or not _present(masks, classes):
        return {}
    box = masks[left].box if masks[right].box.is_empty else masks[right].box
    box = box if masks[left].box.is_empty else box.union(masks[left].box)
    was_right, was_left = masks.crop(right, box), masks.crop(left, box)
    found = components(was_right | was_left)
    side = _lung_sides(found, was_right, was_left, masks.spacing_mm[0], second_lung_part, apart_mm)
    # A voxel that changes sides brings its level along, so that the lung's surface stays where it was.
    level = np.maximum(masks[right].embedded_in(box).level, masks[left].embedded_in(box).level)
    changes = {}
    for key, mask in ((right, side == 1), (left, side == 2)):
        own = masks[key].embedded_in(box)
        moved = SoftMask(box, np.where(side > 0, level, own.level), own.mean_probability)
        changes[key] = moved.with_mask(mask)
    return changes


def _lung_sides(
    found: Components,
    was_right: BoolArray,
    was_left: BoolArray,
    spacing_x_mm: float,
    second_lung_part: float,
    apart_mm: float,
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """For every voxel 0 (no lung), 1 (right) or 2 (left)."""
    side = np.zeros(found.labels.shape, np.uint8)
    first, *others = found.by_size()
    if others and found.voxels[others[0] - 1] >= second_lung_part * found.voxels[first - 1]:
        second = others[0]
        x_first, x_second = found.centres[first - 1][0], found.centres[second - 1][0]
        if abs(x_first - x_second) * spacing_x_mm >= apart_mm:
            right, left = (first, second) if x_first > x_second else (second, first)
            side[found.labels == right] = 1
            side[found.labels == left] = 2
            return side
        chosen = [first, second]
    else:
        chosen = [first]
    for number in chosen:
        one = found.labels == number
        rights, lefts = int((one & was_right).sum()), int((one & was_left).sum())
        if min(rights, lefts) >= second_lung_part * max(rights, lefts):
            x = np.arange(one.shape[0])[:, None, None]
            middle_right = float((x * (one & was_right)).sum() / rights)
            middle_left = float((x * (one & was_left)).sum() / lefts)
            if (middle_right - middle_left) * spacing_x_mm >= apart_mm:
                area = one.sum(axis=(1, 2))
                low, high = round(middle_left), round(middle_right)
                cut = low + int(np.argmin(area[low : high + 1]))
                side[one & (x > cut)] = 1
                side[one & (x <= cut)] = 2
                continue
        side[one] = 1 if rights >= lefts else 2
    return side


RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        not_in_air,
        not_beside_body,
        within_body,
        plausible_density,
        split_lungs,
        on_its_side,
        largest_component,
        cut_below,
        not_above,
        inside_organ,
        minimum_volume,
    )
}

# Which other classes a rule looks at when it is applied to a class: (class, the rule's classes, its arguments) -> keys.
# A rule that is not here looks at the class alone.
LOOKS_AT: dict[str, Callable[[str, Sequence[str], Mapping[str, Any]], Sequence[str]]] = {
    "split_lungs": lambda key, classes, arguments: classes,
    "on_its_side": lambda key, classes, arguments: classes,
    "cut_below": lambda key, classes, arguments: [arguments["floor"]],
    "not_above": lambda key, classes, arguments: [arguments["organ"]],
    "inside_organ": lambda key, classes, arguments: taxonomy()[key].inside,
}
