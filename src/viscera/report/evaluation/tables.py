"""An evaluation as tables: one row per case and class, per summary, per lesion (CSV), and for people (Markdown).

A value that is not scored is empty in CSV; an infinite distance is "inf".
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from math import isnan, nan
from typing import Any

from viscera.metrics.edge_cases import METRICS
from viscera.metrics.statistics import Proportion
from viscera.report.evaluation.evaluate import Evaluation
from viscera.report.evaluation.summary import (
    class_name,
    detection_rows,
    mean_of_classes,
    shown,
    shown_interval,
    shown_proportion,
    shown_summary,
    summary_rows,
)


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
    if evaluation.not_compared:
        names = ", ".join(map(class_name, evaluation.not_compared))
        parts.append(f"Classes of the references that no prediction tells, and that are not scored: {names}.")
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
