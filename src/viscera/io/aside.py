"""A large scan out of the way while the network works: in a file, from which the system reads what is looked at."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import Literal

import numpy as np

from viscera.io.volume import Volume

ASIDE_BYTES = 200_000_000  # smaller scans stay in memory


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
