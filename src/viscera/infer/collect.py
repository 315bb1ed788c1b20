"""From finished slabs of logits to one soft mask per class, keeping only what lies around the class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from viscera.errors import VisceraError
from viscera.infer.window import Slab
from viscera.masks import INSIDE, LevelArray, SoftMask
from viscera.shapes import Box, Triple, triple


@dataclass
class _Found:
    """What one class has gathered so far."""

    pieces: list[tuple[Box, LevelArray]] = field(default_factory=list)
    histogram: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))


class SoftMaskCollector:
    """Turns slabs of logits, fed from low z to high z for each class, into one `SoftMask` per class.

    A level is ``floor(256 * sigmoid(logit - logit(threshold)))``: 128 is reached exactly where the probability
    reaches the class's threshold. Of each slab only the box around the class is kept, and one voxel around it,
    which is all that interpolating the surface needs; so many classes cost little more than one.
    """

    def __init__(
        self, shape: Triple, thresholds: Sequence[float], keep_from: Sequence[float | None] | None = None
    ) -> None:
        """shape: the whole grid [X, Y, Z]; thresholds: one probability per class, 0 < threshold < 1.

        keep_from  per class the least probability whose voxels are kept, if that is below its threshold
        """
        self._shape = shape
        self._shift = [math.log(t / (1 - t)) for t in thresholds]
        self._probabilities = [level_probabilities(t) for t in thresholds]
        self._least = [  # levels
            INSIDE if least is None else min(INSIDE, int(np.searchsorted(of_level, least)))
            for of_level, least in zip(self._probabilities, keep_from or [None] * len(thresholds), strict=True)
        ]
        self._found = [_Found() for _ in thresholds]
        self._last: list[LevelArray | None] = [None] * len(self._shift)  # the slice below the coming slab, [X, Y]
        self._next_z = [0] * len(self._shift)

    def add(self, slab: Slab) -> None:
        """Takes one slab. Raises VisceraError if the network gave numbers that are not finite."""
        for k, logits in enumerate(slab.logits, start=slab.first_class):
            assert slab.z == self._next_z[k], "slabs must come in order"
            self._next_z[k] += logits.shape[-1]
            probability = (logits - self._shift[k]).sigmoid_()
            if not torch.isfinite(probability.sum()):
                raise VisceraError(
                    f"The network gave NaN for class number {k + 1} of those asked for near slice {slab.z} of its "
                    "grid. The weights are damaged, or bf16 overflowed: try --precision fp32."
                )
            level = probability.mul_(256).clamp_(max=255).to(torch.uint8).cpu().numpy()
            self._add_class(k, slab.z, level)

    def _add_class(self, k: int, z: int, level: LevelArray) -> None:
        found, below, least = self._found[k], self._last[k], self._least[k]
        around = Box.around(level >= least)
        if not around.is_empty:
            self._keep(found, level, around, z)
            inside = level[around.slices]
            found.histogram += np.bincount(inside.ravel(), minlength=256)
        if below is not None:
            # A surface between two slabs needs the neighbour's levels on both sides.
            self._keep(found, below, Box.around(level[:, :, :1] >= least), z - 1)
            self._keep(found, level[:, :, :1], Box.around(below >= least), z)
        self._last[k] = level[:, :, -1:].copy()

    @staticmethod
    def _keep(found: _Found, level: LevelArray, around: Box, z: int) -> None:
        if not around.is_empty:
            box = around.grown(1, within=triple(level.shape))
            found.pieces.append((box.shifted((0, 0, z)), level[box.slices].copy()))

    def finish(self) -> list[SoftMask]:
        """The soft masks, in the order of the thresholds."""
        assert set(self._next_z) <= {self._shape[2]}, "a slab is missing"
        return [self._assemble(k) for k in range(len(self._shift))]

    def _assemble(self, k: int) -> SoftMask:
        found = self._found[k]
        if not found.pieces:
            return SoftMask.empty()
        box = found.pieces[0][0]
        for piece, _ in found.pieces[1:]:
            box = box.union(piece)
        level = np.zeros(box.shape, np.uint8)
        back = triple(-a for a in box.start)
        for piece, values in found.pieces:
            level[piece.shifted(back).slices] = values
        found.pieces.clear()
        return SoftMask(box, level, self._mean_probability(k))

    def _mean_probability(self, k: int) -> float:
        counts = self._found[k].histogram[INSIDE:]
        called = counts.sum()
        return float((counts * self._probabilities[k][INSIDE:]).sum() / called) if called else math.nan


def level_probabilities(threshold: float) -> npt.NDArray[np.float64]:
    """The probability in the middle of each level of a class with this threshold: float64 [256], rising."""
    middle = (np.arange(256) + 0.5) / 256
    return np.asarray(1 / (1 + (1 - middle) / middle * (1 - threshold) / threshold))
