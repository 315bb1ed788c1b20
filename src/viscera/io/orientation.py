"""From a scan's own axis order to RAS and back, by permuting and flipping axes only: no voxel is interpolated.

A worked example. A scan is stored [x, y, z] = [head, left, front] with shape (40, 512, 256):

    index axis   grows towards   RAS axis it feeds   flipped
        0        Superior              Z               no
        1        Left                  X               yes
        2        Anterior              Y               no

    axes  = (1, 2, 0)             RAS axis X comes from scan axis 1, Y from 2, Z from 0
    flips = (True, False, False)
    to RAS   array.transpose(1, 2, 0)[::-1, :, :]      shape (512, 256, 40)
    back     flip X again, then transpose(2, 0, 1)     shape (40, 512, 256)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from viscera.io.volume import Volume
from viscera.shapes import Triple, triple

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Reorientation:
    """Which scan axis feeds each RAS axis, and which of them run backwards.

    axes   scan axis of X, Y and Z
    flips  whether X, Y and Z run against that scan axis
    """

    axes: Triple
    flips: tuple[bool, bool, bool]

    @property
    def is_identity(self) -> bool:
        """True if the scan is stored in RAS order already."""
        return self.axes == (0, 1, 2) and not any(self.flips)

    def apply(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """A view [X, Y, Z] of a scan-order `array` [x, y, z]."""
        return self._flipped(array.transpose(self.axes))

    def undo(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """A view in the scan's own order [x, y, z] of a RAS `array` [X, Y, Z]; the exact inverse of `apply`."""
        return self._flipped(array).transpose(np.argsort(self.axes))

    def apply_affine(self, affine: npt.NDArray[np.float64], shape: Sequence[int]) -> npt.NDArray[np.float64]:
        """The affine of the reoriented array; `affine` and `shape` are the scan's own."""
        out = np.array(affine, np.float64)
        out[:3, :3] = affine[:3, self.axes]
        for ras_axis in np.flatnonzero(self.flips):
            # Voxel 0 becomes the one that was last on this axis.
            out[:3, 3] += out[:3, ras_axis] * (shape[self.axes[ras_axis]] - 1)
            out[:3, ras_axis] *= -1
        return out

    def _flipped(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        return array[steps]


def closest_to_ras(affine: npt.NDArray[np.float64]) -> Reorientation:
    """The permutation and flips that bring the scan's axes closest to RAS; right for oblique and sheared grids too.

    Of the 48 signed permutation matrices P it takes the one nearest to the unit axis directions D: minimising the
    Frobenius norm ``|D - P|`` is maximising the sum of the ``|D|`` entries that P picks.
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)  # [RAS axis, scan axis]
    axes = max(permutations(range(3)), key=lambda p: float(np.abs(directions[range(3), p]).sum()))
    x, y, z = (bool(directions[ras_axis, scan_axis] < 0) for ras_axis, scan_axis in enumerate(axes))
    return Reorientation(triple(axes), (x, y, z))


def to_ras(volume: Volume) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64], Reorientation]:
    """The volume's array as a view [X, Y, Z] with axes closest to RAS, its affine, and the way back."""
    reorientation = closest_to_ras(volume.affine)
    return (
        reorientation.apply(volume.array),
        reorientation.apply_affine(volume.affine, volume.shape),
        reorientation,
    )
