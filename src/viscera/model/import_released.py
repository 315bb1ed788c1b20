"""Released checkpoints (.pth pickles of the paper's authors) to ours, without running anything they contain.

Such a file is a dict with `net` (the state dict), `optimizer`, `scheduler` and `epoch`, or a state dict alone. Its keys
carry one leading component from a data-parallel wrapper (`module.`; other wrappers have other words), and those of the
backbone may lack `backbone.`.
The buffer `organ_embedding` is the CLIP text vector of every class, so no text encoder is needed.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from viscera.errors import CheckpointError
from viscera.model.checkpoint import model_from_state
from viscera.model.config import ModelConfig, model_names, packaged_config
from viscera.model.universal import UniversalModel

LICENCE = "CC BY-NC-ND 4.0 (weights released by the paper's authors): non-commercial, no derivatives"

# How the keys of a backbone are known; the first that fits is taken.
_SIGNS = {
    "swin_unetr": "backbone.swinViT.",
    "unet": "backbone.down_tr64.",
    "unetpp": "backbone.upcat_",
    "dints": "backbone.dints_space.",
}
# First components of backbone keys that came without `backbone.`; the model's own parts need no prefix.
_OWN_PARTS = ("organ_embedding", "text_to_vision", "GAP", "precls_conv", "controller", "backbone")


def import_released(path: str | Path, *, backbone: str | None = None, name: str | None = None) -> UniversalModel:
    """The model in a released .pth file, in evaluation mode.

    backbone  one of `viscera.model.config.model_names`; detected from the keys if not given
    name      the model's name; `<backbone>-released` if not given

    Raises CheckpointError if the file is damaged, needs objects that are not on the allow-list, or does not fit.
    """
    path = Path(path)
    state = clean_keys(read_state(path), str(path))
    backbone = backbone or detect_backbone(state, str(path))
    if backbone not in model_names():
        raise CheckpointError(f"There is no architecture {backbone!r}; there are {', '.join(model_names())}.")
    base = packaged_config(backbone)
    config = replace(
        base,
        name=name or f"{backbone}-released",
        classes=_classes(state, base, str(path)),
        text_dim=int(state["organ_embedding"].shape[1]),
        trained=True,
        licence=LICENCE,
        source=f"imported from {path.name}",
        text_bank={"origin": "organ_embedding of the imported file", "encoder": "CLIP ViT-B/32 (the paper)"},
    )
    return model_from_state(config, state, str(path))


def _classes(state: Mapping[str, torch.Tensor], base: ModelConfig, where: str) -> tuple[str, ...]:
    vectors = state.get("organ_embedding")
    if vectors is None or vectors.dim() != 2:
        raise CheckpointError(
            f"{where} has no organ_embedding [classes, text length]. Only checkpoints with text encoding can be "
            "imported; the one-hot variant of the paper has none."
        )
    if len(vectors) > len(base.classes):
        raise CheckpointError(f"{where} has {len(vectors)} classes; the taxonomy has {len(base.classes)}.")
    return base.classes[: len(vectors)]


def read_state(path: Path) -> Mapping[str, torch.Tensor]:
    """The state dict of a pickle file, old or new, loaded with an allow-list and nothing else."""
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    # Old files hold numpy numbers (the epoch, a learning rate). These are the constructors of plain values.
    allowed: list[Any] = [np.dtype, np.ndarray, type(np.dtype(np.float64)), type(np.dtype(np.float32))]
    allowed += [type(np.dtype(np.int64)), type(np.dtype(np.int32)), type(np.dtype(np.bool_))]
    multiarray: Any = import_module("numpy._core.multiarray")
    scalar, reconstruct = multiarray.scalar, multiarray._reconstruct
    for module in ("numpy._core.multiarray", "numpy.core.multiarray"):
        allowed += [(scalar, f"{module}.scalar"), (reconstruct, f"{module}._reconstruct")]
    try:
        with torch.serialization.safe_globals(allowed):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} cannot be loaded safely: {_wanted(str(error))}. Only tensors and plain values are taken, since a "
            "pickle can run any program. If you trust the file, save only its state dict with torch.save."
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise CheckpointError(f"{path} is damaged or is not a PyTorch checkpoint ({reason}).") from error
    state = loaded.get("net", loaded.get("state_dict", loaded)) if isinstance(loaded, Mapping) else loaded
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items())
    ):
        raise CheckpointError(f"{path} holds no state dict: neither `net`, `state_dict` nor the file itself is one.")
    return state


def _wanted(message: str) -> str:
    """Which object an unpickling error was about, in few words."""
    for mark in ("GLOBAL ", "Unsupported global: "):
        if mark in message:
            return f"it needs {message.split(mark, 1)[1].split()[0].rstrip('.,')}"
    return message.splitlines()[0]


def clean_keys(state: Mapping[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """The keys as the model has them: no wrapper's component, and `backbone.` before every backbone part.

    Raises CheckpointError if two keys become the same.
    """
    first = {key.split(".")[0] for key in state}
    wrapper = f"{min(first)}." if len(first) == 1 and first.isdisjoint(_OWN_PARTS) else ""
    cleaned: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        new = key.removeprefix(wrapper)
        if new.split(".")[0] not in _OWN_PARTS:
            new = f"backbone.{new}"
        if new in cleaned:
            raise CheckpointError(f"{where} has two tensors for {new}.")
        cleaned[new] = value
    return cleaned


def detect_backbone(state: Mapping[str, torch.Tensor], where: str) -> str:
    """Which published backbone the cleaned keys belong to. Raises CheckpointError if none."""
    for backbone, sign in _SIGNS.items():
        if any(key.startswith(sign) for key in state):
            return backbone
    raise CheckpointError(
        f"{where} is none of the published backbones ({', '.join(_SIGNS)}); its keys begin with "
        f"{', '.join(sorted({key.rsplit('.', 2)[0] for key in state})[:4])}. Name one with --backbone if it is."
    )
