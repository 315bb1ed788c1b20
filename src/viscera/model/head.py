"""The text-driven segmentor: per class, a network of 8 -> 8 -> 8 -> 1 channels whose 153 weights come from the text.

The three layers are 1 x 1 x 1 convolutions, so a voxel's answer needs only that voxel's eight features. That makes the
head a matrix product over voxels: for K classes one product 8 -> 8K, then two batched ones, over chunks of voxels and
groups of classes small enough to stay in the processor's cache. A chunk belongs to one thread from its first product to
its last: were every product shared between the threads, they would wait for each other thousands of times, and long
where other programs run too. Repeating the feature map once per class and calling grouped convolutions, the direct way,
gives the same numbers many times slower (bench/head.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

Task = TypeVar("Task")

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

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """features [8, V] of V voxels -> logits [K, V]."""
        k = self.weight2.shape[0]
        x = torch.addmm(self.bias1, self.weight1, features).relu_().view(k, WIDTH, -1)
        x = torch.baddbmm(self.bias2, self.weight2, x).relu_()
        return torch.baddbmm(self.bias3, self.weight3, x)[:, 0]

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


def apply_heads(features: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """The logits of K classes for one sample.

    features    float32 [8, X, Y, Z]
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
        groups = _groups(parameters)
        logits = features.new_empty((parameters.shape[0], features.shape[1]))

        def fill(task: tuple[slice, slice, HeadWeights]) -> None:
            voxels, classes, heads = task
            logits[classes, voxels] = heads(features[:, voxels])

        tasks = [(voxels, *group) for voxels in _chunks(features, parameters) for group in groups]
        _in_threads(fill, tasks, features.device)
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features, parameters = ctx.saved_tensors
        groups, of_features = _groups(parameters), torch.zeros_like(features)
        chunks, threads = _chunks(features, parameters), torch.get_num_threads()
        # Fixed shares of the chunks, each with its own sums: the same threads give the same bits.
        shares = [share for n in range(threads) if (share := chunks[n::threads])]
        sums = [_groups(torch.zeros_like(parameters)) for _ in shares]

        def work(share: int) -> None:
            for voxels in shares[share]:
                for (classes, heads), (_, own) in zip(groups, sums[share], strict=True):
                    of_features[:, voxels] += heads.backward(features[:, voxels], gradient[classes, voxels], own)

        with torch.autocast(features.device.type, enabled=False):  # the caller may be within such a block
            _in_threads(work, range(len(shares)), features.device)
        of_parameters = torch.zeros_like(parameters)
        for own in sums:
            of_parameters += torch.cat([of_group.parameters() for _, of_group in own])
        return of_features, of_parameters


def _groups(parameters: torch.Tensor) -> list[tuple[slice, HeadWeights]]:
    """Classes that are computed together, and their layers."""
    starts = range(0, len(parameters), _CLASSES)
    return [(part := slice(k, k + _CLASSES), HeadWeights.from_parameters(parameters[part])) for k in starts]


def _chunks(features: torch.Tensor, parameters: torch.Tensor) -> list[slice]:
    """Voxels that are computed together."""
    fitting = _CLASSES * _LEAST_VOXELS // max(1, min(len(parameters), _CLASSES))
    size = min(fitting, _MOST_VOXELS)
    return [slice(start, start + size) for start in range(0, features.shape[1], size)]


def _in_threads(work: Callable[[Task], None], tasks: Sequence[Task], device: torch.device) -> None:
    """Does every task, in as many threads as torch may use; what a thread computes it computes alone."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or len(tasks) < 2 or threads < 2:
        for task in tasks:
            work(task)
        return

    def one(task: Task) -> None:
        with torch.inference_mode():  # a new thread records gradients unless told otherwise
            work(task)

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(one, tasks):
                pass  # an error in a thread is raised here
    finally:
        torch.set_num_threads(threads)  # the number is each thread's own, but a thread begins with the one set last
