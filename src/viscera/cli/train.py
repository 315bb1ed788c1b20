"""`viscera train`: one model from many partly labelled sets."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from viscera.errors import OutputError, SettingError

if TYPE_CHECKING:
    from rich.console import Console, Group

    from viscera.train.loop import Report
    from viscera.train.recipe import Recipe
    from viscera.workflow.training import Cost, Plan


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe (.toml), or the name of one that ships with viscera.")],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="SET=FOLDER", help="A set and where it lies; instead of the recipe's [sets]."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the run; runs/NAME by default.")
    ] = None,
    cache: Annotated[Path, typer.Option(help="Where scans lie at the network's grid; missing ones are made.")] = Path(
        "cache"
    ),
    init: Annotated[
        str | None, typer.Option(help="Start from this model: a name of `viscera models` or a file.")
    ] = None,
    freeze_backbone: Annotated[
        bool, typer.Option("--freeze-backbone", help="Learn only what joins text and image.")
    ] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", "-w", min=0, help="Processes that draw patches.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show sets, classes, steps, and the time and memory of one step; stop.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Forget the run in the output folder.")] = False,
) -> None:
    """Train one model on partly labelled data sets.

    The same command goes on where an interrupted run stopped, and ends with the same weights. On several GPUs:
    `torchrun --nproc-per-node 4 -m viscera train recipe.toml`. What comes out is `best.safetensors` and
    `last.safetensors`; `viscera segment scan.nii.gz --model runs/NAME/best.safetensors` uses them.

    Examples:

    `viscera train phantom --data amos=phantoms/amos --data lits=phantoms/lits --data ctorg=phantoms/ctorg --dry-run`

    `viscera train recipe.toml --init unet --freeze-backbone -o runs/transfer`
    """
    from rich.console import Console

    from viscera.train.recipe import load_recipe
    from viscera.workflow.training import make_plan, measured_step

    console = Console(stderr=True, highlight=False)
    settings = _changed(load_recipe(recipe), data, init, freeze_backbone, steps, seed, workers)
    first = _rank() == 0
    with _caching(console, first) as ended:
        plan = make_plan(settings, cache, workers=max(1, settings.loop.workers), ended=ended)
    if dry_run:
        _show_plan(plan, measured_step(plan))
        return
    folder = output or Path("runs") / settings.name
    if overwrite and first and folder.exists():
        _forget(folder)
    _run(plan, folder, device, console, first)


def _changed(
    recipe: Recipe,
    data: list[str] | None,
    init: str | None,
    freeze_backbone: bool,
    steps: int | None,
    seed: int | None,
    workers: int | None,
) -> Recipe:
    given: dict[str, Any] = {"steps": steps, "seed": seed, "workers": workers}
    loop = {name: value for name, value in given.items() if value is not None}
    sets = dict(recipe.sets)
    if data:
        pairs = [text.partition("=") for text in data]
        if wrong := [text for text, (_, equals, folder) in zip(data, pairs, strict=True) if not (equals and folder)]:
            raise SettingError(f"--data is {wrong[0]!r}; write SET=FOLDER, such as lits=/data/LiTS.")
        sets = {key: folder for key, _, folder in pairs}
    return replace(
        recipe,
        sets=sets,
        init=recipe.init if init is None else init,
        freeze_backbone=recipe.freeze_backbone or freeze_backbone,
        loop=replace(recipe.loop, **loop),
    )


def _run(plan: Plan, folder: Path, device: str, console: Console, first: bool) -> None:
    from rich.live import Live

    from viscera.train.log import RunLog
    from viscera.train.loop import BEST, LAST, Listener
    from viscera.workflow.training import run

    log: list[RunLog] = []
    dice: dict[str, float] = {}
    live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal and first else None

    def begun(step: int) -> None:
        log.append(RunLog(folder, step))
        verb = f"Going on at step {step}" if step else "Training"
        console.print(f"{verb} of {plan.recipe.loop.steps}: {len(plan.learned)} scans, {len(plan.classes)} classes.")
        if live:
            live.start()

    def reported(report: Report) -> None:
        log[0].report(report)
        if live:
            live.update(_live_table(report, dice), refresh=True)
        else:
            console.print(_line(report))

    def validated(step: int, found: Mapping[str, float]) -> None:
        log[0].validation(step, found)
        dice.update(found)
        mean = sum(found.values()) / len(found) if found else float("nan")
        console.print(f"step {step}: mean Dice {mean:.3f} on {len(plan.held)} whole scans")

    with _stop_flag(console) as asked:
        try:
            ended = run(plan, folder, Listener(begun=begun, reported=reported, validated=validated, stop=asked), device)
        finally:
            if live:
                live.stop()
            for one in log:
                one.close()
    if not first:
        return
    if not ended.complete:
        console.print(f"Stopped at step {ended.step}. The same command goes on from there.")
        raise typer.Exit(130)
    best = folder / BEST
    typer.echo(f"{best if best.is_file() else folder / LAST}")
    console.print(f"Try it: viscera segment scan.nii.gz --model {best if best.is_file() else folder / LAST}")


@contextmanager
def _stop_flag(console: Console) -> Iterator[Any]:
    """A function that tells whether Ctrl-C or a polite kill came; the step is finished and saved first. A second
    Ctrl-C stops at once, and the last saved state is kept."""
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        console.print("Stopping after this step ...")

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _caching(console: Console, first: bool) -> Iterator[Any]:
    """A function to call with each cached scan: it shows those that had to be made."""

    def ended(outcome: Any) -> None:
        if first and outcome.status == "made":
            console.print(f"cached {outcome.case}")

    yield ended


def _forget(folder: Path) -> None:
    """Removes a run. Raises OutputError for a folder that holds none, so that nothing else is lost."""
    from viscera.train.loop import STATE

    if any(folder.iterdir()) and not (folder / STATE).is_file() and not (folder / "log.csv").is_file():
        raise OutputError(f"{folder} holds no training run; it is not removed. Choose another --output.")
    shutil.rmtree(folder)


def _rank() -> int:
    """Which of torchrun's processes this is; 0 without it."""
    import os

    return int(os.environ.get("RANK", "0"))


def _line(report: Report) -> str:
    return (
        f"step {report.step}/{report.steps}  loss {report.loss:.3f}  {report.patches_per_s:.2f} patches/s  "
        f"data wait {report.wait_share:.0%}  left {_duration(report.remaining_s)}"
    )


def _live_table(report: Report, dice: Mapping[str, float]) -> Group:
    """How the run stands, and class by class soft Dice of patches and Dice of the last validation."""
    from rich.console import Group
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for column in ("class", "patches", "Dice in patches", "Dice in whole scans"):
        table.add_column(column, justify="left" if column == "class" else "right")
    merged: dict[str, list[float]] = {}
    for (_, name), tally in report.classes.items():
        row = merged.setdefault(name, [0, 0, 0.0])
        row[0] += tally.patches
        row[1] += tally.drawn
        row[2] += tally.dice
    for name, (patches, drawn, total) in merged.items():
        soft = f"{total / drawn:.2f}" if drawn else "-"
        table.add_row(name, f"{patches:.0f}", soft, f"{dice[name]:.2f}" if name in dice else "-")
    return Group(_line(report), table)


def _show_plan(plan: Plan, cost: Cost) -> None:
    from rich.console import Console
    from rich.table import Table

    recipe, config, console = plan.recipe, plan.config, Console(highlight=False)
    loop, spacing = recipe.loop, " x ".join(f"{s:g}" for s in config.preprocessing.spacing_mm)
    sets = sorted({case.dataset for case in (*plan.learned, *plan.held)})
    counts = [(name, [sum(c.dataset == name for c in part) for part in (plan.learned, plan.held)]) for name in sets]
    console.print(f"[bold]{recipe.name}[/]: {config.backbone} at {spacing} mm, from {recipe.init or 'random weights'}")
    for name, (learned, held) in counts:
        console.print(f"  {name}: {learned} scans to learn from, {held} to validate on")
    table = Table("class", *sets, box=None, header_style="bold", title="scans that teach a class", title_justify="left")
    for key, row in plan.annotated().items():
        table.add_row(key, *(str(row.get(name, "")) for name in sets))
    console.print(table)
    total = cost.seconds * loop.steps
    console.print(
        f"{loop.steps} steps of {loop.batch_size} patches of {' x '.join(map(str, recipe.sampling.patch_voxels))}\n"
        f"measured: {cost.seconds:.2f} s a step without updates, {_duration(total)} for all; {cost.memory_gb:.1f} GB; "
        f"first loss {cost.loss:.2f}"
    )


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
