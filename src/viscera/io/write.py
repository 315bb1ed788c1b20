"""Results on a scan's own grid: NIfTI, NRRD or MetaImage, by the ending of the name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from viscera.errors import OutputError
from viscera.io.atomic import whole_file, write_pieces
from viscera.io.nifti import gzipped, nifti_bytes
from viscera.io.volume import Volume


def write_image(array: npt.NDArray[Any], like: Volume, path: str | os.PathLike[str]) -> None:
    """Write `array` [x, y, z], in the axis order of `like`, so that it lies exactly over `like`.

    path  ends in .nii.gz, .nii, .nrrd or .mha
    The file is whole or not there. Raises OutputError for another ending and where nothing can be written;
    ValueError if the shapes differ.
    """
    if array.shape != like.shape:
        raise ValueError(f"the array has shape {array.shape}, the scan {like.shape}")
    name = Path(path).name.lower()
    if name.endswith(".nii.gz"):
        write_pieces(path, gzipped(nifti_bytes(array, like)))
    elif name.endswith(".nii"):
        write_pieces(path, nifti_bytes(array, like))
    elif name.endswith((".nrrd", ".mha")):
        from viscera.io.itk import write_itk  # SimpleITK takes a while to load

        with whole_file(path) as temporary:
            try:
                write_itk(array, like, temporary)
            except RuntimeError as error:
                raise OutputError(f"{path} cannot be written: {error}") from error
    else:
        raise OutputError(f"{path} has an ending viscera does not write; use .nii.gz, .nii, .nrrd or .mha.")


def write_label_map(array: npt.NDArray[np.unsignedinteger[Any]], like: Volume, path: str | os.PathLike[str]) -> None:
    """`write_image` for a label map: uint8 or uint16 [x, y, z]."""
    if array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"a label map is uint8 or uint16, not {array.dtype}")
    write_image(array, like, path)


def write_probabilities(array: npt.NDArray[np.uint8], like: Volume, path: str | os.PathLike[str]) -> None:
    """A probability map as .nii.gz of one byte a voxel: `array` [x, y, z] is 256 times the probability, rounded down.

    The header's slope of 1/256 makes every reader see 0-1. Raises as `write_image` does.
    """
    if array.shape != like.shape or array.dtype != np.uint8:
        raise ValueError(f"the map is {array.dtype} {array.shape}; the scan needs uint8 {like.shape}")
    write_pieces(path, gzipped(nifti_bytes(array, like, slope=1 / 256)))
