"""`viscera compare`: is one model better than another?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """
**Examples**

`viscera compare evaluation_unet/ evaluation_lite/ -o comparison/`

`viscera compare a/ b/ c/ --metrics dice,hd95_mm`
"""


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders that `viscera evaluate` wrote, two or more.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the page and the tables.")] = Path(
        "comparison"
    ),
    metrics: Annotated[str, typer.Option(help="What to compare, separated by commas.")] = "dice,nsd,hd95_mm",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier comparison.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Compare two or more evaluations of the same cases.

    Wins, ties and losses, mean differences with intervals, Wilcoxon's test with Holm's correction per class; ranks over
    all classes.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from viscera.metrics.edge_cases import METRICS
    from viscera.report.evaluation.compare import better, load_runs, write_comparison
    from viscera.report.evaluation.compare import compare as compare_runs
    from viscera.report.evaluation.summary import class_name, shown

    result = compare_runs(load_runs(runs), [name.strip() for name in metrics.split(",") if name.strip()])
    written = write_comparison(result, output, overwrite=overwrite)
    console = Console(quiet=quiet, highlight=False)
    table = Table("metric", "class", "first", "second", "win / tie / loss", "p (Holm)", "better", box=None)
    for row in (*result.overall, *result.rows):
        m, pair = METRICS[row.metric], row.paired
        table.add_row(
            m.label,
            escape(class_name(row.key)),
            f"{escape(row.first)} {shown(row.first_mean, m)}",
            f"{escape(row.second)} {shown(row.second_mean, m)}",
            f"{pair.wins} / {pair.ties} / {pair.losses}",
            shown(row.p_holm),
            escape(better(row)),
        )
    console.print(table)
    console.print("Wins are the second model's. Better: p < 0.05 after Holm's correction over the classes of a metric.")
    ranks = sorted(result.decathlon.items(), key=lambda item: item[1])
    console.print(f"Decathlon ranks: {', '.join(f'{escape(model)} {rank:.2f}' for model, rank in ranks)}")
    for model, names in result.left_out.items():
        if names:
            console.print(f"[yellow]{escape(model)}: {len(names)} cases left out, which another model lacks.[/]")
    console.print(f"Read {written[2]}; tables in {output}/: {', '.join(path.name for path in written)}")


compare.__doc__ = f"{compare.__doc__}\n{EXAMPLES}"
