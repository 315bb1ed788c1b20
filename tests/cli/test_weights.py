"""`viscera weights`: bringing weights in, listing them, looking into them."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from viscera.cli.main import app
from viscera.errors import InputError
from viscera.model.build import build, untrained
from viscera.model.checkpoint import load_checkpoint, model_sha256, save_checkpoint
from viscera.model.config import model_names
from viscera.model.import_released import import_released


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of its own, empty, a package without weights, and a terminal wide enough that no line is broken."""
    monkeypatch.setenv("VISCERA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("viscera.model.store.weights_folder", lambda: tmp_path / "package")
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture(scope="module")
def lite() -> Any:
    """The smallest architecture; what these commands do does not depend on the backbone."""
    return untrained("lite")


@pytest.fixture
def released(tmp_path: Path, lite: Any) -> Path:
    """A file as the authors' training writes it: the network under `net`, wrapped, beside an optimizer and an epoch."""
    state = {f"module.{key.removeprefix('backbone.')}": value for key, value in lite.state_dict().items()}
    torch.save({"net": state, "optimizer": {"state": {}}, "scheduler": {}, "epoch": 450}, tmp_path / "released.pth")
    return tmp_path / "released.pth"


def viscera(*arguments: object, **more: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **more)


def words(done: Any) -> str:
    """What was printed, in one line."""
    return " ".join(done.output.split())


def stored(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "models").iterdir()) if (home / "models").exists() else []


# --- import ----------------------------------------------------------------------------------------------------------


def test_an_imported_file_is_kept_under_its_name_with_every_number(released, home, lite):
    done = viscera("weights", "import", released, "--backbone", "lite", "--name", "mine")
    assert done.exit_code == 0, done.output
    assert stored(home) == ["mine.safetensors"]
    model = load_checkpoint(home / "models" / "mine.safetensors")
    for key, value in lite.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    assert model.config.trained and model.config.source == "imported from released.pth"
    assert "every key fits" in done.output and "CC BY-NC-ND 4.0" in done.output
    assert model_sha256(model)[:16] in done.output
    assert "viscera segment SCAN.nii.gz --model mine" in done.output


def test_an_imported_file_may_go_to_a_file_of_its_own(released, home, tmp_path):
    done = viscera("weights", "import", released, "--backbone", "lite", "-o", tmp_path / "w" / "mine.safetensors")
    assert done.exit_code == 0, done.output
    assert f"--model {tmp_path / 'w' / 'mine.safetensors'}" in done.output
    assert stored(home) == []
    assert viscera("weights", "show", tmp_path / "w" / "mine.safetensors").exit_code == 0


def test_a_model_of_the_same_name_is_kept_unless_overwrite(released, home):
    command = ("weights", "import", released, "--backbone", "lite", "--name", "mine")
    assert viscera(*command).exit_code == 0
    file = home / "models" / "mine.safetensors"
    file.write_bytes(b"precious")
    done = viscera(*command)
    assert done.exit_code == 2 and "--overwrite" in words(done) and "mine.safetensors exists" in words(done)
    assert file.read_bytes() == b"precious"
    assert viscera(*command, "--overwrite").exit_code == 0
    assert load_checkpoint(file).config.name == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "mine"], "none of the published backbones"),
        (["--backbone", "nope"], "There is no architecture 'nope'"),
        (["--backbone", "unet"], "does not fit backbone 'unet': missing: "),
        (["--backbone", "lite", "--name", "lite"], "name of a packaged model"),
        (["--backbone", "lite", "--name", "../mine"], "is not a name for a model"),
        (["--backbone", "lite", "-o", "mine.pth"], "must end with .safetensors"),
    ],
)
def test_what_does_not_fit_is_told_and_nothing_is_kept(released, home, tmp_path, options, message):
    done = viscera("weights", "import", released, *options)
    assert done.exit_code == 2, repr(done.exception)
    assert message in words(done)
    assert stored(home) == [] and [path.name for path in tmp_path.iterdir()] == ["released.pth"]


class Harmful:
    """What a pickle can do: run a program when it is read."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("harmed"),))


def test_a_file_that_would_run_a_program_is_refused_and_does_not_run(tmp_path):
    torch.save({"net": {"weight": torch.zeros(1)}, "epoch": Harmful()}, tmp_path / "bad.pth")
    done = viscera("weights", "import", tmp_path / "bad.pth")
    assert done.exit_code == 2
    assert "cannot be loaded safely" in words(done)
    assert not (tmp_path / "harmed").exists()
    pickle.loads(pickle.dumps(Harmful()))
    assert (tmp_path / "harmed").exists(), "read without care, the file would have done it"


@pytest.mark.parametrize("content", [None, b"", b"not weights", b"PK\x03\x04 cut short"])
def test_a_missing_or_damaged_file_is_told(tmp_path, content):
    if content is not None:
        (tmp_path / "x.pth").write_bytes(content)
    done = viscera("weights", "import", tmp_path / "x.pth")
    assert done.exit_code == 2, repr(done.exception)
    assert "x.pth" in words(done) and "Traceback" not in done.output


def test_a_full_disk_leaves_no_half_model(released, home, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("viscera.model.checkpoint.save_file", full)
    done = viscera("weights", "import", released, "--backbone", "lite")
    assert done.exit_code == 2 and "No space left on device" in words(done)
    assert stored(home) == []


# --- list and show ---------------------------------------------------------------------------------------------------


def lines_of(done: Any) -> dict[str, str]:
    return {line.split()[0]: line for line in done.output.splitlines() if line.strip()}


@pytest.mark.parametrize("command", [("models",), ("weights", "list")])
def test_list_shows_packaged_architectures_as_untrained(command):
    done = viscera(*command)
    assert done.exit_code == 0, done.output
    for name in model_names():
        assert "untrained" in lines_of(done)[name], name
    assert "Without --model: lite." in words(done)


def test_list_shows_the_packages_weights_as_the_default(tmp_path, lite):
    own = replace(lite.config, name="starter", trained=True, licence="Apache-2.0", classes=lite.config.classes[:3])
    model = build(own, torch.zeros(3, own.text_dim))
    save_checkpoint(model, tmp_path / "package" / "starter.safetensors", half=True)
    done = viscera("models")
    assert lines_of(done)["starter"].split() == [
        "starter", "3", "3", "x", "3", "x", "3", "trained", "Apache-2.0", "in", "the", "package",
    ]  # fmt: skip
    assert "Without --model: starter." in words(done)
    rows = json.loads(viscera("models", "--json").output)
    assert [row["name"] for row in rows if row["default"]] == ["starter"]
    assert rows[0]["origin"] == "packaged" and rows[0]["where"] == str(tmp_path / "package" / "starter.safetensors")


def test_list_shows_what_was_brought_in_first(home, lite):
    own = replace(lite.config, name="mine", trained=True, licence="MIT", source="here/there.pth, revision 1")
    model, model.config = untrained("lite"), own
    save_checkpoint(model, home / "models" / "mine.safetensors")
    rows = json.loads(viscera("weights", "list", "--json").output)
    assert [row["name"] for row in rows] == ["mine", *model_names()]
    assert rows[0] == {
        "name": "mine",
        "origin": "kept",
        "where": str(home / "models" / "mine.safetensors"),
        "default": False,
        "backbone": "lite",
        "classes": list(own.classes),
        "spacing_mm": list(own.preprocessing.spacing_mm),
        "trained": True,
        "licence": "MIT",
        "source": "here/there.pth, revision 1",
    }
    assert not any(row["trained"] for row in rows[1:])


def test_one_damaged_file_in_the_store_does_not_hide_the_others(home, lite):
    save_checkpoint(lite, home / "models" / "good.safetensors")
    (home / "models" / "bad.safetensors").write_bytes(b"cut short")
    done = viscera("weights", "list")
    assert done.exit_code == 0, done.output
    assert "good" in done.output and "lite" in done.output
    assert any("bad" in line and "damaged" in line for line in done.output.splitlines())
    rows = {row["name"]: row for row in json.loads(viscera("weights", "list", "--json").output)}
    assert "good" in rows and "not a whole safetensors file" in rows["bad"]["error"]


def test_show_tells_classes_size_and_hash(lite):
    facts = json.loads(viscera("weights", "show", "lite", "--json").output)
    assert facts["classes"] == list(lite.config.classes)
    assert facts["parameters"] == sum(p.numel() for p in lite.parameters())
    assert facts["sha256"] == model_sha256(lite)
    assert facts["trained"] is False
    assert not {"raw", "basis"} & set(facts["text_bank"])
    lines = viscera("weights", "show", "lite").output.splitlines()
    assert [line.split()[0] for line in lines] == list(facts)


def test_an_unknown_model_is_refused_with_the_nearest_names():
    done = viscera("weights", "show", "swin_unet")
    assert done.exit_code == 2 and "Did you mean swin_unetr" in words(done)


def test_a_pickle_is_told_how_to_come_in(released):
    done = viscera("weights", "show", released)
    assert done.exit_code == 2 and f"viscera weights import {released}" in words(done)


# --- pull ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, released: Path) -> list[tuple[str, str, str]]:
    """Stands in for the hub: notes what was asked for and answers with the file."""
    asked = []

    def download(repository: str, filename: str, revision: str) -> tuple[Path, str]:
        asked.append((repository, filename, revision))
        return released, "c0ffee"

    monkeypatch.setattr("viscera.model.pull._download", download)
    monkeypatch.setattr(
        "viscera.model.pull.import_released", lambda path, name: import_released(path, backbone="lite", name=name)
    )
    return asked


def test_pull_asks_for_the_licence_first(hub, home):
    done = viscera("weights", "pull", "unet", input="n\n")
    assert done.exit_code == 1
    assert "CC BY-NC-ND 4.0" in done.output and "Do you accept this licence?" in done.output
    assert hub == [] and stored(home) == []


@pytest.mark.parametrize(("options", "typed"), [([], "y\n"), (["--accept-licence"], "")])
def test_pull_keeps_the_file_with_its_origin(hub, home, options, typed):
    done = viscera("weights", "pull", "unet", "--name", "theirs", "--revision", "v1", *options, input=typed)
    assert done.exit_code == 0, done.output
    ((repository, file, revision),) = hub
    assert (file, revision) == ("clip_driven_universal_unet.pth", "v1")
    source = load_checkpoint(home / "models" / "theirs.safetensors").config.source
    assert f"{repository}/{file}, revision c0ffee, sha256 " in source


def test_pull_without_a_network_tells_the_way_by_hand(home, monkeypatch):
    def unreachable(*arguments: object) -> Any:
        raise InputError("The hub cannot be reached. Download it by hand: viscera weights import FILE")

    monkeypatch.setattr("viscera.model.pull._download", unreachable)
    done = viscera("weights", "pull", "unet", "--accept-licence")
    assert done.exit_code == 2 and "viscera weights import" in words(done)
    assert stored(home) == []


def test_pull_knows_only_what_was_released(hub):
    done = viscera("weights", "pull", "lite", "--accept-licence")
    assert done.exit_code == 2 and "there are: unet, swin_unetr" in words(done)
    assert hub == []


@pytest.mark.parametrize("command", ["import", "pull", "list", "show"])
def test_help_shows_an_example(command):
    done = viscera("weights", command, "--help")
    assert done.exit_code == 0
    assert "Example" in done.output and f"viscera weights {command}" in words(done)
