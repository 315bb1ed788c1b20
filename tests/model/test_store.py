"""Models by name: where they are kept, what a name may be, and what is said when there is none of that name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from viscera.errors import CheckpointError
from viscera.model import store
from viscera.model.build import untrained
from viscera.model.checkpoint import model_sha256, renamed, save_checkpoint
from viscera.model.config import model_names
from viscera.model.store import all_models, default_model, load_model, store_folder, store_path, stored_models


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("VISCERA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    """The package's weights in a folder of the test: empty, whatever ships."""
    monkeypatch.setattr(store, "weights_folder", lambda: tmp_path / "package")
    return tmp_path / "package"


@pytest.fixture(scope="module")
def model():
    return renamed(untrained("lite", seed=6), "mine")


def test_the_store_lies_where_the_user_says(home, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", "/elsewhere")
    assert store_folder() == home / "models"


@pytest.mark.parametrize("unset", [None, ""])
def test_else_in_the_users_data_folder(unset, tmp_path, monkeypatch):
    for variable in ("VISCERA_HOME", "XDG_DATA_HOME"):
        if unset is None:
            monkeypatch.delenv(variable, raising=False)
        else:
            monkeypatch.setenv(variable, unset)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert store_folder() == tmp_path / ".local/share/viscera/models"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert store_folder() == tmp_path / "data/viscera/models"


def test_a_store_that_is_not_there_is_empty_and_is_not_made(home):
    assert stored_models() == {}
    assert not home.exists()


def test_models_are_listed_by_name_in_order_and_nothing_else_is(home):
    (home / "models").mkdir(parents=True)
    for name in ("b.safetensors", "a-2.safetensors", "notes.txt", "c.pth", "v1.5.safetensors"):
        (home / "models" / name).touch()
    assert list(stored_models().items()) == [
        ("a-2", home / "models/a-2.safetensors"),
        ("b", home / "models/b.safetensors"),
        ("v1.5", home / "models/v1.5.safetensors"),
    ]


def test_an_unfinished_file_is_no_model(home):
    """What a killed process may leave behind while it writes."""
    (home / "models").mkdir(parents=True)
    (home / "models" / ".unfinished-0a1b2c3d-mine.safetensors").touch()
    assert stored_models() == {}


def test_a_name_becomes_a_file_in_the_store(home):
    assert store_path("unet-released") == home / "models/unet-released.safetensors"
    assert store_path("v1.5") == home / "models/v1.5.safetensors"


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../escape", "/absolute", "folder/"])
def test_a_name_that_leaves_the_store_is_refused(name, home):
    with pytest.raises(CheckpointError, match="is not a name for a model"):
        store_path(name)


@pytest.mark.parametrize("name", [*model_names(), "starter"])
def test_the_name_of_a_packaged_model_is_taken(name, home):
    with pytest.raises(CheckpointError, match=f"choose another, such as {name}-mine"):
        store_path(name)


def test_a_stored_model_is_loaded_by_its_name(home, model):
    save_checkpoint(model, store_path("mine"))
    assert list(stored_models()) == ["mine"]
    assert model_sha256(load_model("mine")) == model_sha256(model)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_model_is_loaded_by_its_path(kind, home, model, tmp_path):
    path = save_checkpoint(model, tmp_path / "anywhere.safetensors")
    assert model_sha256(load_model(kind(path))) == model_sha256(model)


def test_a_packaged_architecture_comes_with_random_weights_and_says_so(home):
    found = load_model("lite")
    assert not found.config.trained
    assert not found.training
    assert torch.equal(found.organ_embedding, untrained("lite").organ_embedding)


def test_without_weights_in_the_package_the_untrained_network_is_the_default(home):
    assert default_model() == "lite"


def test_the_starter_is_the_default_as_soon_as_its_file_is_there(home, package, model):
    save_checkpoint(renamed(untrained("lite", seed=7), "starter"), package / "starter.safetensors")
    assert default_model() == "starter"
    assert load_model(default_model()).config.name == "starter"
    save_checkpoint(model, home / "models/starter.safetensors")
    assert load_model("starter").config.name == "starter", "no file of the user takes its place"


def test_every_model_is_listed_with_where_it_comes_from(home, package, model):
    save_checkpoint(model, store_path("mine"))
    save_checkpoint(renamed(untrained("lite", seed=7), "starter"), package / "starter.safetensors")
    store_path("cut").write_bytes(b"half")
    entries = all_models()
    assert [(e.name, e.origin) for e in entries] == [
        ("starter", "packaged"), ("cut", "kept"), ("mine", "kept"), *((name, "architecture") for name in model_names()),
    ]  # fmt: skip
    assert entries[0].path == package / "starter.safetensors" and entries[-1].path is None
    assert isinstance(entries[1].config, CheckpointError)
    assert entries[2].config.name == "mine"


@pytest.mark.parametrize(("typed", "meant"), [("swin_unter", "swin_unetr"), ("unett", "unet"), ("my-livr", "my-liver")])
def test_a_mistyped_name_gets_the_near_ones(typed, meant, home):
    (home / "models").mkdir(parents=True)
    (home / "models/my-liver.safetensors").touch()
    with pytest.raises(CheckpointError, match=rf"no model '{typed}'\. Did you mean .*\b{meant}\b"):
        load_model(typed)


def test_a_name_like_no_other_gets_all_of_them(home):
    (home / "models").mkdir(parents=True)
    (home / "models/my-liver.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"There are: my-liver, dints, lite, .*unetpp\. `viscera models`"):
        load_model("zzzzzz")


def test_a_pickle_is_not_loaded_but_sent_to_the_import(home, tmp_path):
    path = tmp_path / "released.pth"
    path.touch()
    with pytest.raises(CheckpointError, match=f"viscera weights import {path}"):
        load_model(path)


def test_a_path_that_is_not_there_is_said_to_be_missing(home, tmp_path):
    with pytest.raises(CheckpointError, match=f"There is no checkpoint {tmp_path}/none.safetensors"):
        load_model(tmp_path / "none.safetensors")


def test_a_damaged_file_in_the_store_is_named(home):
    store_path("mine").parent.mkdir(parents=True)
    store_path("mine").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"models/mine\.safetensors is not a whole safetensors file"):
        load_model("mine")
