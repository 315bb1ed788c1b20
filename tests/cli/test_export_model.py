"""`viscera export-model` as a user types it."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from typer.testing import CliRunner

import viscera.infer.onnx_file as onnx_file
from viscera.cli.main import app
from viscera.model.build import build
from viscera.model.checkpoint import save_checkpoint
from viscera.model.config import packaged_config

needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in onnx_file.PACKAGES), reason="needs the extra viscera[onnx]"
)


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    config = replace(packaged_config("lite"), backbone_settings={"channels": [16, 32]})
    made = build(config, torch.randn(len(config.classes), config.text_dim)).eval()
    save_checkpoint(made, tmp_path / "small.safetensors")
    return made


def export(tmp_path, *more):
    return CliRunner().invoke(
        app, ["export-model", str(tmp_path / "out.onnx"), "--model", str(tmp_path / "small.safetensors"), *more]
    )


@needs_onnx
def test_the_file_gives_the_logits_of_the_classes_asked_for(model, tmp_path):
    import onnxruntime

    done = export(tmp_path, "--classes", "spleen,liver", "--size", "16", "16", "32")
    assert done.exit_code == 0, done.output
    assert "2 classes, images of 16 x 16 x 32 voxels" in " ".join(done.output.split())
    image = torch.rand(1, 1, 16, 16, 32, generator=torch.Generator().manual_seed(5))
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
    asked = json_classes(session)
    assert sorted(asked) == ["liver", "spleen"]
    with torch.inference_mode():
        expected = model(image, [model.config.classes.index(key) for key in asked])
    assert (found - expected).abs().max() <= 1e-3 * expected.std()


def json_classes(session):
    return json.loads(session.get_modelmeta().custom_metadata_map["viscera"])["classes"]


@needs_onnx
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--classes", "livver"], "livver"),
        (["--size", "10", "16", "16"], "multiple"),
    ],
)
def test_what_cannot_be_exported_is_told_and_nothing_is_written(model, tmp_path, arguments, reason):
    done = export(tmp_path, *arguments)
    assert done.exit_code != 0
    assert reason in str(done.exception) + done.output
    assert not (tmp_path / "out.onnx").exists()


def test_without_the_packages_the_error_says_what_to_install(model, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    done = export(tmp_path, "--classes", "liver")
    assert done.exit_code != 0
    assert "pip install 'viscera[onnx]'" in " ".join((str(done.exception) + done.output).split())
    assert not (tmp_path / "out.onnx").exists()
