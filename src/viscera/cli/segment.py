"""`viscera segment` and `viscera demo`: from scans to masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from viscera.workflow.cohort import Case, Outcome
    from viscera.workflow.scan import Result

EXAMPLES = """
**Examples**

`viscera segment scan.nii.gz`

`viscera segment scan.nii.gz -o out/ --classes liver,"liver tumor",kidneys --masks`

`viscera segment dicom_folder/ -o out/ --series 2`

`viscera segment scans/ -o out/ --resume`
"""

PrecisionName = Literal["auto", "fp32", "bf16"]
Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="Name of a model (`viscera models`) or a .safetensors file. The starter model by default."
    ),
]
Precision = Annotated[
    PrecisionName,
    typer.Option(help="fp32 (exact), bf16 (several times as fast), or auto: bf16 where the processor has it."),
]
RuntimeName = Literal["auto", "torch", "openvino"]
Runtime = Annotated[
    RuntimeName,
    typer.Option(help="What computes the network; auto: torch. OpenVINO (on a processor) must be installed."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")]


def segment(
    scans: Annotated[
        list[Path],
        typer.Argument(help="Scans: NIfTI, NRRD or MetaImage files, DICOM folders or zips, or folders of such."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the result. Several scans get one folder each inside it."),
    ] = None,
    model: Model = "",
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            "-c",
            help='What to find: names, ids or groups, e.g. liver,"kidney tumor",lungs. All by default.',
        ),
    ] = None,
    masks: Annotated[bool, typer.Option("--masks", help="Also write one mask file per class.")] = False,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities", help="Also write the probability map of each tumour and cyst, for the FROC curve."
        ),
    ] = False,
    post: Annotated[bool, typer.Option(help="Clean the masks by the rules in knowledge/post.toml.")] = True,
    crop: Annotated[bool, typer.Option(help="Leave out the air around the body.")] = True,
    preview: Annotated[bool, typer.Option(help="Draw preview.png.")] = True,
    precision: Precision = "auto",
    overlap: Annotated[
        float | None,
        typer.Option(help="Part of a window shared with its neighbour, 0 to 0.9. The model's own by default."),
    ] = None,
    device: Device = "auto",
    runtime: Runtime = "auto",
    coarse: Annotated[
        str | None,
        typer.Option(
            help="A small model, e.g. starter, that finds where the organs asked for are: the model looks only there."
        ),
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(
            "--max-memory",
            help="Most memory to take, e.g. 2GB: smaller windows where it is needed, one scan after the other.",
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads. All cores by default.")] = None,
    series: Annotated[
        str | None, typer.Option(help="Which DICOM series: its number in the list, UID, or part of its description.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Take images that do not look like CT in HU.")] = False,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Skip scans that already have a whole result of the same request.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Find organs and tumours in CT scans."""
    from viscera.infer.memory import bytes_of
    from viscera.infer.predict import InferenceSettings
    from viscera.model.store import default_model, load_model
    from viscera.workflow.cohort import Case, find_cases, segment_many
    from viscera.workflow.scan import UNTRAINED, SaveSettings, SegmentSettings, chosen_classes

    inference = InferenceSettings(
        precision=precision,
        overlap=overlap,
        device=device,
        runtime=runtime,
        max_memory_bytes=None if max_memory is None else bytes_of(max_memory),
    )
    settings = SegmentSettings(
        series=series,
        force=force,
        classes=classes,
        post=post,
        crop=crop,
        probabilities=probabilities,
        coarse=None if coarse is None else load_model(coarse),
        inference=inference.resolved(),
    )
    save = SaveSettings(masks=masks, picture=preview, overwrite=overwrite)
    cases = find_cases(scans, output or Path("viscera_out"), series=series)
    single = len(cases) == 1 and cases[0].scan == scans[0]
    if single:
        folder = output or Path(f"{cases[0].name}_viscera")
        cases = [Case(cases[0].name, cases[0].scan, folder)]
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    network = load_model(model or default_model())
    chosen_classes(network, classes)  # a wrong name is told before any scan is read
    console = _console(quiet)
    if not network.config.trained:
        console.print(f"[bold red]{UNTRAINED}[/]\n")

    with _progress(console, len(cases)) as bar:
        outcomes = segment_many(
            cases,
            network,
            settings,
            save,
            resume=resume,
            listener=bar.stage,
            begun=bar.begin,
            ended=lambda outcome, result: _report(console, outcome, result, single),
        )
    if single and outcomes[0].error is not None:
        raise outcomes[0].error
    if not single:
        console.print(_summary(outcomes))
    if any(outcome.status == "failed" for outcome in outcomes):
        raise typer.Exit(1)


segment.__doc__ = f"{segment.__doc__}\n{EXAMPLES}"


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the result.")] = Path("demo"),
    model: Model = "",
    precision: Precision = "auto",
    device: Device = "auto",
    runtime: Runtime = "auto",
) -> None:
    """Fetch one real CT (35 MB, once) and segment it.

    **Example**

    `viscera demo -o demo/`
    """
    import time

    from viscera.workflow.demo import demo_scan, fetch_demo_scan

    console = _console(quiet=False)
    scan = demo_scan()
    with console.status("Fetching the demonstration scan (35 MB, once)"):
        path = fetch_demo_scan()
    console.print(f"Demonstration scan: {scan.description} ({scan.source}, {scan.licence}).")
    start = time.perf_counter()
    segment([path], output=output, model=model, precision=precision, device=device, runtime=runtime, overwrite=True)
    seconds = time.perf_counter() - start
    console.print(f"\nOpen     {output / 'segmentation.nii.gz'} over {path} in 3D Slicer or ITK-SNAP")
    console.print(f"Read     {output / 'findings.csv'} (the table above, with every flag)")
    console.print("Next     viscera segment SCAN.nii.gz -o out/   for a scan of your own")
    console.print(f"Picture  {output / 'preview.png'}")
    console.print(f"Time     {seconds:.1f} s from the scan to the files")


def _console(quiet: bool) -> Console:
    from rich.console import Console

    return Console(quiet=quiet, highlight=False)


class _Bar:
    """One line of progress: the scan at hand, its stage, and how far the stage is."""

    def __init__(self, console: Console, cases: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self.progress.add_task("Starting", total=None)
        self._cases, self._begun, self._name = cases, 0, ""

    def begin(self, case: Case) -> None:
        self._begun += 1
        self._name = f"[{self._begun}/{self._cases}] {case.name}: " if self._cases > 1 else ""

    def stage(self, name: str, done: int, total: int) -> None:
        text = f"{self._name}{name}".replace("[", r"\[")
        self.progress.update(self._task, description=text, completed=done, total=total or None)


@contextmanager
def _progress(console: Console, cases: int) -> Iterator[_Bar]:
    bar = _Bar(console, cases)
    with bar.progress:
        yield bar


def _report(console: Console, outcome: Outcome, result: Result | None, single: bool) -> None:
    """What one case gave: its warnings, and for a single scan the table of findings."""
    from rich.markup import escape

    from viscera.workflow.scan import UNTRAINED

    if outcome.error is not None and not single:
        console.print(f"[red]{escape(outcome.case.name)}: {escape(_reason(outcome.error))}[/]")
    if outcome.status == "skipped" and single:
        console.print(f"{outcome.case.output} already holds the whole result of this request: skipped.")
    if result is None:
        return
    name = "" if single else f"{outcome.case.name}: "
    for warning in result.warnings:
        if warning == UNTRAINED:  # told already
            continue
        console.print(f"[yellow]{escape(name + warning)}[/]")
    if single:
        from viscera.report.tables import findings_table

        console.print(findings_table(result.findings))
        if outcome.status == "done":  # a full disk fails a scan that has a result
            console.print(f"Written to {outcome.case.output}/ in {outcome.seconds:.1f} s.")


def _summary(outcomes: list[Outcome]) -> Table:
    """How every scan of a cohort went."""
    from rich.markup import escape
    from rich.table import Table

    colours = {"done": "green", "skipped": "cyan", "failed": "red"}
    table = Table("scan", "result", "seconds", "where, or why not", box=None, header_style="bold")
    for o in outcomes:
        last = str(o.case.output) if o.error is None else _reason(o.error)
        table.add_row(escape(o.case.name), f"[{colours[o.status]}]{o.status}[/]", f"{o.seconds:.1f}", escape(last))
    return table


def _reason(error: Exception) -> str:
    """Why a scan failed, in words; an error that is not one of ours is named by its type too."""
    from viscera.errors import VisceraError

    return str(error) if isinstance(error, VisceraError) else f"{type(error).__name__}: {error}"
