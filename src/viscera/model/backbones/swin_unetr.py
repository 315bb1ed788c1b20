"""The paper's Swin UNETR (Hatamizadeh et al. 2022), made of MONAI's; feature size 48, 62.19 M parameters."""

from __future__ import annotations

import torch
from monai.networks.blocks import UnetResBlock, UnetrUpBlock
from monai.networks.nets import SwinUNETR
from monai.networks.nets.swin_unetr import BasicLayer, PatchMergingV2
from torch import nn

from viscera.model.backbones.attention import QuickLayer
from viscera.model.backbones.base import Backbone
from viscera.model.backbones.blocks import SampleNorm, UpJoinConv, with_each
from viscera.model.backbones.winograd import with_winograd

# Which of the eight voxels of a 2 x 2 x 2 cell the original merging joins, in order. It names two of them twice and
# leaves two out, (1, 1, 0) and (0, 1, 1). The released weights were trained with it; MONAI's "merging" has moved on.
ORIGINAL_CELL = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))


class OriginalMerging(PatchMergingV2):
    """Halves a map [B, X, Y, Z, C] with even sides and doubles its channels, as the released weights expect."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        merged = torch.cat([x[:, i::2, j::2, k::2] for i, j, k in ORIGINAL_CELL], -1)
        out: torch.Tensor = self.reduction(self.norm(merged))
        return out


class FusedUp(nn.Module):
    """MONAI's up-sampling block for evaluation: up-sampling and the convolutions after it are one layer each."""

    def __init__(self, block: UnetrUpBlock) -> None:
        super().__init__()
        self.residual = block.conv_block
        self.join1 = UpJoinConv(block.transp_conv.conv, self.residual.conv1.conv)
        self.join3 = UpJoinConv(block.transp_conv.conv, self.residual.conv3.conv)

    def forward(self, coarse: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        block = self.residual
        out: torch.Tensor = block.norm2(block.conv2(block.lrelu(block.norm1(self.join1(coarse, skip)))))
        return block.lrelu(out.add_(block.norm3(self.join3(coarse, skip))))


class FusedFirst(nn.Module):
    """MONAI's residual block on the image for evaluation. A 1 x 1 x 1 convolution of one channel is that channel times
    a number, so its instance norm needs the image's mean and variance alone."""

    def __init__(self, block: UnetResBlock) -> None:
        super().__init__()
        self.block = block
        self.weight = block.conv3.conv.weight

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[B, 1, X, Y, Z] -> [B, C, X, Y, Z]"""
        block = self.block
        out: torch.Tensor = block.norm2(block.conv2(block.lrelu(block.norm1(block.conv1(image)))))
        # One number a sample, not a map of one voxel: with a map's shape OpenVINO merges what follows, of C channels,
        # into the mean of one channel, and fails on processors with AVX2 alone.
        variance, mean = (x.view(-1, 1, 1, 1, 1) for x in torch.var_mean(image.flatten(1), 1, correction=0))
        factor = self.weight.view(1, -1, 1, 1, 1)
        factor = factor * (factor.square() * variance + block.norm3.eps).rsqrt()
        return block.lrelu(out.addcmul_((image - mean).to(out), factor.to(out)))


class SwinUNETRBackbone(Backbone):
    """MONAI's parts under their own names, which are the released checkpoint's; only its output layer is left out."""

    bottleneck_channels = 768
    feature_channels = 48
    multiple = 32
    prefers_channels_last = False
    minimum_voxels = 64  # 32 would leave one voxel at the bottleneck, which instance norm cannot normalise

    def __init__(self) -> None:
        super().__init__()
        # `use_checkpoint` saves memory in training and changes nothing else.
        net = SwinUNETR(in_channels=1, out_channels=1, feature_size=48, use_checkpoint=True, downsample=OriginalMerging)
        for name, part in net.named_children():
            if name != "out":
                self.add_module(name, part)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.check_size(image)
        hidden = self.swinViT(image, True)
        skip1, skip2, skip3 = self.encoder2(hidden[0]), self.encoder3(hidden[1]), self.encoder4(hidden[2])
        deepest = self.encoder10(hidden[4])
        x = self.decoder4(self.decoder5(deepest, hidden[3]), skip3)
        x = self.decoder2(self.decoder3(x, skip2), skip1)
        return deepest, self.decoder1(x, self.encoder1(image))

    def fused(self, *, bf16: bool = False) -> Backbone:
        quick = with_each(self, _replacement)
        quick.prefers_channels_last = bf16
        return with_winograd(quick) if bf16 else quick


def _replacement(part: nn.Module) -> nn.Module | None:
    """What takes the place of one of MONAI's parts in evaluation."""
    if isinstance(part, UnetrUpBlock):
        return with_each(FusedUp(part), _replacement)
    if isinstance(part, UnetResBlock) and part.conv1.conv.in_channels == 1:
        return FusedFirst(with_each(part, _replacement))
    if isinstance(part, BasicLayer):
        return QuickLayer(part)
    if isinstance(part, nn.InstanceNorm3d):
        return SampleNorm(part.num_features, part.eps)
    return None


def build() -> Backbone:
    """The published size."""
    return SwinUNETRBackbone()
