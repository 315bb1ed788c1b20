"""Small bodies in Hounsfield units and the awkward grids they may lie on. Hand-made, so that answers are known."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

Affine = npt.NDArray[np.float64]

ORDERS = [(axes, flips) for axes in permutations(range(3)) for flips in product((False, True), repeat=3)]  # all 48


def body(shape: tuple[int, int, int] = (24, 20, 12)) -> npt.NDArray[np.int16]:
    """A trunk [X, Y, Z], axes RAS: air around, a fat wall, soft tissue, a liver on the right, a spine at the back.

    No axis can be flipped or swapped unnoticed.
    """
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.hypot(x / 0.85, y / 0.75)
    hu = np.full(shape, -1000, np.int16)
    hu[radius < 1] = -100
    hu[radius < 0.85] = 40
    hu[(np.hypot(x - 0.35, y - 0.05) < 0.3) & (z > -0.4)] = 110  # liver: right, and missing in the lowest slices
    hu[np.hypot(x, y + 0.45) < 0.15] = 500  # spine
    hu[(np.hypot(x + 0.4, y - 0.2) < 0.12) & (z > 0.5)] = -850  # some lung or stomach gas: left, front, top
    return hu


def grid(
    spacing_mm: tuple[float, float, float] = (3.0, 3.5, 5.0),
    origin_mm: tuple[float, float, float] = (-31.0, 12.5, 700.0),
    turn_degrees: tuple[float, float, float] = (0.0, 0.0, 0.0),
    shear: float = 0.0,
) -> Affine:
    """A RAS affine: turned about x, then y, then z, and sheared (z leans towards y as under a tilted gantry)."""
    rotation = np.eye(3)
    for axis, degrees in enumerate(turn_degrees):
        angle = np.radians(degrees)
        turn = np.eye(3)
        a, b = [i for i in range(3) if i != axis]
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        rotation = turn @ rotation
    lean = np.eye(3)
    lean[1, 2] = shear
    out = np.eye(4)
    out[:3, :3] = rotation @ lean @ np.diag(spacing_mm)
    out[:3, 3] = origin_mm
    return out


GRIDS = {
    "plain": grid(),
    "thin": grid((0.5, 0.5, 10.0)),
    "oblique": grid(turn_degrees=(20, -15, 10)),
    "sheared": grid(shear=0.3),
    "oblique and sheared": grid(turn_degrees=(-12, 8, 25), shear=-0.2),
}


def stored_as(
    array: npt.NDArray[np.generic], affine: Affine, axes: tuple[int, ...], flips: tuple[bool, ...]
) -> tuple[npt.NDArray[np.generic], Affine]:
    """The same image with its axes stored in another order: new axis i is old axis ``axes[i]``, reversed if flipped.

    The affine follows from where the corner voxel and its neighbours come from: nothing is borrowed from the product.
    """
    out = array.transpose(axes)
    out = out[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]

    def old_index(new: tuple[int, ...]) -> npt.NDArray[np.float64]:
        old = np.zeros(3)
        for i in range(3):
            old[axes[i]] = out.shape[i] - 1 - new[i] if flips[i] else new[i]
        return old

    def place(new: tuple[int, ...]) -> npt.NDArray[np.float64]:
        where: npt.NDArray[np.float64] = (affine @ [*old_index(new), 1.0])[:3]
        return where

    moved = np.eye(4)
    moved[:3, 3] = place((0, 0, 0))
    for i in range(3):
        step = [0, 0, 0]
        step[i] = 1
        moved[:3, i] = place(tuple(step)) - moved[:3, 3]
    return out, moved


def nifti_file(path: Path, array: npt.NDArray[np.generic] | None = None, affine: Affine | None = None) -> Path:
    """A NIfTI file (.img: a pair) of the body on the plain grid, or of what is given, written by nibabel."""
    kind = nib.Nifti1Pair if path.name.endswith(".img") else nib.Nifti1Image
    nib.save(kind(body() if array is None else array, grid() if affine is None else affine), path)
    return path


def overwrite(path: Path, offset: int, value: bytes) -> Path:
    """The same file with other bytes at `offset`: for headers that no library would write."""
    content = bytearray(path.read_bytes())
    content[offset : offset + len(value)] = value
    path.write_bytes(content)
    return path
