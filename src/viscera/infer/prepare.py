"""A scan as the network wants it: RAS, at the model's spacing, windowed to [0, 1], cut to the body if it is to be
seen in one pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from viscera.io.body import Body, find_body
from viscera.io.grid import resample_image
from viscera.masks import Densities
from viscera.model.config import Preprocessing
from viscera.shapes import Box, SpacingMm, Triple, triple

_INT16 = (np.iinfo(np.int16).min, np.iinfo(np.int16).max)


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the network sees of a scan, and what is needed to bring its answer back.

    image            float32 [X, Y, Z] in [0, 1]: a box of the network's grid, RAS axes
    box              where `image` lies in the network's grid
    grid_shape       voxels of the whole network grid
    grid_spacing_mm  its spacing
    scan_shape       voxels of the scan, RAS axes
    scan_spacing_mm  its spacing
    densities        what `image` shows in HU, not windowed: for rules; None where none will follow
    body             the patient in the network's grid; None where the air around counts as much
    """

    image: npt.NDArray[np.float32]
    box: Box
    grid_shape: Triple
    grid_spacing_mm: SpacingMm
    scan_shape: Triple
    scan_spacing_mm: SpacingMm
    densities: Densities | None = None
    body: Body | None = None

    def within(self, box: Box) -> Prepared:
        """The same scan of which the network sees only `box`, a part of `self.box`."""
        if box == self.box:
            return self
        return replace(self, image=np.ascontiguousarray(self.image[box.seen_from(self.box.start).slices]), box=box)

    def without_image(self) -> Prepared:
        """What is needed to bring an answer back, without the arrays that made it."""
        return replace(self, image=np.empty((0, 0, 0), np.float32), densities=None, body=None)

    def reaches_body(self, box: Box) -> bool:
        """Whether anything of the patient lies in `box` of `image`."""
        return self.body is None or self.body.reaches(box.shifted(self.box.start))


def windowed(hu: npt.NDArray[np.float32], window_hu: tuple[float, float]) -> npt.NDArray[np.float32]:
    """HU mapped so that the window's ends become 0 and 1; values beyond are clipped. Works in place."""
    low, high = window_hu
    np.clip(hu, low, high, out=hu)
    hu -= low
    hu /= high - low
    return hu


def prepare(
    hu: npt.NDArray[Any],
    spacing_mm: SpacingMm,
    preprocessing: Preprocessing,
    *,
    crop_to_body: bool = True,
    in_windows: bool = False,
) -> Prepared:
    """Resamples, cuts to the body and windows an image [X, Y, Z] in HU whose axes are already RAS.

    crop_to_body  the air around the patient does not count
    in_windows    the network will go over windows: the image stays whole, so that they stand where they would without
                  looking for a body, and give the same masks; those that reach nothing of the body are left out then
    """
    grid_mm = preprocessing.spacing_mm
    resampled = resample_image(hu, spacing_mm, grid_mm, smooth=preprocessing.smooth)
    shape = triple(resampled.shape)
    body = find_body(resampled, grid_mm) if crop_to_body else None
    box = Box.whole(shape) if body is None or in_windows else body.box
    inside = np.ascontiguousarray(resampled[box.slices])
    del resampled
    rounded = np.empty(inside.shape, np.int16)
    for x, plane in enumerate(inside):  # plane by plane: no second image of this size
        rounded[x] = np.clip(np.rint(plane), *_INT16)
    image = windowed(inside, preprocessing.window_hu)
    densities = Densities(box, rounded)
    return Prepared(image, box, shape, grid_mm, triple(hu.shape), spacing_mm, densities, body)
