"""Swin's attention within shifted windows for evaluation: the same numbers as MONAI's layers, without the maps that
say how much every voxel of a window looks at every other.

At the first stage of Swin UNETR these maps are 343 windows x 3 heads x 343 x 343, half a gigabyte that is written and
read once for each thing done to it. torch's `scaled_dot_product_attention` makes them piece by piece in the
processor's cache. What it is to add to them differs only between windows that touch the far faces of the map and those
that do not, at most eight kinds, so no mask for all windows is needed either.
"""

from __future__ import annotations

from itertools import product

import torch
from monai.networks.nets.swin_unetr import BasicLayer, SwinTransformerBlock, WindowAttention, get_window_size
from torch import nn
from torch.nn import functional

from viscera.shapes import Triple, triple

_APART = -100.0  # MONAI's mask: what is added between voxels that the shift brought together


class QuickAttention(nn.Module):
    """Attention within the windows of a map, of which those at the far faces hold parts that are not neighbours."""

    def __init__(self, attention: WindowAttention) -> None:
        super().__init__()
        self.inner = attention

    def forward(self, windows: torch.Tensor, window: Triple, shift: Triple) -> torch.Tensor:
        """windows [B, nx, ny, nz, T, C] of T = prod(window) voxels, of maps rolled back by `shift` -> the same shape"""
        heads, (*counts, tokens, channels) = self.inner.num_heads, windows.shape
        parts = self.inner.qkv(windows).view(*counts, tokens, 3, heads, channels // heads)
        position = self.inner.relative_position_index[:tokens, :tokens].flatten()
        bias = self.inner.relative_position_bias_table[position].view(tokens, tokens, heads).permute(2, 0, 1)
        found = parts.new_empty(*counts, tokens, heads, channels // heads)
        kinds = [((slice(0, -1), False), (slice(-1, None), True)) if s else ((slice(None), False),) for s in shift]
        for kind in product(*kinds):
            planes, last = zip(*kind, strict=True)
            there = (slice(None), *planes)
            some = parts[there]
            q, k, v = some.flatten(0, 3).permute(2, 0, 3, 1, 4)  # each [windows, heads, T, channels of a head]
            added = bias + _apart(window, shift, last).to(bias)
            looked = functional.scaled_dot_product_attention(q, k, v, attn_mask=added[None].to(q.dtype))
            found[there] = looked.transpose(1, 2).view(*some.shape[:5], heads, -1)
        out: torch.Tensor = self.inner.proj(found.flatten(-2))
        return out


def _apart(window: Triple, shift: Triple, last: tuple[bool, ...]) -> torch.Tensor:
    """What is added between each two of a window's voxels, [T, T]: 0, or `_APART` where one lies in the part that was
    rolled around an axis, which `last` windows of that axis have, and the other does not."""
    region = torch.zeros(window)
    for axis, (n, s) in enumerate(zip(window, shift, strict=True)):
        if last[axis]:
            rolled = (torch.arange(n) >= n - s) * 2**axis
            region += rolled.view([n if a == axis else 1 for a in range(3)])
    flat = region.flatten()
    return (flat[:, None] != flat) * _APART


class QuickBlock(nn.Module):
    """A transformer block on maps [B, X, Y, Z, C]."""

    def __init__(self, block: SwinTransformerBlock) -> None:
        super().__init__()
        self.inner, self.attention = block, QuickAttention(block.attn)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        block = self.inner
        x = x + self._attended(block.norm1(x))
        out: torch.Tensor = x + block.mlp(block.norm2(x))
        return out

    def _attended(self, x: torch.Tensor) -> torch.Tensor:
        batch, *sides, channels = x.shape
        size = triple(sides)
        window, shift = map(triple, get_window_size(size, self.inner.window_size, self.inner.shift_size))
        counts = [-(-n // w) for n, w in zip(size, window, strict=True)]
        missing = [c * w - n for n, w, c in zip(size, window, counts, strict=True)]
        x = functional.pad(x, (0, 0, 0, missing[2], 0, missing[1], 0, missing[0]))
        x = x.roll([-s for s in shift], (1, 2, 3))
        cells = [side for pair in zip(counts, window, strict=True) for side in pair]
        windows = x.view(batch, *cells, channels).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, *counts, -1, channels)
        windows = self.attention(windows, window, shift).view(batch, *counts, *window, channels)
        x = windows.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(x.shape)
        return x.roll(shift, (1, 2, 3))[:, : size[0], : size[1], : size[2]]


class QuickLayer(nn.Module):
    """A stage of blocks and the merging after it."""

    def __init__(self, layer: BasicLayer) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(QuickBlock(block) for block in layer.blocks)
        self.merging = layer.downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, X, Y, Z] -> [B, 2C, X/2, Y/2, Z/2]"""
        x = x.permute(0, 2, 3, 4, 1)
        for block in self.blocks:
            x = block(x)
        merged: torch.Tensor = self.merging(x)
        return merged.permute(0, 4, 1, 2, 3)
