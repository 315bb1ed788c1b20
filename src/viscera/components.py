"""Connected components of boolean masks [X, Y, Z]: voxels that share a face, an edge or a corner belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from viscera.masks import BoolArray
from viscera.shapes import Box

CONNECTIVITY = 26  # faces, edges and corners
_SLAB = 64  # slices labelled at once where only the number of components is asked for


@dataclass(frozen=True, eq=False)
class Components:
    """The components of a mask.

    labels   [X, Y, Z], 0 outside, 1..count inside, numbered in scan order: that in which the mask lies in memory
    voxels   int64 [count]
    centres  float64 [count, 3]: mean voxel index of each
    boxes    the box around each
    """

    labels: npt.NDArray[np.unsignedinteger]
    voxels: npt.NDArray[np.int64]
    centres: npt.NDArray[np.float64]
    boxes: tuple[Box, ...]

    def __len__(self) -> int:
        return len(self.voxels)

    def by_size(self) -> list[int]:
        """Component numbers from the largest to the smallest; of equals the first in scan order."""
        return [int(i) + 1 for i in np.argsort(-self.voxels, kind="stable")]


def labelled(mask: npt.ArrayLike) -> tuple[npt.NDArray[np.unsignedinteger], int]:
    """The components of `mask` [X, Y, Z] as labels 1..count in scan order (0 outside), and their count."""
    voxels = np.asarray(mask, bool)
    # cc3d 4.1 fails on a single line of voxels such as 1, 0, 1; an empty layer beside it helps.
    is_line = voxels.size > 0 and sum(side > 1 for side in voxels.shape) < 2
    given: Any = np.pad(voxels, (0, 1)) if is_line else voxels
    labels, count = cc3d.connected_components(given, connectivity=CONNECTIVITY, return_N=True)  # type: ignore[call-overload]
    return labels[tuple(slice(side) for side in voxels.shape)], count


def components(mask: npt.ArrayLike) -> Components:
    """All components of `mask` [X, Y, Z], labelled in one pass. An empty mask has none."""
    labels, count = labelled(mask)
    if count == 0:
        return Components(labels, np.zeros(0, np.int64), np.zeros((0, 3)), ())
    found = cc3d.statistics(labels)
    boxes = tuple(Box((x.start, y.start, z.start), (x.stop, y.stop, z.stop)) for x, y, z in found["bounding_boxes"][1:])
    return Components(labels, found["voxel_counts"][1:].astype(np.int64), found["centroids"][1:], boxes)


def count_components(mask: BoolArray) -> int:
    """How many components `mask` [X, Y, Z] has, in the memory of a few slices' labels."""
    total, joined = 0, []  # components of the slabs, and which of them are one
    last: npt.NDArray[np.int64] | None = None  # the numbers in the slice before, 0 outside
    for z in range(0, mask.shape[2], _SLAB):
        # As it lies in memory: cc3d would first turn over a view. What the order changes are the numbers alone.
        labels, count = labelled(mask[:, :, z : z + _SLAB].copy(order="K"))
        numbers = np.where(labels[:, :, [0, -1]], labels[:, :, [0, -1]] + np.int64(total), 0)
        if last is not None:
            joined.append(_touching(last, numbers[..., 0]))
        last, total = numbers[..., 1], total + count
    if not joined:
        return total
    first, second = np.concatenate(joined).T - 1
    links = coo_array((np.ones(len(first), bool), (first, second)), shape=(total, total))
    count, _ = connected_components(links, directed=False)
    return int(count)


def _touching(below: npt.NDArray[np.int64], above: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Which labels of two neighbouring slices [X, Y] touch by face, edge or corner: pairs [N, 2], each once."""
    nx, ny = below.shape
    most = int(above.max(initial=0)) + 1
    pairs = []  # two labels as one number, which sorts far faster than two
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            a = below[max(0, dx) : nx + dx, max(0, dy) : ny + dy]
            b = above[max(0, -dx) : nx - dx, max(0, -dy) : ny - dy]
            both = (a > 0) & (b > 0)
            pairs.append(np.unique(a[both] * most + b[both]))
    return np.stack(np.divmod(np.unique(np.concatenate(pairs)), most), 1)


def largest_component(mask: BoolArray) -> BoolArray:
    """Only the component with the most voxels, of equals the first in scan order; an empty mask stays empty."""
    box = Box.around(mask)
    out = np.zeros(mask.shape, bool)
    if box.is_empty:
        return out
    labels, voxels = _counted(mask[box.slices])
    out[box.slices] = labels == voxels[1:].argmax() + 1
    return out


def without_small(mask: BoolArray, least_voxels: float) -> BoolArray:
    """`mask` without the components that have fewer than `least_voxels` voxels."""
    labels, voxels = _counted(mask)
    keep = voxels >= least_voxels
    keep[0] = False
    kept: BoolArray = keep[labels]
    return kept


def _counted(mask: BoolArray) -> tuple[npt.NDArray[np.unsignedinteger], npt.NDArray[np.int64]]:
    """Labels, and the voxels of each label from 0 (outside) on.

    Noise has hundreds of thousands of components: the boxes of `components`, one object each, would cost far more.
    """
    labels, _ = labelled(mask)
    return labels, cc3d.statistics(labels, no_slice_conversion=True)["voxel_counts"].astype(np.int64)
