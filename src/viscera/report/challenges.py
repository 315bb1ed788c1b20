"""Predictions as challenges want them: `knowledge/challenges/<key>.toml` says folders, names and label values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np

from viscera.errors import InputError, KnowledgeError, OutputError, SettingError, VisceraError
from viscera.io.labels import read_labels
from viscera.io.volume import Volume
from viscera.io.write import write_label_map
from viscera.report.evaluation.cases import listed_cases
from viscera.report.evaluation.grid import lookup
from viscera.report.evaluation.labels import mask_files, own_labels, parts_of, read_side
from viscera.taxonomy import read_table, table_names, taxonomy


@dataclass(frozen=True)
class Task:
    """The part of a challenge with one set of labels."""

    folder: str  # below the output; "" for none
    case: str  # pattern of a case's whole name; its named groups fill `file`
    file: str  # what the prediction of a case is called
    labels: Mapping[str, int]  # class -> value, painted in this order

    def file_name(self, case: str) -> str | None:
        """What the prediction of `case` is called; None if it is no case of this task."""
        found = re.fullmatch(self.case, case)
        return self.file.format(**found.groupdict()) if found else None


@dataclass(frozen=True)
class Challenge:
    """What a challenge takes."""

    key: str
    title: str
    home: str
    source: str  # where its rules are written
    note: str  # what else the user has to know or do
    tasks: tuple[Task, ...]


@cache
def challenge(key: str) -> Challenge:
    """The challenge with this key. Raises SettingError naming the known ones."""
    known = table_names("challenges")
    if key not in known:
        raise SettingError(f"There is no challenge {key!r}; choose from {', '.join(known)}.")
    table = read_table(f"challenges/{key}.toml")
    tasks = tuple(Task(**row) for row in table.pop("task"))
    for task in tasks:
        for name in task.labels:
            if name not in taxonomy():
                raise KnowledgeError(f"challenges/{key}.toml names {name!r}, which is no class.")
    return Challenge(key=key, tasks=tasks, **table)


@dataclass(frozen=True)
class Export:
    """How one case ended: its file, or why there is none."""

    case: str
    file: Path | None
    error: str = ""


def export_challenge(
    key: str,
    predictions: Path,
    output: Path,
    *,
    overwrite: bool = False,
    ended: Callable[[Export], None] | None = None,
) -> list[Export]:
    """Write every prediction of a challenge's cases under the names and values it takes, on the scan's own grid.

    predictions  a folder that `viscera segment` wrote: results or label maps with viscera's own ids

    Raises InputError if no case of the challenge is among them.
    """
    wanted = challenge(key)
    cases = listed_cases(predictions)
    named = [(name, task, file) for name in sorted(cases) for task in wanted.tasks if (file := task.file_name(name))]
    if not named:
        raise InputError(
            f"{predictions} holds no case of {wanted.title}, only {', '.join(sorted(cases)[:5]) or 'nothing'}. Its "
            f"cases are called like {', '.join(task.file for task in wanted.tasks)}."
        )
    done = []
    for name, task, file in named:
        target = output / task.folder / file
        try:
            _export_case(cases[name], task, target, overwrite)
            done.append(Export(name, target))
        except VisceraError as error:
            done.append(Export(name, None, str(error)))
        if ended is not None:
            ended(done[-1])
    return done


def _export_case(prediction: Path, task: Task, target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists. Use --overwrite to replace it.")
    side = read_side(prediction, own_labels())
    missing = [key for key in task.labels if not parts_of(key, side.keys)]
    if missing:
        raise InputError(f"{prediction} lacks {', '.join(missing)}; segment it with these classes.")
    masks = side.masks(task.labels, lookup(side.grid, side.grid, str(prediction)))
    labels = np.zeros(side.grid.shape, np.uint8)
    for key, value in task.labels.items():
        box = masks.box(key)
        labels[box.slices][masks.crop(key, box)] = value
    write_label_map(labels, _grid_of(prediction), target)


def _grid_of(prediction: Path) -> Volume:
    """A volume of the prediction, for its geometry."""
    return read_labels(mask_files(prediction)[0] if prediction.is_dir() else prediction)


# --- splits ----------------------------------------------------------------------------------------------------------
# The papers (arXiv 2301.00785, 2405.18356) cross-validate on BTCV in five folds and part the other sets into training,
# validation and test, but do not print which case went where. These splits depend on names and seed alone.


def fold_splits(names: Sequence[str], folds: int = 5, seed: int = 0) -> list[dict[str, list[str]]]:
    """Cross-validation in nnU-Net's format: one {"train": [...], "val": [...]} per fold; sizes differ by one at most.

    Raises SettingError for fewer than two folds or fewer cases than folds.
    """
    if not 2 <= folds <= len(names):
        raise SettingError(f"{folds} folds of {len(names)} cases: give at least 2 folds and a case for each.")
    order = _shuffled(names, seed)
    held_out = [sorted(order[fold::folds]) for fold in range(folds)]
    return [{"train": sorted(set(order) - set(val)), "val": val} for val in held_out]


def share_split(
    names: Sequence[str], shares: tuple[float, float, float] = (0.7, 0.1, 0.2), seed: int = 0
) -> dict[str, list[str]]:
    """One split by shares of training, validation and test: {"train": [...], "val": [...], "test": [...]}.

    A part with a share gets at least one case if there are three or more; the largest part gives it.
    Raises SettingError unless the shares are 0 or more and sum to 1.
    """
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise SettingError(f"The shares {shares} must be 0 or more and sum to 1, such as 0.7,0.1,0.2.")
    order = _shuffled(names, seed)
    ends = [round(sum(shares[: i + 1]) * len(order)) for i in range(3)]
    counts = [end - start for start, end in zip((0, *ends), ends, strict=False)]
    for part, share in enumerate(shares):
        if share and not counts[part] and len(order) >= 3:
            counts[counts.index(max(counts))] -= 1
            counts[part] = 1
    cases = iter(order)
    return {part: sorted(islice(cases, count)) for part, count in zip(("train", "val", "test"), counts, strict=True)}


def _shuffled(names: Sequence[str], seed: int) -> list[str]:
    """The names in an order that is the same on every machine and with every library."""
    return sorted(set(names), key=lambda name: sha256(f"{seed}:{name}".encode()).digest())
