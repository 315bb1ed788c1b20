"""Writes docs/reference from the program, so that it cannot drift: ``python -m viscera.cli.reference FOLDER``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from viscera.cli.main import app
from viscera.taxonomy import taxonomy


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with the words one types for it, groups before their members."""

    def walk(words: list[str], command: Any) -> Iterator[tuple[str, Any]]:
        yield " ".join(words), command
        for name, member in sorted(getattr(command, "commands", {}).items()):
            yield from walk([*words, name], member)

    return walk(["viscera"], typer.main.get_command(app))


def command_page() -> str:
    """Markdown: every command, its arguments and options."""
    lines = ["# Commands", "", "Written by `make docs` from the program.", ""]
    for words, command in commands():
        lines += [f"## `{words}`", "", (command.help or "").strip(), ""]
        rows = [parameter for parameter in command.params if parameter.name != "help"]
        if rows:
            lines += ["| | | default |", "|---|---|---|"]
            lines += [_row(parameter) for parameter in rows]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _row(parameter: Any) -> str:
    option = parameter.param_type_name == "option"
    names = ", ".join([*parameter.opts, *parameter.secondary_opts]) if option else (parameter.name or "").upper()
    text = (getattr(parameter, "help", None) or "").replace("|", r"\|")
    shown = (
        "" if parameter.default in (None, "", False, ()) or callable(parameter.default) else f"`{parameter.default}`"
    )
    return f"| `{names}` | {text} | {shown} |"


def class_page() -> str:
    """Markdown: every class and group."""
    lines = ["# Classes", "", "Written by `make docs` from `knowledge/taxonomy.toml`.", ""]
    lines += ["| id | key | name | kind | lies in | other names | SNOMED CT |", "|---|---|---|---|---|---|---|"]
    for s in taxonomy():
        code = f"{s.snomed.code} {s.snomed.meaning}" if s.snomed else ""
        cells = [str(s.id), f"`{s.key}`", s.name, s.kind, ", ".join(s.inside), ", ".join(s.synonyms), code]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| group | classes |", "|---|---|"]
    lines += [f"| `{name}` | {', '.join(keys)} |" for name, keys in taxonomy().groups.items()]
    return "\n".join(lines) + "\n"


PAGES = {"commands.md": command_page, "classes.md": class_page}


def main(folder: Path) -> None:
    """Writes every page into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
