"""Weights on disk: one safetensors file whose metadata holds everything needed to use it."""

from __future__ import annotations

import os
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from viscera.errors import CheckpointError, OutputError, TextBankError
from viscera.io.atomic import whole_file
from viscera.model.build import build
from viscera.model.config import ModelConfig
from viscera.model.universal import UniversalModel
from viscera.text.bank import Bank, check_fits

FORMAT = "viscera checkpoint 1"  # the metadata entry "format"; another number is another layout
SUFFIX = ".safetensors"
TEXT_VECTORS = "organ_embedding"  # the tensor that holds the text bank, one row a class


def save_checkpoint(model: UniversalModel, path: str | os.PathLike[str], *, half: bool = False) -> Path:
    """Writes the model with its config, whole or not at all.

    half  store floating point numbers as float16, except the text vectors: their record is checked to 1e-5

    Raises CheckpointError for a name that does not end with .safetensors and for numbers too large for float16,
    OutputError where nothing can be written.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise CheckpointError(f"{path.name!r} must end with {SUFFIX}: that is the format of viscera's checkpoints.")
    state = {
        key: (_as_half(key, value) if half and key != TEXT_VECTORS else value).contiguous().cpu()
        for key, value in model.state_dict().items()
    }
    with whole_file(path) as unfinished:
        try:
            save_file(state, unfinished, {"format": FORMAT, "config": model.config.to_json()})
        except SafetensorError as error:  # a full disk too: its own error, not the system's
            raise OutputError(f"{path} cannot be written: {error}. Choose another place or free the disk.") from error
    return path


def _as_half(key: str, value: torch.Tensor) -> torch.Tensor:
    if not value.is_floating_point():
        return value
    small = value.half()
    if not torch.equal(small.isfinite(), value.isfinite()):
        raise CheckpointError(
            f"{key} holds {float(value.abs().max()):.3g}, and float16 ends at 65504: save this model in full precision."
        )
    return small


def read_config(path: str | os.PathLike[str]) -> ModelConfig:
    """The config in a checkpoint, without its weights. Raises CheckpointError if the file is not one of ours."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}). It may be cut short; a .pth file is brought in with: "
            f"viscera weights import {path}"
        ) from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is a safetensors file, but not a viscera checkpoint: its metadata says format "
            f"{metadata.get('format')!r}, not {FORMAT!r}."
        )
    return ModelConfig.from_json(metadata.get("config", ""))


def load_checkpoint(path: str | os.PathLike[str]) -> UniversalModel:
    """The model in a checkpoint, in evaluation mode, float32.

    Raises CheckpointError if the file is damaged or foreign, or if a key is missing, too many or of another shape;
    TextBankError if its text vectors are not those of the bank it carries, or the bank is of other classes.
    """
    config = read_config(path)
    with safe_open(path, "pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    model = model_from_state(config, state, str(path))
    if "sha256" in config.text_bank:  # a released checkpoint only tells of its encoder
        try:
            bank = Bank.from_checkpoint_metadata(config.text_bank, model.organ_embedding.numpy())
            check_fits(bank, {"classes": config.classes})
        except TextBankError as error:
            raise TextBankError(f"{path}: {error}") from error
    return model


def model_from_state(config: ModelConfig, state: dict[str, torch.Tensor], where: str) -> UniversalModel:
    """The model of `config` with exactly the tensors of `state`; `where` names their origin in errors."""
    vectors = state.get(TEXT_VECTORS)
    if vectors is None:
        raise CheckpointError(f"{where} has no {TEXT_VECTORS}: the text vectors of its classes are missing.")
    with torch.random.fork_rng(devices=[]):  # building draws random weights, which are replaced at once
        model = build(config, vectors.float())
    own = model.state_dict()
    faults = [f"missing: {key}" for key in own if key not in state]
    faults += [f"not part of the model: {key}" for key in state if key not in own]
    faults += [
        f"{key} is {tuple(state[key].shape)}, the model needs {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(f"{where} does not fit backbone {config.backbone!r}: {'; '.join(faults[:5])}{more}.")
    model.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()})
    return model.eval()


def renamed(model: UniversalModel, name: str) -> UniversalModel:
    """The same model under another name."""
    model.config = replace(model.config, name=name)
    return model


def model_sha256(model: UniversalModel) -> str:
    """A hash of the config and of every number of the model: equal hashes give equal results."""
    digest = sha256(model.config.to_json().encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
