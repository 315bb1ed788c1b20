"""From a config to a model: the one place where parts are put together."""

from __future__ import annotations

import torch

from viscera.errors import CheckpointError
from viscera.model.backbones.base import make_backbone
from viscera.model.config import ModelConfig, packaged_config
from viscera.model.universal import UniversalModel


def build(config: ModelConfig, text_vectors: torch.Tensor) -> UniversalModel:
    """The model of `config`, randomly initialised, with the text vectors float32 [N, D] of its N classes.

    Raises CheckpointError if the vectors do not fit the classes or `text_dim`.
    """
    wanted = (len(config.classes), config.text_dim)
    if tuple(text_vectors.shape) != wanted:
        raise CheckpointError(
            f"The text vectors, organ_embedding, are {tuple(text_vectors.shape)}; {len(config.classes)} classes and "
            f"text_dim {config.text_dim} need {wanted}."
        )
    return UniversalModel(make_backbone(config.backbone, config.backbone_settings), text_vectors, config)


def untrained(name: str, seed: int = 0) -> UniversalModel:
    """The packaged architecture `name` with seeded random weights and text vectors, in evaluation mode.

    Its `config.trained` is False: results are noise, good for trying the path and for measuring time and memory.
    """
    config = packaged_config(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(config, torch.randn(len(config.classes), config.text_dim)).eval()
