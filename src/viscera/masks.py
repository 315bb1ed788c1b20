"""What a network found, class by class, small enough to keep: cropped 8-bit masks that know their surface.

A finished class is a `SoftMask`: the box around it and one byte a voxel, its level. The class's threshold lies exactly
between 127 and 128, so ``level >= 128`` IS the mask. `LEVEL_VALUE` says which probability a level stands for;
interpolating that (to another grid) keeps the surface where the network drew it, between voxels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from viscera.shapes import Box, SpacingMm, Triple, triple

BoolArray = npt.NDArray[np.bool_]
LevelArray = npt.NDArray[np.uint8]

INSIDE = 128  # the first level that counts as "in"
LEVEL_STEEPNESS = 0.5  # of the curve by which a logit becomes a level
BEYOND_HU = -1024  # air: what lies beyond the part of a scan that a network looked at


def _level_values() -> npt.NDArray[np.float32]:
    y = np.arange(INSIDE + 0.5, 256) / 256
    above = 1 / (1 + ((1 - y) / y) ** (1 / LEVEL_STEEPNESS)) - 0.5
    above[-1] = 0.5
    return np.concatenate([-above[::-1], above]).astype(np.float32)


# What a level stands for: float32 [256], rising from -0.5 (surely out) over 0 (the threshold) to 0.5 (surely in): the
# probability less a half, of a class whose threshold is a half. Level k holds the logits x with
# k <= 256 * sigmoid(x / 2) < k + 1. So levels are 1/128 apart at the threshold and much closer near the ends: most
# surfaces run between a voxel that is nearly 1 and one that is nearly 0, and where, the small rest decides. Even steps
# of the probability moved the surface of thin organs (Dice 0.996 instead of 0.9995 for an adrenal gland at 3 mm).
LEVEL_VALUE = _level_values()


@dataclass(frozen=True, eq=False)
class SoftMask:
    """One class in the network's grid.

    box               where `level` lies in the whole grid; holds every voxel that is in, and a margin if there is room
    level             uint8 [X, Y, Z] of the box's shape; >= 128 is in
    mean_probability  mean network probability (0-1) over the voxels the network called, before any rule; NaN if none
    """

    box: Box
    level: LevelArray
    mean_probability: float = float("nan")

    def __post_init__(self) -> None:
        if self.level.shape != self.box.shape or self.level.dtype != np.uint8:
            raise ValueError(f"level is {self.level.dtype} {self.level.shape}, the box needs uint8 {self.box.shape}")

    @property
    def mask(self) -> BoolArray:
        """Which voxels of the box are in: bool [X, Y, Z]."""
        return self.level >= INSIDE

    def with_mask(self, mask: BoolArray) -> SoftMask:
        """The same class with exactly the voxels of `mask` (bool, the box's shape) in.

        Voxels that stay in or stay out keep their level; one taken out drops to 0, one put in rises to 255.
        """
        was = self.mask
        level = self.level.copy()
        level[was & ~mask] = 0
        level[mask & ~was] = 255
        return replace(self, level=level)

    def embedded_in(self, box: Box) -> SoftMask:
        """The same class in a larger `box` (0 where nothing was known)."""
        if box == self.box:
            return self
        level = np.zeros(box.shape, np.uint8)
        offset = triple(-a for a in box.start)
        if not self.box.is_empty:
            level[self.box.shifted(offset).slices] = self.level
        return replace(self, box=box, level=level)

    def shrunk(self) -> SoftMask:
        """The same class in the smallest box around its voxels, and one voxel more; a view, nothing is copied."""
        box = Box.around(self.mask)
        if box.is_empty:
            return replace(self, box=box, level=self.level[box.slices])
        box = box.grown(1, within=self.box.shape)
        return replace(self, box=box.shifted(self.box.start), level=self.level[box.slices])

    @staticmethod
    def empty() -> SoftMask:
        """A class that was computed and not found."""
        return SoftMask(Box((0, 0, 0), (0, 0, 0)), np.zeros((0, 0, 0), np.uint8))

    @staticmethod
    def of(mask: npt.ArrayLike) -> SoftMask:
        """A soft mask around a whole-grid boolean array [X, Y, Z] (levels 0 and 255)."""
        whole = np.asarray(mask, bool)
        box = Box.around(whole).grown(1, within=whole.shape)
        return SoftMask(box, np.where(whole[box.slices], np.uint8(255), np.uint8(0)))


class MaskSet(Mapping[str, SoftMask]):
    """All computed classes of one scan on one grid, by class key. A key that was not computed is absent.

    shape       voxels of the grid [X, Y, Z], RAS axes
    spacing_mm  distance between voxel centres
    """

    def __init__(self, shape: Triple, spacing_mm: SpacingMm, masks: Mapping[str, SoftMask]) -> None:
        self.shape = shape
        self.spacing_mm = spacing_mm
        self._masks = dict(masks)

    def __getitem__(self, key: str) -> SoftMask:
        return self._masks[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel of the grid."""
        return float(np.prod(self.spacing_mm))

    def changed(self, masks: Mapping[str, SoftMask]) -> MaskSet:
        """A new set in which `masks` replace or join the present ones."""
        return MaskSet(self.shape, self.spacing_mm, {**self._masks, **masks})

    def box(self, key: str) -> Box:
        """The smallest box around the voxels of class `key`; empty if it has none."""
        soft = self._masks[key]
        return Box.around(soft.mask).shifted(soft.box.start)

    def crop(self, key: str, box: Box) -> BoolArray:
        """Which voxels of `box` (anywhere in the grid) belong to class `key`: bool [X, Y, Z] of the box's shape."""
        soft = self._masks[key]
        out = np.zeros(box.shape, bool)
        shared = soft.box.shared_with(box)
        if not shared.is_empty:
            out[shared.seen_from(box.start).slices] = soft.level[shared.seen_from(soft.box.start).slices] >= INSIDE
        return out

    def whole(self, key: str) -> BoolArray:
        """Class `key` on the whole grid: bool [X, Y, Z]."""
        return self.crop(key, Box.whole(self.shape))


@dataclass(frozen=True, eq=False)
class Densities:
    """The scan on the grid of its masks: `hu` int16 [X, Y, Z], Hounsfield units, in `box`; beyond it lies air."""

    box: Box
    hu: npt.NDArray[np.int16]

    def crop(self, box: Box) -> npt.NDArray[np.int16]:
        """The densities in `box` (anywhere in the grid): int16 of the box's shape."""
        out = np.full(box.shape, BEYOND_HU, np.int16)
        shared = self.box.shared_with(box)
        if not shared.is_empty:
            out[shared.seen_from(box.start).slices] = self.hu[shared.seen_from(self.box.start).slices]
        return out
