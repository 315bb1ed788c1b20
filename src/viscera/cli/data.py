"""`viscera data`: the data sets one can learn from: list, show, verify, cache."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from viscera.data.catalogue import DatasetTable, Group, dataset_keys, dataset_table, table_for
from viscera.errors import SettingError

if TYPE_CHECKING:
    from viscera.data.layout import Found
    from viscera.data.verify import Fault

app = typer.Typer(
    name="data",
    help="Data sets to learn from: what they annotate, what is wrong with them, and the cache that training reads.",
    no_args_is_help=True,
)

Sets = Annotated[
    list[str],
    typer.Argument(
        metavar="SET=FOLDER...",
        help="A key of `viscera data list` or the path of your own table (.toml), and the folder where the set lies. "
        "A folder alone is an nnU-Net raw folder.",
    ),
]
Workers = Annotated[int, typer.Option("--workers", "-w", min=1, help="Processes that read cases at once.")]


@app.command("list")
def list_sets(as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")] = False) -> None:
    """List the data sets that viscera knows.

    Example: `viscera data list --json`
    """
    tables = [dataset_table(key) for key in dataset_keys()]
    if as_json:
        _write_json([_about(table) for table in tables])
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table("key", "scans", "classes", "licence", "title", box=None, header_style="bold")
    for table in tables:
        classes = "per folder" if table.labels_from_file else str(len(table.annotated))
        shown.add_row(table.key, str(table.cases or ""), classes, table.licence, table.title)
    Console().print(shown)


@app.command()
def show(
    dataset: Annotated[str, typer.Argument(metavar="SET", help="A key, or the path of a table (.toml).")],
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of text.")] = False,
) -> None:
    """Show what a data set annotates, how its files must lie, and how its readers drew.

    Example: `viscera data show kits`
    """
    table = table_for(dataset)
    if as_json:
        _write_json(_about(table))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    console.print(f"[bold]{escape(table.title)}[/]  ({escape(table.key)})")
    for name, value in (("scans", table.cases), ("home", table.home), ("licence", table.licence)):
        if value:
            console.print(f"{name}: {escape(str(value))}")
    if table.citation:
        console.print(f"cite: {escape(table.citation)}")
    for group in table.groups:
        console.print(f"\n[bold]{escape(group.name)}[/]")
        console.print(f"image  {escape(group.image or 'none published')}\nlabel  {escape(group.label)}")
        rows = Table("value", "means", "teaches", box=None, header_style="bold")
        for source in group.sources:
            rows.add_row(escape(source.value), escape(source.name), escape(_taught(source, group)))
        if group.sources:
            console.print(rows)
        console.print(f"annotated: {', '.join(group.annotated) or 'as dataset.json says'}")
        if group.free_of:
            console.print(f"free of: {', '.join(group.free_of)}")
    if table.protocol:
        console.print("\n[bold]how it was drawn[/]")
        for note in table.protocol:
            console.print(f"- {escape(note)}")


@app.command()
def verify(
    sets: Sets,
    workers: Workers = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything found to this file ('-': to standard output).")
    ] = None,
    notes: Annotated[
        bool, typer.Option("--notes", help="Also list what was noticed and handled while reading.")
    ] = False,
) -> None:
    """Check data sets: pairs, grids, values, units, copies, lesions, volumes, sides. Exit code 1 if there are errors.

    Example: `viscera data verify lits=/data/LiTS btcv=/data/BTCV --workers 4 --json faults.json`
    """
    from viscera.data.verify import verify_sets

    found = [found_set(text) for text in sets]
    silent = json_file == Path("-")
    with _progress("Checking", sum(len(one.cases) for one in found), silent) as step:
        result = verify_sets(found, workers=workers, ended=lambda report: step(report.case))
    if json_file is not None:
        text = json.dumps(result.as_json(), indent=2) + "\n"
        if silent:
            sys.stdout.write(text)
        else:
            from viscera.io.atomic import write_pieces

            write_pieces(json_file, [text.encode()])
    if not silent:
        _print_faults([fault for fault in result.faults if notes or fault.severity != "note"])
        typer.echo(result.verdict)
    if result.errors:
        raise typer.Exit(1)


@app.command()
def cache(
    sets: Sets,
    output: Annotated[Path, typer.Option("--output", "-o", help="The cache's folder; several sets share one.")],
    spacing_mm: Annotated[float, typer.Option(min=0.2, max=10, help="Voxel size of the network's grid.")] = 1.5,
    smooth: Annotated[
        bool, typer.Option(help="Average over the new voxel's surroundings where images shrink.")
    ] = False,
    crop: Annotated[bool, typer.Option(help="Keep only the box around the patient.")] = True,
    workers: Workers = 1,
) -> None:
    """Bring data sets to the network's grid once, compressed in chunks; whatever is there already is kept.

    May be interrupted and run again at will. Exit code 1 if a case could not be cached.

    Example: `viscera data cache lits=/data/LiTS btcv=/data/BTCV -o cache/ --workers 4`
    """
    from viscera.data.cache import CacheSettings, cache_cases

    settings = CacheSettings(spacing_mm=(spacing_mm,) * 3, smooth=smooth, crop_to_body=crop)
    cases = [case for text in sets for case in found_set(text).cases]
    with _progress("Caching", len(cases), silent=False) as step:
        outcomes = cache_cases(cases, output, settings, workers=workers, ended=lambda outcome: step(outcome.case))
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    for outcome in failed:
        typer.secho(f"{outcome.case}: {outcome.message}", fg="red", err=True)
    made, found = (sum(outcome.status == status for outcome in outcomes) for status in ("made", "found"))
    typer.echo(f"{made} cases cached, {found} were there already, {len(failed)} failed; cache: {output}")
    if failed:
        raise typer.Exit(1)


def found_set(text: str) -> Found:
    """The cases of a SET=FOLDER argument. Raises SettingError for another form, InputError as `find_cases` does."""
    from viscera.data.layout import find_cases

    key, equals, folder = text.partition("=")
    if not equals:
        if not Path(text).is_dir():
            raise SettingError(
                f"{text!r} is neither SET=FOLDER nor a folder. Write for example lits=/data/LiTS; "
                "`viscera data list` shows the sets."
            )
        key, folder = "nnunet", text
    return find_cases(table_for(key), Path(folder))


def _taught(source: Any, group: Group) -> str:
    if source.union:
        return f"one of {', '.join(source.union)}"
    if source.is_split:
        return f"right: {', '.join(source.right)}; left: {', '.join(source.left)}"
    return ", ".join(key for key in source.classes if key in group.annotated) or "nothing"


def _about(table: DatasetTable) -> dict[str, Any]:
    """A table as plain values."""
    return {
        "key": table.key,
        "title": table.title,
        "cases": table.cases,
        "home": table.home,
        "licence": table.licence,
        "citation": table.citation,
        "protocol": list(table.protocol),
        "groups": [
            {
                "name": group.name,
                "image": group.image,
                "label": group.label,
                "annotated": list(group.annotated),
                "free_of": list(group.free_of),
                "unions": [list(union) for union in group.unions],
                "labels": [
                    {
                        "value": source.value,
                        "name": source.name,
                        "right": list(source.right),
                        "left": list(source.left),
                        "union": list(source.union),
                    }
                    for source in group.sources
                ],
            }
            for group in table.groups
        ],
    }


def _print_faults(faults: list[Fault]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    colour = {"error": "red", "warning": "yellow", "note": "dim"}
    for fault in faults:
        style = colour[fault.severity]
        console.print(f"[{style}]{fault.severity:<8}[/]{escape(fault.case)}: {escape(fault.verdict)}")
        console.print(f"        {escape(fault.file)}", style="dim")


@contextmanager
def _progress(title: str, total: int, silent: bool) -> Iterator[Callable[[str], None]]:
    """A bar on standard error; gives a function to call with each finished case."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=silent or not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda case: bar.update(task, advance=1, description=f"{title} {case}")


def _write_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
