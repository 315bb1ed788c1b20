"""Released .pth files in every form they come in, and in the forms that must be refused without running anything."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from viscera.errors import CheckpointError
from viscera.model.build import untrained
from viscera.model.checkpoint import load_checkpoint, model_sha256, save_checkpoint
from viscera.model.import_released import LICENCE, clean_keys, detect_backbone, import_released, read_state

OWN = ("organ_embedding", "text_to_vision", "GAP", "precls_conv", "controller")


@pytest.fixture(scope="module")
def state():
    """The state dict of a light model, whose import must be asked for by name; the formats are those of all."""
    return dict(untrained("lite", seed=3).state_dict())


def same_numbers(model, state):
    found = model.state_dict()
    assert found.keys() == state.keys()
    assert [key for key in state if not torch.equal(found[key], state[key])] == []


def without_backbone(state):
    return {key.removeprefix("backbone."): value for key, value in state.items()}


def with_module(state):
    return {f"module.{key}": value for key, value in state.items()}


VARIANTS = {
    "as the model has them": lambda state: state,
    "without backbone": without_backbone,
    "data parallel": with_module,
    "another wrapper": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    "data parallel without backbone": lambda state: with_module(without_backbone(state)),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_the_keys_gives_the_same_model(variant, legacy, state, tmp_path):
    path = tmp_path / "released.pth"
    torch.save({"net": VARIANTS[variant](state), "epoch": 3}, path, _use_new_zipfile_serialization=not legacy)
    model = import_released(path, backbone="lite")
    same_numbers(model, state)
    assert not model.training


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: OrderedDict(state),
        lambda state: {"state_dict": state, "epoch": 1},
        lambda state: {"net": OrderedDict(state), "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}},
    ],
    ids=["bare", "bare ordered", "state_dict", "net beside an optimiser"],
)
def test_the_state_dict_may_stand_alone_or_in_a_dict(wrap, state, tmp_path):
    torch.save(wrap(state), tmp_path / "released.pth")
    same_numbers(import_released(tmp_path / "released.pth", backbone="lite"), state)


@pytest.mark.parametrize("older", [False, True], ids=["this numpy", "numpy 1"])
def test_numpy_numbers_beside_the_state_dict_do_no_harm(older, state, tmp_path):
    path = tmp_path / "released.pth"
    beside = {"epoch": np.int64(3), "lr": np.float64(1e-4), "best": np.float32(0.5), "curve": np.arange(3.0)}
    torch.save({"net": state, **beside}, path, _use_new_zipfile_serialization=False)
    if older:  # numpy 1 called the module numpy.core
        content = path.read_bytes()
        assert b"numpy._core.multiarray\n" in content
        path.write_bytes(content.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"))
    same_numbers(import_released(path, backbone="lite"), state)


def test_the_config_says_what_it_is_and_whose(state, tmp_path):
    torch.save({"net": state}, tmp_path / "released.pth")
    config = import_released(tmp_path / "released.pth", backbone="lite").config
    assert (config.name, config.backbone, config.trained) == ("lite-released", "lite", True)
    assert config.licence == LICENCE and "CC BY-NC-ND 4.0" in LICENCE
    assert config.source == "imported from released.pth"
    assert config.text_dim == 384 and len(config.classes) == 32
    assert import_released(tmp_path / "released.pth", backbone="lite", name="mine").config.name == "mine"


def test_fewer_classes_are_the_first_ones(state, tmp_path):
    """The text branch is the only part that knows how many there are."""
    torch.save({**state, "organ_embedding": state["organ_embedding"][:3]}, tmp_path / "three.pth")
    model = import_released(tmp_path / "three.pth", backbone="lite")
    assert model.config.classes == ("spleen", "right_kidney", "left_kidney")
    again = load_checkpoint(save_checkpoint(model, tmp_path / "three.safetensors"))
    assert model_sha256(again) == model_sha256(model)


def test_more_classes_than_there_are_names_is_refused(state, tmp_path):
    torch.save({**state, "organ_embedding": torch.zeros(33, 384)}, tmp_path / "more.pth")
    with pytest.raises(CheckpointError, match="33 classes; the taxonomy has 32"):
        import_released(tmp_path / "more.pth", backbone="lite")


@pytest.mark.parametrize("vectors", [None, torch.zeros(32)], ids=["none", "one-dimensional"])
def test_without_text_vectors_it_is_refused(vectors, state, tmp_path):
    kept = {key: value for key, value in state.items() if key != "organ_embedding"}
    torch.save(kept if vectors is None else {**kept, "organ_embedding": vectors}, tmp_path / "one-hot.pth")
    with pytest.raises(CheckpointError, match=r"one-hot\.pth has no organ_embedding"):
        import_released(tmp_path / "one-hot.pth", backbone="lite")


def test_a_missing_and_a_strange_key_are_both_named(state, tmp_path):
    torch.save(
        {("GAP.3.scale" if key == "GAP.3.bias" else key): value for key, value in state.items()}, tmp_path / "other.pth"
    )
    with pytest.raises(CheckpointError, match=r"missing: GAP\.3\.bias; not part of the model: GAP\.3\.scale"):
        import_released(tmp_path / "other.pth", backbone="lite")


def test_an_unknown_architecture_is_refused(state, tmp_path):
    torch.save(state, tmp_path / "released.pth")
    with pytest.raises(CheckpointError, match="no architecture 'resnet'; there are dints, lite"):
        import_released(tmp_path / "released.pth", backbone="resnet")


# The backbone is read from the keys.


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
@pytest.mark.parametrize(
    ("key", "backbone"),
    [
        ("down_tr64.ops.0.conv1.weight", "unet"),
        ("swinViT.patch_embed.proj.weight", "swin_unetr"),
        ("upcat_0_4.upsample.deconv.weight", "unetpp"),
        ("dints_space.cell_tree.(0, 0).op.ops.1.conv.weight", "dints"),
    ],
)
def test_the_backbone_is_read_from_its_keys(key, backbone, prefix):
    module = "module." if prefix.startswith("module.") else ""
    keys = {f"{prefix}{key}": torch.zeros(1), f"{module}controller.weight": torch.zeros(1)}
    cleaned = clean_keys(keys, "released.pth")
    assert list(cleaned) == [f"backbone.{key}", "controller.weight"]
    assert detect_backbone(cleaned, "released.pth") == backbone


def test_our_own_models_are_none_of_the_published_ones(state, tmp_path):
    torch.save(state, tmp_path / "lite.pth")
    with pytest.raises(CheckpointError, match=r"none of the published backbones \(.*unet.*begin with .*--backbone"):
        import_released(tmp_path / "lite.pth")


def test_two_names_of_one_tensor_are_refused():
    with pytest.raises(CheckpointError, match=r"released\.pth has two tensors for backbone\.stem\.0\.weight"):
        clean_keys({"stem.0.weight": torch.zeros(1), "backbone.stem.0.weight": torch.zeros(1)}, "released.pth")


def test_the_models_own_parts_get_no_prefix():
    keys = {f"{part}.weight" if part != "organ_embedding" else part: torch.zeros(1) for part in OWN}
    assert list(clean_keys(with_module(keys), "x.pth")) == list(keys)


# What must be refused.


class Touch:
    """A pickle of this runs a shell command where it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class Evaluate(Touch):
    """The same without a shell."""

    def __reduce__(self):
        return eval, (f"open({str(self.marker)!r}, 'w').close()",)


@pytest.mark.parametrize("attack", [Touch, Evaluate])
@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle"])
def test_a_program_in_a_pickle_is_refused_and_not_run(form, attack, state, tmp_path):
    marker, path = tmp_path / "was-run", tmp_path / "evil.pth"
    content = {"net": state, "epoch": attack(marker)}
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(content["epoch"], protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match=r"evil\.pth .*(system|eval)"):
        import_released(path, backbone="lite")
    assert not marker.exists()


def test_the_attack_is_a_real_one(tmp_path):
    """Loaded by plain pickle the same bytes do run: the test above would see it."""
    pickle.loads(pickle.dumps(Evaluate(tmp_path / "was-run")))
    assert (tmp_path / "was-run").exists()


def test_an_object_that_is_no_plain_value_is_refused_by_name(state, tmp_path):
    torch.save({"net": state, "path": Path("x")}, tmp_path / "objects.pth")
    with pytest.raises(CheckpointError, match=r"cannot be loaded safely: it needs pathlib.*save only its state dict"):
        import_released(tmp_path / "objects.pth", backbone="lite")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("part", [0.0, 0.0001, 0.5, 0.99])
def test_a_file_cut_short_is_refused(part, legacy, state, tmp_path):
    path = tmp_path / "cut.pth"
    torch.save({"net": state}, path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(CheckpointError, match=str(path)):
        import_released(path, backbone="lite")


@pytest.mark.parametrize("content", [b"hello", b"PK\x03\x04 not a zip", b"\x80\x02.", b"<html>not found</html>"])
def test_another_kind_of_file_is_refused(content, tmp_path):
    (tmp_path / "other.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"other\.pth"):
        read_state(tmp_path / "other.pth")


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(3),
        [torch.zeros(3)],
        {},
        {"net": {}},
        {"net": None},
        {"net": {"a": torch.zeros(1), "b": 3}},
        {"net": {0: torch.zeros(1)}},
        {"epoch": 3},
    ],
    ids=["tensor", "list", "empty", "empty net", "no net", "a number inside", "numbered", "numbers alone"],
)
def test_a_file_without_a_state_dict_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd\.pth holds no state dict"):
        import_released(tmp_path / "odd.pth")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"There is no file .*none\.pth"):
        import_released(tmp_path / "none.pth")
