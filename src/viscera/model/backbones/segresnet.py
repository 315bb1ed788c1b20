"""SegResNet (Myronenko 2018), made of MONAI's: residual blocks with group norm, an encoder-heavy U-shape."""

from __future__ import annotations

import torch
from monai.networks.nets import SegResNet

from viscera.model.backbones.base import Backbone, least_for_strides


class SegResNetBackbone(Backbone):
    """MONAI's SegResNet without its output layer."""

    def __init__(self, filters: int, blocks_down: tuple[int, ...], blocks_up: tuple[int, ...]) -> None:
        super().__init__()
        self.net = SegResNet(
            in_channels=1,
            init_filters=filters,
            blocks_down=blocks_down,
            blocks_up=blocks_up,
            use_conv_final=False,
            norm=("GROUP", {"num_groups": 8}),
        )
        del self.net.conv_final
        self.feature_channels = filters
        self.bottleneck_channels = filters * 2 ** (len(blocks_down) - 1)
        self.multiple = 2 ** (len(blocks_down) - 1)
        self.minimum_voxels = least_for_strides(self.multiple)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.check_size(image)
        bottleneck, maps = self.net.encode(image)
        return bottleneck, self.net.decode(bottleneck, maps[::-1])


def build(
    filters: int = 32, blocks_down: tuple[int, ...] = (1, 2, 2, 4), blocks_up: tuple[int, ...] = (1, 1, 1)
) -> Backbone:
    """filters: channels at full resolution (a multiple of 16); blocks: residual blocks of each level down, then up."""
    return SegResNetBackbone(filters, tuple(blocks_down), tuple(blocks_up))
