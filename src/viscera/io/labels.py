"""Label maps, masks and probability maps: images whose numbers are not Hounsfield units."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from viscera.errors import ImageError
from viscera.io.geometry import require_geometry
from viscera.io.read import read_file
from viscera.io.volume import Volume


def read_numbers(path: str | os.PathLike[str]) -> Volume:
    """Read one NIfTI, NRRD or MetaImage volume of real numbers as they are; only its geometry is checked.

    Returns int16 where that is exact, else float32, in the file's own axis order. Raises ImageError for a file that
    cannot be read, is not one volume of real numbers, or does not say where its voxels lie.
    """
    path = Path(path)
    volume = read_file(path) if path.is_file() else None
    if volume is None:
        raise ImageError(f"{path} is no NIfTI, NRRD or MetaImage file. Give one, also for a scan that came as DICOM.")
    require_geometry(volume.affine, str(path))
    return volume


def read_labels(path: str | os.PathLike[str]) -> Volume:
    """Read a label map or a mask: whole numbers from 0 up, uint8 where they fit, else uint16 or uint32.

    Raises ImageError as `read_numbers` does, and for fractions, negative values, NaN and infinity.
    """
    volume = read_numbers(path)
    raw = volume.array
    if raw.dtype.kind == "f" and not np.array_equal(raw, np.rint(raw)):
        raise ImageError(
            f"{path} holds fractions; a label map holds whole numbers. If it is a probability map, cut it at its "
            "threshold first; if a label map was resampled, do it again with nearest-neighbour interpolation."
        )
    low, high = int(raw.min()), int(raw.max())
    if low < 0:
        raise ImageError(
            f"{path} holds negative or missing values (down to {low}); a label map counts from 0. If negative values "
            "mark regions that nobody annotated, set them to 0 and name the annotated classes with --annotated."
        )
    return replace(volume, array=raw.astype(np.min_scalar_type(high)))
