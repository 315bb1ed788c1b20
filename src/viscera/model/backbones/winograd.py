"""A 3 x 3 x 3 convolution in bfloat16 with two thirds of the multiplications, for evaluation on a CPU.

Winograd's minimal filtering F(2, 3) (Lavin and Gray 2016, section 4.1) along x: two neighbouring outputs of a filter
with three taps g need four products instead of six,

    m0 = (d0 - d2) g0                     y0 = m0 + m1 + m2
    m1 = (d1 + d2) (g0 + g1 + g2) / 2     y1 = m1 - m2 - m3
    m2 = (d2 - d1) (g0 - g1 + g2) / 2
    m3 = (d1 - d3) g2

where every product is here a 3 x 3 convolution over y and z. The sums round once more to bfloat16: the error of a layer
is one and a half times that of the direct convolution. Along two axes it would be twice, for little more speed.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from viscera.model.backbones.blocks import Module, with_each
from viscera.model.precision import has_matrix_tiles

_PAIRS = 4  # pairs of planes at a time: what they make stays in the processor's cache
_FILTERS = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))  # rows: what m0 ... m3 take of g0, g1, g2


class WinogradConv(nn.Module):
    """What `conv` computes, in bfloat16."""

    def __init__(self, conv: nn.Conv3d) -> None:
        """conv  3 x 3 x 3, stride 1, padding 1"""
        super().__init__()
        rows = torch.tensor(_FILTERS, dtype=torch.float64)
        filters = torch.einsum("kx,oixyz->koiyz", rows, conv.weight.detach().double()).bfloat16()
        self._filters = [each.contiguous(memory_format=torch.channels_last) for each in filters]
        self._bias = None if conv.bias is None else conv.bias.detach().bfloat16()
        self.direct = conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, in, X, Y, Z] -> bfloat16 [B, out, X, Y, Z] in channels-last layout; an odd X goes the direct way."""
        if x.shape[2] % 2:
            direct: torch.Tensor = self.direct(x)
            return direct
        planes = x.bfloat16().permute(0, 2, 3, 4, 1)  # [B, X, Y, Z, C]: contiguous in channels-last layout
        out = planes.new_empty(*planes.shape[:-1], self.direct.out_channels)
        for source, target in zip(planes, out, strict=True):
            for start in range(0, len(source), 2 * _PAIRS):
                self._fill(source, target, start, min(start + 2 * _PAIRS, len(source)))
        return out.permute(0, 4, 1, 2, 3)

    def _fill(self, source: torch.Tensor, target: torch.Tensor, start: int, stop: int) -> None:
        """source [X, Y, Z, in] -> the planes start <= x < stop of target [X, Y, Z, out]."""
        margins = (int(start == 0), int(stop == len(source)))
        d = functional.pad(source[max(0, start - 1) : stop + 1], (0, 0, 0, 0, 0, 0, *margins))
        d0, d1, d2, d3 = d[:-2:2], d[1:-2:2], d[2::2], d[3::2]
        m0, m1, m2, m3 = (self._product(part, k) for k, part in enumerate((d0 - d2, d1 + d2, d2 - d1, d1 - d3)))
        torch.add(m0, m1 + m2, out=target[start:stop:2])
        torch.sub(m1 - m2, m3, out=target[start + 1 : stop : 2])

    def _product(self, part: torch.Tensor, k: int) -> torch.Tensor:
        """[planes, Y, Z, in] -> [planes, Y, Z, out]; m1, which is in both outputs, carries the bias."""
        bias = self._bias if k == 1 else None
        return functional.conv2d(part.permute(0, 3, 1, 2), self._filters[k], bias, padding=1).permute(0, 2, 3, 1)


def with_winograd(module: Module) -> Module:
    """The same module with its convolutions of 3 x 3 x 3 of many channels replaced; the rest is shared.

    The module itself on a processor with matrix tiles (AMX): there products cost less than the sums that spare them.
    """
    return module if has_matrix_tiles() else with_each(module, _replacement)


def _replacement(part: nn.Module) -> nn.Module | None:
    if not isinstance(part, nn.Conv3d) or part.kernel_size != (3, 3, 3) or part.groups != 1:
        return None
    plain = part.stride == part.padding == part.dilation == (1, 1, 1)
    return WinogradConv(part) if plain and min(part.in_channels, part.out_channels) >= 32 else None
