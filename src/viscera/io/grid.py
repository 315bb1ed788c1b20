"""From the scan's grid to the network's and back: resampling.

Both grids share the centre of voxel 0 and the directions of the axes; they differ in spacing only. Output voxel
`i` at spacing `t` looks at input coordinate ``i * t / s`` (s: input spacing), and coordinates beyond the last
voxel's centre take the last voxel's value:

    input   s = 2 mm    0   1   2   3      4 voxels, centres 0 2 4 6 mm
    output  t = 3 mm    0     1     2      centres 0 3 6 mm  ->  coordinates 0, 1.5, 3

Linear interpolation is separable, so each axis is one short weighted sum (`AxisTaps`), and a scan is taken slab by
slab: a 512 x 512 x 1024 scan never becomes a float array of that size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from viscera.io.aside import in_slabs, let_slab_go
from viscera.masks import LEVEL_VALUE, BoolArray, SoftMask
from viscera.shapes import Box, SpacingMm, Triple, triple
from viscera.threads import in_threads

NOWHERE = Box((0, 0, 0), (0, 0, 0))
_PROCESSOR = torch.device("cpu")
# Slices of an image taken at once: 25 MB of 512 x 512 float32. From 32 MiB on every array would come from the system
# anew, page by page, and where slabs are thin, many sums are made twice.
_SLAB = 24
_MASK_SLAB = 4  # slices of a mask: they share no sums with their neighbours, and stay in the cache


@dataclass(frozen=True, eq=False)
class AxisTaps:
    """A resampled axis: output `i` is the sum over k of ``weight[i, k] * input[index[i, k]]``."""

    index: torch.Tensor  # int64 [n_out, taps]
    weight: torch.Tensor  # float32 [n_out, taps]; each row sums to 1

    def __call__(self, values: torch.Tensor, axis: int) -> torch.Tensor:
        """`values` (floating point) resampled along `axis`."""
        shape = [1] * values.dim()
        shape[axis] = -1
        out = values.index_select(axis, self.index[:, 0]).mul_(self.weight[:, 0].view(shape))
        for tap in range(1, self.index.shape[1]):
            out.addcmul_(values.index_select(axis, self.index[:, tap]), self.weight[:, tap].view(shape))
        return out

    def matrix(self, n_in: int) -> torch.Tensor:
        """The same as a matrix [n_in, n_out] to multiply an array's last axis with: voxels that lie one after the other
        in memory are slow to gather."""
        return torch.zeros(len(self.index), n_in).scatter_add_(1, self.index, self.weight).T.contiguous()


def linear_taps(coordinates: npt.NDArray[np.floating[Any]], n_in: int) -> AxisTaps:
    """Linear interpolation at `coordinates` (input voxels, any order) of an axis of `n_in` voxels."""
    inside = np.clip(coordinates, 0, n_in - 1)
    low = np.minimum(inside.astype(np.int64), max(n_in - 2, 0))
    high = np.minimum(low + 1, n_in - 1)
    part = (inside - low).astype(np.float32)
    return AxisTaps(
        torch.from_numpy(np.stack([low, high], 1)), torch.from_numpy(np.stack([1 - part, part], 1).astype(np.float32))
    )


def mean_taps(coordinates: npt.NDArray[np.floating[Any]], n_in: int, step: float) -> AxisTaps:
    """Linear interpolation whose triangle is widened to `step` input voxels: averages noise when shrinking.

    The same filter as Pillow's and torch's ``antialias=True`` for linear resizing.
    """
    if step <= 1:
        return linear_taps(coordinates, n_in)
    inside = np.clip(coordinates, 0, n_in - 1)
    reach = np.arange(int(np.ceil(2 * step)) + 1)
    index = np.floor(inside - step).astype(np.int64)[:, None] + 1 + reach
    weight = np.clip(1 - np.abs(index - inside[:, None]) / step, 0, None)
    weight[(index < 0) | (index >= n_in)] = 0
    weight /= weight.sum(1, keepdims=True)
    return AxisTaps(torch.from_numpy(index.clip(0, n_in - 1)), torch.from_numpy(weight.astype(np.float32)))


def resampled_shape(shape: Sequence[int], spacing_mm: SpacingMm, new_spacing_mm: SpacingMm) -> Triple:
    """How many voxels of `new_spacing_mm` cover the centres of an image of `shape` and `spacing_mm`."""
    return triple(round((n - 1) * s / t) + 1 for n, s, t in zip(shape, spacing_mm, new_spacing_mm, strict=True))


def resample_image(
    array: npt.NDArray[Any], spacing_mm: SpacingMm, new_spacing_mm: SpacingMm, *, smooth: bool = False
) -> npt.NDArray[np.float32]:
    """An image [X, Y, Z] at `new_spacing_mm`, float32, linearly interpolated.

    smooth  average over the new voxel's surroundings on axes that shrink (see `mean_taps`), so that thin
            slices' noise does not alias into coarse voxels; plain interpolation when False.
    """
    shape = resampled_shape(array.shape, spacing_mm, new_spacing_mm)
    taps = []
    for n_in, n_out, s, t in zip(array.shape, shape, spacing_mm, new_spacing_mm, strict=True):
        step = t / s
        coordinates = np.arange(n_out) * step
        taps.append(mean_taps(coordinates, n_in, step) if smooth else linear_taps(coordinates, n_in))
    out = torch.empty(shape)
    block = max(1, int(_SLAB * spacing_mm[2] / new_spacing_mm[2]))
    for z in range(0, shape[2], block):
        index, weight = taps[2].index[z : z + block], taps[2].weight[z : z + block]
        first, end = int(index.min()), int(index.max()) + 1
        slab = array[:, :, first:end].astype(np.float32, order="K")
        let_slab_go(array)
        # In the order in which it lies in memory: turning a large slab over takes longer than all the sums.
        order = sorted(range(3), key=lambda axis: -slab.strides[axis])
        values = torch.from_numpy(slab.transpose(order))
        for axis, own in ((1, taps[1]), (2, AxisTaps(index - first, weight)), (0, taps[0])):
            values = own(values, order.index(axis))
        out[:, :, z : z + block] = values.permute([order.index(axis) for axis in range(3)])
    result: npt.NDArray[np.float32] = out.numpy()
    return result


def resample_labels(array: npt.NDArray[Any], spacing_mm: SpacingMm, new_spacing_mm: SpacingMm) -> npt.NDArray[Any]:
    """A label map [X, Y, Z] at `new_spacing_mm`, same dtype: the value of the nearest input voxel."""
    shape = resampled_shape(array.shape, spacing_mm, new_spacing_mm)
    index = [
        np.clip(np.rint(np.arange(n_out) * t / s).astype(np.int64), 0, n_in - 1)
        for n_in, n_out, s, t in zip(array.shape, shape, spacing_mm, new_spacing_mm, strict=True)
    ]
    return array[np.ix_(*index)]


def imaged_box(hu: npt.NDArray[Any]) -> Box:
    """What is left of an image [X, Y, Z] without the planes of a single value at its ends: they are filling, no image.

    All of it where every plane is such.
    """
    start, stop = [0, 0, 0], list(hu.shape)
    for axis in range(3):
        planes = np.split(hu, hu.shape[axis], axis)  # views
        while stop[axis] > start[axis] and _is_constant(planes[stop[axis] - 1]):
            stop[axis] -= 1
        while stop[axis] > start[axis] and _is_constant(planes[start[axis]]):
            start[axis] += 1
    box = Box(triple(start), triple(stop))
    return Box.whole(hu.shape) if box.is_empty else box


def _is_constant(plane: npt.NDArray[Any]) -> bool:
    """plane: [X, Y, Z], one voxel thick on one axis; of a scan set aside, a plane along z touches every page."""
    value = plane[0, 0, 0]
    return all((part == value).all() for _, part in in_slabs(plane))


def mask_on_scan(
    soft: SoftMask, grid_shape: Triple, grid_spacing_mm: SpacingMm, scan_shape: Triple, scan_spacing_mm: SpacingMm
) -> tuple[Box, BoolArray]:
    """A class of the network's grid on the scan's grid (RAS axes both): the box there and which of its voxels are in.

    What the levels stand for is interpolated, so the surface lies where the network put it, not on its voxel edges.
    What lies exactly there is out: mostly it is half-way between a voxel that is wholly in and one that is wholly out,
    and networks are surer of what is out. One class and one slab at a time: memory is that of the class's own box.
    """
    if not soft.mask.any():
        return NOWHERE, np.zeros(NOWHERE.shape, bool)
    box, value = _values(soft, grid_shape, grid_spacing_mm, scan_shape, scan_spacing_mm)
    mask = np.empty(box.shape, bool, order="F")

    def fill(z: slice) -> None:
        np.greater(value(z), 0, out=mask[:, :, z])

    in_threads(fill, _mask_slabs(box), _PROCESSOR)
    return box, mask


def values_on_scan(
    soft: SoftMask, grid_shape: Triple, grid_spacing_mm: SpacingMm, scan_shape: Triple, scan_spacing_mm: SpacingMm
) -> tuple[Box, Iterator[tuple[int, npt.NDArray[np.float32]]]]:
    """As `mask_on_scan`, but what the levels stand for (`viscera.masks.LEVEL_VALUE`), interpolated: the box, and slab
    by slab the first slice in it and float32 [X, Y, slices]; above 0 is the mask.

    Mask and slabs lie in memory as a scan does in a file, x first: nothing has to be turned over on its way there.
    """
    box, value = _values(soft, grid_shape, grid_spacing_mm, scan_shape, scan_spacing_mm)
    return box, ((z.start, value(z)) for z in _mask_slabs(box))


def _mask_slabs(box: Box) -> list[slice]:
    return [slice(z, min(z + _MASK_SLAB, box.shape[2])) for z in range(0, box.shape[2], _MASK_SLAB)]


def _values(
    soft: SoftMask, grid_shape: Triple, grid_spacing_mm: SpacingMm, scan_shape: Triple, scan_spacing_mm: SpacingMm
) -> tuple[Box, Callable[[slice], npt.NDArray[np.float32]]]:
    """What `values_on_scan` hands out: the box, and its values in some of its slices."""
    nothing = NOWHERE, lambda _: np.zeros(NOWHERE.shape, np.float32)
    if soft.box.is_empty:
        return nothing
    soft = soft.embedded_in(soft.box.grown(1, within=grid_shape))
    start, stop, taps = [], [], []
    for axis in range(3):
        n_scan, n_grid = scan_shape[axis], grid_shape[axis]
        first, end = soft.box.start[axis], soft.box.stop[axis]
        coordinates = np.arange(n_scan) * (scan_spacing_mm[axis] / grid_spacing_mm[axis])
        # Beyond the last grid voxel the scan takes that voxel's value, if the box reaches that far.
        upper = np.inf if end == n_grid else end - 1
        chosen = np.flatnonzero((coordinates >= first) & (coordinates <= upper))
        if chosen.size == 0:
            return nothing
        start.append(int(chosen[0]))
        stop.append(int(chosen[-1]) + 1)
        taps.append(linear_taps(coordinates[chosen] - first, end - first))
    box = Box(triple(start), triple(stop))

    level = torch.from_numpy(LEVEL_VALUE.take(soft.level.T)).contiguous()  # [z, y, x]: x as close as in a file
    of_x = taps[0].matrix(level.shape[2])

    def value(z: slice) -> npt.NDArray[np.float32]:
        part = AxisTaps(taps[2].index[z], taps[2].weight[z])
        found: npt.NDArray[np.float32] = taps[1](part(level, 0) @ of_x, 1).numpy().T
        return found

    return box, value
