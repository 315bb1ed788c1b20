"""`viscera evaluate`: how good are these predictions?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.table import Table

    from viscera.report.evaluation.evaluate import CaseResult, Evaluation, Failure
    from viscera.report.evaluation.labels import LabelTable

EXAMPLES = """
**Examples**

`viscera evaluate predictions/ references/ -o evaluation/`

`viscera evaluate out/ labelsTr/ --labels dataset.json --prediction-labels viscera`

`viscera evaluate out/ references/ --cases cases.csv --images scans/ --classes organs --workers 4`

`viscera evaluate amos22/ --model lite --dataset amos -o external/`
"""

_WIDE = 120  # columns of a terminal that takes every number

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the report and the tables.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Labels = Annotated[
    Path | None,
    typer.Option(help="What the values of the label maps mean: TOML or JSON of name = value, or a dataset.json."),
]


def evaluate(
    places: Annotated[
        list[Path],
        typer.Argument(
            metavar="PREDICTIONS REFERENCES",
            help="Two folders with the same names in both, or one file or folder of masks each. With --model only the "
            "folder of the data set.",
        ),
    ],
    output: Output = Path("evaluation"),
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Segment the data set of --dataset with this model first.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="The references are a data set as downloaded: its key (`viscera data list`) or a .toml table."
        ),
    ] = None,
    classes: Annotated[
        str | None, typer.Option("--classes", "-c", help="Score these only. Everything both sides know by default.")
    ] = None,
    labels: Labels = None,
    prediction_labels: Annotated[
        str | None,
        typer.Option(
            help="The same for the predictions where they differ: a file, or `viscera` for viscera's own ids."
        ),
    ] = None,
    annotated: Annotated[
        str | None,
        typer.Option(help="Classes that the references annotate. By default those found in any reference of a set."),
    ] = None,
    cases: Annotated[
        Path | None,
        typer.Option(
            help="CSV with the column case and any of prediction, reference, image, set, annotated, sub-groups."
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the scans, for the pictures of the worst cases.")
    ] = None,
    probabilities: Annotated[
        Path | None,
        typer.Option(
            help="Folder with CASE/CLASS.nii.gz probability maps, for the FROC curve. By default those that "
            "`viscera segment --probabilities` wrote beside the predictions."
        ),
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="Tolerance of the surface Dice in mm, for all classes.")
    ] = None,
    lesions: Annotated[
        str | None, typer.Option(help="Classes to count lesion by lesion. The taxonomy's tumours and cysts by default.")
    ] = None,
    match: Annotated[str, typer.Option(help="Lesions match by overlap or by distance.")] = "overlap",
    least_iou: Annotated[float, typer.Option(help="Least IoU of a match by overlap.")] = 0.1,
    most_mm: Annotated[float, typer.Option(help="Largest distance of centres of a match by distance.")] = 10.0,
    smallest_ml: Annotated[float, typer.Option(help="Leave out smaller lesions on both sides.")] = 0.0,
    name: Annotated[str | None, typer.Option(help="What to call the predictions in reports.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. All cores by default.")] = None,
    pictures: Annotated[int, typer.Option(min=0, help="Pictures of the worst cases.")] = 8,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Score predictions against references: tables, plots and one page to read.

    Dice, surface Dice, HD95, volumes and detection per class, with intervals; a broken file is reported and the rest
    is scored. See docs/how-to/evaluate.md.
    """
    from viscera.errors import SettingError
    from viscera.metrics.detection import Matching
    from viscera.report.evaluation.cases import Places, find_cases, split_classes
    from viscera.report.evaluation.dataset import dataset_cases
    from viscera.report.evaluation.evaluate import EvaluationSettings, evaluate
    from viscera.report.evaluation.report import write_evaluation
    from viscera.report.evaluation.store import NAME, refuse_earlier

    if model is not None and (dataset is None or len(places) != 1):
        raise SettingError("--model needs --dataset and one place, the folder of the data set.")
    if model is None and len(places) != 2:
        raise SettingError(f"Give two places, predictions and references; got {len(places)}.")
    if dataset is not None and (labels is not None or cases is not None):
        raise SettingError("--dataset brings its own labels and cases: leave --labels and --cases out.")
    refuse_earlier(output, NAME, overwrite)  # before minutes of scoring
    console = console_of(quiet)
    if model is not None and dataset is not None:
        places = [output / "predictions", places[0]]
        _segment(console, dataset, places[1], model, classes, places[0])
    predictions, references = places
    reference_table, prediction_table = label_tables(labels, prediction_labels)
    settings = EvaluationSettings(
        references=reference_table,
        predictions=prediction_table,
        classes=chosen(classes, reference_table),
        annotated=None if annotated is None else split_classes(annotated),
        lesions=None if lesions is None else split_classes(lesions),
        tolerance_mm=tolerance,
        matching=Matching(match, least_iou, most_mm, smallest_ml),  # type: ignore[arg-type]  # it refuses other words
    )
    if dataset is not None:
        found = dataset_cases(dataset, references, predictions, probabilities)
    else:
        found = find_cases(Places(predictions, references, images, probabilities), cases)
    with progress(console, len(found)) as ended:
        result = evaluate(
            found,
            settings,
            workers=min(workers or os.cpu_count() or 1, len(found)),
            name=name or model or predictions.resolve().name,
            ended=ended,
        )
        written = write_evaluation(result, output, found, settings, pictures=pictures, overwrite=overwrite)
    report(console, result)
    console.print(f"Read {written[-2]}; tables in {output}/: {', '.join(path.name for path in written)}")
    if result.failures:
        raise typer.Exit(1)


evaluate.__doc__ = f"{evaluate.__doc__}\n{EXAMPLES}"


def agreement(
    readers: Annotated[
        list[str],
        typer.Argument(
            help="Folders of masks, one per reading: NAME=FOLDER. One NAME twice is one reader who read twice."
        ),
    ],
    model: Annotated[Path | None, typer.Option("--model", "-m", help="Folder of a model's predictions.")] = None,
    output: Output = Path("agreement"),
    classes: Annotated[str | None, typer.Option("--classes", "-c", help="Compare these only.")] = None,
    labels: Labels = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. All cores by default.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Does a model differ from readers more than readers differ from each other?

    Compares every two readings of the same scans, and the model with each; says per class whether the model lies
    within the readers' variance.

    **Examples**

    `viscera agreement A=reader1/ B=reader2/ --model out/ -o agreement/`

    `viscera agreement A=first/ A=second/ B=reader2/`
    """
    from rich.markup import escape

    from viscera.report.evaluation.agreement import NAME, Reading, compare_readings, write_agreement
    from viscera.report.evaluation.evaluate import EvaluationSettings
    from viscera.report.evaluation.store import refuse_earlier
    from viscera.report.evaluation.summary import class_name

    refuse_earlier(output, NAME, overwrite)
    table, _ = label_tables(labels, None)
    readings = []
    for text in readers:
        name, found, folder = text.partition("=")
        readings.append(Reading(name, Path(folder)) if found else Reading(Path(text).name, Path(text)))
    settings = EvaluationSettings(references=table, predictions=table, classes=chosen(classes, table))
    console = console_of(quiet)
    with console.status("Comparing") as status:
        result = compare_readings(
            readings,
            model,
            settings,
            workers=workers or os.cpu_count() or 1,
            progress=lambda pair: status.update(f"Comparing {escape(pair)}"),
        )
        written = write_agreement(result, output, overwrite=overwrite)
    for key, r in result.readers.items():
        console.print(f"{class_name(key)}: readers {r.inter:.3f}, model {r.model:.3f}: {r.verdict} (n = {r.n})")
    console.print(f"Read {written[2]}; tables in {output}/: {', '.join(path.name for path in written)}")


def check_reports(
    truths: Annotated[Path, typer.Argument(help="CSV with the columns case, class, present (yes or no), size_mm.")],
    results: Annotated[Path, typer.Argument(help="Folder of results of `viscera segment`, one folder per case.")],
    output: Output = Path("check"),
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Check tumour findings against pathology or radiology reports, patient by patient.

    Sensitivity and specificity with intervals, agreement of sizes, and the list of disagreements to review.

    **Example**

    `viscera check-reports reports.csv out/ -o check/`
    """
    from viscera.report.evaluation.summary import shown_proportion
    from viscera.report.evaluation.truths import check_reports, read_truths, write_check

    result = check_reports(read_truths(truths), results)
    written = write_check(result, output, overwrite=overwrite)
    console = console_of(quiet)
    for asked in (*result.asked, None):
        found = result.detection(asked)
        console.print(
            f"{asked or 'all together'}: sensitivity {shown_proportion(found.sensitivity)}, "
            f"specificity {shown_proportion(found.specificity)}",
            markup=False,
        )
    console.print(
        f"{len(result.disagreements)} to review, {len(result.rows) - len(result.answered())} without an answer"
    )
    console.print(f"Read {written[2]}; tables in {output}/: {', '.join(path.name for path in written)}")


def _segment(console: Console, dataset: str, folder: Path, model: str, classes: str | None, output: Path) -> None:
    """Segment the scans of a data set, as far as that was not done before; one that fails is told and left out.

    Only classes that the table draws and the model has are computed.
    """
    from rich.markup import escape

    from viscera.data.catalogue import table_for
    from viscera.data.layout import find_cases
    from viscera.errors import InputError
    from viscera.model.store import load_model
    from viscera.names import resolve
    from viscera.taxonomy import taxonomy
    from viscera.workflow.cohort import Case, segment_many
    from viscera.workflow.scan import UNTRAINED, SaveSettings, SegmentSettings

    found = find_cases(table_for(dataset), folder)
    network = load_model(model)
    asked = {s.key for s in resolve(classes)} if classes else set(network.config.classes)
    keys = [key for key in network.config.classes if key in found.dataset.annotated and key in asked]
    if not keys:
        raise InputError(f"{model} has none of the classes that {found.dataset.title} annotates.")
    if not network.config.trained:
        console.print(f"[bold red]{UNTRAINED}[/]\n")
    cases = [Case(case.name, case.image, output / case.name) for case in found.cases if case.image is not None]
    if not cases:
        raise InputError(f"{found.dataset.title} in {folder} has labels but no scan to segment.")
    with console.status("Segmenting") as status:
        outcomes = segment_many(
            cases,
            network,
            SegmentSettings(classes=keys, probabilities=any(taxonomy()[key].is_lesion for key in keys)),
            SaveSettings(masks=True, picture=False),
            resume=True,
            begun=lambda case: status.update(f"Segmenting {escape(case.name)}"),
        )
    for outcome in outcomes:
        if outcome.error is not None:
            console.print(f"[red]{escape(outcome.case.name)}: {escape(str(outcome.error))}[/]")


def label_tables(labels: Path | None, prediction_labels: str | None) -> tuple[LabelTable, LabelTable]:
    """The tables of references and predictions; viscera's own ids where nothing is said."""
    from viscera.report.evaluation.labels import own_labels, read_label_table

    references = own_labels() if labels is None else read_label_table(labels)
    if prediction_labels is None:
        return references, references
    return references, own_labels() if prediction_labels == "viscera" else read_label_table(Path(prediction_labels))


def chosen(names: str | None, table: LabelTable) -> tuple[str, ...] | None:
    """The classes that `names` ask for: classes and groups of the taxonomy, or names of the table itself."""
    from viscera.errors import ClassNameError
    from viscera.names import resolve
    from viscera.report.evaluation.cases import split_classes

    if names is None:
        return None
    keys: list[str] = []
    for key in split_classes(names):
        if key in table.values:
            keys.append(key)
            continue
        try:
            keys += [s.key for s in resolve(key)]
        except ClassNameError as error:
            raise ClassNameError(f"{error} The label table names: {', '.join(table.values)}.") from error
    return tuple(dict.fromkeys(keys))


def console_of(quiet: bool) -> Console:
    from rich.console import Console

    return Console(quiet=quiet, highlight=False)


@contextmanager
def progress(console: Console, cases: int) -> Iterator[Callable[[str, CaseResult | Failure], None]]:
    """One line of progress; yields what is to be called as each case ends. Failures are told at once."""
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from viscera.report.evaluation.evaluate import Failure

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("Scoring", total=cases)

        def ended(name: str, outcome: CaseResult | Failure) -> None:
            if isinstance(outcome, Failure):
                console.print(f"[red]{escape(name)}: {escape(outcome.error)}[/]")
            bar.update(task, advance=1, description="Writing" if bar.tasks[0].remaining == 1 else "Scoring")

        yield ended


def report(console: Console, evaluation: Evaluation) -> None:
    """The summary by class on the screen."""
    from rich.markup import escape

    console.print(class_table(evaluation, wide=console.width >= _WIDE))
    notes = sum(bool(case.notes) for case in evaluation.cases)
    if notes:
        first = next(case for case in evaluation.cases if case.notes)
        console.print(f"[yellow]{escape(first.name)}: {escape(first.notes[0])}[/]")
        if notes > 1:
            console.print(f"[yellow]{notes - 1} more cases have notes; the report lists them.[/]")
    if evaluation.not_compared:
        few = ", ".join(evaluation.not_compared[:8]) + (" ..." if len(evaluation.not_compared) > 8 else "")
        console.print(f"[yellow]Not scored, because no prediction tells them: {escape(few)}[/]")
    if evaluation.failures:
        failed = len(evaluation.failures)
        total = failed + len(evaluation.cases)
        console.print(f"[red]{failed} of {total} cases could not be scored; the report says why.[/]")


def class_table(evaluation: Evaluation, wide: bool) -> Table:
    """Class by class, one line each; with the interval and the volume error where the terminal is `wide`."""
    from rich.markup import escape
    from rich.table import Table

    from viscera.metrics.edge_cases import METRICS
    from viscera.report.evaluation.summary import class_name, shown_interval, shown_summary, summary_rows

    metrics = ("dice", "nsd", "hd95_mm") + ("volume_error_ml",) * wide
    table = Table(box=None, header_style="bold")
    table.add_column("class")
    table.add_column("n", justify="right")
    for metric in metrics:
        table.add_column(METRICS[metric].label, justify="right", no_wrap=True)
    if wide:
        table.add_column("95 % of mean Dice", justify="right", no_wrap=True)
    summaries = {(row.key, row.metric): row.summary for row in summary_rows(evaluation, metrics) if not row.grouping}
    for key in evaluation.classes:
        dice = summaries[key, "dice"]
        cells = [shown_summary(summaries[key, metric], METRICS[metric]) for metric in metrics]
        interval = [shown_interval(dice, METRICS["dice"])] * wide
        table.add_row(escape(class_name(key)), str(dice.n), *cells, *interval)
    return table
