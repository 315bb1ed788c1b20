"""Connected components of boolean masks [X, Y, Z]: voxels that share a face, an edge or a corner belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
import numpy.typing as npt

from viscera.masks import BoolArray
from viscera.shapes import Box

CONNECTIVITY = 26  # faces, edges and corners


@dataclass(frozen=True, eq=False)
class Components:
    """The components of a mask.

    labels   [X, Y, Z], 0 outside, 1..count inside, numbered in scan order
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
