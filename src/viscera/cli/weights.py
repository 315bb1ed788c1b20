"""`viscera weights`: bring in, list and inspect model weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from viscera.model.store import Entry

app = typer.Typer(no_args_is_help=True, help="Bring in, list and inspect model weights.")

RELEASED = {"unet": "clip_driven_universal_unet.pth", "swin_unetr": "clip_driven_universal_swin_unetr.pth"}
HUB = "ljwztc/CLIP-Driven-Universal-Model"


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A released checkpoint (.pth).")],
    name: Annotated[str | None, typer.Option(help="Name to keep it under; <backbone>-released by default.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write this .safetensors file instead of keeping it by name.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Architecture; read from the file's keys by default.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model of the same name.")] = False,
) -> None:
    """Convert a released checkpoint (.pth) once, checking every key, without running anything in it.

    **Example**

    `viscera weights import clip_driven_universal_unet.pth --name unet-released`
    """
    from viscera.model.import_released import import_released

    _keep(import_released(file, backbone=backbone, name=name), output, overwrite)


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="unet or swin_unetr.")],
    name: Annotated[str | None, typer.Option(help="Name to keep it under; <backbone>-released by default.")] = None,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit on the hub.")] = "main",
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept CC BY-NC-ND 4.0 without being asked.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model of the same name.")] = False,
) -> None:
    """Fetch a checkpoint that the paper's authors released, and import it.

    **Example**

    `viscera weights pull unet`
    """
    from viscera.errors import SettingError
    from viscera.model.import_released import LICENCE
    from viscera.model.pull import pull_released

    if model not in RELEASED:
        raise SettingError(f"{model!r} is not a released model; there are: {', '.join(RELEASED)}.")
    typer.echo(f"Weights: {RELEASED[model]} from {HUB}\nLicence: {LICENCE}")
    if not accept_licence:
        typer.confirm("Do you accept this licence?", abort=True)
    _keep(pull_released(HUB, RELEASED[model], revision=revision, name=name), None, overwrite)


@app.command("list")
def models(as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")] = False) -> None:
    """List every model that can be run, and which one runs when none is named.

    **Example**

    `viscera models` (the same as `viscera weights list`)
    """
    import json

    from viscera.model.store import all_models, default_model

    default = default_model()
    rows = [_row(entry, default) for entry in all_models()]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("model", "classes", "spacing mm", "weights", "licence", "where", box=None, header_style="bold")
    for row in rows:
        if "error" in row:
            table.add_row(row["name"], "", "", escape(f"damaged: {row['error']}"), "", row["where"])
            continue
        table.add_row(
            row["name"],
            str(len(row["classes"])),
            " x ".join(f"{mm:g}" for mm in row["spacing_mm"]),
            "trained" if row["trained"] else "untrained",
            row["licence"] or "-",
            _shown_place(row),
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\nWithout --model: {default}. `viscera weights show NAME` tells everything about one.")


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="A name from `viscera models`, or a .safetensors file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of lines.")] = False,
) -> None:
    """Show everything a model says about itself: classes, preprocessing, text bank, licence, size, hash.

    **Example**

    `viscera weights show lite`
    """
    import json
    from dataclasses import asdict

    from viscera.model.checkpoint import model_sha256
    from viscera.model.store import load_model

    loaded = load_model(model)
    parameters = sum(weight.numel() for weight in loaded.parameters())
    facts: dict[str, Any] = {**asdict(loaded.config), "parameters": parameters, "sha256": model_sha256(loaded)}
    # The bank's arrays are for the program; people want to know where the vectors came from.
    facts["text_bank"] = {key: value for key, value in facts["text_bank"].items() if key not in ("raw", "basis")}
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else json.dumps(value, ensure_ascii=False)
        typer.echo(f"{key:<18} {text}")


def _row(entry: Entry, default: str) -> dict[str, Any]:
    """One model as plain values."""
    row: dict[str, Any] = {"name": entry.name, "origin": entry.origin, "where": str(entry.path or "")}
    row["default"] = entry.name == default
    config = entry.config
    if isinstance(config, Exception):
        return {**row, "error": str(config)}
    return {
        **row,
        "backbone": config.backbone,
        "classes": list(config.classes),
        "spacing_mm": list(config.preprocessing.spacing_mm),
        "trained": config.trained,
        "licence": config.licence,
        "source": config.source,
    }


def _shown_place(row: dict[str, Any]) -> str:
    shown = {"packaged": "in the package", "architecture": "architecture only"}
    return shown.get(row["origin"], str(row["where"]))


def _keep(model: Any, output: Path | None, overwrite: bool) -> None:
    """Saves an imported model to `output` or under its name, and says how to use it."""
    from viscera.errors import OutputError
    from viscera.model.checkpoint import model_sha256, save_checkpoint
    from viscera.model.store import store_path

    path = output or store_path(model.config.name)
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists. Use --overwrite to replace it, or another --name or --output.")
    save_checkpoint(model, path)
    used = output or model.config.name
    typer.echo(
        f"{model.config.backbone}: {len(model.config.classes)} classes, every key fits.\n"
        f"Kept as {path} (sha256 of the numbers {model_sha256(model)[:16]}...)\n"
        f"Licence: {model.config.licence}\n"
        f"Use it:  viscera segment SCAN.nii.gz --model {used}"
    )
