"""Checkpoints: exactly the model's tensors or an error that names the key, and a file that is whole or not there."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from viscera.errors import CheckpointError, OutputError, TextBankError
from viscera.model import checkpoint
from viscera.model.build import build
from viscera.model.checkpoint import (
    FORMAT,
    TEXT_VECTORS,
    load_checkpoint,
    model_sha256,
    read_config,
    renamed,
    save_checkpoint,
)
from viscera.model.config import packaged_config
from viscera.taxonomy import taxonomy
from viscera.text.bank import Bank, Finish, make
from viscera.text.encoders import FakeEncoder
from viscera.text.prompts import prompt

KEY = "controller.weight"


@pytest.fixture
def model():
    """A light model of three classes and few channels."""
    config = replace(
        packaged_config("lite"),
        name="small",
        classes=("spleen", "right_kidney", "liver"),
        text_dim=5,
        backbone_settings={"channels": (16, 32)},
        thresholds={"liver": 0.25},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(config, torch.randn(3, 5)).eval()


@pytest.fixture
def path(model, tmp_path):
    return save_checkpoint(model, tmp_path / "small.safetensors")


def rewritten(path, change=None, **metadata):
    """The same file with other tensors or other metadata (an entry of None is left out)."""
    state = load_file(path)
    if change is not None:
        change(state)
    entries = {"format": FORMAT, "config": read_config(path).to_json(), **metadata}
    save_file(state, path, {key: value for key, value in entries.items() if value is not None} or None)
    return path


def test_the_file_gives_the_model_and_its_config_back(model, path):
    again = load_checkpoint(path)
    assert model_sha256(again) == model_sha256(model)
    assert again.config == read_config(path)
    assert again.config.classes == ("spleen", "right_kidney", "liver")
    assert again.config.thresholds == {"liver": 0.25}
    assert not again.training


def test_a_missing_key_is_named(path):
    rewritten(path, lambda state: state.pop(KEY))
    with pytest.raises(CheckpointError, match=rf"{path}.* backbone 'lite': missing: {KEY}\.$"):
        load_checkpoint(path)


def test_a_key_too_many_is_named(path):
    rewritten(path, lambda state: state.update({"teacher.weight": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"not part of the model: teacher\.weight\.$"):
        load_checkpoint(path)


def test_another_shape_is_named_with_the_shape_it_needs(path):
    rewritten(path, lambda state: state.update({KEY: torch.zeros(153, 512)}))
    with pytest.raises(CheckpointError, match=rf"{KEY} is \(153, 512\), the model needs \(153, 512, 1, 1, 1\)"):
        load_checkpoint(path)


def test_a_scalar_is_not_spread_over_a_tensor(path):
    """torch would take a tensor [1] for a parameter without dimensions; nothing of the kind here."""
    rewritten(path, lambda state: state.update({"backbone.stem.1.num_batches_tracked": torch.zeros(1).long()}))
    with pytest.raises(CheckpointError, match=r"num_batches_tracked is \(1,\), the model needs \(\)"):
        load_checkpoint(path)


def test_many_faults_are_counted(path):
    def drop(state):
        for key in [key for key in state if key != "organ_embedding"]:
            del state[key]

    total = len(load_file(path)) - 1
    with pytest.raises(CheckpointError, match=f"and {total - 5} more"):
        load_checkpoint(rewritten(path, drop))


def test_missing_text_vectors_are_named(path):
    rewritten(path, lambda state: state.pop("organ_embedding"))
    with pytest.raises(CheckpointError, match="no organ_embedding"):
        load_checkpoint(path)


def test_text_vectors_of_other_classes_are_refused(path):
    rewritten(path, lambda state: state.update(organ_embedding=torch.zeros(4, 5)))
    with pytest.raises(CheckpointError, match=r"organ_embedding, are \(4, 5\);.* need \(3, 5\)\."):
        load_checkpoint(path)


@pytest.mark.parametrize("kept", [0, 4, 300, -1])
def test_a_file_cut_short_is_refused(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=f"{path} is not a whole safetensors file"):
        load_checkpoint(path)


def test_another_kind_of_file_is_refused_and_the_import_named(tmp_path):
    path = tmp_path / "weights.safetensors"
    torch.save({"net": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=f"viscera weights import {path}"):
        load_checkpoint(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=f"There is no checkpoint {tmp_path}/none.safetensors"):
        load_checkpoint(tmp_path / "none.safetensors")


@pytest.mark.parametrize("metadata", [{"format": None, "config": None}, {"format": None}, {"format": "pt"}])
def test_a_safetensors_file_of_another_program_is_refused(path, metadata):
    with pytest.raises(CheckpointError, match=f"not a viscera checkpoint: .*not '{FORMAT}'"):
        load_checkpoint(rewritten(path, **metadata))


@pytest.mark.parametrize("config", [None, "", "{", "[]", "3", "null", json.dumps({"name": "x"})])
def test_settings_that_are_missing_or_damaged_are_refused(path, config):
    rewritten(path, config=config)
    with pytest.raises(CheckpointError, match="settings"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [
        ("colour", "red", "colour"),
        ("classes", ["spleen", "right_kidney", "spaghetti"], "spaghetti"),
        ("preprocessing", {"spacing_mm": [1, 1, 1]}, "window_hu"),
        ("preprocessing", [1.5, 1.5, 1.5], "preprocessing"),
        ("inference", None, "inference"),
        ("thresholds", [0.5], "thresholds"),
        ("thresholds", {"liver": 1.5}, "liver"),
        ("backbone", "resnet", "resnet"),
        ("backbone_settings", {"filters": 8}, "filters"),
    ],
)
def test_settings_that_do_not_fit_are_named(path, setting, value, named):
    config = {**json.loads(read_config(path).to_json()), setting: value}
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(rewritten(path, config=json.dumps(config)))


def test_half_precision_takes_half_the_room_and_loads_as_float32(model, path, tmp_path):
    small = save_checkpoint(model, tmp_path / "half.safetensors", half=True)
    assert small.stat().st_size < 0.6 * path.stat().st_size
    again = load_checkpoint(small).state_dict()
    for key, value in model.state_dict().items():
        assert again[key].dtype == value.dtype
        expected = value.half().float() if value.is_floating_point() and key != TEXT_VECTORS else value
        assert torch.equal(again[key], expected), key
    assert load_file(small)[KEY].dtype == torch.float16
    assert model_sha256(load_checkpoint(small)) == model_sha256(load_checkpoint(small)) != model_sha256(model)


@pytest.fixture
def told(model):
    """The light model with a text bank that says where its vectors came from."""
    bank = make([taxonomy()[key] for key in model.config.classes], FakeEncoder(), prompt("v3"), Finish(centre=True))
    config = replace(model.config, text_dim=bank.length, text_bank=bank.provenance())
    with torch.random.fork_rng(devices=[]):
        return build(config, torch.from_numpy(bank.vectors.copy()))


@pytest.mark.parametrize("half", [False, True])
def test_a_checkpoint_carries_its_text_bank(told, tmp_path, half):
    """Rounded to float16 the vectors would differ from their record by more than it allows."""
    again = load_checkpoint(save_checkpoint(told, tmp_path / "told.safetensors", half=half))
    kept = Bank.from_checkpoint_metadata(again.config.text_bank, again.organ_embedding.numpy())
    assert kept.sha256 == told.config.text_bank["sha256"]


def test_text_vectors_that_are_not_the_banks_are_refused(told, tmp_path):
    path = save_checkpoint(told, tmp_path / "told.safetensors")
    with pytest.raises(
        TextBankError, match=r"told\.safetensors: The label vectors .* are not those their record gives"
    ):
        load_checkpoint(rewritten(path, lambda state: state[TEXT_VECTORS].mul_(1.01)))


def test_a_bank_of_other_classes_is_refused_with_the_difference(told, tmp_path):
    path = save_checkpoint(told, tmp_path / "told.safetensors")
    config = {**json.loads(read_config(path).to_json()), "classes": ["spleen", "liver", "right_kidney"]}
    with pytest.raises(TextBankError, match="class order: at place 2 the bank has right_kidney, the model liver"):
        load_checkpoint(rewritten(path, config=json.dumps(config)))


def test_numbers_beyond_half_precision_are_refused(model, tmp_path):
    with torch.no_grad():
        model.state_dict()[KEY].view(-1)[0] = 1e5
    with pytest.raises(CheckpointError, match=f"{KEY} holds 1e\\+05, and float16 ends at 65504"):
        save_checkpoint(model, tmp_path / "half.safetensors", half=True)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_was_halved_or_stored_otherwise_in_memory_is_saved_whole(model, tmp_path):
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    model.to(memory_format=torch.channels_last_3d)
    again = load_checkpoint(save_checkpoint(model, tmp_path / "last.safetensors")).state_dict()
    assert all(torch.equal(again[key], value) for key, value in expected.items())


@pytest.mark.parametrize("name", ["model", "model.pth", "model.safetensors.gz"])
def test_another_ending_is_refused_before_anything_is_written(model, tmp_path, name):
    with pytest.raises(CheckpointError, match=r"must end with \.safetensors"):
        save_checkpoint(model, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (SafetensorError("I/O error: No space left on device"), OutputError),
        (OSError(28, "No space left on device"), OutputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["the writer's", "the system's", "Ctrl-C"],
)
@pytest.mark.parametrize("older", [False, True])
def test_a_failure_while_writing_leaves_no_half_file(model, tmp_path, monkeypatch, failure, raised, older):
    path = tmp_path / "small.safetensors"
    if older:
        path.write_bytes(b"what was there")

    def half_a_file(state, unfinished, metadata):
        unfinished.write_bytes(b"half")
        raise failure

    monkeypatch.setattr(checkpoint, "save_file", half_a_file)
    with pytest.raises(raised):
        save_checkpoint(model, path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == (
        [(path.name, b"what was there")] if older else []
    )


def test_loading_leaves_the_callers_random_numbers_alone(path):
    before = torch.get_rng_state()
    load_checkpoint(path)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_hash_tells_numbers_and_settings_apart(model, path):
    first = model_sha256(model)
    assert model_sha256(load_checkpoint(path)) == first
    assert model_sha256(renamed(load_checkpoint(path), "other")) != first
    with torch.no_grad():
        model.controller.bias[7] += 1e-6
    assert model_sha256(model) != first
