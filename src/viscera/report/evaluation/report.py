"""An evaluation as a folder: report.html, report.md, scores.csv, summary.csv, lesions.csv, evaluation.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import isnan
from pathlib import Path

import numpy as np

from viscera.errors import VisceraError
from viscera.io.labels import read_numbers
from viscera.io.orientation import closest_to_ras
from viscera.metrics.edge_cases import METRICS
from viscera.metrics.edge_cases import __doc__ as edge_case_table
from viscera.metrics.score import box_around
from viscera.metrics.statistics import Summary, summarise
from viscera.metrics.tolerances import tolerances
from viscera.report import page
from viscera.report.evaluation import plots
from viscera.report.evaluation.cases import Case
from viscera.report.evaluation.evaluate import CaseResult, Evaluation, EvaluationSettings, read_sides
from viscera.report.evaluation.grid import lookup
from viscera.report.evaluation.labels import grid_of
from viscera.report.evaluation.store import NAME, json_text, refuse_earlier, write_files
from viscera.report.evaluation.summary import (
    DetectionRow,
    SummaryRow,
    class_name,
    detection_rows,
    mean_of_classes,
    shown,
    shown_interval,
    shown_proportion,
    shown_summary,
    summary_rows,
    volume_pairs,
)
from viscera.report.evaluation.tables import (
    HEADLINE,
    csv_text,
    detection_table,
    lesion_table,
    markdown_text,
    score_table,
    summary_table,
)
from viscera.report.page import Cell
from viscera.shapes import triple

PICTURES = 8  # of the worst cases
_CASES_IN_SIGHT = 60  # more are folded away
_PICTURE_MARGIN_MM = 15.0
_BOXES = ("dice", "nsd", "hd95_mm")


def write_evaluation(
    evaluation: Evaluation,
    folder: Path,
    cases: Sequence[Case],
    settings: EvaluationSettings,
    *,
    pictures: int = PICTURES,
    overwrite: bool = False,
) -> list[Path]:
    """Write every table and the report into `folder`; returns the files.

    `cases` and `settings` are those that were evaluated; the pictures of the worst cases are drawn from their files.

    Raises OutputError if the folder holds an earlier evaluation and `overwrite` is False, or cannot be written.
    """
    refuse_earlier(folder, NAME, overwrite)
    texts = {
        "scores.csv": csv_text(score_table(evaluation)),
        "summary.csv": csv_text(summary_table(evaluation)),
        "lesions.csv": csv_text(lesion_table(evaluation)),
        "detection.csv": csv_text(detection_table(evaluation)),
        "report.md": markdown_text(evaluation),
        "report.html": report_page(evaluation, cases, settings, pictures=pictures),
        NAME: json_text(evaluation),
    }
    return write_files(texts, folder, overwrite=overwrite)


def report_page(
    evaluation: Evaluation, cases: Sequence[Case], settings: EvaluationSettings, *, pictures: int = PICTURES
) -> str:
    """The report as one HTML page. Pictures of the worst cases are drawn from their files, as many as can be read."""
    parts = [
        page.heading(f"Evaluation of {evaluation.name}", 1),
        page.paragraph(
            f"viscera {evaluation.record.get('viscera', '')}, {evaluation.record.get('finished', '')}", True
        ),
        page.cards(_cards(evaluation)),
        *_class_tables(evaluation),
        *_distributions(evaluation),
        *_detection(evaluation),
        *_volumes(evaluation),
        *_worst(evaluation, cases, settings, pictures),
        *_all_cases(evaluation),
        *_troubles(evaluation),
        *_method(evaluation, settings),
    ]
    return page.page(f"Evaluation of {evaluation.name}", parts)


def _cards(evaluation: Evaluation) -> Iterator[tuple[str, str, bool]]:
    yield "cases scored", str(len(evaluation.cases)), False
    if evaluation.failures:
        yield "not scored", str(len(evaluation.failures)), True
    yield "classes", str(len(evaluation.classes)), False
    organs = [key for key in evaluation.classes if key not in evaluation.lesion_classes]
    for keys, name in ((organs, "organs"), (evaluation.lesion_classes, "tumours and cysts")):
        for metric in ("dice", "nsd"):
            mean = mean_of_classes(evaluation, metric, keys) if keys else float("nan")
            if not isnan(mean):
                yield f"mean {METRICS[metric].name}, {name}", shown(mean), False


def _class_tables(evaluation: Evaluation) -> Iterator[str]:
    rows = summary_rows(evaluation, HEADLINE)
    yield page.heading("By class")
    yield _class_table([row for row in rows if not row.grouping])
    yield page.paragraph(
        "Mean ± standard deviation over the scored cases (n). An infinite distance (one side is empty) is counted "
        "as inf, left out of the mean, and the worst in the median. Click a column to sort.",
        quiet=True,
    )
    for grouping in dict.fromkeys(row.grouping for row in rows if row.grouping):
        groups = dict.fromkeys(row.group for row in rows if row.grouping == grouping)
        inner = []
        for group in groups:
            inner += [
                page.heading(group, 3),
                _class_table([r for r in rows if (r.grouping, r.group) == (grouping, group)]),
            ]
        yield page.folded(f"By {grouping}: {', '.join(groups)}", inner)


def _class_table(rows: Sequence[SummaryRow]) -> str:
    header = ["class", "n", "Dice", "95 % interval", "NSD", "HD95 (mm)", "median HD95", "ASD (mm)", "Volume error (ml)"]
    by_key: dict[str, dict[str, Summary]] = {}
    for row in rows:
        by_key.setdefault(row.key, {})[row.metric] = row.summary

    def cell(summary: Summary, metric: str, scale: float | None = None) -> Cell:
        goodness = None if scale is None else 1 - METRICS[metric].cost(summary.mean) / scale
        return Cell(shown_summary(summary, METRICS[metric]), summary.mean, goodness)

    return page.table(
        header,
        [
            [
                class_name(key),
                s["dice"].n,
                cell(s["dice"], "dice", 0.5),
                Cell(shown_interval(s["dice"], METRICS["dice"]), s["dice"].low),
                cell(s["nsd"], "nsd", 0.5),
                cell(s["hd95_mm"], "hd95_mm", 40.0),
                Cell(shown(s["hd95_mm"].median, METRICS["hd95_mm"]), s["hd95_mm"].median),
                cell(s["asd_mm"], "asd_mm", 10.0),
                cell(s["volume_error_ml"], "volume_error_ml"),
            ]
            for key, s in by_key.items()
        ],
    )


def _distributions(evaluation: Evaluation) -> Iterator[str]:
    yield page.heading("Spread over cases")
    for key in _BOXES:
        values = {class_name(c): evaluation.values(c, key) for c in evaluation.classes}
        if any(not np.isnan(v).all() for v in values.values()):
            caption = (
                f"{METRICS[key].label}: box from the first to the third quartile, line at the median, one dot per case."
            )
            yield page.figure(plots.box_plot(values, METRICS[key]), caption)


def _detection(evaluation: Evaluation) -> Iterator[str]:
    rows = detection_rows(evaluation)
    if not rows:
        return
    yield page.heading("Detection of tumours and cysts")
    yield page.table(
        ["class", "patients", "sensitivity", "specificity", "precision", "F1"],
        [
            [
                class_name(row.key),
                row.lesions.cases,
                *(
                    Cell(shown_proportion(p), p.value)
                    for p in (row.patients.sensitivity, row.patients.specificity, row.patients.precision)
                ),
                shown(row.patients.f1),
            ]
            for row in rows
        ],
    )
    yield page.paragraph(
        "Patient level: a patient is called positive if any voxel of the class was predicted. In brackets: counts "
        "and 95 % Wilson interval.",
        quiet=True,
    )
    sizes = [size.label for size in rows[0].lesions.by_size]
    yield page.table(
        ["class", "lesions", "sensitivity", "precision", "F1", "false per case", *(f"found, {size}" for size in sizes)],
        [_lesion_row(row) for row in rows],
    )
    curves = {f"{class_name(row.key)} (score {shown(row.froc_score)})": row.froc for row in rows if row.froc}
    if curves:
        yield page.figure(
            plots.froc_plot(curves),
            "FROC: sensitivity per lesion over the probability threshold; the score is the mean sensitivity at "
            "1/8 to 8 false positives per case. The maps that viscera writes are the network's, before any rule.",
        )
    for row in rows:
        if 0 < row.maps < row.lesions.cases:
            yield page.paragraph(
                f"No FROC curve of {class_name(row.key)}: {row.lesions.cases - row.maps} of {row.lesions.cases} cases "
                "have no probability map of it."
            )


def _lesion_row(row: DetectionRow) -> list[Cell | str | int]:
    found = row.lesions
    return [
        class_name(row.key),
        found.sensitivity.total,
        Cell(shown_proportion(found.sensitivity), found.sensitivity.value),
        Cell(shown_proportion(found.precision), found.precision.value),
        shown(found.f1),
        shown(found.false_per_case),
        *(
            Cell(f"{size.found.count}/{size.found.total}" if size.found.total else "-", size.found.value)
            for size in found.by_size
        ),
    ]


def _volumes(evaluation: Evaluation) -> Iterator[str]:
    if pairs := volume_pairs(evaluation):
        yield page.heading("Volumes")
        yield page.figure(
            plots.bland_altman_plot(pairs),
            "Bland-Altman: difference of the volumes against their mean; line: bias, band: 95 % limits of agreement.",
        )


def worst(evaluation: Evaluation, count: int) -> list[tuple[CaseResult, str]]:
    """The cases and classes with the lowest Dice, worst first; two per class and three per case before any more."""
    scored = [
        (score.dice, case, key)
        for case in evaluation.cases
        for key, score in case.scores.items()
        if not isnan(score.dice)
    ]
    of_class, of_case = Counter[str](), Counter[str]()
    first: list[tuple[float, CaseResult, str]] = []
    others: list[tuple[float, CaseResult, str]] = []
    for dice, case, key in sorted(scored, key=lambda item: item[0]):
        varied = of_class[key] < 2 and of_case[case.name] < 3
        (first if varied else others).append((dice, case, key))
        of_class[key] += varied
        of_case[case.name] += varied
    chosen = sorted([*first, *others][:count], key=lambda item: item[0])
    return [(case, key) for _, case, key in chosen]


def _worst(evaluation: Evaluation, cases: Sequence[Case], settings: EvaluationSettings, count: int) -> Iterator[str]:
    by_name = {case.name: case for case in cases}
    chosen = worst(evaluation, count)
    if not chosen:
        return
    yield page.heading("Worst cases")
    yield page.paragraph(
        "The lowest Dice, few of the same class or case, in the slices in which both sides differ most. Green: "
        "reference, orange: prediction; the thin line is the other side's outline. The patient's right is on the left."
    )
    for case, key in chosen:
        score = case.scores[key]
        hd95 = shown(score.hd95_mm, METRICS["hd95_mm"])
        caption = (
            f"{case.name}, {class_name(key)}: Dice {shown(score.dice)}, HD95 {hd95} mm, reference "
            f"{score.reference_ml:.1f} ml, prediction {score.prediction_ml:.1f} ml. "
            f"{case.reference} and {case.prediction}"
        )
        try:
            yield page.figure(plots.case_picture(picture_of(by_name[case.name], key, settings)), caption)
        except VisceraError as error:  # the files may have moved since they were scored
            yield page.paragraph(f"{caption}: no picture ({error})", quiet=True)


def picture_of(case: Case, key: str, settings: EvaluationSettings) -> plots.Picture:
    """One class of one case as arrays to draw, cut around both masks, RAS axes. Raises VisceraError."""
    reference, prediction = read_sides(case, settings)
    grid = reference.grid
    truth = reference.masks([key], lookup(grid, grid, case.name))
    found = prediction.masks([key], lookup(prediction.grid, grid, case.name))
    box = box_around([truth.box(key), found.box(key)])
    margin = triple(int(np.ceil(_PICTURE_MARGIN_MM / s)) for s in grid.spacing_mm)
    box = box.grown(margin, within=grid.shape)
    way = closest_to_ras(grid.affine)
    image = None
    if case.image is not None:
        volume = read_numbers(case.image)
        image = way.apply(lookup(grid_of(volume), grid, case.name)(volume.array)[box.slices])
    x, y, z = (float(grid.spacing_mm[axis]) for axis in way.axes)
    return plots.Picture(way.apply(truth.crop(key, box)), way.apply(found.crop(key, box)), image, (x, y, z))


def _all_cases(evaluation: Evaluation) -> Iterator[str]:
    def cell(case: CaseResult, key: str) -> Cell | str:
        if key not in case.scores:
            return ""
        s = case.scores[key]
        title = f"{case.name}, {class_name(key)}: Dice {shown(s.dice)}, NSD {shown(s.nsd)}, HD95 {shown(s.hd95_mm)} mm"
        return Cell("-" if isnan(s.dice) else f"{s.dice:.2f}", s.dice, 1 - (1 - s.dice) / 0.5, title)

    def mean(case: CaseResult) -> Cell:
        value = summarise([score.dice for score in case.scores.values()]).mean
        return Cell(shown(value), value, title=f"{case.prediction} against {case.reference}")

    yield page.heading("All cases: Dice")
    table = page.table(
        ["case", "mean", *map(class_name, evaluation.classes)],
        [[case.name, mean(case), *(cell(case, key) for key in evaluation.classes)] for case in evaluation.cases],
        matrix=True,
    )
    many = len(evaluation.cases) > _CASES_IN_SIGHT
    yield page.folded(f"{len(evaluation.cases)} cases", [table]) if many else table
    yield page.paragraph(
        "-: absent on both sides; empty: not annotated. All numbers and files: scores.csv.", quiet=True
    )


def _troubles(evaluation: Evaluation) -> Iterator[str]:
    if evaluation.failures:
        yield page.heading("Not scored")
        yield page.table(
            ["case", "why", "prediction", "reference"],
            [
                [f.name, Cell(f.error, is_text=True), Cell(f.prediction, is_text=True), Cell(f.reference, is_text=True)]
                for f in evaluation.failures
            ],
        )
    if evaluation.not_compared:
        names = ", ".join(map(class_name, evaluation.not_compared))
        yield page.paragraph(f"Classes of the references that no prediction tells, and that are not scored: {names}.")
    notes = [(case.name, note) for case in evaluation.cases for note in case.notes]
    if notes:
        yield page.heading("Notes")
        yield page.table(["case", "note"], [[name, Cell(note, is_text=True)] for name, note in notes])


def _method(evaluation: Evaluation, settings: EvaluationSettings) -> Iterator[str]:
    m = settings.matching
    rule = (
        f"their IoU is at least {m.least_iou:g}" if m.by == "overlap" else f"their centres lie within {m.most_mm:g} mm"
    )
    annotated = (
        f"these classes count as annotated: {', '.join(map(class_name, settings.annotated))}"
        if settings.annotated is not None
        else "in each data set, those classes count as annotated of which any of its references holds a voxel, unless "
        "the table of cases says otherwise"
    )
    used = {key: score.tolerance_mm for case in evaluation.cases for key, score in case.scores.items()}
    definitions = [
        "Scores are taken on the reference's grid. Surfaces lie between voxels and are weighted by their area, as in "
        "DeepMind's surface-distance.",
        "NSD: the share of both surfaces that lies within the tolerance of the other. HD95: the larger of both "
        "directions' 95th percentiles of surface distance. ASD: average symmetric surface distance.",
        f"A class that nobody annotated is not scored: {annotated}.",
        f"Lesions are 26-connected pieces; a predicted one is matched to a reference one if {rule}, one to one.",
        "Intervals of means: 95 % percentile bootstrap over cases, 1000 resamples, fixed seed.",
    ]
    tolerance_rows: list[list[Cell | str | int]] = [
        [class_name(key), f"{used[key]:g}", Cell(_source(key, used[key]), is_text=True)] for key in evaluation.classes
    ]
    yield page.heading("How it was measured")
    yield page.items(definitions)
    yield page.folded("Tolerances", [page.table(["class", "mm", "source"], tolerance_rows)])
    yield page.folded("Empty masks", [page.preformatted(edge_case_table or "")])


def _source(key: str, mm: float) -> str:
    known = tolerances()
    tolerance = known.get(key, known[""])
    return tolerance.source if tolerance.mm == mm else "set for this evaluation"
