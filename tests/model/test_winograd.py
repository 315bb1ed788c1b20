"""The quick convolution in bfloat16 gives what the direct one gives, at borders too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from viscera.model.backbones.winograd import WinogradConv, with_winograd


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("planes", [2, 6, 8, 10])  # less than one round of planes, one round, and a rest
def test_it_is_the_convolution_up_to_rounding(planes, bias):
    torch.manual_seed(0)
    conv, x = nn.Conv3d(32, 48, 3, padding=1, bias=bias), torch.randn(2, 32, planes, 5, 7)
    with torch.no_grad():
        found, expected = WinogradConv(conv)(x), conv(x)
    assert found.dtype == torch.bfloat16 and found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    error = (found.float() - expected).square().mean().sqrt() / expected.std()
    assert error < 0.008  # two steps of bfloat16; a wrong sign or plane makes it 0.5 and more


def test_whole_numbers_come_out_as_by_hand():
    conv = nn.Conv3d(1, 1, 3, padding=1)
    nn.init.constant_(conv.weight, 2.0)
    nn.init.constant_(conv.bias, 3.0)
    with torch.no_grad():
        found = WinogradConv(conv)(torch.ones(1, 1, 4, 4, 4))
    # Of 27 neighbours a corner has 8, the middle of an edge 12, of a face 18; each counts 2, and 3 are added.
    assert found[0, 0, 0, 0, 0] == 19 and found[0, 0, 1, 0, 0] == 27 and found[0, 0, 1, 1, 0] == 39
    assert found[0, 0, 1, 1, 1] == 57


def test_an_odd_number_of_planes_goes_the_direct_way():
    conv, x = nn.Conv3d(32, 32, 3, padding=1), torch.randn(1, 32, 5, 4, 4)
    with torch.no_grad():
        assert torch.equal(WinogradConv(conv)(x), conv(x))


def test_only_convolutions_that_fit_are_replaced_and_the_module_stays_as_it_was(monkeypatch):
    kept = [
        nn.Conv3d(1, 32, 3, padding=1),
        nn.Conv3d(32, 32, 1),
        nn.Conv3d(32, 32, 3, padding=1, stride=2),
        nn.Conv3d(32, 32, 3),
        nn.Conv3d(32, 32, 3, padding=1, groups=2),
    ]
    module = nn.Sequential(nn.Sequential(nn.Conv3d(32, 32, 3, padding=1), nn.ReLU()), *kept)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    quick = with_winograd(module)
    assert isinstance(quick[0][0], WinogradConv) and isinstance(module[0][0], nn.Conv3d)
    assert quick[0][0].direct is module[0][0]
    assert list(quick[1:]) == kept


def test_matrix_tiles_need_no_fewer_multiplications(monkeypatch):
    module = nn.Sequential(nn.Conv3d(32, 32, 3, padding=1))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert with_winograd(module) is module
