"""One grid for both sides: a prediction on the voxels of its reference, never voxel by voxel across two grids.

The reference's grid is the truth's, so scores are taken there. A prediction on the same grid is left alone. One in
another axis order, spacing or crop is looked up at the nearest voxel, and a note says so; where the reference
reaches beyond it, nothing was predicted. Two images that share no space are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from viscera.errors import ImageError
from viscera.io.orientation import closest_to_ras
from viscera.shapes import Box, Triple

FloatArray = npt.NDArray[np.float64]

SAME_GRID_VOXELS = 0.01  # corners nearer than this share of a voxel are equal: float32 headers differ by less
_SLAB_VOXELS = 1 << 21  # voxels looked up at once on oblique grids


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels lie: how many along each axis, and the affine (4x4) from voxel index to RAS mm."""

    shape: Triple
    affine: FloatArray

    def corners(self) -> FloatArray:
        """Centres of the eight corner voxels in mm: [8, 3]."""
        index = np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in self.shape))], np.float64)
        return np.asarray((index @ self.affine.T)[:, :3])

    @property
    def spacing_mm(self) -> FloatArray:
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    def cropped(self, box: Box) -> Grid:
        """The grid of the voxels in `box`."""
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ box.start
        return Grid(box.shape, affine)

    def is_same(self, other: Grid) -> bool:
        """Whether both hold the same voxels in the same order."""
        if self.shape != other.shape:
            return False
        apart_mm = np.linalg.norm(self.corners() - other.corners(), axis=1).max()
        return bool(apart_mm <= SAME_GRID_VOXELS * self.spacing_mm.min())

    @property
    def axes(self) -> str:
        """Where the three axes grow to: "RAS", "LPS" ..."""
        way = closest_to_ras(self.affine)
        names = [("R", "A", "S"), ("L", "P", "I")]
        return "".join(names[way.flips[ras]][ras] for ras in np.argsort(way.axes))


@dataclass(frozen=True, eq=False)
class Lookup:
    """How to bring arrays from the grid `of` to the grid `to`; `note` says in words what that is, "" if nothing."""

    of: Grid
    to: Grid
    note: str

    def __call__(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """`array` (of the shape of `of`) on the grid `to`: the value of the nearest voxel, 0 outside."""
        if not self.note:
            return array
        # voxel of `to` -> voxel of `of`
        matrix = np.linalg.inv(self.of.affine) @ self.to.affine
        turn, start = matrix[:3, :3], matrix[:3, 3]
        used = np.abs(turn) > SAME_GRID_VOXELS / np.array(self.to.shape)  # entries that move an index by a visible step
        if (used.sum(axis=1) <= 1).all() and (used.sum(axis=0) <= 1).all():
            return self._along_axes(array, np.where(used, turn, 0), start)
        return self._point_by_point(array, turn, start)

    def _along_axes(self, array: npt.NDArray[Any], turn: FloatArray, start: FloatArray) -> npt.NDArray[Any]:
        """Grids whose axes are parallel: each axis of `of` follows one axis of `to`."""
        # An axis that follows none (it has one voxel) is given the one that is left.
        order = [int(np.argmax(np.abs(row))) for row in turn]
        left = [axis for axis in range(3) if axis not in {o for o, row in zip(order, turn, strict=True) if row.any()}]
        order = [o if row.any() else left.pop() for o, row in zip(order, turn, strict=True)]
        index, inside = [], []
        for axis, follows in enumerate(order):
            place = np.rint(np.arange(self.to.shape[follows]) * turn[axis, follows] + start[axis]).astype(np.int64)
            inside.append((place >= 0) & (place < self.of.shape[axis]))
            index.append(np.clip(place, 0, self.of.shape[axis] - 1))
        found = array[np.ix_(*index)]
        for axis, known in enumerate(inside):
            if not known.all():
                found[tuple(~known if a == axis else slice(None) for a in range(3))] = 0
        return np.asarray(found.transpose(np.argsort(order)))

    def _point_by_point(self, array: npt.NDArray[Any], turn: FloatArray, start: FloatArray) -> npt.NDArray[Any]:
        """Oblique and sheared grids: every voxel looks for its nearest, a few slices at a time."""
        nx, ny, nz = self.to.shape
        out = np.zeros(self.to.shape, array.dtype)
        limit = np.array(self.of.shape)[:, None, None, None]
        y, z = np.arange(ny)[:, None], np.arange(nz)
        step = max(1, _SLAB_VOXELS // (ny * nz))
        for first in range(0, nx, step):
            x = np.arange(first, min(nx, first + step))[:, None, None]
            place = np.stack([t[0] * x + t[1] * y + t[2] * z + s for t, s in zip(turn, start, strict=True)])
            nearest = np.rint(place).astype(np.int64)
            known = ((nearest >= 0) & (nearest < limit)).all(axis=0)
            out[first : first + step][known] = array[tuple(axis[known] for axis in nearest)]
        return out


def lookup(prediction: Grid, reference: Grid, name: str) -> Lookup:
    """How to bring a prediction to its reference's grid.

    Raises ImageError, which names the case `name`, if the two share no space.
    """
    if prediction.is_same(reference):
        return Lookup(prediction, reference, "")
    share = _shared(prediction, reference)
    if share == 0:
        raise ImageError(
            f"{name}: prediction and reference lie in different places: {_where(prediction)} and {_where(reference)} "
            "share no space. Are both of the same scan, and written with its affine?"
        )
    what = [
        f"{label} {_text(theirs)} instead of {_text(ours)}"
        for label, theirs, ours in (
            ("axes", prediction.axes, reference.axes),
            ("shape", prediction.shape, reference.shape),
            ("spacing", _round(prediction.spacing_mm), _round(reference.spacing_mm)),
        )
        if theirs != ours
    ] or ["another place or direction"]
    covers = (
        f"; it covers {100 * share:.3g} % of the reference's grid, the rest counts as not predicted"
        if share < 1
        else ""
    )
    note = (
        f"The prediction has another grid ({', '.join(what)}): it was resampled to the reference's by nearest "
        f"neighbour{covers}."
    )
    return Lookup(prediction, reference, note)


def _shared(prediction: Grid, reference: Grid) -> float:
    """Share of the reference's voxels (a raster of at most 32 per axis) that have a nearest voxel in the prediction."""
    raster = [np.unique(np.linspace(0, n - 1, min(n, 32)).round()) for n in reference.shape]
    index = np.stack([*np.meshgrid(*raster, indexing="ij"), np.ones([len(r) for r in raster])], axis=-1)
    place = np.rint(index @ (np.linalg.inv(prediction.affine) @ reference.affine).T)[..., :3]
    return float(((place >= 0) & (place < prediction.shape)).all(axis=-1).mean())


def _where(grid: Grid) -> str:
    low, high = grid.corners().min(axis=0), grid.corners().max(axis=0)
    spans = (f"{axis} {a:.0f} to {b:.0f}" for axis, a, b in zip("xyz", low, high, strict=True))
    return f"{', '.join(spans)} mm"


def _round(values: FloatArray) -> tuple[float, ...]:
    return tuple(float(f"{v:.4g}") for v in values)


def _text(value: object) -> str:
    return "x".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)
