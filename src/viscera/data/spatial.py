"""Turning, scaling and bending a patch: one resampling for image and labels, however many changes are drawn.

A `SpatialPlan` says for every voxel of the patch where in the scan it comes from:

    scan voxel = centre + matrix @ (patch voxel - patch middle) + displacement(patch voxel)

Draw and application are apart: a plan can be kept, looked at and applied again. What lies beyond the scan is air
that belongs to nothing, as the network sees it at inference.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from viscera.data.drawing import CodeArray
from viscera.io.volume import AIR_HU
from viscera.shapes import Box, Triple, triple

Matrix = npt.NDArray[np.float64]

# A cubic B-spline deformation does not fold while no control point moves further than this share of their distance
# (Choi and Lee, "Injectivity conditions of 2D and 3D uniform cubic B-spline functions", Graphical Models 2000).
LARGEST_BEND = 0.40


@dataclass(frozen=True, eq=False)
class SpatialPlan:
    """A drawn geometric change.

    matrix         3x3: a step in the patch -> a step in the scan, both in voxels
    control        displacement of the control points in scan voxels, float32 [3, gx, gy, gz]; None: no bending
    control_step   patch voxels from one control point to the next
    mirrored       left and right are exchanged: the targets of paired organs must be, too
    """

    matrix: Matrix = field(default_factory=lambda: np.eye(3))
    control: torch.Tensor | None = None
    control_step: float = 32.0
    mirrored: bool = False

    @property
    def is_crop(self) -> bool:
        """Whether the patch is a plain crop of the scan."""
        return self.control is None and np.array_equal(self.matrix, np.eye(3))

    def source_box(self, centre: tuple[float, float, float], patch_voxels: Triple) -> tuple[Triple, Triple]:
        """First and past-the-last scan voxel that the patch may look at on each axis; may lie outside the scan."""
        if self.is_crop:
            return patch_box(centre, patch_voxels)
        half = (np.array(patch_voxels) - 1) / 2
        reach = np.abs(self.matrix) @ half
        if self.control is not None:
            # A B-spline never leaves the range of its control points.
            reach = reach + self.control.abs().flatten(1).amax(1).numpy()
        start = np.floor(np.array(centre) - reach).astype(int)
        stop = np.ceil(np.array(centre) + reach).astype(int) + 2
        return triple(start), triple(stop)


def control_shape(patch_voxels: Triple, step: float) -> Triple:
    """How many control points a cubic B-spline over the patch has on each axis."""
    return triple(int((p - 1) / step) + 4 for p in patch_voxels)


def apply_spatial(
    hu: npt.NDArray[Any],
    codes: CodeArray,
    start: Triple,
    plan: SpatialPlan,
    centre: tuple[float, float, float],
    patch_voxels: Triple,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The patch of a plan from a crop of the scan whose first voxel is the scan's `start`.

    hu, codes  the crop [X, Y, Z]: at least what lies of `plan.source_box` inside the scan
    Returns HU float32 and codes int32, both [X, Y, Z] of the patch: linear for the image, nearest for the codes.
    """
    if min(hu.shape) == 0:
        return torch.full(patch_voxels, AIR_HU), torch.zeros(patch_voxels, dtype=torch.int32)
    if plan.is_crop:
        return _cropped(hu, codes, start, patch_box(centre, patch_voxels))
    thick = [max(n, 2) for n in hu.shape]  # a crop one voxel thick is doubled: it has no scale of its own
    grid = _sampling_grid(plan, np.array(centre) - np.array(start), patch_voxels, thick)[None]
    above_air = _thickened(torch.from_numpy(hu.astype(np.float32)).sub_(AIR_HU), thick)
    drawn = _thickened(torch.from_numpy(codes.astype(np.float32)), thick)
    image = functional.grid_sample(above_air[None, None], grid, mode="bilinear", align_corners=True)[0, 0]
    labels = functional.grid_sample(drawn[None, None], grid, mode="nearest", align_corners=True)[0, 0]
    return image.add_(AIR_HU), labels.to(torch.int32)


def patch_box(centre: tuple[float, float, float], patch_voxels: Triple) -> tuple[Triple, Triple]:
    """Where a patch that is not turned or scaled begins and ends, in voxels; may lie outside the scan."""
    start = triple(round(c - (p - 1) / 2) for c, p in zip(centre, patch_voxels, strict=True))
    return start, triple(a + p for a, p in zip(start, patch_voxels, strict=True))


def inside(start: Triple, stop: Triple, shape: Triple) -> Box:
    """The part of a box that lies inside an array; empty at its edge if none does."""
    low = triple(min(max(a, 0), n) for a, n in zip(start, shape, strict=True))
    high = triple(min(max(b, a), n) for b, a, n in zip(stop, low, shape, strict=True))
    return Box(low, high)


def _cropped(
    hu: npt.NDArray[Any], codes: CodeArray, start: Triple, patch: tuple[Triple, Triple]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The voxels of `patch` (first and past-the-last scan voxel) from a crop that begins at the scan's `start`."""
    size = triple(b - a for a, b in zip(*patch, strict=True))
    low = triple(a - s for a, s in zip(patch[0], start, strict=True))
    high = triple(b - s for b, s in zip(patch[1], start, strict=True))
    have = inside(low, high, triple(hu.shape))
    image, labels = torch.full(size, AIR_HU), torch.zeros(size, dtype=torch.int32)
    at = have.shifted(triple(-a for a in low)).slices
    image[at] = torch.from_numpy(hu[have.slices].astype(np.float32))
    labels[at] = torch.from_numpy(codes[have.slices].astype(np.int32))
    return image, labels


def _sampling_grid(plan: SpatialPlan, centre: Matrix, patch_voxels: Triple, crop: list[int]) -> torch.Tensor:
    """Where in the crop each patch voxel comes from, as grid_sample wants it: float32 [X, Y, Z, 3].

    The last axis first; -1 is the centre of the crop's first voxel on an axis, 1 that of its last.
    """
    bent = None
    if plan.control is not None:
        basis = [_bspline(p, plan.control_step) for p in patch_voxels]
        bent = torch.einsum("xa,nabc->nxbc", basis[0], plan.control)
        bent = torch.einsum("yb,nxbc->nxyc", basis[1], bent)
    grid = torch.empty(*patch_voxels, 3)
    for place, axis in enumerate((2, 1, 0)):
        scale = 2.0 / (crop[axis] - 1)
        x, y, z = (
            torch.from_numpy(((np.arange(p) - (p - 1) / 2) * plan.matrix[axis, along] * scale).astype(np.float32))
            for along, p in enumerate(patch_voxels)
        )
        at = (x + float(centre[axis] * scale - 1))[:, None, None] + y[:, None] + z
        if bent is not None:
            at += (bent[axis] * scale) @ basis[2].T
        grid[..., place] = at
    return grid


def _bspline(voxels: int, step: float) -> torch.Tensor:
    """Uniform cubic B-spline basis at each voxel: float32 [voxels, control points]; rows sum to 1."""
    position = np.arange(voxels) / step
    first = position.astype(int)
    t = position - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    basis = np.zeros((voxels, int((voxels - 1) / step) + 4), np.float32)
    np.put_along_axis(basis, first[:, None] + np.arange(4), weights.astype(np.float32), axis=1)
    return torch.from_numpy(basis)


def _thickened(values: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """`values` with zeros behind it up to `shape`."""
    pad = [
        side for have, want in zip(reversed(values.shape), reversed(shape), strict=True) for side in (0, want - have)
    ]
    return functional.pad(values, pad) if any(pad) else values


def rotation(degrees: tuple[float, float, float]) -> Matrix:
    """Turning about x, then y, then z by these angles: 3x3."""
    out = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        out = turn @ out
    return out
