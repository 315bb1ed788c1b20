"""What every vision backbone promises, and how one is found by its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from inspect import signature
from pkgutil import iter_modules
from typing import Any

import torch
from torch import nn

import viscera.model.backbones as room
from viscera.errors import CheckpointError, SettingError


def least_for_strides(multiple: int) -> int:
    """The smallest side for a backbone whose convolutions of stride 2 divide a side by `multiple` in all.

    Two voxels are left at the deepest level: on a CPU, a 3 x 3 x 3 convolution of stride 2 in bfloat16 whose rows have
    one or two voxels reads past their end (oneDNN in torch 2.13), and what lies there can be anything.
    """
    return 2 * multiple


class Backbone(nn.Module, ABC):
    """An encoder-decoder that gives the two maps the universal model reads.

    bottleneck_channels   channels of the deepest map
    feature_channels      channels of the decoder's map; both are multiples of 16 (the model normalises in 16 groups)
    multiple              every side of the image must be a multiple of this
    minimum_voxels        and at least this
    prefers_channels_last whether the CPU is faster with `torch.channels_last_3d`
    """

    bottleneck_channels: int
    feature_channels: int
    multiple: int
    minimum_voxels: int
    prefers_channels_last: bool = True

    @abstractmethod
    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, 1, X, Y, Z] -> bottleneck [B, Cb, x, y, z] and decoder map [B, Cf, X, Y, Z].

        The decoder map may be coarser than the image by a whole factor; the model up-samples what it makes of it.
        A sample's maps do not depend on the others in its batch when the backbone is in evaluation mode.
        """

    def fused(self, *, bf16: bool = False) -> Backbone:
        """The same maps for evaluation alone, from less computing where two layers can be made one; shares the
        weights that stay. The backbone itself where nothing can be joined.

        bf16  it will compute in bfloat16 on a CPU: layers may be replaced by quicker ones of that precision
        """
        return self

    def check_size(self, image: torch.Tensor) -> None:
        """Raises SettingError, naming the size to pad to, if the image's sides do not fit."""
        sides = image.shape[2:]
        fitting = [max(self.minimum_voxels, -(-side // self.multiple) * self.multiple) for side in sides]
        if list(sides) != fitting:
            raise SettingError(
                f"An image of {' x '.join(map(str, sides))} voxels does not fit this backbone: every side must be a "
                f"multiple of {self.multiple} and at least {self.minimum_voxels}. Pad it to "
                f"{' x '.join(map(str, fitting))}."
            )


_NOT_BACKBONES = ("attention", "base", "blocks", "winograd")


def backbone_names() -> list[str]:
    """Every backbone there is: the modules of this folder that define one."""
    return sorted(module.name for module in iter_modules(room.__path__) if module.name not in _NOT_BACKBONES)


def make_backbone(name: str, settings: Mapping[str, Any]) -> Backbone:
    """The backbone `name` with its own settings, randomly initialised.

    Raises CheckpointError for an unknown name, or settings that this backbone does not have.
    """
    if name not in backbone_names():
        raise CheckpointError(f"There is no backbone {name!r}; there are {', '.join(backbone_names())}.")
    build = import_module(f"viscera.model.backbones.{name}").build
    try:
        signature(build).bind(**settings)
    except TypeError as error:
        raise CheckpointError(f"The settings of backbone {name!r} do not fit: {error}.") from error
    backbone = build(**settings)
    assert isinstance(backbone, Backbone)
    return backbone
