"""The plain way, written from the paper and the facts of its program: what viscera is measured against.

The whole network in float32 and torch's own memory layout; skips by concatenation; the head by repeating the feature
map once per class and three grouped convolutions; windows by MONAI's `sliding_window_inference`, all classes at once.
The weights are those of a `viscera` model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.inferers import sliding_window_inference
from torch.nn import functional

from viscera.model.backbones.unet import ConvNormReLU
from viscera.model.head import WIDTH
from viscera.model.universal import UniversalModel


def plain_head(features: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """features [8, X, Y, Z], parameters [K, 153] -> logits [K, X, Y, Z] by grouped convolutions."""
    k, square = len(parameters), WIDTH * WIDTH
    w1, w2, w3, b1, b2, b3 = torch.split(parameters, [square, square, WIDTH, WIDTH, WIDTH, 1], dim=1)
    x = features.repeat(k, 1, 1, 1)[None]
    x = functional.conv3d(x, w1.reshape(-1, WIDTH, 1, 1, 1), b1.reshape(-1), groups=k).relu()
    x = functional.conv3d(x, w2.reshape(-1, WIDTH, 1, 1, 1), b2.reshape(-1), groups=k).relu()
    return functional.conv3d(x, w3.reshape(-1, WIDTH, 1, 1, 1), b3.reshape(-1), groups=k)[0]


def _joined(self: ConvNormReLU, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return self.forward(torch.cat([first, second], 1))


class Plain:
    """A model run the plain way."""

    def __init__(self, model: UniversalModel, channels: Sequence[int]) -> None:
        ConvNormReLU.forward_two = _joined  # type: ignore[method-assign]
        self.model, self.channels = model, list(channels)

    def __call__(self, window: torch.Tensor) -> torch.Tensor:
        """[1, 1, X, Y, Z] -> logits [1, K, X, Y, Z]"""
        features, embedding = self.model.encode(window)
        parameters = self.model.head_parameters(embedding, self.channels)[0]
        return plain_head(features[0], parameters)[None]

    def scan(self, image: torch.Tensor, window: Sequence[int], overlap: float) -> torch.Tensor:
        """[1, 1, X, Y, Z] -> logits [K, X, Y, Z]"""
        return sliding_window_inference(image, window, 1, self, overlap=overlap, mode="gaussian")[0]
