"""NRRD and MetaImage files (.nrrd, .nhdr, .mha, .mhd), through SimpleITK, to a Volume and back.

ITK counts in LPS millimetres (x to the left, y to the back); a Volume's affine is RAS, so x and y change their sign.
Sheared grids pass in both directions: in these two formats ITK keeps the axes as they are written.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from viscera.errors import ImageError
from viscera.io.geometry import one_volume
from viscera.io.hounsfield import compact
from viscera.io.stream import sha256_of_file, sha256_of_parts
from viscera.io.volume import Provenance, Volume

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # its own inverse
_HEADER_BYTES = 1 << 16  # text headers end long before
_META_MAX_AXES = 10
_COMPRESSION_LEVEL = 1  # fast rather than small


def itk_format(head: bytes) -> str | None:
    """ "NRRD" or "MetaImage" if a file's first bytes say so, else None."""
    if head.startswith(b"NRRD000"):
        return "NRRD"
    if re.match(rb"\s*(ObjectType|NDims|Comment)\s*=", head) and b"NDims" in head:
        return "MetaImage"
    return None


def read_itk(path: Path, image_format: str) -> Volume:
    """Read a file that `itk_format` recognised, whatever its name; not yet checked for plausibility.

    Raises ImageError for a truncated or damaged file, and for one that is not a single volume of real numbers.
    """
    header = _text_header(path)
    if image_format == "MetaImage":
        _require_dimensions(header, path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO({"NRRD": "NrrdImageIO", "MetaImage": "MetaImageIO"}[image_format])
    try:
        reader.ReadImageInformation()
        if reader.GetNumberOfComponents() != 1:
            raise ImageError(
                f"Each voxel of {path} holds {reader.GetNumberOfComponents()} values (colours, vectors or several "
                "volumes); a CT has one. Convert the original scan, not a picture of it."
            )
        shape, about_shape = one_volume(reader.GetSize(), str(path))
        image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ImageError(
            f"{path} cannot be read as {image_format}: it is truncated or damaged, or its data file is missing "
            f"({reason})."
        ) from error
    array, about_numbers = compact(sitk.GetArrayFromImage(image).T.reshape(shape, order="F"))
    notes = (*about_shape, *_about_orientation(header), *about_numbers)
    return Volume(array, _affine(image), Provenance(str(path), image_format, sha256=_digest(path, header), notes=notes))


def write_itk(array: npt.NDArray[Any], like: Volume, path: Path) -> None:
    """Write `array` [x, y, z] on the grid of `like` as .nrrd or .mha by the ending of `path`, compressed.

    Raises RuntimeError (SimpleITK's) where it cannot be written.
    """
    lps = LPS_TO_RAS @ like.affine
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(like.spacing_mm)
    image.SetDirection((lps[:3, :3] / like.spacing_mm).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(path))
    writer.UseCompressionOn()
    writer.SetCompressionLevel(_COMPRESSION_LEVEL)
    writer.Execute(image)


def _affine(image: sitk.Image) -> npt.NDArray[np.float64]:
    """Voxel index -> RAS mm, of the first three axes."""
    axes = image.GetDimension()
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(image.GetDirection(), (axes, axes))[:3, :3] * image.GetSpacing()[:3]
    lps[:3, 3] = image.GetOrigin()[:3]
    return LPS_TO_RAS @ lps


def _text_header(path: Path) -> str:
    """The lines that stand before the voxels (and whatever bytes of them fit in)."""
    with path.open("rb") as file:
        return file.read(_HEADER_BYTES).decode("latin-1")


def _require_dimensions(header: str, path: Path) -> None:
    """Raise ImageError for a number of axes beyond what ITK's MetaImage reader has room for: it would crash."""
    for found in re.findall(r"NDims\s*[=:]\s*(\S*)", header):
        if not (found.isascii() and found.isdecimal() and 1 <= int(found) <= _META_MAX_AXES):
            raise ImageError(
                f"{path} is a damaged MetaImage: NDims is {found!r}, not a number from 1 to {_META_MAX_AXES}."
            )


def _about_orientation(header: str) -> tuple[str, ...]:
    """A note if the header does not say how the axes lie in the patient."""
    if re.search(r"^(space|TransformMatrix|Orientation|Rotation)\s*[:=]", header, re.MULTILINE):
        return ()
    return (
        "The file does not say how the patient lies in it: left and right cannot be known. "
        "x was taken to grow to the patient's left, y to the back, z to the head.",
    )


def _digest(path: Path, header: str) -> str:
    """SHA-256 of the file, or of header and data file together where the data stand in a file of their own."""
    named = re.search(r"^(?:data ?file:|ElementDataFile\s*=)\s*(.+?)\s*$", header, re.MULTILINE)
    data = path.with_name(named[1]) if named and named[1] != "LOCAL" else None
    if data is None or not data.is_file():
        return sha256_of_file(path)
    return sha256_of_parts([sha256_of_file(path), sha256_of_file(data)])
