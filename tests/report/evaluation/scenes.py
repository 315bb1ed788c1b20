"""Small label maps on odd grids, written as files: what the evaluation's tests score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

# 1.5 x 2 x 3 mm voxels, x to the left, z first: nothing is where a careless reader expects it.
AFFINE = np.array([[0, -2.0, 0, 40], [0, 0, 3.0, -20], [1.5, 0, 0, 7], [0, 0, 0, 1]])
SHAPE = (16, 18, 14)


def save(array: npt.NDArray[Any], path: Path, affine: npt.NDArray[np.float64] = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.astype(np.uint8), affine), path)
    return path


def organs(**boxes: tuple[slice, slice, slice]) -> npt.NDArray[np.uint8]:
    """A label map by class key: ``organs(liver=(slice(2, 9), ...))``; later boxes lie over earlier ones."""
    from viscera.taxonomy import taxonomy

    labels = np.zeros(SHAPE, np.uint8)
    for key, box in boxes.items():
        labels[box] = taxonomy()[key].id
    return labels


LIVER = (slice(2, 9), slice(3, 12), slice(2, 10))
SPLEEN = (slice(10, 15), slice(3, 9), slice(4, 9))


def scene(shift: int = 0) -> npt.NDArray[np.uint8]:
    """A liver and a spleen, `shift` voxels along the second axis."""
    return np.roll(organs(liver=LIVER, spleen=SPLEEN), shift, axis=1)
