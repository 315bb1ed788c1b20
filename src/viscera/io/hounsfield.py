"""Are these numbers Hounsfield units (HU)? What can be repaired is repaired and said; what cannot be CT is refused.

Two truths carry every rule: water is 0 and air -1000 by definition, and a CT of a body holds air or fat (-100).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from viscera.errors import ImageError
from viscera.io.volume import AIR_HU

# Shares measured on eleven public scans, whole bodies and crops: see each line. All in HU.
_COLD_HU, _COLD_SHARE = -50.0, 0.001  # fat or air; the scans hold 0.48 and more
_PADDING_HU = -1100.0  # scanners pad with -2000, -2048, -3024; noise and ringing in air do not go so low
_SMALLEST_SPAN_HU = 20.0  # from the darkest to the brightest voxel; image noise alone spans more

# A scan stored without the DICOM intercept of -1024, in the numbers as stored: air near 24, water at 1024.
_INTERCEPT_HU = -1024.0
_STORED_AIR, _AIR_SHARE = (-50.0, 200.0), 0.01  # of all voxels; the scans hold 0.12 and more
_STORED_DENSE = 500.0  # denser than lung
_STORED_SOFT, _SOFT_SHARE = (900.0, 1250.0), 0.5  # of the dense voxels; the scans hold 0.65 and more

_SAMPLE_VOXELS = 1_000_000  # enough for shares
_SLAB_VOXELS = 1 << 19  # converted at once; 4 MB as float64, which the processor's cache holds
_INT16 = np.iinfo(np.int16)

Notes = tuple[str, ...]


def require_real(dtype: np.dtype[Any], name: str) -> None:
    """Raise ImageError unless voxels of `dtype` are single real numbers (not colours, complex, text)."""
    if dtype.kind in "iufb":
        return
    what = {"c": "complex numbers", "V": "colours or several values"}.get(dtype.kind, f"{dtype}")
    raise ImageError(
        f"Each voxel of {name} holds {what}; a CT has one real number a voxel (Hounsfield units). "
        "Convert the original scan, not a picture of it."
    )


def compact(raw: npt.NDArray[Any], slope: float = 1.0, intercept: float = 0.0) -> tuple[npt.NDArray[Any], Notes]:
    """``raw * slope + intercept`` as int16 where that is exact, else float32, and a note if numbers were missing.

    NaN and infinity become `AIR_HU`. The result is `raw` itself where nothing has to change. Works slab by slab along
    the last axis: no second full-size array of a larger type exists.
    """
    as_stored = slope == 1 and intercept == 0
    if as_stored and raw.dtype == np.int16 and raw.dtype.isnative:
        return raw, ()
    if as_stored and raw.dtype == np.float32 and np.isfinite(raw).all() and not _fits_int16(raw):
        return raw, ()
    out: npt.NDArray[Any] = np.empty_like(raw, np.int16, subok=False)
    missing = 0
    thickness = max(1, _SLAB_VOXELS * raw.shape[-1] // raw.size)
    for start in range(0, raw.shape[-1], thickness):
        value = raw[..., start : start + thickness]
        if not as_stored:
            value = value * np.float64(slope) + intercept
        if value.dtype.kind == "f":
            with np.errstate(over="ignore"):
                bad = ~np.isfinite(value.astype(np.float32, copy=False))
            if bad.any():
                missing += int(bad.sum())
                value = np.where(bad, value.dtype.type(AIR_HU), value)
        if out.dtype == np.int16 and not _fits_int16(value):
            out = out.astype(np.float32)
        out[..., start : start + thickness] = value
    if not missing:
        return out, ()
    return out, (f"{missing:,} voxels ({_percent(missing / raw.size)}) were NaN or infinite; they count as air.",)


def calibrated(
    array: npt.NDArray[Any], name: str, *, force: bool = False, in_place: bool = False
) -> tuple[npt.NDArray[Any], Notes]:
    """A finite `array` [x, y, z] as plausible HU, and what was corrected; changes `array` itself only if `in_place`.

    Corrected: a missing intercept of -1024 (recognised by its histogram), padding below -1024 (becomes air).
    Refused with ImageError: constant images, and those that cannot be HU: scaled to [0, 1] or the like, scaled to
    [0, 255], or without any air or fat (MR, PET, windowed pictures). `force` takes the numbers as they are and
    refuses nothing; padding becomes air all the same.
    """
    low, high = float(array.min()), float(array.max())
    notes: Notes = ()
    out = array if in_place else None
    if not force:
        sample = _sample(array)
        stored = sample[sample > _PADDING_HU]
        if _lacks_intercept(stored):
            array = np.maximum(array, 0, out=out)
            array += array.dtype.type(_INTERCEPT_HU)
            return array, (
                "The numbers are Hounsfield units + 1024 (air lies near 0, soft tissue near 1024): 1024 was "
                "subtracted. If that is wrong, use --force to keep them.",
            )
        _require_hu(low, high, stored, name)
    if low < AIR_HU:
        below = sum(np.count_nonzero(array[..., z] < AIR_HU) for z in range(array.shape[-1]))
        share = _percent(below / array.size)
        array = np.maximum(array, array.dtype.type(AIR_HU), out=out)
        notes = (f"{share} of the voxels lay below {AIR_HU:.0f} HU (down to {low:.0f}); they count as air.",)
    return array, notes


def _require_hu(low: float, high: float, stored: npt.NDArray[np.float32], name: str) -> None:
    """Raise ImageError if an image with these extremes and unpadded sample voxels cannot be a CT in HU."""
    values = f"The values of {name} run from {low:g} to {high:g}"
    force = "If it is a CT in Hounsfield units all the same, use --force (force=True)."
    if low == high or stored.size == 0:
        raise ImageError(
            f"{name} shows nothing: {f'every voxel is {low:g}' if low == high else 'all is padding'}. {force}"
        )
    if high - low <= _SMALLEST_SPAN_HU:
        raise ImageError(
            f"{values}: they were normalised (scaled to [0, 1] or the like) and are not Hounsfield units, in which "
            f"air is -1000 and water 0. Convert them back (HU = value * (upper - lower) + lower of the window that "
            f"was used), or start from the original scan. {force}"
        )
    if low >= 0 and high <= 255:
        raise ImageError(
            f"{values}: this is a grey-value picture in [0, 255] or a label map, not Hounsfield units, in which air is "
            f"-1000 and water 0. Convert it back (HU = value / 255 * (upper - lower) + lower of the window that was "
            f"used), or start from the original scan. {force}"
        )
    if float((stored < _COLD_HU).mean()) < _COLD_SHARE:
        raise ImageError(
            f"{values}, with neither air (-1000) nor fat (-100) among them: these are not Hounsfield units of a body. "
            f"Is it MR or PET, or was it rescaled? If the values are HU + 1000 or the like, subtract that. {force}"
        )


def _lacks_intercept(stored: npt.NDArray[np.float32]) -> bool:
    """Whether the sample looks like HU + 1024: nothing colder than 0, an air peak near 0, soft tissue near 1024."""
    if stored.size == 0 or float((stored < _COLD_HU).mean()) >= _COLD_SHARE:
        return False
    air = _share(stored, _STORED_AIR)
    dense = stored[stored > _STORED_DENSE]
    return air >= _AIR_SHARE and dense.size > 0 and _share(dense, _STORED_SOFT) >= _SOFT_SHARE


def _share(values: npt.NDArray[np.float32], span: tuple[float, float]) -> float:
    return float(((values > span[0]) & (values < span[1])).mean())


def _sample(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """About `_SAMPLE_VOXELS` voxels of a regular raster, 1-D."""
    step = max(1, round((array.size / _SAMPLE_VOXELS) ** (1 / 3)))
    return array[::step, ::step, ::step].astype(np.float32).ravel()


def _fits_int16(value: npt.NDArray[Any]) -> bool:
    """Whether every (finite) number survives as int16."""
    if value.size == 0 or value.dtype.kind == "b":
        return True
    if value.min() < _INT16.min or value.max() > _INT16.max:
        return False
    return value.dtype.kind != "f" or bool((value == np.rint(value)).all())


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
