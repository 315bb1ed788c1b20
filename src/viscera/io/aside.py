"""A large scan out of the way while the network works: in a file, from which the system reads what is looked at."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from viscera.io.volume import Volume

ASIDE_BYTES = 200_000_000  # smaller scans stay in memory
_SLICES = 64


def set_aside(volume: Volume, least_bytes: int = ASIDE_BYTES) -> Volume:
    """The same volume, read-only, in a temporary file without a name if it has `least_bytes` or more.

    The file goes with the volume, or with the process, however that ends. Where the disk has no room for it, the volume
    stays in memory as it is.
    """
    array = volume.array
    if array.nbytes < least_bytes or isinstance(array, np.memmap):
        return volume
    order: Literal["C", "F"] = "F" if array.flags.f_contiguous else "C"
    plain = array.T if order == "F" else np.ascontiguousarray(array)
    try:
        with tempfile.TemporaryFile() as file:
            file.write(plain.data)
            file.flush()
            mapped = np.memmap(file, array.dtype, "r", shape=array.shape, order=order)
    except OSError:
        return volume
    return replace(volume, array=mapped)


def let_go(array: npt.NDArray[Any]) -> None:
    """Gives back the memory in which the system keeps what was read of a scan set aside; it is read again as needed."""
    held = getattr(array, "_mmap", None) if isinstance(array, np.memmap) else None
    if held is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        held.madvise(mmap.MADV_DONTNEED)


def let_slab_go(array: npt.NDArray[Any]) -> None:
    """`let_go` after some slices of an array [X, Y, Z]; not where the others lie in the same pages (z does not run
    slowest), which would be read anew for every slab."""
    if abs(array.strides[2]) == max(map(abs, array.strides)):
        let_go(array)


def in_slabs(array: npt.NDArray[Any]) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """An array [X, Y, Z], or a view of one, a few slices at a time: which, and what they hold.

    What was looked at is let go, so that a scan set aside is not in memory as a whole: copy what is to stay.
    """
    for z in range(0, array.shape[2], _SLICES):
        here = slice(z, z + _SLICES)
        yield here, array[:, :, here]
        let_slab_go(array)
    let_go(array)
