"""A model as an ONNX file for other programs: image in, logits of the classes out, checked against torch."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from viscera.errors import CheckpointError, SettingError
from viscera.infer.exported import quietly
from viscera.infer.runtime import fused
from viscera.io.atomic import whole_file
from viscera.model.head import HeadWeights
from viscera.model.universal import UniversalModel
from viscera.shapes import Triple

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MOST_DIFFERENCE = 1e-3  # of the logits' standard deviation; a wrong layer is a thousand times further off


@dataclass(frozen=True)
class Agreement:
    """How far the file's logits are from torch's on a random image."""

    largest_difference: float
    logit_sd: float


class WholeModel(nn.Module):
    """Image [1, 1, X, Y, Z] in [0, 1] to logits [1, K, X, Y, Z], in layers that every exporter knows."""

    def __init__(self, model: UniversalModel, channels: Sequence[int]) -> None:
        super().__init__()
        self.model, self.channels = fused(model), list(channels)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features, embedding = self.model.encode(image)
        heads = HeadWeights.from_parameters(self.model.head_parameters(embedding, self.channels)[0]).quick()
        return heads(features[0].flatten(1)).view(1, len(self.channels), *image.shape[2:])


def export_onnx(
    model: UniversalModel, classes: Sequence[str], shape: Triple, path: str | os.PathLike[str]
) -> Agreement:
    """Writes the model for `classes` (keys of its own, in this order) and images of `shape` [X, Y, Z] as one ONNX file.

    What a program needs to use it (classes, thresholds, spacing, window) stands in the file's metadata under "viscera".
    The file is computed with ONNX Runtime and compared with torch before it takes its place; raises CheckpointError if
    they disagree, SettingError if a package is missing, or if the name does not end with .onnx.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise SettingError(f"{path.name!r} must end with .onnx.")
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise SettingError(f"ONNX needs {', '.join(missing)}. Install it with: pip install 'viscera[onnx]'.")
    import onnx

    channels = [model.config.classes.index(key) for key in classes]
    whole = WholeModel(model.cpu(), channels).eval()
    image = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    with whole_file(path) as unfinished:
        with quietly(), torch.no_grad():
            program = torch.onnx.export(
                whole, (image,), dynamo=True, input_names=["image"], output_names=["logits"], verbose=False
            )
            assert program is not None
            proto = program.model_proto
        onnx.helper.set_model_props(proto, {"viscera": json.dumps(_usage(model, classes))})
        onnx.save_model(proto, unfinished)
        found = _computed(unfinished, image)
        with torch.inference_mode():
            expected = model.eval()(image, channels)
        agreement = Agreement(float((found - expected).abs().max()), float(expected.std()))
        if not agreement.largest_difference <= MOST_DIFFERENCE * agreement.logit_sd:
            raise CheckpointError(
                f"The exported file differs from torch by {agreement.largest_difference:.2g} (the logits' standard "
                f"deviation is {agreement.logit_sd:.2g}): nothing was written. Try another version of onnx or torch."
            )
    return agreement


def _usage(model: UniversalModel, classes: Sequence[str]) -> dict[str, object]:
    config = model.config
    return {
        "model": config.name,
        "trained": config.trained,
        "licence": config.licence,
        "classes": list(classes),
        "thresholds": {key: config.thresholds.get(key, 0.5) for key in classes},
        "preprocessing": asdict(config.preprocessing),
    }


def _computed(path: Path, image: torch.Tensor) -> torch.Tensor:
    """The file's logits by ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
