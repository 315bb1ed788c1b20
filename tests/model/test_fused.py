"""Layers joined for evaluation give what the separate ones give, at borders too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from viscera.model.backbones.base import make_backbone
from viscera.model.backbones.blocks import ConvOfImage, UpJoinConv, UpThenConv, with_parts


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [1, 3])
def test_up_sampling_and_convolution_are_one_layer(size, bias):
    torch.manual_seed(0)
    up = nn.ConvTranspose3d(3, 4, 2, stride=2, bias=bias)
    conv = nn.Conv3d(4, 5, size, padding=size // 2, bias=bias)
    coarse = torch.randn(2, 3, 2, 3, 4)
    with torch.no_grad():
        found = UpThenConv(up, conv.weight, conv.bias)(coarse)
        torch.testing.assert_close(found, conv(up(coarse)), rtol=1e-5, atol=1e-5)


def test_another_size_is_refused():
    with pytest.raises(ValueError, match="5 voxels wide"):
        UpThenConv(nn.ConvTranspose3d(1, 1, 2, stride=2), torch.ones(1, 1, 5, 5, 5), None)


def test_with_the_skip_it_is_the_convolution_of_both():
    torch.manual_seed(0)
    up, conv = nn.ConvTranspose3d(3, 4, 2, stride=2), nn.Conv3d(4 + 2, 5, 3, padding=1)
    coarse, skip = torch.randn(1, 3, 2, 3, 4), torch.randn(1, 2, 4, 6, 8)
    with torch.no_grad():
        found = UpJoinConv(up, conv)(coarse, skip)
        torch.testing.assert_close(found, conv(torch.cat([up(coarse), skip], 1)), rtol=1e-5, atol=1e-5)


def test_a_constant_map_comes_out_as_by_hand():
    up, conv = nn.ConvTranspose3d(1, 1, 2, stride=2), nn.Conv3d(1, 1, 3, padding=1, bias=False)
    for weight, value in ((up.weight, 1.0), (up.bias, 1.0), (conv.weight, 1.0)):
        nn.init.constant_(weight, value)
    with torch.no_grad():
        found = UpThenConv(up, conv.weight, None)(torch.ones(1, 1, 2, 2, 2))
    # Every fine voxel is 1 * 1 + 1 = 2; the sum over its neighbourhood has 8 of them in a corner, 27 in the middle.
    assert found[0, 0, 0, 0, 0] == pytest.approx(16)
    assert found[0, 0, 0, 0, 1] == pytest.approx(24)
    assert found[0, 0, 1, 1, 1] == pytest.approx(54)


def test_the_light_networks_norms_are_folded_with_what_they_learned():
    torch.manual_seed(0)
    lite = make_backbone("lite", {"channels": (16, 32)}).eval()
    for part in lite.modules():
        if isinstance(part, nn.BatchNorm3d):
            for values, low, high in (
                (part.weight, 0.5, 2),
                (part.bias, -1, 1),
                (part.running_mean, -1, 1),
                (part.running_var, 0.5, 2),
            ):
                nn.init.uniform_(values, low, high)
    image = torch.rand(1, 1, 8, 12, 16)
    with torch.no_grad():
        for plain, fused in zip(lite(image), lite.fused()(image), strict=True):
            torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)


def test_fusing_leaves_the_backbone_as_it_was():
    unet = make_backbone("unet", {}).eval()
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    fused = unet.fused()
    assert fused is not unet and fused.up_tr64 is not unet.up_tr64 and fused.down_tr64 is unet.down_tr64
    after = unet.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)


def test_other_parts_are_shared():
    pair = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    other = with_parts(pair, **{"1": nn.ReLU()})
    assert other[0] is pair[0] and isinstance(other[1], nn.ReLU) and isinstance(pair[1], nn.Linear)


def test_a_network_in_bfloat16_sees_the_image_as_it_is():
    """Two voxels a thousandth apart: in bfloat16 both are 0.5."""
    conv = nn.Conv3d(1, 1, 1)
    nn.init.constant_(conv.weight, 1.0)
    nn.init.constant_(conv.bias, -0.5)
    image = torch.tensor([0.5, 0.5 + 2**-10]).view(1, 1, 2, 1, 1)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, found = conv(image), ConvOfImage(conv)(image)
    assert rounded.flatten().tolist() == [0, 0]
    assert found.dtype == torch.bfloat16 and found.flatten().tolist() == [0, 2**-10]
