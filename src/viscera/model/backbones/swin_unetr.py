"""The paper's Swin UNETR (Hatamizadeh et al. 2022), made of MONAI's; feature size 48, 62.19 M parameters."""

from __future__ import annotations

import torch
from monai.networks.blocks import UnetrUpBlock
from monai.networks.nets import SwinUNETR
from monai.networks.nets.swin_unetr import PatchMergingV2
from torch import nn

from viscera.model.backbones.base import Backbone
from viscera.model.backbones.blocks import UpJoinConv, with_parts

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
        return block.lrelu(out + block.norm3(self.join3(coarse, skip)))


class SwinUNETRBackbone(Backbone):
    """MONAI's parts under their own names, which are the released checkpoint's; only its output layer is left out."""

    bottleneck_channels = 768
    feature_channels = 48
    multiple = 32
    minimum_voxels = 64  # 32 would leave one voxel at the bottleneck, which instance norm cannot normalise
    prefers_channels_last = False

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
        blocks = {name: part for name, part in self.named_children() if isinstance(part, UnetrUpBlock)}
        return with_parts(self, **{name: FusedUp(block) for name, block in blocks.items()})


def build() -> Backbone:
    """The published size."""
    return SwinUNETRBackbone()
