"""The ONNX file gives torch's logits and says how to use it."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

import viscera.infer.onnx_file as onnx_file
from viscera.errors import CheckpointError, SettingError
from viscera.model.build import build
from viscera.model.config import packaged_config

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in onnx_file.PACKAGES), reason="needs the extra viscera[onnx]"
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = replace(packaged_config("lite"), backbone_settings={"channels": [16, 32]})
    return build(config, torch.randn(len(config.classes), config.text_dim)).eval()


def test_the_file_gives_torchs_logits_and_says_how_to_use_it(model, tmp_path):
    import onnx

    agreement = onnx_file.export_onnx(model, ["liver", "spleen"], (16, 16, 24), tmp_path / "model.onnx")
    assert 0 <= agreement.largest_difference <= 1e-3 * agreement.logit_sd
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    proto = onnx.load(tmp_path / "model.onnx")
    usage = json.loads({item.key: item.value for item in proto.metadata_props}["viscera"])
    assert usage["classes"] == ["liver", "spleen"] and usage["trained"] is False
    assert usage["preprocessing"]["spacing_mm"] == [3.0, 3.0, 3.0]
    sides = [dim.dim_value for dim in proto.graph.output[0].type.tensor_type.shape.dim]
    assert sides == [1, 2, 16, 16, 24]


def test_a_file_that_disagrees_is_not_kept(model, tmp_path, monkeypatch):
    real = onnx_file._computed
    monkeypatch.setattr(onnx_file, "_computed", lambda path, image: real(path, image) + 1)
    with pytest.raises(CheckpointError, match="differs from torch"):
        onnx_file.export_onnx(model, ["liver"], (16, 16, 16), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_another_ending_and_missing_packages_are_refused(model, tmp_path, monkeypatch):
    with pytest.raises(SettingError, match=r"must end with \.onnx"):
        onnx_file.export_onnx(model, ["liver"], (16, 16, 16), tmp_path / "model.pt")
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"viscera\[onnx\]"):
        onnx_file.export_onnx(model, ["liver"], (16, 16, 16), tmp_path / "model.onnx")
