"""In which numbers a network computes: exact float32, or bfloat16 where the hardware has it."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]


def has_matrix_tiles() -> bool:
    """Whether this processor multiplies bfloat16 in tiles (AMX), several times as fast as in vectors."""
    return bool(torch.cpu._is_amx_tile_supported())


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is computed by the hardware: AVX512-BF16 or AMX on a CPU, Ampere or newer with CUDA."""
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or has_matrix_tiles())
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def resolved_precision(precision: Precision, device: torch.device) -> Precision:
    """The precision with "auto" replaced by the faster one on `device`. Warns, once, of a bf16 that is slow there."""
    if precision == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    if precision == "bf16" and device.type == "cpu" and not has_fast_bf16(device):
        _tell_that_bf16_is_slow()
    return precision


@cache
def _tell_that_bf16_is_slow() -> None:
    logging.getLogger(__name__).warning(
        "This processor computes no bfloat16, as far as torch can tell. It can be imitated, mostly many times slower "
        "than float32: leave the precision at auto, or set fp32."
    )


def computing_in(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """A context in which networks on `device` compute in `precision`; weights and the head stay float32."""
    if resolved_precision(precision, device) == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
