"""Which shapes, affines and spacings can be those of a scan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from viscera.errors import ImageError
from viscera.shapes import Triple, triple

SMALLEST_SPACING_MM = 0.01  # ten times finer than a micro-CT of a living body
LARGEST_SPACING_MM = 50.0
_SKEW = 1e-4  # axes whose cosines differ from 0 by more than this are sheared; float32 headers stay below 1e-6
_FLAT = 1e-3  # volume of the unit axes' parallelepiped below which they lie in one plane


def one_volume(shape: Sequence[int], name: str) -> tuple[Triple, tuple[str, ...]]:
    """The three axes of an image's shape and a note if more were given; ImageError unless it is one volume."""
    if len(shape) < 3 or min(shape) < 1:
        raise ImageError(f"{name} has shape {tuple(shape)}; a CT volume has three axes, each of at least one voxel.")
    if max(shape[3:], default=1) > 1:
        raise ImageError(
            f"{name} has shape {tuple(shape)}: several volumes in one. viscera takes one at a time; "
            "save one of them to a file of its own, for example with nibabel.funcs.four_to_three."
        )
    notes = (f"The shape {tuple(shape)} was taken as {tuple(shape[:3])}.",) if len(shape) > 3 else ()
    return triple(shape[:3]), notes


def unit_axes(affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The directions of the voxel axes as unit columns [RAS, axis]."""
    axes: npt.NDArray[np.float64] = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return axes


def is_orthonormal(affine: npt.NDArray[np.float64]) -> bool:
    """Whether the voxel axes stand at right angles; False for a sheared grid (gantry tilt)."""
    axes = unit_axes(affine)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() < _SKEW)


def require_geometry(affine: npt.NDArray[np.float64], name: str) -> None:
    """Raise ImageError unless `affine` is a 4x4 map from voxels to mm with three independent, plausible axes.

    Oblique, left-handed and sheared grids are fine.
    """
    way_out = "Convert the scan again from its source, or set the affine to what the scanner said."
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise ImageError(f"The affine of {name} is not a 4x4 matrix of finite numbers:\n{affine}\n{way_out}")
    if not np.array_equal(affine[3], (0, 0, 0, 1)):
        raise ImageError(f"The last row of the affine of {name} is {affine[3]}, not 0 0 0 1. {way_out}")
    with np.errstate(over="ignore"):  # damaged headers hold numbers like 1e300
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
    shown = " x ".join(f"{s:.4g}" for s in spacing)
    if spacing.all() and not (spacing.min() >= SMALLEST_SPACING_MM and spacing.max() <= LARGEST_SPACING_MM):
        raise ImageError(
            f"The voxels of {name} measure {shown} mm; each side must lie between {SMALLEST_SPACING_MM} and "
            f"{LARGEST_SPACING_MM} mm. Are the units millimetres? {way_out}"
        )
    if not spacing.all() or abs(np.linalg.det(unit_axes(affine))) < _FLAT:
        raise ImageError(
            f"The affine of {name} is singular: its voxel axes do not span space (spacing {shown} mm). {way_out}"
        )
