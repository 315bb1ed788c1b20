"""The runtimes give what torch gives; the cache of exports is whole, used again, and never stale."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import viscera.infer.exported as exported
import viscera.infer.runtime as runtime
from viscera.errors import SettingError
from viscera.infer.predict import InferenceSettings, predict
from viscera.infer.prepare import Prepared
from viscera.infer.runtime import vision_encoder
from viscera.model.build import build
from viscera.model.config import packaged_config
from viscera.shapes import Box

CPU = torch.device("cpu")
SHAPE = (32, 32, 48)
needs_openvino = pytest.mark.skipif(not runtime.has_openvino(), reason="needs the package openvino")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VISCERA_CACHE", str(tmp_path))
    return tmp_path / "exported"


def small(seed=0):
    torch.manual_seed(seed)
    config = packaged_config("lite")
    object.__setattr__(config, "backbone_settings", {"channels": [16, 32]})
    return build(config, torch.randn(len(config.classes), config.text_dim)).eval()


@pytest.fixture(scope="module")
def model():
    return small()


def image():
    return torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(3))


def encoded(model, name):
    with torch.inference_mode():
        return vision_encoder(model, SHAPE, runtime=name, precision="fp32", device=CPU)(image())


@pytest.mark.parametrize("name", ["torch", pytest.param("openvino", marks=needs_openvino)])
def test_every_runtime_gives_what_the_model_gives(model, name):
    with torch.inference_mode():
        expected = model.encode(image())
    for found, plain in zip(encoded(model, name), expected, strict=True):
        assert found.shape == plain.shape
        assert (found - plain).abs().max() <= 1e-4 * plain.std()


@needs_openvino
def test_results_outlive_the_next_call(model):
    encode = vision_encoder(model, SHAPE, runtime="openvino", precision="fp32", device=CPU)
    first, vector = encode(image())
    kept, kept_vector = first.clone(), vector.clone()
    encode(torch.zeros(1, 1, *SHAPE))
    assert torch.equal(first, kept) and torch.equal(vector, kept_vector)


@needs_openvino
def test_an_export_is_made_once_and_again_for_other_weights_and_sizes(model, cache, monkeypatch):
    made = []
    real = exported.exported_program
    monkeypatch.setattr(exported, "exported_program", lambda *a: made.append(a[1]) or real(*a))
    encoded(model, "openvino")
    encoded(model, "openvino")
    assert made == [SHAPE]
    exported.openvino_encoder(model, (32, 32, 32), "fp32")
    encoded(small(seed=1), "openvino")
    assert made == [SHAPE, (32, 32, 32), SHAPE]
    assert len(list(cache.iterdir())) == 3 and not list(cache.glob(".*"))


@needs_openvino
def test_another_code_of_the_network_is_another_export(model, cache, monkeypatch):
    encoded(model, "openvino")
    monkeypatch.setattr(exported, "_code_sha256", lambda: "another")
    encoded(model, "openvino")
    assert len(list(cache.iterdir())) == 2


def test_the_code_of_the_network_is_what_its_modules_hold(monkeypatch):
    read = []
    monkeypatch.setattr(exported.Path, "read_bytes", lambda path: read.append(path.name) or b"")
    exported._code_sha256.__wrapped__()
    assert {"unet.py", "blocks.py", "norm.py", "universal.py", "runtime.py", "exported.py"} <= set(read)


@needs_openvino
def test_a_damaged_export_is_made_again(model, cache):
    before = encoded(model, "openvino")
    (next(cache.iterdir()) / "vision.xml").write_text("<net")
    after = encoded(model, "openvino")
    assert torch.equal(before[0], after[0])
    assert (next(cache.iterdir()) / "vision.xml").stat().st_size > 100


@needs_openvino
def test_a_cache_that_cannot_be_written_stops_nothing(model, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VISCERA_CACHE", str(tmp_path / "file"))
    assert encoded(model, "openvino")[0].isfinite().all()
    assert "could not be kept" in caplog.text


@needs_openvino
def test_only_the_newest_exports_stay(model, cache, monkeypatch):
    monkeypatch.setattr(exported, "MOST_KEPT", 1)
    exported.openvino_encoder(model, (32, 32, 32), "fp32")
    exported.openvino_encoder(model, SHAPE, "fp32")
    assert len(list(cache.iterdir())) == 1


def test_auto_is_torch():
    assert InferenceSettings(device="cpu").resolved().runtime == "torch"


def test_openvino_where_it_is_not_installed_is_an_error_with_the_way_out(monkeypatch):
    monkeypatch.setattr(runtime, "has_openvino", lambda: False)
    with pytest.raises(SettingError, match=r"pip install 'viscera\[openvino\]', or use --runtime torch"):
        InferenceSettings(runtime="openvino", device="cpu").resolved()


def test_openvino_elsewhere_than_on_a_processor_is_refused(monkeypatch):
    monkeypatch.setattr(runtime, "has_openvino", lambda: True)
    with pytest.raises(SettingError, match="--device cpu"):
        runtime.check_runtime("openvino", torch.device("cuda"))


def test_an_unknown_runtime_is_refused():
    with pytest.raises(SettingError, match="'onnx'; it must be auto, torch or openvino"):
        InferenceSettings(runtime="onnx").resolved()


@needs_openvino
@pytest.mark.parametrize("mode", ["window", "whole"])
def test_masks_are_the_same_through_both_doors(model, mode):
    generator = np.random.default_rng(0)
    scan = generator.random((40, 36, 50), np.float32)
    prepared = Prepared(scan, Box.whole(scan.shape), scan.shape, (3.0, 3.0, 3.0), scan.shape, (3.0, 3.0, 3.0))
    object.__setattr__(model.config.inference, "mode", mode)
    object.__setattr__(model.config.inference, "patch_voxels", (32, 32, 32))
    object.__setattr__(model.config, "thresholds", {"liver": 0.01})
    found = [
        predict(model, prepared, ["liver", "spleen"], InferenceSettings(precision="fp32", device="cpu", runtime=name))
        for name in ("torch", "openvino")
    ]
    for key in ("liver", "spleen"):
        torch_mask, other = (masks.whole(key) for masks in found)
        assert (torch_mask != other).mean() < 1e-3
    assert found[0].whole("liver").any()
