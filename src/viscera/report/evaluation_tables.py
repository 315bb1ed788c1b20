"""An evaluation as files: one row per case and class (CSV), all of it (JSON), the summary (CSV, Markdown).

`evaluation.json` is what `viscera compare` reads again. A value that is not scored is empty in CSV and null in JSON; an
infinite distance is "inf" in both.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, isnan, nan
from pathlib import Path
from typing import Any

from viscera.errors import InputError
from viscera.io.atomic import whole_file
from viscera.metrics.detection import (
    FrocPoint,
    Lesion,
    LesionDetection,
    LesionMatch,
    PatientDetection,
    detect_lesions,
    detect_patients,
    froc,
    froc_score,
)
from viscera.metrics.edge_cases import METRICS, Metric
from viscera.metrics.score import Score
from viscera.metrics.statistics import Proportion, Summary, summarise
from viscera.report.as_json import plain
from viscera.report.evaluation import THRESHOLDS, CaseResult, Evaluation, Failure
from viscera.taxonomy import taxonomy

FORMAT = "viscera evaluation 1"
NAME = "evaluation.json"
ALL = "all cases"


def class_name(key: str) -> str:
    """What people read for a class or group."""
    return taxonomy()[key].name if key in taxonomy() else key.replace("_", " ")


# --- what the cases say together -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SummaryRow:
    """One metric of one class over the cases of one group."""

    grouping: str  # "" for all cases, "set", or a column of the table of cases
    group: str  # the set's name or the column's value
    key: str
    metric: str
    summary: Summary


def summary_rows(evaluation: Evaluation, metrics: Iterable[str] = METRICS) -> list[SummaryRow]:
    """Every metric of every class: over all cases, then by set and by sub-group where there are several."""
    metrics = tuple(metrics)
    rows = []
    for grouping, group, cases in _groups(evaluation):
        for key in evaluation.classes:
            scores = [case.scores[key] for case in cases if key in case.scores]
            if scores:
                rows += [
                    SummaryRow(grouping, group, key, metric, summarise([getattr(score, metric) for score in scores]))
                    for metric in metrics
                ]
    return rows


def _groups(evaluation: Evaluation) -> Iterator[tuple[str, str, list[CaseResult]]]:
    yield "", ALL, list(evaluation.cases)
    columns = dict.fromkeys(column for case in evaluation.cases for column in case.groups)
    for grouping in ("set", *columns):
        by_value: dict[str, list[CaseResult]] = {}
        for case in evaluation.cases:
            value = case.data_set if grouping == "set" else case.groups.get(grouping, "")
            by_value.setdefault(value, []).append(case)
        if len(by_value) > 1:
            for value in sorted(by_value):
                yield grouping, value or "(none)", by_value[value]


def mean_of_classes(evaluation: Evaluation, metric: str, keys: Sequence[str] | None = None) -> float:
    """The mean over classes (all, or `keys`) of their means over cases; NaN where nothing is scored."""
    means = [summarise(evaluation.values(key, metric)).mean for key in keys or evaluation.classes]
    scored = [mean for mean in means if not isnan(mean)]
    return sum(scored) / len(scored) if scored else nan


@dataclass(frozen=True)
class DetectionRow:
    """One lesion class over all cases, patient by patient and lesion by lesion."""

    key: str
    patients: PatientDetection
    lesions: LesionDetection
    froc: tuple[FrocPoint, ...]  # empty without probability maps
    froc_score: float


def detection_rows(evaluation: Evaluation) -> list[DetectionRow]:
    """Detection of every lesion class; patient level: any voxel is positive."""
    rows = []
    for key in evaluation.lesion_classes:
        cases = [case for case in evaluation.cases if key in case.lesions]
        curve = froc(THRESHOLDS, [case.froc[key] for case in cases]) if all(key in case.froc for case in cases) else ()
        calls = ((case.scores[key].reference_ml > 0, case.scores[key].prediction_ml > 0) for case in cases)
        rows.append(
            DetectionRow(
                key=key,
                patients=detect_patients(calls),
                lesions=detect_lesions([case.lesions[key] for case in cases]),
                froc=curve,
                froc_score=froc_score(curve),
            )
        )
    return rows


# --- numbers as text -------------------------------------------------------------------------------------------------


def shown(value: float, metric: Metric | None = None) -> str:
    """A value for people: its metric's decimals (3 without one), "-" if it is not scored, "inf" if infinite."""
    if isnan(value):
        return "-"
    return f"{value:.{metric.decimals if metric else 3}f}" if abs(value) < inf else "inf"


def shown_summary(summary: Summary, metric: Metric) -> str:
    """ "0.912 ± 0.034"; with infinite values their number behind it."""
    if summary.n == 0:
        return "-"
    more = f" ({summary.infinite} inf)" if summary.infinite else ""
    spread = f" ± {shown(summary.sd, metric)}" if not isnan(summary.sd) else ""
    return f"{shown(summary.mean, metric)}{spread}{more}"


def shown_interval(summary: Summary, metric: Metric) -> str:
    """ "0.90-0.92", the interval of the mean."""
    return "-" if isnan(summary.low) else f"{shown(summary.low, metric)} to {shown(summary.high, metric)}"


def shown_proportion(p: Proportion) -> str:
    """ "0.83 (10/12; 0.55 to 0.95)"."""
    return "-" if isnan(p.value) else f"{p.value:.2f} ({p.count}/{p.total}; {p.low:.2f} to {p.high:.2f})"


# --- CSV -------------------------------------------------------------------------------------------------------------


def score_table(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One row per case and class, with the files it comes from."""
    columns = dict.fromkeys(column for case in evaluation.cases for column in case.groups)
    return [
        {
            "case": case.name,
            "set": case.data_set,
            **{column: case.groups.get(column, "") for column in columns},
            "class": key,
            **asdict(score),
            "prediction": case.prediction,
            "reference": case.reference,
        }
        for case in evaluation.cases
        for key, score in case.scores.items()
    ]


def summary_table(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One row per group of cases, class and metric."""
    return [
        {"grouping": row.grouping or "all", "group": row.group, "class": row.key, "metric": row.metric}
        | asdict(row.summary)
        for row in summary_rows(evaluation)
    ]


def lesion_table(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One row per lesion of either side; `match` is the number of its partner on the other side."""
    rows = []
    for case in evaluation.cases:
        for key, match in case.lesions.items():
            for side, lesions in (("reference", match.reference), ("predicted", match.predicted)):
                for number, lesion in enumerate(lesions, start=1):
                    x, y, z = lesion.centre_mm
                    rows.append(
                        {
                            "case": case.name,
                            "set": case.data_set,
                            "class": key,
                            "side": side,
                            "number": number,
                            "match": None if lesion.match is None else lesion.match + 1,
                            "iou": lesion.iou,
                            "volume_ml": lesion.volume_ml,
                            "diameter_mm": lesion.diameter_mm,
                            "x_mm": x,
                            "y_mm": y,
                            "z_mm": z,
                        }
                    )
    return rows


def detection_table(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One row per lesion class and measure: value, counts and interval."""
    rows: list[dict[str, Any]] = []

    def add(key: str, level: str, measure: str, value: float | Proportion) -> None:
        p = value if isinstance(value, Proportion) else None
        rows.append(
            {
                "class": key,
                "level": level,
                "measure": measure,
                "value": p.value if p else value,
                "count": p.count if p else None,
                "total": p.total if p else None,
                "low": p.low if p else nan,
                "high": p.high if p else nan,
            }
        )

    for row in detection_rows(evaluation):
        for measure in ("sensitivity", "specificity", "precision", "f1"):
            add(row.key, "patient", measure, getattr(row.patients, measure))
        for measure in ("sensitivity", "precision", "f1", "false_per_case"):
            add(row.key, "lesion", measure, getattr(row.lesions, measure))
        for size in row.lesions.by_size:
            add(row.key, f"lesion {size.label}", "sensitivity", size.found)
        for point in row.froc:
            add(row.key, f"threshold {point.threshold:g}", "sensitivity", point.sensitivity)
            add(row.key, f"threshold {point.threshold:g}", "false_per_case", point.false_per_case)
        if row.froc:
            add(row.key, "froc", "mean sensitivity", row.froc_score)
    return rows


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with a header; "" without rows."""
    if not rows:
        return ""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if isnan(value) else f"{value:.6g}"
    return "" if value is None else value


# --- JSON ------------------------------------------------------------------------------------------------------------


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


# --- Markdown --------------------------------------------------------------------------------------------------------


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table for people: the first column to the left, the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)


HEADLINE = ("dice", "nsd", "hd95_mm", "asd_mm", "volume_error_ml")


def markdown_text(evaluation: Evaluation) -> str:
    """The summary as Markdown: classes, detection, what could not be scored."""
    parts = [f"# Evaluation of {evaluation.name}", _headline(evaluation)]
    by_key = {(row.grouping, row.group, row.key, row.metric): row.summary for row in summary_rows(evaluation, HEADLINE)}
    for grouping, group in dict.fromkeys((g, v) for g, v, _, _ in by_key):
        title = group if not grouping else f"{grouping}: {group}"
        keys = [key for key in evaluation.classes if (grouping, group, key, "dice") in by_key]
        rows = []
        for key in keys:
            summaries = [by_key[grouping, group, key, metric] for metric in HEADLINE]
            rows.append(
                [class_name(key), summaries[0].n]
                + [shown_summary(s, METRICS[metric]) for s, metric in zip(summaries, HEADLINE, strict=True)]
                + [shown_interval(summaries[0], METRICS["dice"])]
            )
        header = ["class", "n", *(METRICS[metric].label for metric in HEADLINE), "95 % interval of the mean Dice"]
        parts += [f"## {title}", markdown_table(header, rows)]
    found = detection_rows(evaluation)
    if found:
        header = [
            "class",
            "patients: sensitivity",
            "specificity",
            "lesions: sensitivity",
            "precision",
            "false per case",
        ]
        rows = [
            [
                class_name(row.key),
                shown_proportion(row.patients.sensitivity),
                shown_proportion(row.patients.specificity),
                shown_proportion(row.lesions.sensitivity),
                shown_proportion(row.lesions.precision),
                shown(row.lesions.false_per_case),
            ]
            for row in found
        ]
        parts += ["## Detection", markdown_table(header, rows)]
    if evaluation.failures:
        parts += ["## Not scored", "\n".join(f"- **{f.name}**: {f.error}" for f in evaluation.failures)]
    notes = [f"- **{case.name}**: {note}" for case in evaluation.cases for note in case.notes]
    if notes:
        parts += ["## Notes", "\n".join(notes)]
    return "\n\n".join(parts) + "\n"


def _headline(evaluation: Evaluation) -> str:
    failed = f", {len(evaluation.failures)} could not be scored" if evaluation.failures else ""
    means = [f"mean {METRICS[m].name} {shown(mean_of_classes(evaluation, m), METRICS[m])}" for m in ("dice", "nsd")]
    return (
        f"{len(evaluation.cases)} cases{failed}; {len(evaluation.classes)} classes; {', '.join(means)} (mean of the "
        "classes' means). Mean ± standard deviation over cases; a distance that is infinite because one side is "
        "empty is counted (inf) and left out of the mean."
    )


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
