"""Our light network for CPUs (5.8 M parameters with the head): everything happens at half resolution or less.

A stem with stride 2, then a U-Net of 32/64/128/256 channels whose decoder ends at half resolution; the model up-samples
the eight feature channels it makes of it, not these 32. Batch norm with running statistics: at inference it is a scale
and a shift, the cheapest there is, and does not depend on how much of the body lies in the window.
"""

from __future__ import annotations

from abc import abstractmethod
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from viscera.model.backbones.base import Backbone, least_for_strides
from viscera.model.backbones.blocks import UpJoinConv


def _double(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm3d(channels_out),
        nn.ReLU(inplace=True),
        nn.Conv3d(channels_out, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm3d(channels_out),
        nn.ReLU(inplace=True),
    )


def _folded(double: nn.Module) -> nn.Sequential:
    """A double convolution in evaluation mode whose norms are folded into its convolutions."""
    first, norm1, relu, second, norm2, _ = double.children()
    return nn.Sequential(_one(first, norm1), relu, _one(second, norm2), relu)


def _one(conv: nn.Module, norm: nn.Module) -> nn.Conv3d:
    assert isinstance(conv, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d)
    return fuse_conv_bn_eval(conv, norm)


class FusedJoin(nn.Module):
    """Up-sampling and the double convolution after it, for evaluation."""

    def __init__(self, up: nn.Module, double: nn.Module) -> None:
        super().__init__()
        first, *others = _folded(double)
        assert isinstance(up, nn.ConvTranspose3d) and isinstance(first, nn.Conv3d)
        self.join = UpJoinConv(up, first)
        self.rest = nn.Sequential(*others)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.rest(self.join(x, skip))
        return out


class _HalfResolution(Backbone):
    """The way through a U-Net that starts and ends at half resolution, whatever its layers are made of."""

    stem: nn.Module
    down: nn.ModuleList
    join: nn.ModuleList

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.check_size(image)
        maps = [self.stem(image)]
        for down in self.down:
            maps.append(down(maps[-1]))
        bottleneck = x = maps.pop()
        for level in range(len(self.join)):
            x = self.joined(level, x, maps.pop())
        return bottleneck, x

    @abstractmethod
    def joined(self, level: int, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """The decoder's next finer map, from the coarser one `x` and what the encoder kept, `skip`."""


class Lite(_HalfResolution):
    """The network as it is trained."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.feature_channels, self.bottleneck_channels = channels[0], channels[-1]
        self.multiple = 2 ** len(channels)
        self.minimum_voxels = least_for_strides(self.multiple)
        pairs = list(pairwise(channels))
        self.stem = _double(1, channels[0], stride=2)
        self.down = nn.ModuleList(_double(shallow, deep, stride=2) for shallow, deep in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose3d(deep, shallow, 2, stride=2) for shallow, deep in reversed(pairs))
        self.join = nn.ModuleList(_double(2 * shallow, shallow) for shallow, _ in reversed(pairs))

    def joined(self, level: int, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.join[level](torch.cat([self.up[level](x), skip], 1))
        return out

    def fused(self, *, bf16: bool = False) -> Backbone:
        return FusedLite(self)


class FusedLite(_HalfResolution):
    """The same network for evaluation: norms folded into convolutions, up-sampling into the convolution after it."""

    def __init__(self, lite: Lite) -> None:
        super().__init__()
        self.feature_channels, self.bottleneck_channels = lite.feature_channels, lite.bottleneck_channels
        self.multiple, self.minimum_voxels = lite.multiple, lite.minimum_voxels
        self.stem = _folded(lite.stem)
        self.down = nn.ModuleList(map(_folded, lite.down))
        self.join = nn.ModuleList(FusedJoin(up, join) for up, join in zip(lite.up, lite.join, strict=True))

    def joined(self, level: int, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.join[level](x, skip)
        return out


def build(channels: tuple[int, ...] = (32, 64, 128, 256)) -> Backbone:
    """channels: of each level, from half resolution down."""
    return Lite(tuple(channels))
