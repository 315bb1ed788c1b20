"""Is model B better than model A? Two or more evaluations of the same cases, compared case by case.

Only cases and classes that every model was scored on count, and only against the same references. For each pair
of models, class and metric: wins, ties, losses, the mean difference with its interval, and Wilcoxon's signed-rank
test, corrected by Holm over the classes of a metric. Over all classes: mean ranks with Nemenyi's critical difference
(a case is one block, its value the mean over its classes), and the Decathlon's ranking.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from math import isnan, nan
from pathlib import Path

from viscera.errors import InputError, SettingError
from viscera.metrics.edge_cases import METRICS, metric
from viscera.metrics.statistics import (
    Paired,
    Ranking,
    compare_paired,
    decathlon_ranks,
    holm,
    rank_models,
    summarise,
)
from viscera.report import page
from viscera.report.evaluation import plots
from viscera.report.evaluation.evaluate import Evaluation
from viscera.report.evaluation.store import json_of, read_evaluation, write_files
from viscera.report.evaluation.summary import class_name, shown
from viscera.report.evaluation.tables import csv_text, markdown_table
from viscera.report.page import Cell

DEFAULT_METRICS = ("dice", "nsd", "hd95_mm")
RANKED = ("dice", "nsd")  # ratios, whose mean over classes means something
ALPHA = 0.05
ALL_CLASSES = "all_classes"


@dataclass(frozen=True)
class PairRow:
    """Two models on one class and metric. The paired differences are improvements: above 0, `second` is better."""

    first: str
    second: str
    key: str
    metric: str
    first_mean: float
    second_mean: float
    paired: Paired
    p_holm: float  # corrected over the classes of this pair and metric


@dataclass(frozen=True)
class Comparison:
    """Two or more models on the same cases."""

    models: tuple[str, ...]
    cases: tuple[str, ...]  # scored for every model
    left_out: dict[str, tuple[str, ...]]  # model -> cases that another model lacks
    overall: tuple[PairRow, ...]  # each case's mean over its classes, for metrics whose mean means something
    rows: tuple[PairRow, ...]
    rankings: dict[str, Ranking]  # by metric, over cases
    decathlon: dict[str, float]  # mean rank over classes and metrics


def load_runs(paths: Sequence[Path]) -> list[Evaluation]:
    """Read evaluations; where two have the same name, they are called after their folders. Raises InputError."""
    runs = [read_evaluation(path) for path in paths]
    if len({run.name for run in runs}) == len(runs):
        return runs
    names = [str(path.parent if path.is_file() else path) for path in paths]
    if len(set(names)) < len(names):
        raise InputError(f"The same evaluation was named twice: {', '.join(names)}.")
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def compare(runs: Sequence[Evaluation], metrics: Sequence[str] = DEFAULT_METRICS) -> Comparison:
    """Compare evaluations, the first with every later one and those with each other.

    Raises SettingError for fewer than two, an unknown metric, or different tolerances; InputError if they share no
    case, or were scored against different references.
    """
    if len(runs) < 2:
        raise SettingError("A comparison needs two evaluations or more.")
    for key in metrics:
        metric(key)
    scored = [{case.name: case for case in run.cases} for run in runs]
    common = [case.name for case in runs[0].cases if all(case.name in of_run for of_run in scored)]
    if not common:
        raise InputError(f"{' and '.join(run.name for run in runs)} have no case in common.")
    for name in common:
        digests = {of_run[name].reference_sha256 for of_run in scored}
        if len(digests - {None}) > 1:
            raise InputError(
                f"The case {name!r} was scored against different references; evaluate every model against the same."
            )
    runs = [
        replace(run, cases=tuple(of_run[name] for name in common)) for run, of_run in zip(runs, scored, strict=True)
    ]
    classes = [key for key in runs[0].classes if all(key in run.classes for run in runs)]
    if "nsd" in metrics:
        _require_same_tolerances(runs, classes)
    return Comparison(
        models=tuple(run.name for run in runs),
        cases=tuple(common),
        left_out={
            run.name: tuple(name for name in of_run if name not in common)
            for run, of_run in zip(runs, scored, strict=True)
        },
        overall=tuple(_overall_rows(runs, classes, [m for m in metrics if m in RANKED])),
        rows=tuple(_rows(runs, classes, metrics)),
        rankings={
            key: rank_models({run.name: _case_means(run, classes, key) for run in runs})
            for key in metrics
            if key in RANKED
        },
        decathlon=decathlon_ranks(
            [{run.name: _costs(run, key, m) for run in runs} for m in metrics for key in classes], ALPHA
        ),
    )


def _require_same_tolerances(runs: Sequence[Evaluation], classes: Sequence[str]) -> None:
    for key in classes:
        used = {case.scores[key].tolerance_mm for run in runs for case in run.cases if key in case.scores}
        if len(used) > 1:
            tolerances = " and ".join(f"{mm:g}" for mm in sorted(used))
            raise SettingError(
                f"The surface Dice of {class_name(key)} was taken at {tolerances} mm; "
                "evaluate with the same --tolerance, or leave nsd out of --metrics."
            )


def _costs(run: Evaluation, key: str, name: str) -> list[float]:
    return [METRICS[name].cost(value) for value in run.values(key, name)]


def _case_means(run: Evaluation, classes: Sequence[str], name: str) -> list[float]:
    """Each case's mean cost over its classes; NaN without a scored class."""
    means = []
    for case in run.cases:
        costs = [METRICS[name].cost(getattr(case.scores[key], name)) for key in classes if key in case.scores]
        means.append(summarise(costs).mean)
    return means


def _rows(runs: Sequence[Evaluation], classes: Sequence[str], metrics: Sequence[str]) -> Iterator[PairRow]:
    for (first, second), name in ((pair, name) for pair in combinations(runs, 2) for name in metrics):
        pairs = [compare_paired(_costs(first, key, name), _costs(second, key, name)) for key in classes]
        corrected = holm([pair.p for pair in pairs])
        for key, pair, p in zip(classes, pairs, corrected, strict=True):
            both = [
                (a, b)
                for a, b in zip(first.values(key, name), second.values(key, name), strict=True)
                if not isnan(a) and not isnan(b)
            ]
            yield PairRow(
                first=first.name,
                second=second.name,
                key=key,
                metric=name,
                first_mean=summarise([a for a, _ in both]).mean,
                second_mean=summarise([b for _, b in both]).mean,
                paired=pair,
                p_holm=p,
            )


def _overall_rows(runs: Sequence[Evaluation], classes: Sequence[str], metrics: Sequence[str]) -> Iterator[PairRow]:
    for (first, second), name in ((pair, name) for pair in combinations(runs, 2) for name in metrics):
        costs = _case_means(first, classes, name), _case_means(second, classes, name)
        pair = compare_paired(*costs)
        means = [METRICS[name].best - summarise(of_run).mean for of_run in costs]
        yield PairRow(
            first=first.name,
            second=second.name,
            key=ALL_CLASSES,
            metric=name,
            first_mean=means[0],
            second_mean=means[1],
            paired=pair,
            p_holm=pair.p,
        )


# --- files -----------------------------------------------------------------------------------------------------------


def write_comparison(comparison: Comparison, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write comparison.html, .md, .csv and .json into `folder`. Raises OutputError."""
    texts = {
        "comparison.csv": csv_text(_table(comparison)),
        "comparison.md": comparison_markdown(comparison),
        "comparison.html": comparison_page(comparison),
        "comparison.json": json_of(comparison),
    }
    return write_files(texts, folder, overwrite=overwrite)


def _table(comparison: Comparison) -> list[dict[str, object]]:
    return [
        {
            "first": row.first,
            "second": row.second,
            "class": row.key,
            "metric": row.metric,
            "first_mean": row.first_mean,
            "second_mean": row.second_mean,
            **asdict(row.paired),
            "p_holm": row.p_holm,
        }
        for row in (*comparison.overall, *comparison.rows)
    ]


HEADER = ("class", "n", "first", "second", "improvement", "95 % interval", "win / tie / loss", "p (Holm)", "better")


def _groups(comparison: Comparison) -> Iterator[tuple[str, list[PairRow]]]:
    """The rows of each pair of models and metric, with a title."""
    groups: dict[tuple[str, str, str], list[PairRow]] = {}
    for row in (*comparison.overall, *comparison.rows):
        groups.setdefault((row.first, row.second, row.metric), []).append(row)
    for (first, second, name), rows in groups.items():
        yield f"{METRICS[name].label}: {first} (first) and {second} (second)", rows


def better(row: PairRow) -> str:
    """The model that is better at the 5 % level after Holm's correction; "-" if neither is."""
    if isnan(row.p_holm) or row.p_holm >= ALPHA:
        return "-"
    return row.second if row.paired.wins > row.paired.losses else row.first


def _cells(row: PairRow) -> list[str]:
    m, pair = METRICS[row.metric], row.paired
    return [
        class_name(row.key),
        str(pair.n),
        shown(row.first_mean, m),
        shown(row.second_mean, m),
        shown(pair.difference, m),
        "-" if isnan(pair.low) else f"{shown(pair.low, m)} to {shown(pair.high, m)}",
        f"{pair.wins} / {pair.ties} / {pair.losses}",
        shown(row.p_holm),
        better(row),
    ]


def _sentences(comparison: Comparison) -> list[str]:
    lines = [
        f"{len(comparison.cases)} cases that every model was scored on. An improvement above 0 means that the second "
        "model is better; for errors and distances it is how much smaller they are. Wins are the second model's.",
        "The line of all classes compares the cases' means over their classes. A model is called better where "
        f"Wilcoxon's test, corrected by Holm over the classes of a metric, gives p < {ALPHA}; with few cases no "
        "difference is large enough for that, so look at the intervals too.",
    ]
    for model, names in comparison.left_out.items():
        if names:
            few = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
            lines.append(f"Left out of {model}, because another model lacks them: {len(names)} cases ({few}).")
    return lines


def _rank_rows(comparison: Comparison) -> list[list[str]]:
    return [
        [
            model,
            *(shown(ranking.mean_rank[model]) for ranking in comparison.rankings.values()),
            shown(comparison.decathlon.get(model, nan)),
        ]
        for model in sorted(comparison.models, key=lambda model: comparison.decathlon.get(model, nan))
    ]


def _rank_header(comparison: Comparison) -> list[str]:
    return ["model", *(f"mean rank, {METRICS[name].name}" for name in comparison.rankings), "Decathlon rank"]


def comparison_markdown(comparison: Comparison) -> str:
    """The comparison as Markdown."""
    parts = [f"# {' and '.join(comparison.models)}", *_sentences(comparison)]
    parts += ["## Ranks (1 is best)", markdown_table(_rank_header(comparison), _rank_rows(comparison))]
    for title, rows in _groups(comparison):
        parts += [f"## {title}", markdown_table(HEADER, [_cells(row) for row in rows])]
    return "\n\n".join(parts) + "\n"


def comparison_page(comparison: Comparison) -> str:
    """The comparison as one HTML page."""
    title = f"Comparison of {' and '.join(comparison.models)}"
    parts = [page.heading(title, 1), *map(page.paragraph, _sentences(comparison)), page.heading("Ranks (1 is best)")]
    parts.append(page.table(_rank_header(comparison), _rank_rows(comparison)))
    for name, ranking in comparison.rankings.items():
        friedman = "" if isnan(ranking.friedman_p) else f" Friedman's test: p = {shown(ranking.friedman_p)}."
        parts.append(
            page.figure(
                plots.critical_difference_plot(ranking),
                f"Mean ranks by {METRICS[name].name} over {ranking.n} cases. Models joined by a bar do not differ "
                f"(Nemenyi, 5 %).{friedman}",
            )
        )
    for heading, rows in _groups(comparison):
        parts.append(page.heading(heading))
        drawn = {class_name(row.key): row.paired for row in rows if not isnan(row.paired.low)}
        if drawn:
            label = f"improvement in {METRICS[rows[0].metric].label}"
            parts.append(page.figure(plots.difference_plot(drawn, label), "Mean difference and its 95 % interval."))
        parts.append(page.table(HEADER, [_coloured(row) for row in rows]))
    return page.page(title, parts)


def _coloured(row: PairRow) -> list[Cell | str | int]:
    cells: list[Cell | str | int] = list(_cells(row))
    if better(row) != "-":
        cells[-1] = Cell(better(row), goodness=1.0 if better(row) == row.second else 0.0)
    return cells
