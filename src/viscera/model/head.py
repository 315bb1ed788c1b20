"""The text-driven segmentor: per class, a network of 8 -> 8 -> 8 -> 1 channels whose 153 weights come from the text.

The three layers are 1 x 1 x 1 convolutions, so a voxel's answer needs only that voxel's eight features. That makes the
head a matrix product over voxels: for K classes one product 8 -> 8K, then two batched ones, over chunks of voxels and
groups of classes small enough to stay in the processor's cache. A chunk belongs to one thread from its first product to
its last. Repeating the feature map once per class and calling grouped convolutions, the direct way, gives the same
numbers many times slower (bench/head.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from viscera.threads import in_threads

threshold_backward = torch.ops.aten.threshold_backward  # a gradient where the ReLU let it pass

WIDTH = 8  # channels between the head's layers, and of the features it works on
PARAMETERS = WIDTH * WIDTH + WIDTH * WIDTH + WIDTH + WIDTH + WIDTH + 1  # 153
# What is computed at once: the maps between the layers stay in a core's own cache (8 x 8 x 4096 float32 are 1 MB), and
# a thread is in Python, where the others wait for it, for a small part of the time only.
_CLASSES, _LEAST_VOXELS, _MOST_VOXELS = 8, 4096, 32768


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """The layers of K class heads.

    weight1, bias1   [8K, 8] and [8K, 1]: all classes' first layers stacked
    weight2, bias2   [K, 8, 8] and [K, 8, 1]
    weight3, bias3   [K, 1, 8] and [K, 1, 1]
    """

    weight1: torch.Tensor
    bias1: torch.Tensor
    weight2: torch.Tensor
    bias2: torch.Tensor
    weight3: torch.Tensor
    bias3: torch.Tensor

    @staticmethod
    def from_parameters(parameters: torch.Tensor) -> HeadWeights:
        """parameters [K, 153], in the paper's order: weights 8x8, 8x8, 8x1, then biases 8, 8, 1."""
        square = WIDTH * WIDTH
        w1, w2, w3, b1, b2, b3 = torch.split(parameters, [square, square, WIDTH, WIDTH, WIDTH, 1], dim=1)
        return HeadWeights(
            w1.reshape(-1, WIDTH),
            b1.reshape(-1, 1),
            w2.reshape(-1, WIDTH, WIDTH),
            b2.reshape(-1, WIDTH, 1),
            w3.reshape(-1, 1, WIDTH),
            b3.reshape(-1, 1, 1),
        )

    def quick(self) -> QuickHeads:
        """The same function with fewer passes over the maps between the layers.

        relu(W x + b) = max(W x, -b) + b, and that last b is a constant: the next layer's bias takes it up.
        """
        k = self.weight2.shape[0]
        bias2 = self.bias2 + self.weight2 @ self.bias1.view(k, WIDTH, 1)
        bias3 = self.bias3 + self.weight3 @ bias2
        return QuickHeads(self.weight1, -self.bias1, self.weight2, -bias2, self.weight3, bias3[:, 0])

    def backward(self, features: torch.Tensor, gradient: torch.Tensor, sums: HeadWeights) -> torch.Tensor:
        """The chain rule by hand: gradient [K, V] of the logits -> [8, V] of the features; adds those of the layers to
        `sums`, a `HeadWeights` of gradients."""
        k = self.weight2.shape[0]
        first = torch.addmm(self.bias1, self.weight1, features).relu_().view(k, WIDTH, -1)
        second = torch.baddbmm(self.bias2, self.weight2, first).relu_()
        g = gradient[:, None]
        sums.weight3.baddbmm_(g, second.mT)
        sums.bias3.add_(g.sum(2, keepdim=True))
        g = threshold_backward(self.weight3.mT @ g, second, 0)
        sums.weight2.baddbmm_(g, first.mT)
        sums.bias2.add_(g.sum(2, keepdim=True))
        g = threshold_backward(self.weight2.mT @ g, first, 0).view(k * WIDTH, -1)
        sums.weight1.addmm_(g, features.mT)
        sums.bias1.add_(g.sum(1, keepdim=True))
        of_features: torch.Tensor = self.weight1.mT @ g
        return of_features

    def parameters(self) -> torch.Tensor:
        """The layers as `from_parameters` takes them: [K, 153]."""
        k = self.weight2.shape[0]
        parts = (self.weight1, self.weight2, self.weight3, self.bias1, self.bias2, self.bias3)
        return torch.cat([part.reshape(k, -1) for part in parts], 1)


@dataclass(frozen=True, eq=False)
class QuickHeads:
    """What `HeadWeights.quick` makes of K class heads.

    weight1, least1   [8K, 8] and [8K, 1]: the first layer, and what its outputs are raised to
    weight2, least2   [K, 8, 8] and [K, 8, 1]
    weight3, bias3    [K, 1, 8] and [K, 1]
    """

    weight1: torch.Tensor
    least1: torch.Tensor
    weight2: torch.Tensor
    least2: torch.Tensor
    weight3: torch.Tensor
    bias3: torch.Tensor

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """features [8, V] of V voxels -> logits [K, V]."""
        x = (self.weight1 @ features).clamp_min_(self.least1).view(-1, WIDTH, features.shape[1])
        x = (self.weight2 @ x).clamp_min_(self.least2)
        return (self.weight3 @ x)[:, 0].add_(self.bias3)


class ClassHeads:
    """The heads of K classes, ready to be called again and again on a few voxels each time; without gradients."""

    def __init__(self, parameters: torch.Tensor, *, compiled: bool = False) -> None:
        """parameters [K, 153], one row a class.

        compiled  several times faster where numba is installed, on a processor and in float32; it takes a second or two
                  to load, so only for many voxels
        """
        self._parameters = parameters.contiguous()
        suits = compiled and parameters.device.type == "cpu" and parameters.dtype == torch.float32
        self._compiled = _compiled_heads() if suits else None
        torchs = [] if self._compiled is not None else _groups(parameters)
        self._groups = [(classes, heads.quick()) for classes, heads in torchs]

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """features [8, ...] in any precision -> logits [K, ...] in that of the parameters."""
        voxels = features.flatten(1)
        logits = self._parameters.new_empty((len(self._parameters), voxels.shape[1]))
        if self._compiled is not None:
            self._compiled(voxels.to(logits.dtype).contiguous(), self._parameters, logits)
        else:
            for chunk in _chunks(voxels, self._parameters):
                self.fill(logits[:, chunk], voxels[:, chunk])
        return logits.view(-1, *features.shape[1:])

    def fill(self, logits: torch.Tensor, features: torch.Tensor) -> None:
        """The same for one chunk of voxels, by torch: features [8, V] into logits [K, V]."""
        chunk = features.to(logits.dtype)
        for classes, heads in self._groups:
            logits[classes] = heads(chunk)


@cache
def _compiled_heads() -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None] | None:
    """`viscera.model.compiled_head.compiled_heads`, if there is numba and it works here."""
    try:
        from viscera.model.compiled_head import compiled_heads
    except (ImportError, RuntimeError):  # not installed, made for another numpy, or nowhere to keep what it compiled
        return None
    return compiled_heads


def apply_heads(features: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """The logits of K classes for one sample.

    features    [8, X, Y, Z] in any precision; computed with in float32
    parameters  float32 [K, 153], one row a class

    Returns float32 [K, X, Y, Z]. Needs its output and about 10 MB more, with gradients too: the head's inner maps are
    computed again in the backward pass instead of being kept. Gradients of gradients are not there.
    """
    logits: torch.Tensor = _Heads.apply(features.flatten(1), parameters)  # type: ignore[no-untyped-call]
    return logits.view(-1, *features.shape[1:])


class _Heads(Function):
    """features [8, V], parameters [K, 153] -> logits [K, V], chunk by chunk in both directions."""

    @staticmethod
    def forward(ctx: FunctionCtx, features: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(features, parameters)
        heads = ClassHeads(parameters)
        logits = parameters.new_empty((parameters.shape[0], features.shape[1]))

        def fill(voxels: slice) -> None:
            heads.fill(logits[:, voxels], features[:, voxels])

        in_threads(fill, _chunks(features, parameters), features.device)
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features, parameters = ctx.saved_tensors
        groups, of_features = _groups(parameters), torch.zeros_like(features, dtype=parameters.dtype)
        chunks, threads = _chunks(features, parameters), torch.get_num_threads()
        # Fixed shares of the chunks, each with its own sums: the same threads give the same bits.
        shares = [share for n in range(threads) if (share := chunks[n::threads])]
        sums = [_groups(torch.zeros_like(parameters)) for _ in shares]

        def work(share: int) -> None:
            for voxels in shares[share]:
                chunk = features[:, voxels].to(parameters.dtype)
                for (classes, heads), (_, own) in zip(groups, sums[share], strict=True):
                    of_features[:, voxels] += heads.backward(chunk, gradient[classes, voxels], own)

        with torch.autocast(features.device.type, enabled=False):  # the caller may be within such a block
            in_threads(work, range(len(shares)), features.device)
        of_parameters = torch.zeros_like(parameters)
        for own in sums:
            of_parameters += torch.cat([of_group.parameters() for _, of_group in own])
        return of_features.to(features.dtype), of_parameters


def _groups(parameters: torch.Tensor) -> list[tuple[slice, HeadWeights]]:
    """Classes that are computed together, and their layers."""
    starts = range(0, len(parameters), _CLASSES)
    return [(part := slice(k, k + _CLASSES), HeadWeights.from_parameters(parameters[part])) for k in starts]


def _chunks(features: torch.Tensor, parameters: torch.Tensor) -> list[slice]:
    """Voxels that are computed together."""
    fitting = _CLASSES * _LEAST_VOXELS // max(1, min(len(parameters), _CLASSES))
    size = min(fitting, _MOST_VOXELS)
    return [slice(start, start + size) for start in range(0, features.shape[1], size)]
