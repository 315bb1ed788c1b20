"""Labels that come as one picture a slice beside a DICOM series (CHAOS)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom

from viscera.errors import ImageError
from viscera.io.volume import Volume

_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


def read_png_stack(folder: Path, image: Volume, series: Path) -> Volume:
    """The PNG files of `folder` as a mask (0 or 1) on the grid of `image`, which was read from the DICOM `series`.

    The k-th picture by name belongs to the k-th DICOM file by name; where that slice lies, its header says.
    Raises ImageError where numbers or sizes differ.
    """
    import SimpleITK as sitk

    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".png" and path.name[0] != ".")
    slices = sorted(path for path in series.iterdir() if path.is_file() and path.name[0] != ".")
    if len(pictures) != len(slices):
        raise ImageError(f"{folder} holds {len(pictures)} pictures for the {len(slices)} slices in {series}.")
    array = np.zeros(image.shape, np.uint8)
    to_voxel = np.linalg.inv(image.affine)
    for picture, slice_file in zip(pictures, slices, strict=True):
        header = pydicom.dcmread(slice_file, stop_before_pixels=True, specific_tags=["ImagePositionPatient"])
        corner_mm = np.array(header.ImagePositionPatient, float) * _LPS_TO_RAS
        z = round(float((to_voxel @ (*corner_mm, 1))[2]))
        pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(picture)))  # [row, column]
        if pixels.ndim != 2 or pixels.T.shape != image.shape[:2] or not 0 <= z < image.shape[2]:
            raise ImageError(f"{picture} with shape {pixels.shape} does not fit the slices of {series}.")
        array[:, :, z] = pixels.T != 0
    return replace(image, array=array, nifti_header=None)
