"""The numbers stored in a DICOM object, whatever their compression."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, MultiFrameGrayscaleWordSecondaryCaptureImageStorage, generate_uid

from viscera.errors import ImageError
from viscera.io.dicom.files import parsed

_PIXEL_KEYWORDS = [
    "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "NumberOfFrames",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Stored:
    """What the pixel data of an object say.

    frames   the stored numbers [frame, row, column], before any rescaling
    padding  the stored number that stands for "outside the field of view", None if there is none
    lossy    whether they were ever compressed with loss
    """

    frames: npt.NDArray[Any]
    padding: int | None
    lossy: bool


def stored_pixels(content: bytes, name: str) -> Stored:
    """The pixels of a DICOM object's bytes.

    Raises ImageError for truncated pixels and for a compression that cannot be decoded here (naming it).
    """
    dataset = parsed(BytesIO(content), name)
    if "PixelData" not in dataset:
        raise ImageError(f"{name} holds no pixels; it is truncated or not an image. Copy or export it again.")
    packed_as = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's remarks on padded pixel data and the like
            syntax = _transfer_syntax(dataset)
            packed_as = f"{syntax.name} ({syntax})" if syntax.is_encapsulated else None
            pixels = _decompressed(dataset) if packed_as else dataset.pixel_array
            frames = pixels.reshape(int(dataset.get("NumberOfFrames") or 1), dataset.Rows, dataset.Columns)
            padding = dataset.get("PixelPaddingValue")
            lossy = str(dataset.get("LossyImageCompression", "")) == "01"
    except Exception as error:  # the decoders raise many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        if packed_as:
            raise ImageError(
                f"The pixels of {name}, compressed as {packed_as}, cannot be decoded: {reason}. If the file is whole, "
                "decompress the series first (for example gdcmconv --raw IN OUT), or install a decoder for pydicom "
                "(pip install pylibjpeg pylibjpeg-openjpeg pylibjpeg-libjpeg)."
            ) from error
        raise ImageError(f"{name} is truncated or damaged: {reason} Copy or export it again.") from error
    return Stored(frames, padding if isinstance(padding, int) else None, lossy)


def _transfer_syntax(dataset: Dataset) -> pydicom.uid.UID:
    """How the pixels are encoded; files without a header of their own say it by how they could be parsed."""
    meta = getattr(dataset, "file_meta", None) or FileMetaDataset()
    if "TransferSyntaxUID" not in meta:
        implicit, little = dataset.original_encoding
        meta.TransferSyntaxUID = (
            pydicom.uid.ImplicitVRLittleEndian
            if implicit
            else pydicom.uid.ExplicitVRLittleEndian
            if little
            else pydicom.uid.ExplicitVRBigEndian
        )
        dataset.file_meta = meta
    return meta.TransferSyntaxUID


def _decompressed(dataset: Dataset) -> npt.NDArray[Any]:
    """Compressed pixels by GDCM (inside SimpleITK), else by what pydicom finds installed."""
    try:
        return _by_gdcm(dataset)
    except RuntimeError as error:
        try:
            pixels: npt.NDArray[Any] = dataset.pixel_array
        except Exception:
            raise error from None
        return pixels


def _by_gdcm(dataset: Dataset) -> npt.NDArray[Any]:
    # GDCM would apply the rescaling it finds; so it gets a file that holds the pixels and nothing else.
    bare = Dataset()
    for keyword in _PIXEL_KEYWORDS:
        if keyword in dataset:
            bare[keyword] = dataset[keyword]
    many = int(dataset.get("NumberOfFrames", 1) or 1) > 1
    bare.SOPClassUID = MultiFrameGrayscaleWordSecondaryCaptureImageStorage if many else CTImageStorage
    bare.SOPInstanceUID = generate_uid()
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pixels.dcm")
        pydicom.dcmwrite(path, bare, enforce_file_format=True)
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.SetImageIO("GDCMImageIO")
        return np.asarray(sitk.GetArrayFromImage(reader.Execute()))
