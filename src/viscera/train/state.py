"""What a run needs to go on as if it had never stopped: one file, replaced as a whole."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from viscera.errors import CheckpointError, SettingError
from viscera.io.atomic import whole_file

FORMAT = "viscera training state 1"


@dataclass(frozen=True, kw_only=True)
class RunState:
    """A run after `step` updates.

    What is drawn at a step depends on the seed and the step's number alone, so no generator's state is kept.

    recipe     `Recipe.digest()`
    data       which scans the run learns from, with what was in them (`workflow.train`)
    model      its state dict (weights that are learned, and running statistics)
    averaged   that of the averaged weights (None: the recipe averages nothing)
    optimizer  AdamW's
    best       highest mean Dice of a validation so far; -1 before the first
    """

    step: int
    recipe: str
    data: str
    model: dict[str, torch.Tensor]
    averaged: dict[str, torch.Tensor] | None
    optimizer: dict[str, Any]
    best: float = -1.0
    format: str = FORMAT


def save_state(state: RunState, path: Path) -> None:
    """Writes the state, whole or not at all. Raises OutputError."""
    values = {item.name: getattr(state, item.name) for item in fields(state)}
    with whole_file(path) as unfinished:
        torch.save(values, unfinished)


def load_state(path: Path, recipe: str, data: str) -> RunState | None:
    """The state at `path`; None if there is none.

    Raises CheckpointError if the file is damaged, SettingError if it belongs to another recipe or other scans.
    """
    if not path.is_file():
        return None
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        state = RunState(**values)
    except (OSError, RuntimeError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} is damaged ({error}). Start again with --overwrite.") from error
    if state.format != FORMAT:
        raise CheckpointError(f"{path} was written by another version ({state.format}). Start again with --overwrite.")
    for ours, theirs, what in ((recipe, state.recipe, "another recipe"), (data, state.data, "other scans")):
        if ours != theirs:
            raise SettingError(
                f"{path.parent} holds a run with {what}: going on would mix two. Choose another --output, or "
                "start again there with --overwrite."
            )
    return state
