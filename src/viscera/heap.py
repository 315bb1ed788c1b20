"""What glibc does with memory that is freed; elsewhere nothing here has an effect."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# mallopt(3): options, what keeps all, and what glibc settles at by itself in a process with large arrays.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_ALL = 2**30
_USUAL = {_TRIM_THRESHOLD: 64 * 2**20, _MMAP_THRESHOLD: 32 * 2**20}


def give_back() -> None:
    """Gives memory that was freed back to the system, of which glibc keeps a share for every thread."""
    trim = getattr(_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def memory_kept() -> Iterator[None]:
    """Within it, freed memory stays with the process for the next array of its size; at the end it is given back.

    A network makes maps of 100 MB one after the other. Each would come from the system anew, page by page and cleared,
    which can take longer than filling it.
    """
    _set(dict.fromkeys(_USUAL, _ALL))
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
