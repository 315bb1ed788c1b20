"""`viscera phantom`: small data sets that no patient had to give, in real layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viscera.data.catalogue import table_for
from viscera.errors import OutputError


def phantom(
    output: Annotated[Path, typer.Argument(help="Folder for the sets; each gets a folder of its own in it.")],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Layout and labels to imitate: a key of `viscera data list` or a table (.toml)."),
    ] = None,
    cases: Annotated[int, typer.Option("--cases", "-n", min=1, help="Patients for every group of a set.")] = 4,
    spacing_mm: Annotated[
        float, typer.Option(min=0.5, max=10, help="Voxel size in plane; slices are 1.25 times that.")
    ] = 4.0,
    seed: Annotated[int, typer.Option(help="Other seeds give other patients.")] = 0,
) -> None:
    """Write phantom data sets: procedural patients with organs, tumours and noise, each set labelled in its own way.

    Three "hospitals" if no --set is given: one draws 15 organs (amos), one the liver and its tumours (lits), one
    both kidneys and both lungs under one label each (ctorg).

    Example: `viscera phantom phantoms/ --set btcv --set kits --cases 6`
    """
    from viscera.data.phantom import PhantomSettings, write_dataset

    settings = PhantomSettings(spacing_mm=(spacing_mm, spacing_mm, 1.25 * spacing_mm))
    tables = [table_for(name) for name in sets or ("amos", "lits", "ctorg")]
    for table in tables:
        if (output / table.key).exists():
            raise OutputError(f"{output / table.key} exists already. Choose another folder or remove it.")
    for table in tables:
        images = write_dataset(table, output / table.key, cases, seed, settings)
        typer.echo(f"{len(images)} patients as {table.key}: {output / table.key}")
    places = " ".join(
        f"{name}={output / table.key}" for name, table in zip(sets or ("amos", "lits", "ctorg"), tables, strict=True)
    )
    typer.echo(f"\nNext: viscera data verify {places}")
