"""The Universal Model, as in the figure of arXiv 2301.00785.

    class names ─ text encoder (frozen) ─ organ_embedding ─ text_to_vision ───────┐
                                                                                  ├─ controller ─ 153 numbers a class
    image ─ backbone ┬─ bottleneck ─ GAP ─────────────────── image embedding ─────┘            │
                     └─ decoder map ─ precls_conv ─────────── 8 features a voxel ───── text-driven segmentor ─ logits

Every class has a sigmoid of its own: a voxel of a liver tumour is a voxel of the liver too. The names of the parts are
those of the released checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from viscera.model.backbones.base import Backbone
from viscera.model.config import ModelConfig
from viscera.model.head import PARAMETERS, WIDTH, ClassHeads, apply_heads

EMBEDDING = 256  # length of the image embedding and of the label embedding
LABEL_RMS = 0.3  # size of a new model's label embeddings: with 1 a step of Adam moves a head too far, with 0.03 hardly
IMAGE_SHARE = 0.3  # of the image in a new model's heads, against what an ordinary layer would give it
PRIOR = 0.01  # what a new model believes of any class at any voxel (Lin et al. 2017, section 4.1)
GROUPS = 16  # of the group norms before pooling and before the features


class UniversalModel(nn.Module):
    """A backbone, the text vectors of N classes, and the head that joins them."""

    organ_embedding: torch.Tensor

    def __init__(self, backbone: Backbone, text_vectors: torch.Tensor, config: ModelConfig) -> None:
        """text_vectors: float32 [N, D], one row per class of `config.classes`, in that order."""
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.register_buffer("organ_embedding", text_vectors)
        self.text_to_vision = nn.Linear(text_vectors.shape[1], EMBEDDING)
        self.GAP = nn.Sequential(
            nn.GroupNorm(GROUPS, backbone.bottleneck_channels),
            nn.ReLU(),
            nn.AdaptiveAvgPool3d(1),
            nn.Conv3d(backbone.bottleneck_channels, EMBEDDING, kernel_size=1),
        )
        self.precls_conv = nn.Sequential(
            nn.GroupNorm(GROUPS, backbone.feature_channels),
            nn.ReLU(),
            nn.Conv3d(backbone.feature_channels, WIDTH, kernel_size=1),
        )
        self.controller = nn.Conv3d(2 * EMBEDDING, PARAMETERS, kernel_size=1)
        self._start()

    def forward(
        self, image: torch.Tensor, classes: Sequence[int] | None = None, voxels: tuple[slice, ...] = ()
    ) -> torch.Tensor:
        """Logits [B, K, X, Y, Z] of `classes` (channel numbers; all if None) for an image [B, 1, X, Y, Z] in [0, 1].

        voxels  where the logits are wanted, a slice for each axis (everywhere if empty); only there the head is run
        """
        features, image_embedding = self.encode(image)
        return self.decode(features[:, :, *voxels], image_embedding, classes)

    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The vision branch: image [B, 1, X, Y, Z] -> features [B, 8, X, Y, Z] and image embedding [B, 256].

        Raises SettingError if the image's sides do not fit the backbone.
        """
        bottleneck, decoder_map = self.backbone(image)
        features = self.precls_conv(decoder_map)
        if features.shape[2:] != image.shape[2:]:
            features = functional.interpolate(features, size=image.shape[2:], mode="trilinear")
        return features, self.GAP(bottleneck).flatten(1)

    def decode(
        self, features: torch.Tensor, image_embedding: torch.Tensor, classes: Sequence[int] | None = None
    ) -> torch.Tensor:
        """The text-driven segmentor: logits [B, K, X, Y, Z] of `classes`, in the precision of the weights.

        features         [B, 8, X, Y, Z], or any crop of what `encode` gave: each voxel stands for itself
        image_embedding  [B, 256]
        """
        with torch.autocast(features.device.type, enabled=False):
            parameters = self.head_parameters(image_embedding, classes)
            logits = [apply_heads(f, p)[None] for f, p in zip(features, parameters, strict=True)]
            return logits[0] if len(logits) == 1 else torch.cat(logits)  # which would copy a single one

    def heads(
        self, image_embedding: torch.Tensor, classes: Sequence[int] | None = None, *, compiled: bool = False
    ) -> list[ClassHeads]:
        """The heads of `classes` for each image of a batch, to be called on parts of its features again and again;
        without gradients.

        image_embedding  [B, 256]
        compiled         see `ClassHeads`
        """
        with torch.autocast(image_embedding.device.type, enabled=False):
            return [ClassHeads(p, compiled=compiled) for p in self.head_parameters(image_embedding, classes)]

    def head_parameters(self, image_embedding: torch.Tensor, classes: Sequence[int] | None) -> torch.Tensor:
        """What the controller makes of image and text: [B, K, 153], in the precision of its weights."""
        text = self.text_part()
        if classes is not None:
            text = text[list(classes)]
        weight = self.controller.weight[:, :EMBEDDING].flatten(1)
        image = functional.linear(image_embedding.to(weight.dtype), weight)
        return image[:, None] + text

    @torch.no_grad()
    def _start(self) -> None:
        """Random weights of the parts that make the heads, so that the heads begin as layers should (He et al. 2015):
        signals keep their size through them, and classes differ from the first step on. An ordinary layer's start
        makes heads that are nearly zero and nearly the same for all classes (Chang et al., ICLR 2020)."""
        features, text, controller = self.precls_conv[-1], self.text_to_vision, self.controller
        assert isinstance(features, nn.Conv3d) and features.bias is not None and controller.bias is not None
        nn.init.kaiming_normal_(features.weight, nonlinearity="relu")
        nn.init.zeros_(features.bias)
        length = float(self.organ_embedding.norm(dim=1).mean()) or 1.0
        nn.init.normal_(text.weight, std=LABEL_RMS * math.sqrt(2) / length)
        nn.init.zeros_(text.bias)
        of_text = controller.weight[:, EMBEDDING:]
        nn.init.normal_(of_text, std=1 / (LABEL_RMS * math.sqrt(EMBEDDING)))  # each of the 153 has a variance of 1 ...
        last, biases = 2 * WIDTH * WIDTH, 2 * WIDTH * WIDTH + WIDTH
        of_text[:last] *= math.sqrt(2 / WIDTH)  # ... two layers before a ReLU, one before none
        of_text[last:biases] *= math.sqrt(1 / WIDTH)
        of_text[biases:] = 0
        controller.weight[:, :EMBEDDING] *= IMAGE_SHARE
        nn.init.zeros_(controller.bias)
        # The last of the 153 is the logit's bias: a new model starts from "not here", as nearly all voxels are.
        controller.bias[-1] = math.log(PRIOR / (1 - PRIOR))

    def text_part(self) -> torch.Tensor:
        """The controller's answer to the text alone (its bias included): [N, 153].

        It is the same for every image, and is computed every time all the same: that takes a thousandth of the time of
        the smallest window, while nothing tells for sure that a weight has changed (a fused optimiser step does not).
        """
        label_embedding = functional.relu(self.text_to_vision(self.organ_embedding))
        weight = self.controller.weight[:, EMBEDDING:].flatten(1)
        return functional.linear(label_embedding, weight, self.controller.bias)
