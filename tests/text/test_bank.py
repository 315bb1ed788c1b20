"""The bank: right vectors, a true record of them, and a refusal where they do not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from viscera.errors import SettingError, TextBankError
from viscera.taxonomy import taxonomy
from viscera.text.bank import Bank, Finish, check_fits, make
from viscera.text.encoders import FakeEncoder, load
from viscera.text.prompts import prompt

CLASSES = [taxonomy()[key] for key in ("liver", "liver_tumor", "left_kidney", "right_kidney")]


class Counting(FakeEncoder):
    """Remembers what it was asked to read."""

    def __init__(self, length=16, seed=0):
        super().__init__(length, seed)
        self.read = []

    def encode(self, texts):
        self.read += texts
        return super().encode(texts)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_row_is_the_encoders_vector_of_the_filled_template():
    bank = make(CLASSES, FakeEncoder(), prompt("v3"))
    np.testing.assert_array_equal(
        bank.vectors[1], FakeEncoder().encode(["A computerized tomography of a liver tumor"])[0]
    )
    assert bank.keys == ("liver", "liver_tumor", "left_kidney", "right_kidney")
    assert bank.vectors.dtype == np.float32 and bank.vectors.shape == (4, 64)


def test_an_ensemble_is_the_mean_of_unit_vectors():
    texts = prompt("ensemble").texts(CLASSES[0])
    assert len(texts) == 3
    expected = unit(FakeEncoder().encode(texts)).mean(axis=0)
    np.testing.assert_allclose(make(CLASSES, FakeEncoder(), prompt("ensemble")).raw[0], expected, rtol=1e-5)


def test_an_encoder_that_does_not_read_gets_keys():
    bank = make(taxonomy(), load("one-hot"), prompt("v3"))
    np.testing.assert_array_equal(bank.vectors, np.eye(32))
    assert bank.prompt == "none" and bank.texts[5] == ("liver",)


def test_centring_takes_away_the_mean_of_the_unit_vectors():
    raw = make(CLASSES, FakeEncoder(), prompt("v3")).vectors
    centred = make(CLASSES, FakeEncoder(), prompt("v3"), Finish(centre=True)).vectors
    np.testing.assert_allclose(centred, unit(raw) - unit(raw).mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(centred.mean(axis=0), 0, atol=1e-6)


def test_centring_by_hand():
    # Two unit vectors (1, 0) and (0, 1): mean (1/2, 1/2).
    finished = Finish(centre=True).apply(np.array([[2, 0], [0, 5]], np.float32), np.array([[2, 0], [0, 5]], np.float32))
    np.testing.assert_allclose(finished, [[0.5, -0.5], [-0.5, 0.5]])


def test_whitening_goes_from_centred_to_equally_far():
    def cosines(finish):
        vectors = unit(make(CLASSES, FakeEncoder(), prompt("v3"), finish).vectors)
        return (vectors @ vectors.T)[~np.eye(4, dtype=bool)]

    centred, half, full = (cosines(Finish(centre=True, whiten=w)) for w in (0, 0.5, 1))
    # n points equally far from each other around their mean have cosine -1/(n - 1): a regular simplex.
    np.testing.assert_allclose(full, -1 / 3, atol=1e-5)
    assert centred.std() > half.std() > full.std()


def test_whitening_by_hand():
    # Unit vectors x and y: mean (1/2, 1/2, 0), spread sqrt(1/2) along (1, -1, 0) and none elsewhere. A later class z
    # lies at (-1/2, -1/2, 1) from the mean, where nothing spread: it is divided by the smallest spread there was.
    fitted = np.eye(2, 3, dtype=np.float32)
    finished = Finish(centre=True, whiten=1).apply(np.eye(3, dtype=np.float32), fitted)
    expected = np.array([[0.5, -0.5, 0], [-0.5, 0.5, 0], [-0.5, -0.5, 1]]) / np.sqrt(0.5)
    np.testing.assert_allclose(finished, expected, atol=1e-6)


def test_unit_length_comes_last():
    vectors = make(CLASSES, FakeEncoder(), prompt("v3"), Finish(centre=True, unit=True)).vectors
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("settings", [{"whiten": 0.5}, {"centre": True, "whiten": 1.5}, {"centre": True, "whiten": -1}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(SettingError):
        Finish(**settings)


def test_one_class_cannot_be_centred():
    with pytest.raises(SettingError, match="at least two"):
        _ = make(CLASSES[:1], FakeEncoder(), prompt("v3"), Finish(centre=True)).vectors


@pytest.mark.parametrize("finish", [Finish(), Finish(centre=True), Finish(centre=True, whiten=0.5, unit=True)])
def test_a_changed_class_list_reads_only_what_is_new_and_moves_no_vector(finish):
    bank = make(CLASSES, Counting(), prompt("v3"), finish)
    encoder = Counting()
    grown = bank.changed([taxonomy()["aorta"], *CLASSES[::-1]], encoder, prompt("v3"))
    assert encoder.read == ["A computerized tomography of a aorta"]
    np.testing.assert_allclose(grown.vectors[1:], bank.vectors[::-1], atol=1e-6)
    smaller = grown.changed(CLASSES[:2], encoder, prompt("v3"))
    assert len(encoder.read) == 1
    np.testing.assert_allclose(smaller.vectors, bank.vectors[:2], atol=1e-6)


def test_a_bank_is_changed_only_by_what_made_it():
    bank = make(CLASSES, Counting(), prompt("v3"))
    with pytest.raises(TextBankError, match="encoder: the bank has 'fake/16/0', the model 'fake/16/1'"):
        bank.changed(CLASSES, Counting(seed=1), prompt("v3"))
    with pytest.raises(TextBankError, match="prompt: the bank has 'v3', the model 'v1'"):
        bank.changed(CLASSES, Counting(), prompt("v1"))


@pytest.fixture
def grown():
    """A bank with everything in it: several templates, a finish fitted to fewer classes than it holds."""
    bank = make(CLASSES[:3], FakeEncoder(), prompt("ensemble"), Finish(centre=True, whiten=0.3, unit=True))
    return bank.changed(CLASSES, FakeEncoder(), prompt("ensemble"))


def test_a_file_gives_back_the_bank(grown, tmp_path):
    grown.save(tmp_path / "bank.safetensors")
    read = Bank.load(tmp_path / "bank.safetensors")
    np.testing.assert_array_equal(read.vectors, grown.vectors)
    assert read.provenance() == grown.provenance()
    assert [p.name for p in tmp_path.iterdir()] == ["bank.safetensors"]


def test_other_programs_find_the_finished_vectors_and_their_record_in_the_file(grown, tmp_path):
    grown.save(tmp_path / "bank.safetensors")
    with safe_open(tmp_path / "bank.safetensors", framework="np") as file:
        np.testing.assert_array_equal(file.get_tensor("vectors"), grown.vectors)
        record = json.loads(file.metadata()["viscera_bank"])
    assert record["classes"] == list(grown.keys)
    assert record["encoder"] == "fake/64/0" and record["prompt"] == "ensemble"
    assert record["texts"][0][0] == "A photo of a liver."


def test_a_checkpoint_gives_back_the_bank_from_its_record(grown):
    record = json.loads(json.dumps(grown.provenance()))
    assert Bank.from_checkpoint_metadata(record, grown.vectors).sha256 == grown.sha256


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoder", "another"),
        ("prompt", "v1"),
        ("classes", ["liver_tumor", "liver", "left_kidney", "right_kidney"]),
        ("finish", {"centre": True, "whiten": 0.0, "unit": True}),
        ("texts", [["x"]] * 4),
        ("raw", None),
        ("length", 32),
        ("sha256", "0" * 64),
    ],
)
def test_a_record_that_was_changed_is_refused(grown, field, value):
    record = {**grown.provenance(), field: value}
    with pytest.raises(TextBankError):
        Bank.from_checkpoint_metadata(record, grown.vectors)


def test_vectors_that_were_changed_are_refused(grown, tmp_path):
    vectors = grown.vectors.copy()
    vectors[2, 3] += 0.01
    with pytest.raises(TextBankError, match="not those their record gives"):
        Bank.from_checkpoint_metadata(grown.provenance(), vectors)
    with pytest.raises(TextBankError, match="not those their record gives"):
        Bank.from_checkpoint_metadata(grown.provenance(), grown.vectors[:2])


@pytest.mark.parametrize("content", [b"", b"nonsense " * 9])
def test_a_file_that_is_no_bank_is_told(tmp_path, content):
    (tmp_path / "bank.safetensors").write_bytes(content)
    with pytest.raises(TextBankError, match=r"bank\.safetensors"):
        Bank.load(tmp_path / "bank.safetensors")


def test_other_safetensors_and_missing_files_are_told(tmp_path):
    save_file({"vectors": np.zeros((2, 2), np.float32)}, tmp_path / "weights.safetensors")
    with pytest.raises(TextBankError, match="no text bank"):
        Bank.load(tmp_path / "weights.safetensors")
    with pytest.raises(TextBankError, match=r"missing\.safetensors"):
        Bank.load(tmp_path / "missing.safetensors")


def test_a_bank_fits_the_model_it_was_made_for():
    bank = make(CLASSES, FakeEncoder(), prompt("v3"))
    check_fits(bank, bank.provenance())
    check_fits(bank, {"classes": [s.key for s in CLASSES]})
    check_fits(bank, {})


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (make(CLASSES, FakeEncoder(seed=1), prompt("v3")), "encoder: the bank has 'fake/64/0', the model 'fake/64/1'"),
        (make(CLASSES, FakeEncoder(length=8), prompt("v3")), "vector length: the bank has 64, the model 8"),
        (make(CLASSES, FakeEncoder(), prompt("v1")), "prompt: the bank has 'v3', the model 'v1'"),
        (make(CLASSES, FakeEncoder(), prompt("v3"), Finish(centre=True)), "finish: the bank has .*'centre': False"),
        (
            make(CLASSES[::-1], FakeEncoder(), prompt("v3")),
            "class order: at place 1 the bank has liver, the model right_kidney",
        ),
        (make(CLASSES[:3], FakeEncoder(), prompt("v3")), "classes: the model does not know right_kidney"),
        (make([*CLASSES, taxonomy()["aorta"]], FakeEncoder(), prompt("v3")), "classes: the bank lacks aorta"),
    ],
)
def test_a_bank_that_does_not_fit_is_refused_with_the_difference_named(other, difference):
    with pytest.raises(TextBankError, match=difference):
        check_fits(make(CLASSES, FakeEncoder(), prompt("v3")), other.provenance())


def test_every_difference_is_told_at_once():
    bank, other = make(CLASSES, FakeEncoder(), prompt("v3")), make(CLASSES[:3], FakeEncoder(8), prompt("v1"))
    with pytest.raises(TextBankError) as error:
        check_fits(bank, other.provenance())
    assert all(word in str(error.value) for word in ("classes:", "encoder:", "prompt:", "vector length:"))


def test_the_same_prompt_with_other_words_is_told():
    bank = make(CLASSES, FakeEncoder(), prompt("described"))
    record = bank.provenance()
    record["texts"][1][2] = "A computerized tomography of a liver tumor: something else."
    with pytest.raises(TextBankError, match="text of liver_tumor"):
        check_fits(bank, record)


@pytest.mark.parametrize(
    "raw", [np.zeros((3, 4), np.float32), np.full((4, 4), np.nan, np.float32), np.zeros(4, np.float32)]
)
def test_a_bank_holds_one_finite_vector_per_class(raw):
    with pytest.raises(TextBankError):
        Bank(tuple("abcd"), raw, "x", "x", "x", (("t",),) * 4)
