"""`viscera export-model`: a model as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export_model(
    output: Annotated[Path, typer.Argument(help="The file to write, ending in .onnx.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Name of a model or a .safetensors file.")] = "",
    classes: Annotated[
        str | None,
        typer.Option("--classes", "-c", help="Names, ids or groups, as for `viscera segment`; all by default."),
    ] = None,
    size: Annotated[
        tuple[int, int, int] | None,
        typer.Option(help="Voxels of the image on x, y and z; the model's own window by default."),
    ] = None,
) -> None:
    """Write a model as ONNX (image to logits), checked against torch.

    **Example**

    `viscera export-model unet.onnx --model unet --classes liver,"liver tumor"`
    """
    from viscera.infer.onnx_file import export_onnx
    from viscera.model.store import default_model, load_model
    from viscera.workflow.scan import chosen_classes

    network = load_model(model or default_model())
    keys = [structure.key for structure in chosen_classes(network, classes)]
    shape = size or network.config.inference.patch_voxels
    agreement = export_onnx(network, keys, shape, output)
    megabytes = output.stat().st_size / 1e6
    typer.echo(
        f"{output}: {network.config.name}, {len(keys)} classes, images of {' x '.join(map(str, shape))} voxels, "
        f"{megabytes:.0f} MB"
    )
    typer.echo(
        f"Largest difference from torch: {agreement.largest_difference:.1e} "
        f"(standard deviation of the logits: {agreement.logit_sd:.2f})"
    )
