"""Layers that more than one backbone uses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.nn import functional

from viscera.model.norm import is_summed_badly, normalised

Module = TypeVar("Module", bound=nn.Module)


class SampleNorm(nn.BatchNorm3d):
    """A batch norm that always normalises each sample with its own statistics: instance norm with affine weights.

    The published U-Net's "batch norm" ignores its running statistics in evaluation too. At batch size 1 that is this
    layer; doing it per sample makes every result independent of its batch mates. The running statistics exist so that
    published checkpoints load, and are neither read nor written.

    `functional.instance_norm` gives the same numbers but took twice as long under bf16 with channels_last.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        normed = [self._one(sample) for sample in torch.split(input, 1)]
        return normed[0] if len(normed) == 1 else torch.cat(normed)

    def _one(self, sample: torch.Tensor) -> torch.Tensor:
        if is_summed_badly(sample) and not torch.is_grad_enabled():
            return normalised(sample, self.num_features, self.weight, self.bias, self.eps)
        return functional.batch_norm(sample, None, None, self.weight, self.bias, training=True, eps=self.eps)


def conv_of_two(conv: nn.Conv3d, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """``conv(torch.cat([first, second], 1))`` without making the concatenation, the largest map of a U-Net."""
    split = first.shape[1]
    out = functional.conv3d(first, conv.weight[:, :split], conv.bias, conv.stride, conv.padding)
    return out.add_(functional.conv3d(second, conv.weight[:, split:], None, conv.stride, conv.padding))


class UpThenConv(nn.Module):
    """A transposed convolution (2 x 2 x 2, stride 2) and the convolution after it, as one layer for evaluation.

    Two linear layers in a row are one. With 3 x 3 x 3 that is a transposed convolution of 4 x 4 x 4, stride 2, in which
    every output voxel looks at 8 coarse voxels instead of 27 fine ones: less than a third of the multiplications, the
    same numbers up to rounding. At the border the second layer sees zeros, not the first one's bias; a channel of ones
    carries that bias.
    """

    def __init__(self, up: nn.ConvTranspose3d, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """weight [out, up's channels, n, n, n], n odd, and bias [out] of the convolution, which pads by n // 2."""
        super().__init__()
        rows = up.weight.detach()  # [in, middle, 2, 2, 2]
        if up.bias is not None:
            rows = torch.cat([rows, up.bias.detach()[None, :, None, None, None].expand(1, -1, 2, 2, 2)])
        mirrored = weight.detach().flip(2, 3, 4)
        n = weight.shape[-1]
        joint = rows.new_zeros(rows.shape[0], weight.shape[0], n + 1, n + 1, n + 1)
        for x in range(2):
            for y in range(2):
                for z in range(2):
                    part = torch.einsum("im,omxyz->ioxyz", rows[:, :, x, y, z], mirrored)
                    joint[:, :, x : x + n, y : y + n, z : z + n] += part
        self.weight = nn.Parameter(joint, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self._has_ones, self._padding = up.bias is not None, n // 2

    def forward(self, coarse: torch.Tensor) -> torch.Tensor:
        """[B, in, X, Y, Z] -> [B, out, 2X, 2Y, 2Z]"""
        if self._has_ones:
            coarse = torch.cat([coarse, torch.ones_like(coarse[:, :1])], 1)
        return functional.conv_transpose3d(coarse, self.weight, self.bias, stride=2, padding=self._padding)


class UpJoinConv(nn.Module):
    """``conv(torch.cat([up(coarse), skip], 1))`` for evaluation, without the up-sampled map and the concatenation."""

    def __init__(self, up: nn.ConvTranspose3d, conv: nn.Conv3d) -> None:
        super().__init__()
        middle, n = up.out_channels, conv.weight.shape[-1]
        self.of_coarse = UpThenConv(up, conv.weight[:, :middle], conv.bias)
        self.of_skip = nn.Conv3d(conv.in_channels - middle, conv.out_channels, n, padding=n // 2, bias=False)
        self.of_skip.weight = nn.Parameter(conv.weight[:, middle:].detach().clone(), requires_grad=False)

    def forward(self, coarse: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """coarse [B, in, X, Y, Z], skip [B, C, 2X, 2Y, 2Z] -> [B, out, 2X, 2Y, 2Z]"""
        out: torch.Tensor = self.of_coarse(coarse)
        return out.add_(self.of_skip(skip))


class ConvOfImage(nn.Module):
    """A convolution of the image in float32, for a network that computes in bfloat16: [B, 1, X, Y, Z] -> bfloat16.

    bfloat16 has steps of a 256th: over a window of some hundred HU that is more than scans differ by at faint borders,
    and no layer after it can tell what was lost. One channel costs next to nothing in float32.
    """

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        with torch.autocast(image.device.type, enabled=False):
            out: torch.Tensor = self.conv(image.float())
        return out.bfloat16()


def with_parts(module: Module, **parts: nn.Module) -> Module:
    """A module that shares everything with `module` but the named parts."""
    twin = copy.copy(module)
    twin._modules = {**module._modules, **parts}
    return twin


def with_each(module: Module, replace: Callable[[nn.Module], nn.Module | None]) -> Module:
    """A module that shares everything with `module` but the parts, however deep, for which `replace` gives another; the
    module itself if there is none."""
    parts = {name: replace(part) or with_each(part, replace) for name, part in module.named_children()}
    changed = {name: part for name, part in parts.items() if part is not module._modules[name]}
    return with_parts(module, **changed) if changed else module
