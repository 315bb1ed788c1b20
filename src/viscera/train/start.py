"""The model a run starts from: a fresh one with the vectors of its classes, or an earlier one taken further."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from viscera.errors import SettingError
from viscera.model.build import build
from viscera.model.config import ModelConfig, packaged_config
from viscera.model.store import load_model
from viscera.model.universal import UniversalModel
from viscera.taxonomy import Structure, taxonomy
from viscera.text import encoders
from viscera.text.bank import Bank, make
from viscera.text.prompts import prompt
from viscera.train.recipe import Recipe


def first_config(recipe: Recipe, classes: Sequence[str]) -> ModelConfig:
    """The settings of the model to be trained, without its text bank. Raises CheckpointError for wrong settings."""
    if recipe.init:
        base = load_model(recipe.init).config
    else:
        values = _merged(asdict(packaged_config(recipe.model)), recipe.model_settings)
        base = ModelConfig.from_json(json.dumps(values))
    known = {key: value for key, value in base.thresholds.items() if key in classes}
    return replace(base, name=recipe.name, classes=tuple(classes), thresholds=known, licence=recipe.licence)


def first_model(recipe: Recipe, classes: Sequence[str]) -> UniversalModel:
    """The model before the first step; the same recipe gives the same numbers.

    Raises TextBankError if a model to start from was made with another encoder or prompt than the recipe's and lacks
    a class, SettingError if it does not say with which.
    """
    if recipe.init:
        return _continued(load_model(recipe.init), recipe, classes)
    finish = recipe.text.finish
    bank = make(_structures(classes), encoders.load(recipe.text.encoder), prompt(recipe.text.prompt), finish)
    config = replace(
        first_config(recipe, classes), text_dim=bank.length, text_bank=bank.provenance(), trained=False, training={}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.loop.seed)
        return build(config, torch.from_numpy(bank.vectors.copy()))


def _continued(base: UniversalModel, recipe: Recipe, classes: Sequence[str]) -> UniversalModel:
    """A model with `classes` that starts from all weights of `base`; no text vector it knows moves."""
    config = first_config(recipe, classes)
    own, bank = base.config.classes, config.text_bank
    if tuple(classes) == own:
        vectors = base.organ_embedding
    elif bank:
        changed = Bank.from_checkpoint_metadata(bank, base.organ_embedding.numpy()).changed(
            _structures(classes), encoders.load(recipe.text.encoder), prompt(recipe.text.prompt)
        )
        vectors, bank = torch.from_numpy(changed.vectors.copy()), changed.provenance()
    elif set(classes) <= set(own):
        vectors = base.organ_embedding[[own.index(key) for key in classes]]
    else:
        missing = ", ".join(key for key in classes if key not in own)
        raise SettingError(
            f"The model {recipe.init!r} does not have {missing}, and it does not say which encoder made its text "
            f"vectors, so that new ones would not fit. Name its own classes in the recipe: {', '.join(own)}."
        )
    with torch.random.fork_rng(devices=[]):
        model = build(replace(config, text_bank=bank), vectors.clone())
    state = {key: value for key, value in base.state_dict().items() if key != "organ_embedding"}
    model.load_state_dict({**state, "organ_embedding": vectors})
    return model


def _structures(classes: Sequence[str]) -> list[Structure]:
    return [taxonomy()[key] for key in classes]


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, table by table."""
    out = dict(base)
    for key, value in changes.items():
        old = out.get(key)
        out[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out
