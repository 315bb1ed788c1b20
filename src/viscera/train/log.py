"""What a run leaves to look at: two CSV files and TensorBoard's events.

    log.csv      a row per report: step, loss, learning_rate, gradient_length, patches_per_s, wait_share
    classes.csv  a row per report, data set and class: soft Dice where it is drawn, both terms of the loss
    validation.csv   a row per validation and class: Dice on whole scans
    tensorboard/     the same curves

A run that goes on drops the rows of steps it will do again, so that every step stands there once.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from viscera.io.atomic import whole_file
from viscera.train.loop import Report

_TABLES: Mapping[str, Sequence[str]] = {
    "log.csv": ("step", "loss", "learning_rate", "gradient_length", "patches_per_s", "wait_share"),
    "classes.csv": ("step", "dataset", "class", "patches", "voxelwise", "overlap", "drawn", "dice"),
    "validation.csv": ("step", "class", "dice"),
}


class RunLog:
    """Writes the files of one run; `start_step` is where it begins or goes on."""

    def __init__(self, folder: Path, start_step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._folder = folder
        for name, header in _TABLES.items():
            _keep_rows(folder / name, header, start_step)
        # purge_step: TensorBoard forgets what was logged from there on.
        self._board: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)

    def report(self, report: Report) -> None:
        """A row of each training table."""
        values = [getattr(report, name) for name in _TABLES["log.csv"]]
        self._append("log.csv", [values])
        rows = [
            [
                report.step,
                dataset,
                name,
                tally.patches,
                tally.voxelwise / tally.patches,
                tally.overlap / tally.patches,
                tally.drawn,
                "" if tally.mean_dice is None else tally.mean_dice,
            ]
            for (dataset, name), tally in sorted(report.classes.items())
        ]
        self._append("classes.csv", rows)
        for name, value in zip(_TABLES["log.csv"][1:], values[1:], strict=True):
            self._board.add_scalar(f"train/{name}", value, report.step)
        for (dataset, name), tally in report.classes.items():
            if tally.mean_dice is not None:
                self._board.add_scalar(f"dice_{dataset}/{name}", tally.mean_dice, report.step)

    def validation(self, step: int, dice: Mapping[str, float]) -> None:
        """A row per class."""
        self._append("validation.csv", [[step, name, value] for name, value in dice.items()])
        for name, value in dice.items():
            self._board.add_scalar(f"validation/{name}", value, step)
        self._board.flush()

    def close(self) -> None:
        """Ends TensorBoard's file."""
        self._board.close()

    def _append(self, name: str, rows: Sequence[Sequence[Any]]) -> None:
        with (self._folder / name).open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([[_short(value) for value in row] for row in rows])


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _keep_rows(path: Path, header: Sequence[str], last_step: int) -> None:
    """The table with its header and the rows up to `last_step`."""
    rows: list[list[str]] = []
    if path.is_file() and last_step > 0:
        with path.open(newline="", encoding="utf-8") as file:
            # A killed run may have left half a row.
            rows = [row for row in csv.reader(file) if len(row) == len(header) and row[0].isdecimal()]
    with whole_file(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *(row for row in rows if int(row[0]) <= last_step)])
