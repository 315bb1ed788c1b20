"""Which side: telling the right organ of a pair from the left where one label stands for both.

Arrays are [X, Y, Z] with RAS axes, so a larger x index lies further to the patient's right. Every voxel of a mask gets
exactly one side: the two halves always add up to it.

How it is decided, for kidneys, lungs, adrenal glands and femoral heads alike:

    two large parts far apart in x    right and left of each other, whatever the mid-plane says
    one large part on one side        that side; the other organ is absent
    one large part across the middle  merged: eroded until it falls apart, each voxel goes to its nearer core;
                                      where it never falls apart it is cut at its thinnest near the mid-plane
    small parts                       go with the nearest large one
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from viscera.components import labelled
from viscera.masks import BoolArray
from viscera.shapes import Box, SpacingMm, triple

LARGE_SHARE = 0.1  # of the mask: parts above it decide, the rest follows
LIKE_SHARE = 0.3  # the smaller organ of a pair has at least this share of the larger one's volume
CROSSING_SHARE = 0.2  # of a part beyond the mid-plane: more than this is two organs grown together
APART_MM = 40.0  # two parts of one pair lie further apart in x than this, centre to centre; two bits of one organ less
CORE_SHARE = 0.15  # of what an erosion left: a core must hold this much
BONE_HU = 300.0
_LEAST_BONE_ML = 20.0
_COARSE_MM = 3.0  # erosion works on a copy of about this spacing


def midplane(hu: npt.NDArray[Any], spacing_mm: SpacingMm, without: BoolArray | None = None) -> float:
    """The x index of the patient's mid-plane in an image [X, Y, Z] in HU.

    The median x of bone, most of which is the spine in a trunk; of everything denser than fat where there is little
    bone. `without` (bool, same shape) is left out: enhanced kidneys are as bright as bone. The middle of the image
    if it shows no body.
    """
    for level_hu, least_ml in ((BONE_HU, _LEAST_BONE_ML), (-150.0, 0.0)):
        body = hu > level_hu
        if without is not None:
            body &= ~without
        profile = body.sum((1, 2))
        total = int(profile.sum())
        if total and total * float(np.prod(spacing_mm)) / 1000 >= least_ml:
            return float(np.count_nonzero(np.cumsum(profile) < total / 2))
    return float(hu.shape[0] - 1) / 2


def right_half(mask: BoolArray, spacing_mm: SpacingMm, middle: float) -> BoolArray:
    """The voxels of a paired organ's `mask` (bool [X, Y, Z]) that belong to the right one; the others are the left's.

    middle  x index of the patient's mid-plane, see `midplane`
    """
    out = np.zeros(mask.shape, bool)
    box = Box.around(mask)
    if box.is_empty:
        return out
    inner = mask[box.slices]
    middle -= box.start[0]
    labels, count = labelled(inner)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    large = [int(part) for part in np.flatnonzero(sizes >= LARGE_SHARE * sizes.sum())]
    seeds = np.zeros(inner.shape, np.int8)  # 1 right, -1 left
    pieces: list[BoolArray] = [labels == part for part in large]
    if not _is_pair(pieces, spacing_mm[0]):
        whole, pieces = pieces, []
        for piece in whole:
            halves = _parted(piece, spacing_mm, middle) if _crosses(piece, middle) else (piece,)
            pieces += [half for half in halves if half.any()]
    for piece, side in zip(pieces, _sides([_centre_x(p) for p in pieces], middle, spacing_mm[0]), strict=True):
        seeds[piece] = side
    out[box.slices] = _nearest_seed(inner, seeds, spacing_mm) > 0
    return out


def right_of_nearest(
    mask: BoolArray, right: BoolArray, left: BoolArray, spacing_mm: SpacingMm, middle: float
) -> BoolArray:
    """The voxels of `mask` (lesions) that belong to the organ `right` and not to `left` (bool [X, Y, Z] all).

    A lesion goes as a whole with the organ it touches, or else with the one that most of it is nearer to; only one
    that touches both is shared out. Without the one organ everything goes to the other, without both `right_half`
    decides.
    """
    if not right.any() and not left.any():
        return right_half(mask, spacing_mm, middle)
    box = Box.around(mask | right | left).grown(1, within=triple(mask.shape))
    inner = mask[box.slices]
    seeds = right[box.slices].astype(np.int8) - left[box.slices].astype(np.int8)
    side = _nearest_seed(inner, seeds, spacing_mm)
    labels, count = labelled(inner)
    touch = {
        sign: np.bincount(labels[ndimage.binary_dilation(seeds == sign, np.ones((3, 3, 3), bool))], minlength=count + 1)
        for sign in (1, -1)
    }
    for part in range(1, count + 1):
        if touch[1][part] and touch[-1][part]:
            continue
        lesion = labels == part
        touching = int(touch[1][part] > 0) - int(touch[-1][part] > 0)
        side[lesion] = touching or (1 if side[lesion].sum(dtype=int) > 0 else -1)
    out = np.zeros(mask.shape, bool)
    out[box.slices] = side > 0
    return out


def _is_pair(pieces: list[BoolArray], spacing_x_mm: float) -> bool:
    """Whether the two largest parts are of like size and far apart in x: two organs, wherever the mid-plane is."""
    if len(pieces) < 2:
        return False
    first, second = sorted(pieces, key=np.count_nonzero)[-2:]
    alike = np.count_nonzero(first) >= LIKE_SHARE * np.count_nonzero(second)
    return bool(alike) and abs(_centre_x(first) - _centre_x(second)) * spacing_x_mm > APART_MM


def _crosses(piece: BoolArray, middle: float) -> bool:
    profile = piece.sum((1, 2))
    beyond = profile[np.arange(len(profile)) > middle].sum() / profile.sum()
    return CROSSING_SHARE <= float(beyond) <= 1 - CROSSING_SHARE


def _centre_x(piece: BoolArray) -> float:
    profile = piece.sum((1, 2))
    return float((profile * np.arange(len(profile))).sum() / profile.sum())


def _sides(centres_x: list[float], middle: float, spacing_x_mm: float) -> list[int]:
    """1 for right, -1 for left. If all lie on one side of the mid-plane and yet far apart, the plane is wrong."""
    if (max(centres_x) - min(centres_x)) * spacing_x_mm > APART_MM and len({x > middle for x in centres_x}) == 1:
        middle = (max(centres_x) + min(centres_x)) / 2
    return [1 if x > middle else -1 for x in centres_x]


def _parted(piece: BoolArray, spacing_mm: SpacingMm, middle: float) -> tuple[BoolArray, BoolArray]:
    """Two organs grown together as (right, left)."""
    step = triple(max(1, round(_COARSE_MM / s)) for s in spacing_mm)
    coarse = piece[:: step[0], :: step[1], :: step[2]]
    coarse_mm = (spacing_mm[0] * step[0], spacing_mm[1] * step[1], spacing_mm[2] * step[2])
    # Beyond the array lies no more of the organ: pad, so that an organ cut by the scan's end is eroded there too.
    depth_mm = ndimage.distance_transform_edt(np.pad(coarse, 1), sampling=coarse_mm)[1:-1, 1:-1, 1:-1]
    for radius_mm in np.arange(min(coarse_mm), depth_mm.max(), min(coarse_mm)):
        cores = _two_cores(depth_mm > radius_mm, middle / step[0])
        if cores is not None:
            seeds = _nearest_seed(coarse, cores, coarse_mm)
            fine = seeds.repeat(step[0], 0).repeat(step[1], 1).repeat(step[2], 2)
            fine = fine[: piece.shape[0], : piece.shape[1], : piece.shape[2]]
            fine = _nearest_seed(piece, np.where(piece, fine, 0).astype(np.int8), spacing_mm)
            return piece & (fine > 0), piece & (fine < 0)
    cut = _thinnest(piece, middle)
    right = piece.copy()
    right[:cut] = False
    return right, piece & ~right


def _two_cores(eroded: BoolArray, middle: float) -> npt.NDArray[np.int8] | None:
    """The two largest parts as 1 (right) and -1 (left) if both are substantial and lie on both sides of `middle`."""
    labels, count = labelled(eroded)
    if count < 2:
        return None
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    first, second = (int(part) for part in np.argsort(sizes)[-2:])
    if min(sizes[first], sizes[second]) < CORE_SHARE * sizes.sum():
        return None
    x_first, x_second = _centre_x(labels == first), _centre_x(labels == second)
    if (x_first > middle) == (x_second > middle):
        return None
    right, left = (first, second) if x_first > x_second else (second, first)
    cores: npt.NDArray[np.int8] = (labels == right).astype(np.int8) - (labels == left).astype(np.int8)
    return cores


def _thinnest(piece: BoolArray, middle: float) -> int:
    """The x index at which the fewest voxels are cut, within a tenth of the width around `middle`."""
    profile = piece.sum((1, 2))
    reach = max(1, round(len(profile) * 0.1))
    low, high = max(1, round(middle) - reach), min(len(profile) - 1, round(middle) + reach + 1)
    return low + int(np.argmin(profile[low:high])) if high > low else round(middle)


def _nearest_seed(mask: BoolArray, seeds: npt.NDArray[np.int8], spacing_mm: SpacingMm) -> npt.NDArray[np.int8]:
    """For every voxel of `mask` the seed (1 or -1) nearest to it; 0 outside."""
    if ((seeds != 0) | ~mask).all():
        return np.where(mask, seeds, 0).astype(np.int8)
    index = ndimage.distance_transform_edt(seeds == 0, sampling=spacing_mm, return_distances=False, return_indices=True)
    return np.where(mask, seeds[tuple(index)], 0).astype(np.int8)
