"""The vision branch outside torch: exported once per model and image size, kept in the user's cache, run by OpenVINO.

The cache holds a folder for every export, named by a hash of everything that makes it: the model's numbers and
settings, the image size, the code of the network, and the versions of viscera, torch and OpenVINO. A change of any is
another name, so nothing stale is ever read; the oldest go when there are many. A folder is written beside and renamed:
it is whole or not there.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from viscera import __version__
from viscera.infer.runtime import Encode, fused
from viscera.io.places import cache_folder
from viscera.model.checkpoint import model_sha256
from viscera.model.precision import Precision
from viscera.model.universal import UniversalModel
from viscera.shapes import Triple

MOST_KEPT = 8  # exports in the cache; that of the U-Net takes 90 MB, that of Swin UNETR 270 MB
_HINTS = {"fp32": "f32", "bf16": "bf16"}
_FILE = "vision.xml"  # beside it lies vision.bin


class VisionBranch(nn.Module):
    """`UniversalModel.encode` as a module of its own, as exporters want it."""

    def __init__(self, model: UniversalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.model.encode(image)


def exported_program(model: UniversalModel, shape: Triple) -> torch.export.ExportedProgram:
    """The vision branch, fused, as a graph for images [1, 1, *shape]. No number is computed."""
    with quietly(), torch.no_grad():
        return torch.export.export(VisionBranch(fused(model)).eval(), (torch.zeros(1, 1, *shape),))


def openvino_encoder(model: UniversalModel, shape: Triple, precision: Precision) -> Encode:
    """The vision branch of `model` for images of `shape`, compiled by OpenVINO for this processor."""
    import openvino as ov

    core = ov.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = core.compile_model(_cached(core, model, shape), "CPU", settings)
    request = compiled.create_infer_request()
    kind = torch.bfloat16 if precision == "bf16" else torch.float32

    def encode(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # The result lives in memory that the next call overwrites: it is copied, and made as small as it was computed.
        found = request.infer([image.contiguous().numpy()], share_inputs=True, share_outputs=True)
        features, embedding = (torch.from_numpy(found[i]) for i in range(2))
        return features.to(kind, copy=True), embedding.clone()

    return encode


def _cached(core: Any, model: UniversalModel, shape: Triple) -> Any:
    """The OpenVINO model from the cache; exported and kept there first if it is missing or damaged."""
    place = cache_folder() / "exported" / _key(model, shape)
    if (place / _FILE).is_file():
        try:
            found = core.read_model(place / _FILE)
            os.utime(place)
            return found
        except RuntimeError:  # damaged
            shutil.rmtree(place, ignore_errors=True)
    made = _converted(exported_program(model, shape))
    try:
        _keep(made, place)
    except OSError as error:  # a full or read-only disk: the next run exports again
        logging.getLogger(__name__).warning("The exported network could not be kept in %s: %s", place, error)
    return made


def _converted(program: torch.export.ExportedProgram) -> Any:
    """The graph as an OpenVINO model. The frontend is asked itself: `openvino.convert_model` sends usage statistics."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    with quietly():
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchFXPythonDecoder.from_exported_program(program)  # must live until the end
        return frontend.convert(frontend.load(decoder))


def _key(model: UniversalModel, shape: Triple) -> str:
    import openvino as ov

    parts = (model_sha256(model), shape, _code_sha256(), __version__, torch.__version__, ov.__version__)
    return f"{model.config.backbone}-{sha256(repr(parts).encode()).hexdigest()[:20]}"


@cache
def _code_sha256() -> str:
    """Of the modules that say what is exported: who works on them has one version for many networks."""
    infer = Path(__file__).parent
    network = (infer.parent / "model").rglob("*.py")
    modules = [*sorted(network), infer / "runtime.py", infer / "exported.py"]
    return sha256(b"".join(module.read_bytes() for module in modules)).hexdigest()


def _keep(made: Any, place: Path) -> None:
    """Writes an export into the cache, whole or not at all, and drops the ones not used for longest."""
    import openvino as ov

    place.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=place.parent))
    try:
        ov.save_model(made, work / _FILE, compress_to_fp16=False)
        os.rename(work, place)
    except OSError:
        if not place.is_dir():  # else another run was quicker with the same
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    kept = [item for item in place.parent.iterdir() if not item.name.startswith(".")]
    for old in sorted(kept, key=lambda item: item.stat().st_mtime)[:-MOST_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def quietly() -> Iterator[None]:
    """Without the exporters' warnings about their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
