"""Normalisation over all voxels of a map, on a CPU in channels-last layout.

There torch's batch and group norms in float32 add up all voxels one after the other, and lose four digits on a map of
96 x 96 x 96. Here blocks of voxels are added, and their sums in float64: as exact as torch in its own layout.
"""

from __future__ import annotations

import torch
from torch import nn

_BLOCK = 512  # voxels whose sum float32 holds
_AT_ONCE = 32 * _BLOCK  # voxels that stay in the processor's cache between two passes


class CPUGroupNorm(nn.GroupNorm):
    """The same layer as `norm` for evaluation on a CPU: exact in float32 whatever the layout. It may overwrite its
    input."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps)
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not is_summed_badly(input):
            return super().forward(input)
        parts = [normalised(each, self.num_groups, self.weight, self.bias, self.eps) for each in torch.split(input, 1)]
        return torch.cat(parts)


def is_summed_badly(maps: torch.Tensor) -> bool:
    """Whether torch's own norms would be inexact on maps [B, C, X, Y, Z]."""
    last = maps.is_contiguous(memory_format=torch.channels_last_3d) and not maps.is_contiguous()
    return last and maps.dtype == torch.float32 and maps.device.type == "cpu"


def normalised(sample: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """sample [1, C, X, Y, Z] -> the same with mean 0 and variance 1 in each group of channels, times weight plus bias
    [C]; channels-last, without gradients. In place, and few voxels at a time: the maps of a network are what its memory
    is needed for."""
    voxels = sample.permute(0, 2, 3, 4, 1).flatten(0, 3)  # a view
    sums, squares = (voxels.new_zeros(voxels.shape[1], dtype=torch.float64) for _ in range(2))
    for part in torch.split(voxels, _AT_ONCE):
        sums += _sum(part)
        squares += _sum(part.square())
    mean, square = (each.view(groups, -1).mean(1, keepdim=True) / len(voxels) for each in (sums, squares))
    scale = weight.double().view(groups, -1) * (square - mean.square() + eps).rsqrt()
    centre, factor, offset = mean.expand_as(scale).flatten().float(), scale.flatten().float(), bias.float()
    for part in torch.split(voxels, _AT_ONCE):
        # The mean goes first: a product of both would lose the digits in which voxels of a map far from 0 differ.
        part.sub_(centre)
        torch.addcmul(offset, part, factor, out=part)
    return sample


def _sum(voxels: torch.Tensor) -> torch.Tensor:
    """[voxels, C] -> float64 [C]"""
    even = len(voxels) // _BLOCK * _BLOCK
    blocks = voxels[:even].view(-1, _BLOCK, voxels.shape[1])
    ones = voxels.new_ones(1, 1, _BLOCK).expand(len(blocks), 1, _BLOCK)
    sums: torch.Tensor = torch.bmm(ones, blocks).double().sum((0, 1)) + voxels[even:].double().sum(0)
    return sums
