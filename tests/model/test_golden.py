"""The released architectures give the numbers of the authors' program, through the import a user takes.

Weights and input are made by rule (a seeded generator per key), the expected logits lie beside the repository.
"""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
import torch

from viscera.model.checkpoint import load_checkpoint, model_sha256, save_checkpoint
from viscera.model.import_released import import_released

BACKBONES = {"unet": "unet", "swinunetr": "swin_unetr", "unetpp": "unetpp", "dints": "dints"}
SEED = 1


def by_rule(key, dtype, shape):
    if dtype != "float32":
        return None
    values = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()) ^ SEED)).standard_normal(shape, np.float32)
    if key.endswith("running_mean"):
        values = 0.1 * values
    elif key.endswith("running_var"):
        values = 1 + 0.1 * np.abs(values)
    elif key.endswith("bias"):
        values = 0.05 * values
    elif key == "organ_embedding":
        pass
    elif len(shape) <= 1:
        values = 1 + 0.1 * values
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(values, np.float32))


def rule_state(manifest, integers):
    """The state dict by rule; integer buffers (attention indices, counters) are those of a new model."""
    return {
        key: integers[key] if (value := by_rule(key, dtype, shape)) is None else value
        for key, (dtype, shape) in manifest.items()
    }


@pytest.mark.parametrize("golden", BACKBONES)
def test_the_imported_checkpoint_gives_the_golden_logits(golden, shared_dir, tmp_path):
    from viscera.model.build import untrained

    manifest = json.loads((shared_dir / "golden" / f"{golden}_state_dict.json").read_text())
    integers = untrained(BACKBONES[golden]).state_dict()
    assert list(integers.keys() - manifest.keys()) == list(manifest.keys() - integers.keys()) == []
    state = rule_state(manifest, integers)
    # As the data-parallel wrapper saved it: and the optimiser's and the scheduler's leftovers beside it.
    wrapped = {"net": {f"module.{key}": value for key, value in state.items()}, "epoch": np.int64(3), "optimizer": {}}
    torch.save(wrapped, tmp_path / "released.pth")
    model = import_released(tmp_path / "released.pth")
    assert model.config.backbone == BACKBONES[golden]

    again = load_checkpoint(save_checkpoint(model, tmp_path / "ours.safetensors"))
    assert model_sha256(again) == model_sha256(model)

    image = np.random.Generator(np.random.PCG64(SEED + 1000)).random((1, 1, 64, 64, 64), np.float32)
    with torch.inference_mode():
        logits = again(torch.from_numpy(image))[0]
    expected = np.load(shared_dir / "golden" / f"{golden}_seed1.npz")
    assert np.abs(logits[:, ::4, ::4, ::4].numpy() - expected["logits_stride4"]).max() <= 2e-4 * expected["std"]
    assert float(logits.mean()) == pytest.approx(float(expected["mean"]), abs=1e-4)
    assert float(logits.std()) == pytest.approx(float(expected["std"]), rel=1e-4)
