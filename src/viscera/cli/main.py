"""The command `viscera`: gathers the command groups. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import typer

from viscera.cli.classes import classes

app = typer.Typer(
    name="viscera",
    help="Organs and tumours in CT, from a scan to named masks, with one text-driven model.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

app.command()(classes)


def main() -> None:
    """Entry point of the command line."""
    app()
