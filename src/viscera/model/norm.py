"""Normalisation over all voxels of a map, on a CPU in channels-last layout.

There torch's batch and group norms in float32 add up all voxels one after the other, and lose four digits on a map of
96 x 96 x 96. Here blocks of voxels are added, and their sums in float64: as exact as torch in its own layout.
"""

from __future__ import annotations

import torch
from torch import nn

_BLOCK = 512  # voxels


class CPUGroupNorm(nn.GroupNorm):
    """The same layer as `norm` for evaluation on a CPU: exact in float32 whatever the layout."""

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
    [C]; channels-last, without gradients."""
    voxels = sample.permute(0, 2, 3, 4, 1).flatten(0, 3)
    even = len(voxels) // _BLOCK * _BLOCK
    blocks, rest = voxels[:even].view(-1, _BLOCK, voxels.shape[1]), voxels[even:].double()
    ones = voxels.new_ones(1, 1, _BLOCK).expand(len(blocks), 1, _BLOCK)
    sums = torch.bmm(ones, blocks).double().sum((0, 1)) + rest.sum(0)
    squares = torch.bmm(ones, blocks.square()).double().sum((0, 1)) + rest.square().sum(0)
    mean, square = (each.view(groups, -1).mean(1, keepdim=True) / len(voxels) for each in (sums, squares))
    scale = weight.double().view(groups, -1) * (square - mean.square() + eps).rsqrt()
    # The mean goes first: a product of both would lose the digits in which voxels of a map far from 0 differ.
    found = voxels - mean.expand_as(scale).flatten().float()
    torch.addcmul(bias.float(), found, scale.flatten().float(), out=found)
    return found.view(1, *sample.shape[2:], -1).permute(0, 4, 1, 2, 3)
