"""UNet++ (Zhou et al. 2018), made of MONAI's `BasicUNetPlusPlus`."""

from __future__ import annotations

import torch
from monai.networks.nets import BasicUNetPlusPlus

from viscera.model.backbones.base import Backbone


class UNetPlusPlus(Backbone):
    """MONAI's parts under their own names, which are the published ones; its four output layers are left out.

    ``x_i_j`` is node j of resolution level i in the paper's figure.
    """

    multiple = 16
    minimum_voxels = 32

    def __init__(self, features: tuple[int, ...]) -> None:
        super().__init__()
        self.bottleneck_channels, self.feature_channels = features[4], features[5]
        for name, part in BasicUNetPlusPlus(features=features).named_children():
            if not name.startswith("final_conv"):
                self.add_module(name, part)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.check_size(image)
        x_0_0 = self.conv_0_0(image)
        x_1_0 = self.conv_1_0(x_0_0)
        x_2_0 = self.conv_2_0(x_1_0)
        x_3_0 = self.conv_3_0(x_2_0)
        x_4_0 = self.conv_4_0(x_3_0)
        x_3_1 = self.upcat_3_1(x_4_0, x_3_0)
        x_2_1 = self.upcat_2_1(x_3_0, x_2_0)
        x_2_2 = self.upcat_2_2(x_3_1, torch.cat([x_2_0, x_2_1], 1))
        x_1_1 = self.upcat_1_1(x_2_0, x_1_0)
        x_1_2 = self.upcat_1_2(x_2_1, torch.cat([x_1_0, x_1_1], 1))
        x_1_3 = self.upcat_1_3(x_2_2, torch.cat([x_1_0, x_1_1, x_1_2], 1))
        x_0_1 = self.upcat_0_1(x_1_0, x_0_0)
        x_0_2 = self.upcat_0_2(x_1_1, torch.cat([x_0_0, x_0_1], 1))
        x_0_3 = self.upcat_0_3(x_1_2, torch.cat([x_0_0, x_0_1, x_0_2], 1))
        return x_4_0, self.upcat_0_4(x_1_3, torch.cat([x_0_0, x_0_1, x_0_2, x_0_3], 1))


def build(features: tuple[int, ...] = (32, 32, 64, 128, 256, 32)) -> Backbone:
    """features: channels of the five levels, then of the decoder's last map."""
    return UNetPlusPlus(tuple(features))
