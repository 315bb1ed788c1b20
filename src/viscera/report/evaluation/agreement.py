"""The paper's reader study: do a model's masks differ from readers' masks more than readers differ from each other?

Every two sets of masks are compared on the cases they share: two different readers (inter), the same reader twice
(intra), the model and a reader. Per class: mean Dice of each kind of pair, the difference between model-reader and
reader-reader agreement case by case with its interval, and Bland-Altman of the volumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import isnan, nan
from pathlib import Path
from typing import Literal

from viscera.errors import SettingError
from viscera.metrics.agreement import BlandAltman, ReaderAgreement, bland_altman, compare_with_readers
from viscera.metrics.edge_cases import METRICS
from viscera.metrics.statistics import Summary, summarise
from viscera.report import page
from viscera.report.evaluation import plots
from viscera.report.evaluation.cases import Places, find_cases
from viscera.report.evaluation.evaluate import Evaluation, EvaluationSettings, evaluate
from viscera.report.evaluation.store import json_of, write_files
from viscera.report.evaluation.summary import class_name, shown, shown_summary, volume_pairs, volumes_ml
from viscera.report.evaluation.tables import csv_text, markdown_table
from viscera.report.page import Cell

NAME = "agreement.json"
Kind = Literal["intra", "inter", "model"]
MODEL = "model"


@dataclass(frozen=True)
class Reading:
    """One set of masks: who drew it, and the folder it lies in."""

    who: str
    folder: Path


@dataclass(frozen=True)
class PairOfReadings:
    """Two sets of masks compared; volumes are second - first."""

    first: str
    second: str
    kind: Kind
    evaluation: Evaluation


@dataclass(frozen=True)
class PairRow:
    """One pair of readings on one class."""

    first: str
    second: str
    kind: Kind
    key: str
    dice: Summary
    nsd: Summary
    volumes_ml: BlandAltman


@dataclass(frozen=True)
class Agreement:
    """All pairs, and where the model stands among the readers, class by class."""

    pairs: tuple[PairOfReadings, ...]
    rows: tuple[PairRow, ...]
    readers: dict[str, ReaderAgreement]  # by class; empty without a model


def compare_readings(
    readings: Sequence[Reading],
    model: Path | None = None,
    settings: EvaluationSettings | None = None,
    *,
    workers: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Agreement:
    """Compare every two readings, and the model with each. Readings of the same `who` are of one reader.

    Raises SettingError for fewer than two readings; InputError where two share no case.
    """
    if len(readings) < 2:
        raise SettingError("Agreement needs the masks of two readers or more (or of one reader twice).")
    settings = settings or EvaluationSettings()
    pairs = []
    for first, second, kind in _pairings(_named(readings), model):
        if progress is not None:
            progress(f"{first.who} and {second.who}")
        cases = find_cases(Places(second.folder, first.folder))
        result = evaluate(cases, settings, workers=min(workers, len(cases)), name=second.who)
        pairs.append(PairOfReadings(first.who, second.who, kind, result))
    keys = list(dict.fromkeys(key for pair in pairs for key in pair.evaluation.classes))
    return Agreement(
        pairs=tuple(pairs),
        rows=tuple(row for pair in pairs for row in _rows(pair)),
        readers={key: _readers(pairs, key) for key in keys} if model is not None else {},
    )


def _named(readings: Sequence[Reading]) -> list[tuple[str, Reading]]:
    """(reader, reading), where a reader's second reading is shown as "A (2)"."""
    seen: dict[str, int] = {}
    named = []
    for reading in readings:
        seen[reading.who] = seen.get(reading.who, 0) + 1
        shown_as = reading.who if seen[reading.who] == 1 else f"{reading.who} ({seen[reading.who]})"
        named.append((reading.who, Reading(shown_as, reading.folder)))
    return named


def _pairings(named: Sequence[tuple[str, Reading]], model: Path | None) -> Iterator[tuple[Reading, Reading, Kind]]:
    for (who, first), (other, second) in combinations(named, 2):
        yield first, second, "intra" if who == other else "inter"
    if model is not None:
        for _, reading in named:
            yield reading, Reading(MODEL, model), "model"


def _rows(pair: PairOfReadings) -> Iterator[PairRow]:
    for key in pair.evaluation.classes:
        scores = [case.scores[key] for case in pair.evaluation.cases if key in case.scores]
        yield PairRow(
            first=pair.first,
            second=pair.second,
            kind=pair.kind,
            key=key,
            dice=summarise([s.dice for s in scores]),
            nsd=summarise([s.nsd for s in scores]),
            volumes_ml=bland_altman(*volumes_ml(pair.evaluation, key)),
        )


def _readers(pairs: Sequence[PairOfReadings], key: str) -> ReaderAgreement:
    names = sorted({case.name for pair in pairs for case in pair.evaluation.cases})

    def values(kind: Kind) -> list[list[float]]:
        found = []
        for pair in pairs:
            if pair.kind == kind:
                by_case = dict(
                    zip((c.name for c in pair.evaluation.cases), pair.evaluation.values(key, "dice"), strict=True)
                )
                found.append([by_case.get(name, nan) for name in names])
        return found

    return compare_with_readers(values("inter"), values("model"), values("intra"))


# --- files ------------------------------------------------------------------------------------------------------------


def write_agreement(agreement: Agreement, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write agreement.html, .md, .csv and .json into `folder`. Raises OutputError."""
    rows = [_flat(row) for row in agreement.rows]
    texts = {
        "agreement.csv": csv_text(rows),
        "agreement.md": agreement_markdown(agreement),
        "agreement.html": agreement_page(agreement),
        NAME: json_of(
            {"readers": {k: {**asdict(r), "verdict": r.verdict} for k, r in agreement.readers.items()}, "pairs": rows}
        ),
    }
    return write_files(texts, folder, overwrite=overwrite)


def _flat(row: PairRow) -> dict[str, object]:
    return {
        "first": row.first,
        "second": row.second,
        "kind": row.kind,
        "class": row.key,
        "n": row.dice.n,
        "dice_mean": row.dice.mean,
        "dice_sd": row.dice.sd,
        "nsd_mean": row.nsd.mean,
        "nsd_sd": row.nsd.sd,
        "volume_bias_ml": row.volumes_ml.bias,
        "volume_low_ml": row.volumes_ml.low,
        "volume_high_ml": row.volumes_ml.high,
    }


_READERS_HEADER = (
    "class",
    "n",
    "same reader",
    "readers",
    "model and readers",
    "difference",
    "95 % interval",
    "model is",
)
_PAIRS_HEADER = ("class", "first", "second", "pair", "n", "Dice", "NSD", "volume bias (ml)", "limits of agreement (ml)")
_EXPLANATION = (
    "Mean Dice of each kind of pair. The difference is the model's agreement with the readers less the readers' "
    "agreement with each other, case by case. A model is within the readers' variance if the interval of the "
    "difference holds 0; with few cases the interval is wide, so look at n and at the difference itself. With a single "
    "case there is no interval and no verdict."
)


def _reader_cells(key: str, r: ReaderAgreement) -> list[str]:
    verdict = {"within": "within the readers", "above": "above the readers", "below": "below the readers"}
    return [
        class_name(key),
        str(r.n),
        *(shown(value) for value in (r.intra, r.inter, r.model, r.difference)),
        "-" if isnan(r.low) else f"{shown(r.low)} to {shown(r.high)}",
        verdict.get(r.verdict, "-"),
    ]


def _pair_cells(row: PairRow) -> list[str]:
    v = row.volumes_ml
    return [
        class_name(row.key),
        row.first,
        row.second,
        row.kind,
        str(row.dice.n),
        shown_summary(row.dice, METRICS["dice"]),
        shown_summary(row.nsd, METRICS["nsd"]),
        "-" if isnan(v.bias) else f"{v.bias:z.1f}",
        "-" if isnan(v.bias) else f"{v.low:z.1f} to {v.high:z.1f}",
    ]


def _failures(agreement: Agreement) -> list[str]:
    return [
        f"{pair.first} and {pair.second}, {failure.name}: {failure.error}"
        for pair in agreement.pairs
        for failure in pair.evaluation.failures
    ]


def agreement_markdown(agreement: Agreement) -> str:
    """The study as Markdown."""
    parts = ["# Agreement with readers"]
    if agreement.readers:
        cells = [_reader_cells(key, r) for key, r in agreement.readers.items()]
        parts += [_EXPLANATION, markdown_table(_READERS_HEADER, cells)]
    parts += ["## Every pair", markdown_table(_PAIRS_HEADER, [_pair_cells(row) for row in agreement.rows])]
    if failures := _failures(agreement):
        parts += ["## Not compared", "\n".join(f"- {text}" for text in failures)]
    return "\n\n".join(parts) + "\n"


def agreement_page(agreement: Agreement) -> str:
    """The study as one HTML page."""
    parts = [page.heading("Agreement with readers", 1)]
    if agreement.readers:
        goodness = {"above": 1.0, "within": 0.8, "below": 0.0}
        rows: list[list[Cell | str | int]] = []
        for key, r in agreement.readers.items():
            *cells, verdict = _reader_cells(key, r)
            rows.append([*cells, Cell(verdict, goodness=goodness.get(r.verdict))])
        parts += [page.paragraph(_EXPLANATION), page.table(_READERS_HEADER, rows)]
    parts += [page.heading("Every pair"), page.table(_PAIRS_HEADER, [_pair_cells(row) for row in agreement.rows])]
    for pair in agreement.pairs:
        if volumes := volume_pairs(pair.evaluation):
            picture = plots.bland_altman_plot(volumes, difference=f"{pair.second} - {pair.first}")
            parts.append(page.figure(picture, f"Bland-Altman of the volumes: {pair.second} less {pair.first}."))
    if failures := _failures(agreement):
        parts += [page.heading("Not compared"), page.items(failures)]
    return page.page("Agreement with readers", parts)
