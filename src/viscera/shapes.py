"""How arrays lie in memory, told once. Every module below keeps to it.

Frame    RAS+ millimetres: x grows to the patient's Right, y to Anterior, z to Superior.
Scan     ``array[x, y, z]`` in the scan's own axis order; `affine` (4x4) takes voxel index -> RAS mm.
Inside   ``[X, Y, Z]`` with axes already RAS (index grows to the right, front, head).
Network  ``[B, C, X, Y, Z]``: the same axes behind batch and channel.
Letters  B batch, C channels, K requested classes, N all classes of a model, D text vector length.
Boxes    half-open: ``start <= index < stop`` on each axis.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

Triple = tuple[int, int, int]
SpacingMm = tuple[float, float, float]


def triple(values: Iterable[int]) -> Triple:
    """Exactly three whole numbers as a tuple."""
    x, y, z = values
    return (int(x), int(y), int(z))


@dataclass(frozen=True)
class Box:
    """A half-open box of voxels, ``start <= index < stop`` on each of the three axes."""

    start: Triple
    stop: Triple

    def __post_init__(self) -> None:
        if any(a < 0 or b < a for a, b in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"not a box: start {self.start}, stop {self.stop}")

    @property
    def shape(self) -> Triple:
        return triple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        x, y, z = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return (x, y, z)

    @property
    def is_empty(self) -> bool:
        return 0 in self.shape

    def grown(self, voxels: int | Triple, within: Triple) -> Box:
        """This box with `voxels` more on every side, cut at the array's shape `within`."""
        margin = (voxels,) * 3 if isinstance(voxels, int) else voxels
        start = triple(max(0, a - m) for a, m in zip(self.start, margin, strict=True))
        stop = triple(min(n, b + m) for b, m, n in zip(self.stop, margin, within, strict=True))
        return Box(start, stop)

    def shifted(self, by: Triple) -> Box:
        """This box moved by `by` voxels."""
        start = triple(a + d for a, d in zip(self.start, by, strict=True))
        stop = triple(b + d for b, d in zip(self.stop, by, strict=True))
        return Box(start, stop)

    def union(self, other: Box) -> Box:
        """The smallest box that holds both."""
        start = triple(map(min, self.start, other.start))
        stop = triple(map(max, self.stop, other.stop))
        return Box(start, stop)

    def shared_with(self, other: Box) -> Box:
        """The box of the voxels that lie in both; empty at the origin if there are none."""
        start = triple(map(max, self.start, other.start))
        stop = triple(map(min, self.stop, other.stop))
        if any(a >= b for a, b in zip(start, stop, strict=True)):
            return Box((0, 0, 0), (0, 0, 0))
        return Box(start, stop)

    def seen_from(self, start: Triple) -> Box:
        """This box in an array whose first voxel is `start` of the grid."""
        return self.shifted(triple(-a for a in start))

    @staticmethod
    def whole(shape: tuple[int, ...]) -> Box:
        """The box of an entire array of three axes."""
        x, y, z = shape
        return Box((0, 0, 0), (x, y, z))

    @staticmethod
    def around(mask: npt.NDArray[Any]) -> Box:
        """The smallest box around the True (non-zero) voxels of `mask` [X, Y, Z]; empty at the origin if none."""
        import numpy as np

        # Reduce the axis with the longest steps first: whole rows of memory are or-ed at once.
        voxels: Any = np.asarray(mask, bool)
        order = sorted(range(3), key=lambda axis: -abs(voxels.strides[axis]))
        ordered = voxels.transpose(order)
        plane = ordered.any(axis=0)
        second, third = (np.flatnonzero(plane.any(axis=axis)) for axis in (1, 0))
        if second.size == 0:
            return Box((0, 0, 0), (0, 0, 0))
        inner = ordered[:, second[0] : second[-1] + 1, third[0] : third[-1] + 1]
        spans = dict(zip(order, (np.flatnonzero(inner.any(axis=(1, 2))), second, third), strict=True))
        return Box(
            triple(int(spans[axis][0]) for axis in range(3)), triple(int(spans[axis][-1]) + 1 for axis in range(3))
        )
