"""The command `viscera`: gathers the command groups. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import gc
import signal
import sys
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from viscera.cli import data, text, weights
from viscera.cli.classes import classes
from viscera.cli.compare import compare
from viscera.cli.evaluate import agreement, check_reports, evaluate
from viscera.cli.export import export, splits
from viscera.cli.export_model import export_model
from viscera.cli.phantom import phantom
from viscera.cli.segment import demo, segment
from viscera.cli.train import train
from viscera.errors import VisceraError


class ErrorsForPeople(TyperGroup):
    """Our own errors become one message and exit code 2; Ctrl-C becomes exit code 130. Bugs keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except VisceraError as error:
            typer.secho(f"Error: {error}", fg="red", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt:
            typer.secho("Stopped. Nothing half-written was left behind.", fg="yellow", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="viscera",
    help="Organs and tumours in CT, from a scan to named masks, with one text-driven model.",
    cls=ErrorsForPeople,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

app.command()(segment)
app.command()(demo)
app.command()(classes)
app.add_typer(data.app)
app.command()(phantom)
app.command()(train)
app.add_typer(text.app)
app.command("models")(weights.models)
app.add_typer(weights.app, name="weights")
app.command()(evaluate)
app.command()(compare)
app.command()(agreement)
app.command("check-reports")(check_reports)
app.command()(export)
app.command("export-model")(export_model)
app.command()(splits)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        from viscera import __version__

        typer.echo(f"viscera {__version__}")
        raise typer.Exit()


def _terminate(number: int, frame: FrameType | None) -> None:
    """A polite kill cleans up like Ctrl-C does."""
    raise KeyboardInterrupt


def main() -> None:
    """Entry point of the command line."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        sys.exit(app())
    finally:
        # Python would search all modules for cycles on its way out: half a second where torch is loaded.
        gc.freeze()
