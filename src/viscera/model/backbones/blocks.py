"""Layers that more than one backbone uses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
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

    Without gradients it may overwrite its input, which is a convolution's result that nobody else needs.
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


_PLACES = (slice(0, 1), slice(1, -1), slice(-1, None))  # on an axis: the first voxel, the middle ones, the last
_TAPS_INSIDE = ((0, 1, 1), (1, 1, 1), (1, 1, 0))  # there, which of a filter's three taps see the map


class UpThenConv(nn.Module):
    """A transposed convolution (2 x 2 x 2, stride 2) and the convolution after it, as one layer for evaluation.

    Two linear layers in a row are one. With 3 x 3 x 3 that is a transposed convolution of 4 x 4 x 4, stride 2, in which
    every output voxel looks at 8 coarse voxels instead of 27 fine ones: less than a third of the multiplications, the
    same numbers up to rounding. The first one's bias adds a number to each channel, and less at the border, where the
    second layer sees zeros: `rim` is what is missing there, and `missing` what it is made of, the weights of ones that
    would lie beyond the coarse map. (A channel of ones beside the others would carry that bias alone, but oneDNN is
    far slower with an odd number of channels.)
    """

    def __init__(self, up: nn.ConvTranspose3d, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """weight [out, up's channels, n, n, n] and bias [out] of the convolution, which pads by n // 2.

        Raises ValueError unless n is 1 or 3.
        """
        super().__init__()
        # [in, middle, 2, 2, 2] and [out, middle, n, n, n]; rounded to float32 once, at the end
        rows, own = up.weight.detach().double(), weight.detach().double()
        n = own.shape[-1]
        if n not in (1, 3):
            raise ValueError(f"the convolution is {n} voxels wide; only 1 and 3 are known")
        constant = own.new_zeros(own.shape[0]) if bias is None else bias.detach().double()
        joint = _joint(rows, own)
        self.rim: nn.Parameter | None = None
        self.missing: nn.Parameter | None = None
        if up.bias is not None:
            ones = up.bias.detach().double().view(1, -1, 1, 1, 1)  # as the weights of one more channel
            of_bias = (ones[0] * own).sum(1)
            everywhere = of_bias.sum((1, 2, 3))
            constant = constant + everywhere
            if n == 3:
                inside = own.new_tensor(_TAPS_INSIDE)
                seen = torch.einsum("oijk,xi,yj,zk->oxyz", of_bias, inside, inside, inside)
                self.rim = _fixed((seen - everywhere.view(-1, 1, 1, 1))[None].to(weight))
                self.missing = _fixed(-_joint(ones.expand(-1, -1, 2, 2, 2), own).to(weight))
        self.weight, self.bias = _fixed(joint.to(weight)), _fixed(constant.to(weight))
        self._padding = n // 2

    def forward(self, coarse: torch.Tensor) -> torch.Tensor:
        """[B, in, X, Y, Z] -> [B, out, 2X, 2Y, 2Z]"""
        out = functional.conv_transpose3d(coarse, self.weight, self.bias, stride=2, padding=self._padding)
        if self.rim is None or self.missing is None:
            return out
        if torch.compiler.is_compiling():  # an exporter makes a copy of the whole map of each part written in place
            beyond = functional.pad(torch.zeros_like(coarse[:1, :1]), (1,) * 6, value=1.0)
            return out + functional.conv_transpose3d(beyond, self.missing, stride=2, padding=3)
        for x, y, z in product(range(3), repeat=3):
            if (x, y, z) != (1, 1, 1):
                out[:, :, _PLACES[x], _PLACES[y], _PLACES[z]] += self.rim[:, :, x : x + 1, y : y + 1, z : z + 1]
        return out


def _joint(up: torch.Tensor, conv: torch.Tensor) -> torch.Tensor:
    """Weights [in, middle, 2, 2, 2] of a transposed convolution of stride 2 and [out, middle, n, n, n] of a convolution
    -> those of both as one transposed convolution: [in, out, n + 1, n + 1, n + 1]."""
    n = conv.shape[-1]
    joint = up.new_zeros(up.shape[0], conv.shape[0], n + 1, n + 1, n + 1)
    for x, y, z in product(range(2), repeat=3):
        part = torch.einsum("im,omxyz->ioxyz", up[:, :, x, y, z], conv.flip(2, 3, 4))
        joint[:, :, x : x + n, y : y + n, z : z + n] += part
    return joint


def _fixed(values: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


class UpJoinConv(nn.Module):
    """``conv(torch.cat([up(coarse), skip], 1))`` for evaluation, without the up-sampled map and the concatenation."""

    def __init__(self, up: nn.ConvTranspose3d, conv: nn.Conv3d) -> None:
        super().__init__()
        middle, n = up.out_channels, conv.weight.shape[-1]
        self.of_coarse = UpThenConv(up, conv.weight[:, :middle], conv.bias)
        self.of_skip = nn.Conv3d(conv.in_channels - middle, conv.out_channels, n, padding=n // 2, bias=False)
        self.of_skip.weight = _fixed(conv.weight[:, middle:].detach().clone())

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
