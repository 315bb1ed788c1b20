"""From finished slabs of logits to one soft mask per class, keeping only what lies around the class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from viscera.errors import VisceraError
from viscera.heap import apart
from viscera.infer.window import Slab
from viscera.masks import INSIDE, LEVEL_STEEPNESS, LEVEL_VALUE, BoolArray, LevelArray, SoftMask
from viscera.shapes import Box, Triple, triple
from viscera.threads import in_threads

_ROUNDING = 1e-3  # far more than what float32 loses on the way from a logit to its level


@dataclass
class _Found:
    """What one class has gathered so far."""

    pieces: list[tuple[Box, LevelArray]] = field(default_factory=list)
    called: int = 0  # voxels that are in
    above: float = 0.0  # the sum of their probabilities' distances to the threshold


class SoftMaskCollector:
    """Turns slabs of logits, fed from low z to high z for each class, into one `SoftMask` per class.

    A level is ``floor(256 * sigmoid((logit - logit(threshold)) / 2))`` (see `viscera.masks`): 128 is reached exactly
    where the probability reaches the class's threshold. Of each slab only the box around the class is kept, and one
    voxel around it, which is all that interpolating the surface needs; so many classes cost little more than one.
    """

    def __init__(
        self, shape: Triple, thresholds: Sequence[float], keep_from: Sequence[float | None] | None = None
    ) -> None:
        """shape: the whole grid [X, Y, Z]; thresholds: one probability per class, 0 < threshold < 1.

        keep_from  per class the least probability whose voxels are kept, if that is below its threshold
        """
        self._shape = shape
        self._shift = [math.log(t / (1 - t)) for t in thresholds]
        self._thresholds = list(thresholds)
        self._least = [  # levels
            INSIDE if least is None else min(INSIDE, int(np.searchsorted(level_probabilities(threshold), least)))
            for threshold, least in zip(thresholds, keep_from or [None] * len(thresholds), strict=True)
        ]
        # No logit below this one reaches the least level; rounding is left to the levels themselves.
        self._bound = [
            shift + math.log(least / (256 - least)) / LEVEL_STEEPNESS - _ROUNDING if least else -math.inf
            for shift, least in zip(self._shift, self._least, strict=True)
        ]
        self._found = [_Found() for _ in thresholds]
        self._last: list[torch.Tensor | None] = [None] * len(self._shift)  # logits [X, Y, 1] below the coming slab
        self._next_z = [0] * len(self._shift)

    def add(self, slab: Slab) -> None:
        """Takes one slab. Raises VisceraError if the network gave numbers that are not finite."""
        rows = range(len(slab.logits))
        in_threads(lambda row: self._add(slab.first_class + row, slab.z, slab.logits[row]), rows, slab.logits.device)

    def _add(self, k: int, z: int, logits: torch.Tensor) -> None:
        assert z == self._next_z[k], "slabs must come in order"
        self._next_z[k] += logits.shape[-1]
        top = float(logits.amax())
        if math.isnan(top):
            raise VisceraError(
                f"The network gave NaN for class number {k + 1} of those asked for near slice {z} of its "
                "grid. The weights are damaged, or bf16 overflowed: try --precision fp32."
            )
        if top >= self._bound[k]:
            self._keep_inside(k, z, logits)
        below, first = self._last[k], logits[:, :, :1]
        if below is not None:
            self._keep_between(k, z, torch.cat([below, first], -1))
        self._last[k] = apart(logits[:, :, -1:])

    def _keep_inside(self, k: int, z: int, logits: torch.Tensor) -> None:
        """Keeps the levels around what is in of a slab; only there are they computed."""
        near = Box.around(_reaching(logits, self._bound[k])).grown(1, within=triple(logits.shape))
        logits = logits[near.slices]
        level = self._levels(k, logits)
        around = Box.around(level >= self._least[k])
        if not around.is_empty:
            found, threshold = self._found[k], self._thresholds[k]
            found.called += int(np.count_nonzero(level >= INSIDE))
            found.above += float(logits.sigmoid().sub_(threshold).relu_().sum())
            x, y, above = near.start
            self._keep(k, level, around, (x, y, z + above))

    def _keep_between(self, k: int, z: int, logits: torch.Tensor) -> None:
        """Keeps the levels of slices z - 1 and z, logits [X, Y, 2], each around what is in of the other one: a surface
        between two slabs needs the neighbour's levels on both sides."""
        if float(logits.amax()) >= self._bound[k]:
            level = self._levels(k, logits)
            inside = level >= self._least[k]
            self._keep(k, level[..., :1], Box.around(inside[..., 1:]), (0, 0, z - 1))
            self._keep(k, level[..., 1:], Box.around(inside[..., :1]), (0, 0, z))

    def _levels(self, k: int, logits: torch.Tensor) -> LevelArray:
        level: LevelArray = (
            (logits - self._shift[k])
            .mul_(LEVEL_STEEPNESS)
            .sigmoid_()
            .mul_(256)
            .clamp_(max=255)
            .cpu()
            .numpy()
            .astype(np.uint8)
        )
        return level

    def _keep(self, k: int, level: LevelArray, around: Box, start: Triple) -> None:
        """Keeps `level`, whose first voxel is `start` of the grid, around the box `around` of it."""
        if not around.is_empty:
            box = around.grown(1, within=triple(level.shape))
            self._found[k].pieces.append((box.shifted(start), apart(torch.from_numpy(level[box.slices])).numpy()))

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
        found = self._found[k]
        return self._thresholds[k] + found.above / found.called if found.called else math.nan


def _reaching(logits: torch.Tensor, least: float) -> BoolArray:
    """Which logits reach `least`."""
    if logits.device.type == "cpu":
        reaching: BoolArray = logits.numpy() >= least  # several times faster than torch's
        return reaching
    return (logits >= least).cpu().numpy()


def level_probabilities(threshold: float) -> npt.NDArray[np.float64]:
    """The probability that each level of a class with this threshold stands for: float64 [256], rising from 0 to 1."""
    return probability_of(LEVEL_VALUE.astype(np.float64), threshold)


def probability_of(value: npt.NDArray[np.floating[Any]], threshold: float) -> npt.NDArray[Any]:
    """The probabilities of a class with this threshold where what its levels stand for (`viscera.masks.LEVEL_VALUE`),
    or what was interpolated between them, is `value`: the same type and shape."""
    above, below = (0.5 + value) * threshold, (0.5 - value) * (1 - threshold)
    return above / (above + below)
