"""The text-driven segmentor: per class, a network of 8 -> 8 -> 8 -> 1 channels whose 153 weights come from the text.

The three layers are 1 x 1 x 1 convolutions, so a voxel's answer needs only that voxel's eight features. That makes the
head a matrix product over voxels: for K classes one product 8 -> 8K, then two batched ones, over chunks small enough to
stay in the processor's cache. Repeating the feature map once per class and calling grouped convolutions, the
direct way, gives the same numbers many times slower (bench/head.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

WIDTH = 8  # channels between the head's layers, and of the features it works on
PARAMETERS = WIDTH * WIDTH + WIDTH * WIDTH + WIDTH + WIDTH + WIDTH + 1  # 153
_CHUNK = 4096  # voxels at a time: 8 x 32 x 4096 float32 = 4 MB, within the caches; 1024 to 8192 are equally fast
_TRAINING_CHUNK = 65536  # with gradients a chunk is recomputed, not kept; fewer, larger chunks cost less


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


def apply_heads(features: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """The logits of K classes for one sample.

    features    float32 [8, X, Y, Z]
    parameters  float32 [K, 153], one row a class

    Returns float32 [K, X, Y, Z]. Needs its output and about 10 MB more; with gradients, the head's inner maps are
    computed again in the backward pass instead of being kept.
    """
    voxels = features.flatten(1)
    if torch.is_grad_enabled() and (features.requires_grad or parameters.requires_grad):
        parts = [
            checkpoint(_heads, chunk, parameters, use_reentrant=False)
            for chunk in torch.split(voxels, _TRAINING_CHUNK, dim=1)
        ]
        logits = torch.cat(parts, 1)
    else:
        heads = HeadWeights.from_parameters(parameters)
        logits = voxels.new_empty((parameters.shape[0], voxels.shape[1]))
        for start in range(0, voxels.shape[1], _CHUNK):
            logits[:, start : start + _CHUNK] = heads(voxels[:, start : start + _CHUNK])
    return logits.view(-1, *features.shape[1:])


def _heads(features: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    return HeadWeights.from_parameters(parameters)(features)
