"""Swin's blocks for evaluation give what MONAI's give, whatever hangs over at the far faces."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets.swin_unetr import BasicLayer
from torch import nn

from viscera.model.backbones.attention import QuickLayer
from viscera.model.backbones.swin_unetr import FusedFirst, OriginalMerging, SwinUNETRBackbone

SIZES = [
    (6, 6, 6),  # whole windows: a shift, and nothing padded
    (8, 10, 4),  # padded on two axes
    (2, 6, 8),  # an axis shorter than a window: neither shift nor padding there
    (2, 2, 2),  # one window
]


@pytest.fixture(scope="module")
def layer() -> BasicLayer:
    torch.manual_seed(0)
    layer = BasicLayer(8, depth=2, num_heads=2, window_size=(3, 3, 3), drop_path=[0, 0], downsample=OriginalMerging)
    for block in layer.blocks:
        nn.init.normal_(block.attn.relative_position_bias_table, std=2)
    return layer.eval()


@pytest.mark.parametrize("size", SIZES)
def test_a_stage_gives_the_same_map(layer, size):
    x = torch.randn(2, 8, *size)
    with torch.inference_mode():
        torch.testing.assert_close(QuickLayer(layer)(x), layer(x), rtol=1e-5, atol=1e-5)


def test_windows_that_the_shift_joined_do_not_look_at_each_other(layer):
    """A change in the first voxels must not reach, through the shifted block, those at the far face."""
    block, x = QuickLayer(layer).blocks[1], torch.randn(1, 6, 6, 6, 8)
    other = x.clone()
    other[:, 0] += 1
    with torch.inference_mode():
        change = (block(other) - block(x)).abs().amax((0, 2, 3, 4))
    assert change[0] > 1e-2 and change[-1] == 0


def test_the_residual_of_the_image_needs_only_its_mean_and_variance():
    torch.manual_seed(0)
    block = SwinUNETRBackbone().encoder1.layer.eval()
    images = torch.rand(2, 1, 8, 8, 8) * torch.tensor([1.0, 1e-2]).view(2, 1, 1, 1, 1)  # faint: epsilon counts
    with torch.inference_mode():
        torch.testing.assert_close(FusedFirst(block)(images), block(images), rtol=1e-4, atol=1e-4)
