"""Are these numbers Hounsfield units? What can be repaired is repaired and said; what cannot be CT is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from viscera.errors import ImageError
from viscera.io.volume import AIR_HU

_SLAB = 32  # slices converted at once; 512 x 512 x 32 float64 = 67 MB
_INT16 = np.iinfo(np.int16)


def require_real(dtype: np.dtype[Any], name: str) -> None:
    """Raise ImageError unless voxels of `dtype` are single real numbers (not colours, complex, text)."""
    if dtype.kind in "iufb":
        return
    what = {"c": "complex numbers", "V": "colours or several values"}.get(dtype.kind, f"{dtype}")
    raise ImageError(
        f"Each voxel of {name} holds {what}; a CT has one real number a voxel (Hounsfield units). "
        "Convert the original scan, not a picture of it."
    )


def compact(
    raw: npt.NDArray[Any], slope: float = 1.0, intercept: float = 0.0
) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """``raw * slope + intercept`` as int16 where that is exact, else float32, and a note if numbers were missing.

    NaN and infinity become `AIR_HU`. The result is `raw` itself where nothing has to change. Works slab by slab along
    the last axis: no second full-size array of a larger type exists.
    """
    trivial = slope == 1 and intercept == 0
    if trivial and raw.dtype == np.int16 and raw.dtype.isnative:
        return raw, ()
    out: npt.NDArray[Any] = np.empty_like(raw, np.int16, subok=False)
    missing = 0
    for start in range(0, raw.shape[-1], _SLAB):
        slab = raw[..., start : start + _SLAB]
        value = slab if trivial else slab * np.float64(slope) + intercept
        if value.dtype.kind == "f":
            with np.errstate(over="ignore"):
                bad = ~np.isfinite(value.astype(np.float32))
            if bad.any():
                missing += int(bad.sum())
                value = np.where(bad, value.dtype.type(AIR_HU), value)
        if out.dtype == np.int16 and not _fits_int16(value):
            out = out.astype(np.float32)
        out[..., start : start + _SLAB] = value
    if not missing:
        return out, ()
    share = 100 * missing / raw.size
    return out, (f"{missing:,} voxels ({share:.2g} %) were NaN or infinite; they count as air ({AIR_HU:.0f} HU).",)


def _fits_int16(value: npt.NDArray[Any]) -> bool:
    """Whether every (finite) number survives as int16."""
    if value.size == 0 or value.dtype.kind == "b":
        return True
    if value.min() < _INT16.min or value.max() > _INT16.max:
        return False
    return value.dtype.kind != "f" or bool((value == np.rint(value)).all())
