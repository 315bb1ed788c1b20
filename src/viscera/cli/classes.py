"""`viscera classes`: what can be asked for, and how."""

from __future__ import annotations

import csv
import json
import sys
from typing import Annotated, Any

import typer

from viscera.names import resolve
from viscera.taxonomy import Structure, taxonomy


def classes(
    names: Annotated[
        list[str] | None, typer.Argument(help="Show only what these names mean; everything if none is given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Write CSV instead of a table.")] = False,
) -> None:
    """List the classes and groups that `--classes` takes, or show what a name means.

    Example: `viscera classes lungs "tumour in the liver"`
    """
    structures = chosen(names) if names else taxonomy().structures
    if as_json:
        groups = {} if names else {"groups": {name: list(keys) for name, keys in taxonomy().groups.items()}}
        json.dump({"classes": [_row(s) for s in structures], **groups}, sys.stdout, indent=2)
        sys.stdout.write("\n")
    elif as_csv:
        rows = [_row(s) for s in structures]
        writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: "; ".join(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    else:
        _print_tables(structures, with_groups=not names)


def chosen(names: str | list[str]) -> tuple[Structure, ...]:
    """The classes that `names` means; an unknown phrase is looked up by meaning too, if a text encoder is installed.

    Raises ClassNameError.
    """

    def nearest(phrase: str) -> tuple[str, ...]:
        from viscera.text import match  # imports numpy, and torch when it is asked

        return match.nearest(phrase)

    return resolve(names, suggest=nearest)


def _row(structure: Structure) -> dict[str, Any]:
    """One class as plain values."""
    code = structure.snomed
    return {
        "id": structure.id,
        "key": structure.key,
        "name": structure.name,
        "kind": structure.kind,
        "side": structure.side,
        "inside": list(structure.inside),
        "synonyms": list(structure.synonyms),
        "snomed_code": code.code if code else None,
        "snomed_meaning": code.meaning if code else None,
        "colour": "#{:02x}{:02x}{:02x}".format(*structure.colour),
    }


def _print_tables(structures: tuple[Structure, ...], with_groups: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("id", "", "key", "kind", "inside", "other names", box=None, header_style="bold")
    for s in structures:
        swatch = "[rgb({},{},{})]■[/]".format(*s.colour)
        table.add_row(str(s.id), swatch, s.key, s.kind, ", ".join(s.inside), ", ".join(s.synonyms))
    console.print(table)
    if with_groups:
        groups = Table("group", "classes", box=None, header_style="bold")
        for name, keys in taxonomy().groups.items():
            groups.add_row(name, "every class" if len(keys) == len(taxonomy()) else ", ".join(keys))
        console.print()
        console.print(groups)
