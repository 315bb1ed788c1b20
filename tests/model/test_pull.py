"""Fetching released weights from a hub that the test plays: what is recorded, and what is said when it fails."""

from __future__ import annotations

from functools import partial
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from typer.testing import CliRunner

from viscera.cli.weights import app
from viscera.errors import CheckpointError, InputError
from viscera.model import pull
from viscera.model.build import untrained
from viscera.model.checkpoint import load_checkpoint
from viscera.model.import_released import LICENCE, import_released
from viscera.model.pull import pull_released
from viscera.model.store import stored_models

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WAY_OUT = "viscera weights import released.pth"


class ClientError(Exception):
    """What the hub's HTTP client raises without a network; its class differs between versions."""


class Hub:
    """A hub with one file, which keeps what it was asked."""

    def __init__(self, folder):
        self.file = folder / "blob"
        self.commit = COMMIT
        self.failure = None
        self.asked, self.downloaded = [], []

    def metadata(self, url, **settings):
        if self.failure is not None:
            raise self.failure
        self.asked.append(url)
        return SimpleNamespace(commit_hash=self.commit)

    def download(self, repository, filename, *, revision):
        self.downloaded.append((repository, filename, revision))
        return str(self.file)


@pytest.fixture(scope="module")
def state():
    return dict(untrained("lite", seed=7).state_dict())


@pytest.fixture
def hub(state, tmp_path, monkeypatch):
    """Plays the hub; the file on it holds a light model, for which the import is told the architecture."""
    hub = Hub(tmp_path)
    torch.save({"net": state}, hub.file)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", hub.metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    monkeypatch.setattr(pull, "import_released", partial(import_released, backbone="lite"))
    monkeypatch.setenv("VISCERA_HOME", str(tmp_path / "home"))
    return hub


@pytest.mark.parametrize("filename", ["released.pth", "weights/2024/released.pth"])
def test_the_commit_and_the_hash_of_the_file_are_recorded(filename, hub, state):
    digest = sha256(hub.file.read_bytes()).hexdigest()
    model = pull_released("someone/repository", filename)
    assert model.config.source == f"someone/repository/{filename}, revision {COMMIT}, sha256 {digest}"
    assert torch.equal(model.organ_embedding, state["organ_embedding"])
    assert model.config.name == "lite-released"


def test_what_is_downloaded_is_the_commit_that_was_recorded(hub):
    """Not the branch: it may have moved on between the question and the download."""
    pull_released("someone/repository", "released.pth", revision="v1", name="mine")
    (url,) = hub.asked
    assert "someone/repository" in url and "/v1/" in url and url.endswith("released.pth")
    assert hub.downloaded == [("someone/repository", "released.pth", COMMIT)]


def test_a_hub_that_names_no_commit_is_asked_for_the_revision_itself(hub):
    hub.commit = None
    model = pull_released("someone/repository", "released.pth", revision="v1", name="mine")
    assert hub.downloaded == [("someone/repository", "released.pth", "v1")]
    assert ", revision v1, sha256 " in model.config.source
    assert model.config.name == "mine"


def test_the_licence_comes_with_the_model(hub):
    assert pull_released("someone/repository", "released.pth").config.licence == LICENCE


@pytest.mark.parametrize(
    "failure",
    [
        ClientError("[Errno -2] Name or service not known"),
        ConnectionError("offline mode is enabled"),
        LocalEntryNotFoundError("not in the cache"),
    ],
    ids=["no network", "offline mode", "not cached"],
)
def test_without_a_network_the_error_says_how_to_do_it_by_hand(failure, hub):
    hub.failure = failure
    with pytest.raises(InputError, match="The hub cannot be reached") as error:
        pull_released("someone/repository", "released.pth")
    assert "Download released.pth from the repository someone/repository" in str(error.value)
    assert WAY_OUT in str(error.value)
    assert hub.downloaded == []


def test_a_file_that_the_hub_does_not_have_is_named(hub):
    answer: Any = SimpleNamespace(status_code=404, headers={}, request=None)
    hub.failure = RepositoryNotFoundError("404", response=answer)
    with pytest.raises(InputError, match=r"refused someone/repository/released\.pth at 'main' \(.*404") as error:
        pull_released("someone/repository", "released.pth")
    assert WAY_OUT in str(error.value)


def test_a_file_that_came_damaged_is_refused(hub):
    hub.file.write_bytes(hub.file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        pull_released("someone/repository", "released.pth")


# The command.


def test_the_licence_is_shown_and_a_no_fetches_nothing(hub):
    result = CliRunner().invoke(app, ["pull", "unet"], input="n\n")
    assert result.exit_code == 1
    assert f"Licence: {LICENCE}" in result.output
    assert "Do you accept this licence?" in result.output
    assert (hub.asked, hub.downloaded, stored_models()) == ([], [], {})


@pytest.mark.parametrize(("options", "typed"), [([], "y\n"), (["--accept-licence"], "")])
def test_a_yes_fetches_and_keeps_the_model_with_its_origin(options, typed, hub):
    result = CliRunner().invoke(app, ["pull", "unet", "--name", "mine", *options], input=typed)
    assert result.exit_code == 0, result.output
    assert result.output.index(f"Licence: {LICENCE}") < result.output.index("Kept as")
    ((_, filename, revision),) = hub.downloaded
    assert (filename, revision) == ("clip_driven_universal_unet.pth", COMMIT)
    kept = load_checkpoint(stored_models()["mine"]).config
    assert f"revision {COMMIT}, sha256 {sha256(hub.file.read_bytes()).hexdigest()}" in kept.source
    assert kept.licence == LICENCE
