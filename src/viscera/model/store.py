"""Where models are kept, and the one door that loads them by name or by file."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from viscera.errors import CheckpointError
from viscera.model.build import untrained
from viscera.model.checkpoint import SUFFIX, load_checkpoint
from viscera.model.config import model_names
from viscera.model.universal import UniversalModel


def store_folder() -> Path:
    """The folder of imported models: `$VISCERA_HOME/models`, else the user's data folder (XDG)."""
    home = os.environ.get("VISCERA_HOME")
    base = Path(home) if home else Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "viscera"
    return base / "models"


def stored_models() -> dict[str, Path]:
    """The models in the store by name, sorted; empty if there is no store yet."""
    found = sorted(store_folder().glob(f"*{SUFFIX}"))
    return {path.stem: path for path in found if not path.name.startswith(".")}  # a killed writer leaves .unfinished-*


def store_path(name: str) -> Path:
    """Where a model of this name is kept. Raises CheckpointError for a name that is no plain file name, or is taken
    by a packaged architecture."""
    if not name or name != Path(name).name or name.startswith("."):
        raise CheckpointError(f"{name!r} is not a name for a model: use letters, digits, '-' and '_'.")
    if name in model_names():
        raise CheckpointError(f"{name!r} is the name of a packaged architecture; choose another, such as {name}-mine.")
    return store_folder() / f"{name}{SUFFIX}"


def load_model(name_or_path: str | os.PathLike[str]) -> UniversalModel:
    """A model in evaluation mode: a name from `viscera weights list`, or the path of a .safetensors checkpoint.

    A packaged architecture without weights comes with seeded random ones, and `config.trained` is False.
    Raises CheckpointError if there is no such model.
    """
    text = os.fspath(name_or_path)
    path = Path(text)
    stored = stored_models()
    if text in stored:
        return load_checkpoint(stored[text])
    if text in model_names():
        return untrained(text)
    if path.is_file() and path.suffix in (".pth", ".pt", ".ckpt"):
        raise CheckpointError(f"{path} is a PyTorch pickle; bring it in once with: viscera weights import {path}")
    if path.is_file() or path.suffix == SUFFIX:
        return load_checkpoint(path)
    known = [*stored, *model_names()]
    close = get_close_matches(text, known, n=3)
    hint = f"Did you mean {' or '.join(close)}?" if close else f"There are: {', '.join(known)}."
    raise CheckpointError(f"There is no model {text!r}. {hint} `viscera weights list` shows them all.")
