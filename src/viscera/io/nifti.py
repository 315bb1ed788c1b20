"""NIfTI-1, NIfTI-2 and Analyze 7.5 files, single or as .hdr/.img pairs, to a Volume and back.

nibabel reads the headers; the voxels go straight into an array of their own type, without a float64 copy.

Which affine counts, as in nibabel: the sform if its code is above 0, else the qform if its code is above 0. With
neither, the file does not say which side is left; the spacing is used and the axes are taken as DICOM stores
slices (x to the left, y to the back, z to the head), which is what ITK-based viewers show.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import isal_zlib
from nibabel.nifti1 import Nifti1PairHeader
from nibabel.nifti2 import Nifti2PairHeader
from nibabel.spatialimages import HeaderDataError
from nibabel.spm2analyze import Spm2AnalyzeHeader

from viscera.errors import ImageError
from viscera.io.geometry import is_orthonormal, one_volume
from viscera.io.hounsfield import compact, require_real
from viscera.io.stream import ByteStream, sha256_of_parts
from viscera.io.volume import Provenance, Volume
from viscera.shapes import Triple

_DISAGREEMENT_VOXELS = 0.1  # an sform and a qform further apart than this at a corner deserve a note
_MM_PER_UNIT = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}
_NIFTI1_BYTES, _NIFTI2_BYTES = 348, 540
_EXTENSION_FLAG_BYTES = 4  # stand behind the header of a single file
_VERSIONS: dict[int, Any] = {_NIFTI1_BYTES: nib.Nifti1Header, _NIFTI2_BYTES: nib.Nifti2Header}
_SLAB = 32  # slices compressed at once


def looks_like_nifti(head: bytes) -> bool:
    """Whether a file's first 348 (gunzipped) bytes are a NIfTI or Analyze header of either byte order."""
    return _header_class(head) is not None


def read_nifti(path: Path) -> Volume:
    """Read a .nii, .nii.gz or an .hdr/.img pair (either name); not yet checked for plausibility.

    Raises ImageError for a truncated or damaged file, and for one that is not a single volume of real numbers.
    """
    with ByteStream(_header_path(path)) as stream:
        header = _read_header(stream)
        try:
            dtype, scaling = header.get_data_dtype(), header.get_slope_inter()
            shape, notes = one_volume(header.get_data_shape(), str(path))
            affine, about_affine = _affine(header, shape)
            offset = int(header["vox_offset"])
        except (HeaderDataError, ValueError, OverflowError, KeyError) as error:
            raise ImageError(f"{path} has a damaged header: {error}. Convert it again from its source.") from error
        require_real(dtype, str(path))
        if getattr(header, "is_single", False):  # header and voxels in one file
            stream.upto(max(offset - len(header.binaryblock), _EXTENSION_FLAG_BYTES))
            raw, sha256 = _voxels(stream, shape, dtype)
        else:
            with ByteStream(_data_path(stream.path)) as data:
                data.upto(max(offset, 0))
                raw, data_sha256 = _voxels(data, shape, dtype)
            sha256 = sha256_of_parts([stream.digest(), data_sha256])
    slope, intercept = scaling
    array, about_numbers = compact(raw, 1.0 if slope is None else slope, intercept or 0.0)
    is_nifti = isinstance(header, nib.Nifti1Header)
    provenance = Provenance(
        path=str(path),
        format="NIfTI" if is_nifti else "Analyze",
        sha256=sha256,
        notes=(*notes, *about_affine, *about_numbers),
    )
    return Volume(array, affine, provenance, nifti_header=header.binaryblock if is_nifti else None)


def nifti_bytes(array: npt.NDArray[Any], like: Volume, slope: float = 1.0) -> Iterator[bytes]:
    """A single-file NIfTI of `array` [x, y, z] on the grid of `like`, piece by piece; readers multiply by `slope`.

    A NIfTI source's sform, qform, their codes, pixdim and units are kept bit for bit; every other source gets
    its affine as the sform (code 1, scanner), and as the qform unless the grid is sheared, which a qform cannot say.
    """
    header = _header_like(like)
    header.set_data_dtype(array.dtype)
    pixdim = header["pixdim"].copy()
    header.set_data_shape(array.shape)
    header["pixdim"] = pixdim
    header.set_slope_inter(slope, 0)
    header["vox_offset"] = len(header.binaryblock) + _EXTENSION_FLAG_BYTES
    yield header.binaryblock + bytes(_EXTENSION_FLAG_BYTES)  # zero: no extensions follow
    dtype = header.get_data_dtype()
    for z in range(0, array.shape[2], _SLAB):
        yield array[:, :, z : z + _SLAB].astype(dtype, copy=False).tobytes(order="F")


def gzipped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """`pieces` as one gzip stream: fast rather than small, and without a time stamp (equal in, equal out)."""
    squeeze = isal_zlib.compressobj(1, isal_zlib.DEFLATED, isal_zlib.MAX_WBITS | 16)
    for piece in pieces:
        yield squeeze.compress(piece)
    yield squeeze.flush()


def _header_class(head: bytes) -> type[Any] | None:
    """The nibabel header class for a file's first bytes; None if they are no header."""
    sizes = {int.from_bytes(head[:4], order) for order in ("little", "big")}
    if _NIFTI1_BYTES in sizes and len(head) >= _NIFTI1_BYTES:
        magics = {b"n+1": nib.Nifti1Header, b"ni1": Nifti1PairHeader}
        return magics.get(head[344:347], Spm2AnalyzeHeader)
    if _NIFTI2_BYTES in sizes:
        return {b"n+2": nib.Nifti2Header, b"ni2": Nifti2PairHeader}.get(head[4:7])
    return None


def _read_header(stream: ByteStream) -> Any:
    """The header at the start of `stream`, exactly as stored."""
    head = stream.upto(_NIFTI1_BYTES)
    kind = _header_class(head)
    if kind is None:
        raise ImageError(f"{stream.path} does not start with a NIfTI or Analyze header.")
    size = _NIFTI2_BYTES if issubclass(kind, nib.Nifti2Header) else _NIFTI1_BYTES
    return kind(head + stream.exactly(size - len(head)), check=False)


def _voxels(stream: ByteStream, shape: Triple, dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], str]:
    """The voxels [x, y, z] as stored, which come next, and the file's digest."""
    return stream.array(math.prod(shape), dtype).reshape(shape, order="F"), stream.digest()


def _header_like(like: Volume) -> Any:
    """A single-file NIfTI header with the geometry of `like`."""
    header = _stored_header(like)
    if header is None:
        header = _VERSIONS[_NIFTI1_BYTES]()
        orthonormal = is_orthonormal(like.affine)
        header.set_sform(like.affine, code="scanner")
        header.set_qform(like.affine, code="scanner" if orthonormal else "unknown", strip_shears=True)
        header.set_xyzt_units("mm")
        return header
    header["magic"] = header.single_magic  # the source may have been an .hdr/.img pair
    for name, of_the_image in (("descrip", b""), ("aux_file", b""), ("cal_min", 0), ("cal_max", 0), ("intent_code", 0)):
        header[name] = of_the_image
    return header


def _stored_header(like: Volume) -> Any:
    """The header that `like` was read with; None if there is none, or if `like` was given another grid since."""
    if like.nifti_header is None:
        return None
    header = _VERSIONS[len(like.nifti_header)](like.nifti_header, check=False)
    same = header.get_data_shape()[:3] == like.shape and np.array_equal(_affine(header, like.shape)[0], like.affine)
    return header if same else None


def _header_path(path: Path) -> Path:
    """`path` itself, or the .hdr file beside it if it is the .img file of a pair."""
    return _partner(path, ".img", ".hdr") or path


def _data_path(header_path: Path) -> Path:
    """The .img file that belongs to the header of a pair."""
    found = _partner(header_path, ".hdr", ".img")
    if found is None:
        raise ImageError(f"{header_path} is the header of an .hdr/.img pair but is not called .hdr. Rename both files.")
    return found


def _partner(path: Path, own: str, other: str) -> Path | None:
    """The file that ends in `other` beside `path`, which ends in `own` (each may be gzipped); None if it does not."""
    stem = re.sub(rf"\{own}(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    if stem == path.name:
        return None
    candidates = [path.with_name(stem + suffix) for suffix in (other, f"{other}.gz", other.upper())]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ImageError(f"{path} is half of an .hdr/.img pair; its other half {candidates[0].name} is not beside it.")


@np.errstate(all="ignore")  # whatever a damaged header holds: the result is checked by everyone who reads it
def _affine(header: Any, shape: Triple) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    """Voxel index -> RAS+ mm, and what is worth saying about it."""
    notes: list[str] = []
    is_nifti = isinstance(header, nib.Nifti1Header)
    has_sform = is_nifti and header["sform_code"] > 0
    has_qform = is_nifti and header["qform_code"] > 0
    if has_sform:
        affine = np.array(header.get_sform(), np.float64)
        if has_qform:
            corners = np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in shape))])
            apart_mm = corners @ (affine - _qform(header)).T
            largest_mm = float(np.linalg.norm(apart_mm, axis=1).max())
            if largest_mm > _DISAGREEMENT_VOXELS * float(np.linalg.norm(affine[:3, :3], axis=0).min()):
                notes.append(f"The header's sform and qform lie up to {largest_mm:.3g} mm apart; the sform was used.")
    elif has_qform:
        affine = _qform(header)
    else:
        spacing = np.abs(np.array(header["pixdim"][1:4], np.float64))
        affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
        notes.append(
            "The file does not say how the patient lies in it (sform and qform codes are 0): left and right cannot "
            "be known. x was taken to grow to the patient's left, y to the back, z to the head."
        )
    if is_nifti:
        unit = header.get_xyzt_units()[0]
        if _MM_PER_UNIT.get(unit, 1.0) != 1.0:
            affine[:3] *= _MM_PER_UNIT[unit]
            notes.append(f"The header gives lengths in {unit}s; they were converted to mm.")
    return affine, tuple(notes)


def _qform(header: Any) -> npt.NDArray[np.float64]:
    if header["pixdim"][0] not in (-1, 1):  # the standard: 0 means 1
        header = header.copy()
        header["pixdim"][0] = 1
    return np.array(header.get_qform(), np.float64)
