"""A body whose organs are told by their HU alone, and a network that knows them in closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from viscera.io.volume import Volume
from viscera.model.build import untrained

# HU band of each class the closed-form network finds.
BANDS = {"right_kidney": (190, 210), "left_kidney": (140, 160), "liver": (90, 110), "kidney_tumor": (240, 260)}
SHAPE = (30, 26, 22)
SPACING_MM = (3.0, 3.0, 3.0)
WINDOW_HU = (-1000.0, 1000.0)


class BandNetwork(torch.nn.Module):
    """Stands in for a `UniversalModel`: a class is where the HU lie in its band."""

    def __init__(self, mode="whole", patch=(16, 16, 16)):
        super().__init__()
        model = untrained("lite")
        self.config = replace(
            model.config,
            name="bands",
            classes=tuple(BANDS),
            preprocessing=replace(model.config.preprocessing, spacing_mm=SPACING_MM, window_hu=WINDOW_HU, smooth=False),
            inference=replace(model.config.inference, mode=mode, patch_voxels=patch),
            thresholds={},
        )
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.backbone = torch.nn.Identity()
        self.backbone.prefers_channels_last = False
        self.backbone.fused = lambda **asked: self.backbone
        self.GAP = self.precls_conv = torch.nn.Sequential(torch.nn.GroupNorm(1, 1), torch.nn.ReLU())  # not used
        self.backbone.multiple, self.backbone.minimum_voxels = 1, 1

    def encode(self, image):
        return image, torch.zeros(1, 1)

    def heads(self, embedding, classes, compiled):
        return [lambda features: self.decode(features[None], embedding, classes)[0]]

    def decode(self, features, embedding, classes):
        low, high = WINDOW_HU
        hu = features[:, 0].float() * (high - low) + low
        bands = [list(BANDS.values())[c] for c in classes]
        return torch.stack([(b - a) / 2 - (hu - (a + b) / 2).abs() for a, b in bands], 1)


def phantom_hu():
    """A body in RAS axes: two unequal kidneys, a liver, a tumour in the right kidney; nothing symmetric."""
    hu = np.full(SHAPE, -1000, np.int16)
    hu[3:27, 3:23, 1:21] = 20
    hu[20:25, 6:11, 4:10] = 200  # right: x grows to the right
    hu[5:9, 6:11, 4:11] = 150
    hu[15:26, 8:21, 12:19] = 100
    hu[22:24, 8:10, 6:8] = 250
    return hu


@pytest.fixture
def bands():
    return BandNetwork()


@pytest.fixture
def phantom():
    return Volume(phantom_hu(), np.diag([*SPACING_MM, 1.0]))
