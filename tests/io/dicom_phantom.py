"""DICOM CT files of a small body, written by pydicom; every test changes what it needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from tests.phantoms import Affine, body, grid, stored_as

LPS = ((0, 1, 2), (True, True, False))  # the order in which scanners store axial slices


def lps_body(affine: Affine | None = None) -> tuple[npt.NDArray[np.int16], Affine]:
    """The body as a scanner would store it: rows run to the left, columns to the back."""
    array, moved = stored_as(body(), grid() if affine is None else affine, *LPS)
    return array, moved


def slice_dataset(plane: npt.NDArray[np.int16], affine: Affine, z: int, series_uid: str) -> Dataset:
    """Slice `z` of a CT series; `plane` [x, y] in HU, `affine` (RAS) of the whole array."""
    lps = np.diag([-1, -1, 1, 1]) @ affine
    row_mm, column_mm = (float(np.linalg.norm(lps[:3, axis])) for axis in (0, 1))
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[series_uid, str(z)])
    dataset.StudyInstanceUID = "1.2.3"
    dataset.SeriesInstanceUID = series_uid
    dataset.SeriesDescription = "Abdomen 5.0 B30f"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Modality = "CT"
    dataset.InstanceNumber = z + 1
    dataset.ImagePositionPatient = [round(float(v), 6) for v in (lps @ [0, 0, z, 1])[:3]]
    dataset.ImageOrientationPatient = [round(float(v), 9) for v in (*(lps[:3, 0] / row_mm), *(lps[:3, 1] / column_mm))]
    dataset.PixelSpacing = [round(column_mm, 9), round(row_mm, 9)]
    dataset.SliceThickness = 5
    dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.Columns, dataset.Rows = plane.shape
    dataset.PixelData = (plane.T.astype(np.int32) + 1024).astype("<u2").tobytes()
    return dataset


def dicom_series(
    folder: Path,
    array: npt.NDArray[np.int16] | None = None,
    affine: Affine | None = None,
    *,
    edit: Callable[[Dataset, int], object] = lambda dataset, z: None,
    skip: tuple[int, ...] = (),
    series_uid: str = "1.2.3.4",
    save: Callable[[Path, Dataset], object] = lambda path, dataset: pydicom.dcmwrite(
        path, dataset, enforce_file_format=True
    ),
) -> Path:
    """A folder with one file a slice, named so that the names' order is not the slices'.

    edit  called with each dataset and its slice number before it is saved
    skip  slices that are not written
    """
    if array is None or affine is None:
        array, affine = lps_body()
    folder.mkdir(parents=True, exist_ok=True)
    for z in set(range(array.shape[2])) - set(skip):
        dataset = slice_dataset(array[:, :, z], affine, z, series_uid)
        edit(dataset, z)
        save(folder / f"IM{(z * 7919) % 10007:05}_{series_uid[-2:]}", dataset)
    return folder


def enhanced_ct(path: Path, array: npt.NDArray[np.int16], affine: Affine, order: list[int]) -> Path:
    """One enhanced multi-frame file; its frames are the slices in `order`."""
    dataset = slice_dataset(array[:, :, 0], affine, 0, "1.2.3.9")
    dataset.SOPClassUID = EnhancedCTImageStorage
    shared, frames = Dataset(), []
    measures, values, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = dataset.PixelSpacing, dataset.SliceThickness
    values.RescaleIntercept, values.RescaleSlope = -1024, 1
    orientation.ImageOrientationPatient = dataset.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PixelValueTransformationSequence = [measures], [values]
    shared.PlaneOrientationSequence = [orientation]
    for z in order:
        position, frame = Dataset(), Dataset()
        position.ImagePositionPatient = slice_dataset(array[:, :, z], affine, z, "1").ImagePositionPatient
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
        delattr(dataset, keyword)
    del dataset.RescaleIntercept, dataset.SliceThickness
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], frames
    dataset.NumberOfFrames = len(order)
    dataset.PixelData = np.stack([array[:, :, z].T + 1024 for z in order]).astype("<u2").tobytes()
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path
