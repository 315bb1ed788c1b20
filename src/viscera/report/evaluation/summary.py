"""What the cases of an evaluation say together: per class and group, per lesion class; and numbers as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, isnan, nan

from viscera.metrics.detection import (
    FROC_THRESHOLDS,
    FrocPoint,
    LesionDetection,
    PatientDetection,
    detect_lesions,
    detect_patients,
    froc,
    froc_score,
)
from viscera.metrics.edge_cases import METRICS, Metric
from viscera.metrics.statistics import Proportion, Summary, summarise
from viscera.report.evaluation.evaluate import CaseResult, Evaluation
from viscera.taxonomy import taxonomy

ALL = "all cases"


def class_name(key: str) -> str:
    """What people read for a class or group."""
    return taxonomy()[key].name if key in taxonomy() else key.replace("_", " ")


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


def volumes_ml(evaluation: Evaluation, key: str) -> tuple[list[float], list[float]]:
    """Reference and predicted volumes of one class in the cases in which either side holds it."""
    scores = [case.scores[key] for case in evaluation.cases if key in case.scores]
    scores = [score for score in scores if score.reference_ml or score.prediction_ml]
    return [score.reference_ml for score in scores], [score.prediction_ml for score in scores]


def volume_pairs(evaluation: Evaluation) -> dict[str, tuple[list[float], list[float]]]:
    """The volumes of every class that has two cases or more, by the class's name."""
    pairs = {class_name(key): volumes_ml(evaluation, key) for key in evaluation.classes}
    return {name: pair for name, pair in pairs.items() if len(pair[0]) > 1}


@dataclass(frozen=True)
class DetectionRow:
    """One lesion class over all cases, patient by patient and lesion by lesion."""

    key: str
    patients: PatientDetection
    lesions: LesionDetection
    maps: int  # cases with a probability map
    froc: tuple[FrocPoint, ...]  # empty unless every case has one
    froc_score: float


def detection_rows(evaluation: Evaluation) -> list[DetectionRow]:
    """Detection of every lesion class; patient level: any voxel is positive."""
    rows = []
    for key in evaluation.lesion_classes:
        cases = [case for case in evaluation.cases if key in case.lesions]
        curves = [case.froc[key] for case in cases if key in case.froc]
        curve = froc(FROC_THRESHOLDS, curves) if len(curves) == len(cases) else ()
        calls = ((case.scores[key].reference_ml > 0, case.scores[key].prediction_ml > 0) for case in cases)
        rows.append(
            DetectionRow(
                key=key,
                patients=detect_patients(calls),
                lesions=detect_lesions([case.lesions[key] for case in cases]),
                maps=len(curves),
                froc=curve,
                froc_score=froc_score(curve),
            )
        )
    return rows


def shown(value: float, metric: Metric | None = None) -> str:
    """A value for people: its metric's decimals (3 without one), "-" if it is not scored, "inf" if infinite."""
    if isnan(value):
        return "-"
    return f"{value:z.{metric.decimals if metric else 3}f}" if abs(value) < inf else "inf"


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
