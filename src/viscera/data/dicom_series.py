"""Writes a phantom as a DICOM CT series, slice by slice, as data sets that come as DICOM have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from viscera.io.atomic import whole_file

_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])


def write_dicom_series(
    folder: Path, array: npt.NDArray[np.int16], affine: npt.NDArray[np.float64], *, intercept: int
) -> None:
    """`array` [x, y, z] with `affine` (voxel -> RAS mm) as one CT series in `folder`, a file a slice.

    intercept  added to stored numbers to give HU; with it they are stored as whole numbers from 0 up
    """
    folder.mkdir(parents=True, exist_ok=True)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    along_row, down_column = (affine[:3, axis] / spacing[axis] * _RAS_TO_LPS for axis in (0, 1))
    study, series, frame = (generate_uid(entropy_srcs=[str(folder), name]) for name in ("study", "series", "frame"))
    for z in range(array.shape[2]):
        corner = (affine @ np.array([0, 0, z, 1]))[:3] * _RAS_TO_LPS
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(folder), str(z)])
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"image_{z:04d}.dcm"
        header: Any = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = study, series, frame
        header.Modality, header.PatientID, header.PatientName = "CT", "phantom", "phantom"
        header.SeriesDescription, header.InstanceNumber = "phantom", z + 1
        header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        header.ImagePositionPatient = [f"{v:.6f}" for v in corner]
        header.ImageOrientationPatient = [f"{v:.8f}" for v in (*along_row, *down_column)]
        header.PixelSpacing = [f"{spacing[1]:.6f}", f"{spacing[0]:.6f}"]  # between rows, between columns
        header.SliceThickness = f"{spacing[2]:.6f}"
        header.RescaleIntercept, header.RescaleSlope = str(intercept), "1"
        header.Rows, header.Columns = array.shape[1], array.shape[0]
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 0
        header.PixelData = (array[:, :, z].T.astype(np.int32) - intercept).clip(0).astype("<u2").tobytes()
        with whole_file(path) as temporary:
            header.save_as(temporary, enforce_file_format=True)
