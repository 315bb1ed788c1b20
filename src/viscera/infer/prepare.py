"""A scan as the network wants it: RAS, at the model's spacing, windowed to [0, 1], cut to the body."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from viscera.io.grid import body_box, resample_image
from viscera.masks import Densities
from viscera.model.config import Preprocessing
from viscera.shapes import Box, SpacingMm, Triple, triple

_INT16 = (np.iinfo(np.int16).min, np.iinfo(np.int16).max)


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the network sees of a scan, and what is needed to bring its answer back.

    image            float32 [X, Y, Z] in [0, 1]: the body box of the network's grid, RAS axes
    box              where `image` lies in the network's grid
    grid_shape       voxels of the whole network grid
    grid_spacing_mm  its spacing
    scan_shape       voxels of the scan, RAS axes
    scan_spacing_mm  its spacing
    densities        what `image` shows in HU, not windowed: for rules; None where none will follow
    """

    image: npt.NDArray[np.float32]
    box: Box
    grid_shape: Triple
    grid_spacing_mm: SpacingMm
    scan_shape: Triple
    scan_spacing_mm: SpacingMm
    densities: Densities | None = None


def windowed(hu: npt.NDArray[np.float32], window_hu: tuple[float, float]) -> npt.NDArray[np.float32]:
    """HU mapped so that the window's ends become 0 and 1; values beyond are clipped. Works in place."""
    low, high = window_hu
    np.clip(hu, low, high, out=hu)
    hu -= low
    hu /= high - low
    return hu


def prepare(
    hu: npt.NDArray[Any], spacing_mm: SpacingMm, preprocessing: Preprocessing, *, crop_to_body: bool = True
) -> Prepared:
    """Resamples, cuts to the body and windows an image [X, Y, Z] in HU whose axes are already RAS."""
    grid_mm = preprocessing.spacing_mm
    resampled = resample_image(hu, spacing_mm, grid_mm, smooth=preprocessing.smooth)
    shape = triple(resampled.shape)
    box = body_box(resampled, grid_mm) if crop_to_body else Box.whole(shape)
    inside = np.ascontiguousarray(resampled[box.slices])
    rounded = np.clip(np.rint(inside), *_INT16).astype(np.int16)
    image = windowed(inside, preprocessing.window_hu)
    return Prepared(image, box, shape, grid_mm, triple(hu.shape), spacing_mm, Densities(box, rounded))
