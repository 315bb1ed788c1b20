"""The norms for a CPU are as exact in channels-last layout as torch is in its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from viscera.model.backbones.blocks import SampleNorm
from viscera.model.norm import CPUGroupNorm

LAST = torch.channels_last_3d


def maps(batch=1, side=40):
    generator = torch.Generator().manual_seed(0)
    return 0.5 + torch.randn(batch, 32, side, side, side + 1, generator=generator)  # the last block is not whole


def with_weights(norm):
    nn.init.uniform_(norm.weight, -2, 2)
    nn.init.uniform_(norm.bias, -1, 1)
    return norm.eval()


def in_float64(x, norm, groups):
    x = x.double()
    grouped = x.view(len(x), groups, -1)
    normed = (grouped - grouped.mean(2, keepdim=True)) / (grouped.var(2, keepdim=True, correction=0) + norm.eps).sqrt()
    return normed.view_as(x) * norm.weight.double().view(-1, 1, 1, 1) + norm.bias.double().view(-1, 1, 1, 1)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("groups", [8, 32])
def test_float32_in_channels_last_layout_loses_nothing(groups, batch):
    torch.manual_seed(0)
    plain = with_weights(nn.GroupNorm(8, 32) if groups == 8 else SampleNorm(32))
    norm = CPUGroupNorm(plain) if groups == 8 else plain
    x = maps(batch)
    with torch.no_grad():
        found = norm(x.clone(memory_format=LAST))
        expected = in_float64(x, plain, groups)
    assert found.is_contiguous(memory_format=LAST)
    assert (found - expected).abs().max() < 3e-6


def test_with_gradients_it_is_torchs_own():
    norm, x = SampleNorm(32), maps(side=4).contiguous(memory_format=LAST)
    norm(x).square().sum().backward()
    assert norm.weight.grad is not None
