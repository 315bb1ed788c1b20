"""Where large arrays live, and what becomes of their memory when they are freed."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# mallopt(3): options, what keeps all, and what glibc settles at by itself in a process with large arrays.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_ALL = 2**30
_USUAL = {_TRIM_THRESHOLD: 64 * 2**20, _MMAP_THRESHOLD: 32 * 2**20}


def apart(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy in memory of its own, which goes back to the system as soon as nobody holds it.

    For what outlives many others, however small: left among arrays that come and go, it would break their place into
    holes that nothing fits into again. A tensor that is not in the main memory is copied as always.
    """
    import torch

    size = tensor.numel() * tensor.element_size()
    if tensor.device.type != "cpu" or size == 0:
        return tensor.clone(memory_format=torch.contiguous_format)
    return torch.frombuffer(mmap.mmap(-1, size), dtype=tensor.dtype).view(tensor.shape).copy_(tensor)


def give_back() -> None:
    """Gives memory that was freed back to the system, of which glibc keeps a share for every thread. (Only glibc.)"""
    trim = getattr(_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def memory_kept() -> Iterator[None]:
    """Within it, freed memory stays with the process for the next array of its size; at the end it is given back. (Only
    glibc.)

    A network makes maps of 100 MB one after the other. Each would come from the system anew, page by page and cleared,
    which can take longer than filling it. New threads take from the same memory instead of keeping a share of their own
    (for good: glibc reads that limit once).
    """
    _set({**dict.fromkeys(_USUAL, _ALL), _ARENA_MAX: 1})
    try:
        yield
    finally:
        _set(_USUAL)
        give_back()


def _set(options: dict[int, int]) -> None:
    change = getattr(_library(), "mallopt", None)
    if change is not None:
        for option, value in options.items():
            change(option, value)


@cache
def _library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
