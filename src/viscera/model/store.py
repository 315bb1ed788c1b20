"""Where models are kept, and the one door that loads them by name or by file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Literal

from viscera.errors import CheckpointError
from viscera.model.build import untrained
from viscera.model.checkpoint import SUFFIX, load_checkpoint, read_config
from viscera.model.config import ModelConfig, model_names, packaged_config
from viscera.model.universal import UniversalModel

STARTER = "starter"  # the weights that come with the package
ARCHITECTURE = "lite"  # what runs, untrained, where they are missing

Origin = Literal["packaged", "kept", "architecture"]


@dataclass(frozen=True)
class Entry:
    """One model that can be run.

    origin  "packaged": weights that come with viscera; "kept": imported, pulled or saved in the store (the config's
            `source` says from where); "architecture": no weights, seeded random numbers
    path    its file; None for an architecture
    config  its settings, or the error of a file that is damaged: one must not hide the others
    """

    name: str
    origin: Origin
    path: Path | None
    config: ModelConfig | CheckpointError


def weights_folder() -> Path:
    """Where the package keeps the weights that come with it."""
    return Path(str(files("viscera"))) / "weights"


def packaged_weights() -> dict[str, Path]:
    """The weights that come with the package by name, sorted."""
    return _models_in(weights_folder())


def store_folder() -> Path:
    """The folder of imported models: `$VISCERA_HOME/models`, else the user's data folder (XDG)."""
    home = os.environ.get("VISCERA_HOME")
    base = Path(home) if home else Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "viscera"
    return base / "models"


def stored_models() -> dict[str, Path]:
    """The models in the store by name, sorted; empty if there is no store yet."""
    return _models_in(store_folder())


def _models_in(folder: Path) -> dict[str, Path]:
    found = sorted(folder.glob(f"*{SUFFIX}"))
    return {path.stem: path for path in found if not path.name.startswith(".")}  # a killed writer leaves .unfinished-*


def store_path(name: str) -> Path:
    """Where a model of this name is kept. Raises CheckpointError for a name that is no plain file name, or is taken
    by something in the package."""
    if not name or name != Path(name).name or name.startswith("."):
        raise CheckpointError(f"{name!r} is not a name for a model: use letters, digits, '-' and '_'.")
    if name in (STARTER, *packaged_weights(), *model_names()):
        raise CheckpointError(f"{name!r} is the name of a packaged model; choose another, such as {name}-mine.")
    return store_folder() / f"{name}{SUFFIX}"


def default_model() -> str:
    """What runs when nothing is named: the starter model, or the untrained light network where it is missing."""
    return STARTER if STARTER in packaged_weights() else ARCHITECTURE


def all_models() -> list[Entry]:
    """Every model that can be run by name: the package's weights, the store's, the architectures."""
    entries = []
    places: tuple[tuple[Origin, dict[str, Path]], ...] = (("packaged", packaged_weights()), ("kept", stored_models()))
    for origin, found in places:
        for name, path in found.items():
            config: ModelConfig | CheckpointError
            try:
                config = read_config(path)
            except CheckpointError as error:
                config = error
            entries.append(Entry(name, origin, path, config))
    return [*entries, *(Entry(name, "architecture", None, packaged_config(name)) for name in model_names())]


def load_model(name_or_path: str | os.PathLike[str]) -> UniversalModel:
    """A model in evaluation mode: a name from `viscera models`, or the path of a .safetensors checkpoint.

    A packaged architecture without weights comes with seeded random ones, and `config.trained` is False.
    Raises CheckpointError if there is no such model.
    """
    text = os.fspath(name_or_path)
    path = Path(text)
    with_weights = {**stored_models(), **packaged_weights()}
    if text in with_weights:
        return load_checkpoint(with_weights[text])
    if text in model_names():
        return untrained(text)
    if path.is_file() and path.suffix in (".pth", ".pt", ".ckpt"):
        raise CheckpointError(f"{path} is a PyTorch pickle; bring it in once with: viscera weights import {path}")
    if path.is_file() or path.suffix == SUFFIX:
        return load_checkpoint(path)
    known = [*with_weights, *model_names()]
    close = get_close_matches(text, known, n=3)
    hint = f"Did you mean {' or '.join(close)}?" if close else f"There are: {', '.join(known)}."
    raise CheckpointError(f"There is no model {text!r}. {hint} `viscera models` shows them all.")
