"""An evaluation as one JSON file, written and read again; and folders of result files.

A value that is not scored is null, an infinite distance "inf".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import nan
from pathlib import Path
from typing import Any

from viscera.errors import InputError, OutputError
from viscera.io.atomic import whole_file
from viscera.metrics.detection import Lesion, LesionMatch
from viscera.metrics.score import Score
from viscera.report.as_json import plain
from viscera.report.evaluation.evaluate import CaseResult, Evaluation, Failure
from viscera.report.evaluation.summary import detection_rows, summary_rows

FORMAT = "viscera evaluation 1"
NAME = "evaluation.json"


def refuse_earlier(folder: Path, last: str, overwrite: bool) -> None:
    """Raise OutputError if `folder` holds an earlier result, known by its file `last`, that must not be replaced."""
    if (folder / last).exists() and not overwrite:
        raise OutputError(f"{folder} already holds {last}. Use --overwrite to replace it, or another --output.")


def write_files(texts: Mapping[str, str], folder: Path, *, overwrite: bool) -> list[Path]:
    """Write texts by file name into `folder`, the last one when all others are there; returns the files.

    An empty text writes nothing and removes an earlier run's file, which would not belong to the others. Raises
    OutputError if the last file is there already and `overwrite` is False, or if the folder cannot be written.
    """
    refuse_earlier(folder, list(texts)[-1], overwrite)
    for name, text in texts.items():
        if text:
            write_text(folder / name, text)
        else:
            (folder / name).unlink(missing_ok=True)
    return [folder / name for name, text in texts.items() if text]


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_of(value: Any) -> str:
    """`value` as JSON text, see `plain`."""
    return json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def json_text(evaluation: Evaluation) -> str:
    """The whole evaluation with its summaries."""
    return json_of(
        {
            "format": FORMAT,
            "name": evaluation.name,
            "record": evaluation.record,
            "summary": summary_rows(evaluation),
            "detection": detection_rows(evaluation),
            "cases": evaluation.cases,
            "failures": evaluation.failures,
        }
    )


def read_evaluation(path: Path) -> Evaluation:
    """Read an evaluation again: its `evaluation.json`, or the folder that holds it. Raises InputError."""
    file = path / NAME if path.is_dir() else path
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} holds no evaluation ({error.strerror}). Make one with `viscera evaluate`.") from error
    except ValueError as error:
        raise InputError(f"{file} is damaged: {error}. Evaluate again.") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{file} is not an evaluation of this version of viscera ({FORMAT!r}). Evaluate again.")
    return Evaluation(
        cases=tuple(_case(case) for case in data["cases"]),
        failures=tuple(Failure(**failure) for failure in data["failures"]),
        name=data["name"],
        record=data["record"],
    )


def _case(data: dict[str, Any]) -> CaseResult:
    return CaseResult(
        **{
            **data,
            "scores": {
                key: Score(**{name: _number(value) for name, value in score.items()})
                for key, score in data["scores"].items()
            },
            "lesions": {key: _match(match) for key, match in data["lesions"].items()},
            "froc": {key: tuple(map(_match, matches)) for key, matches in data["froc"].items()},
            "not_compared": tuple(data["not_compared"]),
            "notes": tuple(data["notes"]),
        }
    )


def _match(data: dict[str, Any]) -> LesionMatch:
    reference, predicted = (
        tuple(Lesion(**{**lesion, "centre_mm": tuple(lesion["centre_mm"])}) for lesion in data[side])
        for side in ("reference", "predicted")
    )
    return LesionMatch(reference, predicted)


def _number(value: Any) -> float:
    return nan if value is None else float(value)
