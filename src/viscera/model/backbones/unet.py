"""The paper's U-Net (19.08 M parameters): the 3-D U-Net of Models Genesis (Zhou et al. 2019).

Two convolutions per stage, channels doubling inside a stage (32-64, 64-128, 128-256, 256-512), max pooling down,
transposed convolutions up, skips by concatenation.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from viscera.model.backbones.base import Backbone
from viscera.model.backbones.blocks import SampleNorm, UpJoinConv, conv_of_two, with_parts
from viscera.model.backbones.winograd import with_winograd


class ConvNormReLU(nn.Module):
    """3 x 3 x 3 convolution, normalisation, ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels_in, channels_out, kernel_size=3, padding=1)
        self.bn1 = SampleNorm(channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu_(self.bn1(self.conv1(x)))

    def forward_two(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """The same of two maps as if they were concatenated."""
        return functional.relu_(self.bn1(conv_of_two(self.conv1, first, second)))


class Down(nn.Module):
    """One stage of the encoder: two convolutions, the second doubles the channels."""

    def __init__(self, channels_in: int, channels_middle: int, channels_out: int) -> None:
        super().__init__()
        self.ops = nn.Sequential(
            ConvNormReLU(channels_in, channels_middle), ConvNormReLU(channels_middle, channels_out)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.ops(x)
        return out


class Up(nn.Module):
    """One stage of the decoder: up-sample, join the skip, two convolutions."""

    def __init__(self, channels_in: int, channels_skip: int, channels_out: int) -> None:
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(channels_in, channels_in, kernel_size=2, stride=2)
        joined = ConvNormReLU(channels_in + channels_skip, channels_out)
        self.ops = nn.ModuleList([joined, ConvNormReLU(channels_out, channels_out)])

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        joined, second = self.ops
        assert isinstance(joined, ConvNormReLU)
        out: torch.Tensor = second(joined.forward_two(self.up_conv(x), skip))
        return out

    def fused(self) -> FusedUp:
        return FusedUp(self)


class FusedUp(nn.Module):
    """The same stage for evaluation: up-sampling and the convolution after it are one layer."""

    def __init__(self, stage: Up) -> None:
        super().__init__()
        joined, self.second = stage.ops
        assert isinstance(joined, ConvNormReLU)
        self.join = UpJoinConv(stage.up_conv, joined.conv1)
        self.norm = joined.bn1

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(functional.relu_(self.norm(self.join(x, skip))))
        return out


def _halved(x: torch.Tensor) -> torch.Tensor:
    """Max pooling. Asked for without indices, autocast would first make a float32 copy of the largest maps."""
    return functional.max_pool3d(x, 2, return_indices=True)[0]


class UNet(Backbone):
    """The paper's convolutional backbone; module names are those of the released checkpoint."""

    bottleneck_channels = 512
    feature_channels = 64
    multiple = 8
    minimum_voxels = 16  # a single voxel at the bottleneck has no variance to normalise with

    def __init__(self) -> None:
        super().__init__()
        self.down_tr64 = Down(1, 32, 64)
        self.down_tr128 = Down(64, 64, 128)
        self.down_tr256 = Down(128, 128, 256)
        self.down_tr512 = Down(256, 256, 512)
        self.up_tr256 = Up(512, 256, 256)
        self.up_tr128 = Up(256, 128, 128)
        self.up_tr64 = Up(128, 64, 64)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.check_size(image)
        full = self.down_tr64(image)
        half = self.down_tr128(_halved(full))
        quarter = self.down_tr256(_halved(half))
        bottleneck = self.down_tr512(_halved(quarter))
        up = self.up_tr128(self.up_tr256(bottleneck, quarter), half)
        return bottleneck, self.up_tr64(up, full)

    def fused(self, *, bf16: bool = False) -> UNet:
        ups = {name: part.fused() for name, part in self.named_children() if isinstance(part, Up)}
        joined = with_parts(self, **ups)
        return with_winograd(joined) if bf16 else joined


def build() -> Backbone:
    """The published size."""
    return UNet()
