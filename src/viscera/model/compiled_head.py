"""The class heads as one compiled loop (numba): a voxel goes through all three layers in the processor's registers.

Torch has to write and read the maps between the layers. Imported only where much is to be computed (see
`viscera.model.head.ClassHeads`), since numba takes a second to import and, once on a machine, two to compile this.
"""

from __future__ import annotations

import os
from typing import Any

import numba
import numpy as np
import torch
from llvmlite.binding import get_host_cpu_features

from viscera.model.head import PARAMETERS, WIDTH

# LLVM uses half of an AVX-512 register unless told otherwise. With all of it this loop is twice as fast.
if "NUMBA_CPU_FEATURES" not in os.environ and get_host_cpu_features().get("avx512f"):
    numba.config.CPU_FEATURES = get_host_cpu_features().flatten() + ",-prefer-256-bit"

# Products and sums may be fused; there is no NaN among the weights, and one in the features stays one somewhere.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}
_ZERO = np.float32(0)


@numba.njit(**_OPTIONS)
def _eight(w: Any, i: int) -> Any:
    return w[i], w[i + 1], w[i + 2], w[i + 3], w[i + 4], w[i + 5], w[i + 6], w[i + 7]


@numba.njit(**_OPTIONS)
def _square(w: Any, i: int) -> Any:
    a, b, c, d = _eight(w, i), _eight(w, i + 8), _eight(w, i + 16), _eight(w, i + 24)
    return a, b, c, d, _eight(w, i + 32), _eight(w, i + 40), _eight(w, i + 48), _eight(w, i + 56)


@numba.njit(**_OPTIONS)
def _dot(bias: Any, w: Any, x: Any) -> Any:
    low = w[0] * x[0] + w[1] * x[1] + w[2] * x[2] + w[3] * x[3]
    return bias + low + w[4] * x[4] + w[5] * x[5] + w[6] * x[6] + w[7] * x[7]


@numba.njit(**_OPTIONS)
def _unit(bias: Any, w: Any, x: Any) -> Any:
    y = _dot(bias, w, x)
    return _ZERO if y < _ZERO else y  # and NaN stays NaN


@numba.njit(**_OPTIONS)
def _layer(bias: Any, w: Any, x: Any) -> Any:
    a, b, c = _unit(bias[0], w[0], x), _unit(bias[1], w[1], x), _unit(bias[2], w[2], x)
    d, e, f = _unit(bias[3], w[3], x), _unit(bias[4], w[4], x), _unit(bias[5], w[5], x)
    return a, b, c, d, e, f, _unit(bias[6], w[6], x), _unit(bias[7], w[7], x)


@numba.njit("void(f4[:, ::1], f4[:, ::1], f4[:, ::1])", cache=True, **_OPTIONS)
def _fill(features: Any, parameters: Any, logits: Any) -> None:
    x0, x1, x2, x3, x4, x5, x6, x7 = _eight(features, 0)
    for k in range(len(parameters)):  # laid out as `HeadWeights.from_parameters` says
        p, out = parameters[k], logits[k]
        weight1, weight2, weight3 = _square(p, 0), _square(p, 64), _eight(p, 128)
        bias1, bias2, bias3 = _eight(p, 136), _eight(p, 144), p[152]
        for v in range(features.shape[1]):
            x = (x0[v], x1[v], x2[v], x3[v], x4[v], x5[v], x6[v], x7[v])
            out[v] = _dot(bias3, weight3, _layer(bias2, weight2, _layer(bias1, weight1, x)))


def compiled_heads(features: torch.Tensor, parameters: torch.Tensor, logits: torch.Tensor) -> None:
    """features [8, V], parameters [K, 153] into logits [K, V]: float32, contiguous, on the processor.

    Raises ValueError for other shapes: the loop itself would read beyond them.
    """
    k, v = logits.shape
    if features.shape != (WIDTH, v) or parameters.shape != (k, PARAMETERS):
        raise ValueError(
            f"features {list(features.shape)} and parameters {list(parameters.shape)} give no logits [{k}, {v}]"
        )
    _fill(features.numpy(), parameters.numpy(), logits.numpy())
