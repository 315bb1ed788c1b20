"""What holds for every set of weights that comes with the package. Skips as long as there is none."""

from __future__ import annotations

import pytest

from viscera.model.checkpoint import load_checkpoint, read_config
from viscera.model.store import packaged_weights
from viscera.taxonomy import taxonomy
from viscera.text.bank import Bank, check_fits
from viscera.text.prompts import prompt, prompts

LARGEST_BYTES = 16 * 1024**2
NAMES = list(packaged_weights())


@pytest.fixture(params=NAMES or [pytest.param(None, marks=pytest.mark.skip(reason="no weights in the package yet"))])
def path(request):
    return packaged_weights()[request.param]


def test_the_file_is_small_enough_for_a_package(path):
    assert path.stat().st_size <= LARGEST_BYTES


def test_every_key_fits_its_architecture_and_every_number_is_one(path):
    model = load_checkpoint(path)
    assert not model.training
    for key, value in model.state_dict().items():
        assert not value.is_floating_point() or bool(value.isfinite().all()), key


def test_it_says_what_it_is(path):
    config = read_config(path)
    assert config.name == path.stem, "the name in the file is the one people type"
    assert config.trained
    assert config.licence and config.source and config.training


def test_its_text_bank_is_whole_and_names_the_taxonomys_classes(path):
    model = load_checkpoint(path)
    bank = Bank.from_checkpoint_metadata(model.config.text_bank, model.organ_embedding.numpy())
    assert bank.keys == model.config.classes
    assert bank.prompt in prompts(), "a prompt that anyone can look up"
    texts = [list(prompt(bank.prompt).texts(taxonomy()[key])) for key in bank.keys]
    check_fits(bank, {"classes": list(model.config.classes), "texts": texts})
