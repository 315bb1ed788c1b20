"""The encoders that do not read, the fake one, and vectors from files."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from viscera.errors import CheckpointError, ClassNameError, SettingError
from viscera.taxonomy import taxonomy
from viscera.text.bank import make
from viscera.text.encoders import FakeEncoder, RandomVectors, few_hot, from_file, load, one_hot
from viscera.text.prompts import prompt

KEYS = taxonomy().keys


def test_one_hot_is_the_identity_matrix():
    np.testing.assert_array_equal(one_hot(["a", "b", "c"]).encode(["c", "a"]), [[0, 0, 1], [1, 0, 0]])


def test_few_hot_shares_what_classes_share():
    encoder = few_hot(taxonomy())

    def common(a, b):
        return int(np.dot(*encoder.encode([a, b])))

    assert common("left_kidney", "right_kidney") == 1  # the organ
    assert common("left_kidney", "left_lung") == 1  # the side
    assert common("left_kidney", "kidney_tumor") == 1  # the host
    assert common("kidney_tumor", "kidney_cyst") == 1  # the host, not the kind
    assert common("kidney_tumor", "liver_tumor") == 1  # the kind
    assert common("liver_tumor", "hepatic_vessel_tumor") == 2  # liver and tumor
    assert common("liver", "spleen") == 0


def test_random_vectors_depend_on_key_and_seed_alone():
    a = RandomVectors(seed=1).encode(["liver", "spleen"])
    np.testing.assert_array_equal(RandomVectors(seed=1).encode(["spleen", "aorta", "liver"])[2], a[0])
    assert not np.allclose(RandomVectors(seed=2).encode(["liver"])[0], a[0])
    # Standard normal: the length of 512 values is close to its root.
    assert np.linalg.norm(a, axis=1) == pytest.approx(np.sqrt(512), rel=0.15)


def test_the_fake_encoder_adds_up_words():
    liver, tumor, both = FakeEncoder().encode(["liver", "tumor", "Liver tumor"])
    np.testing.assert_allclose(both, liver + tumor, rtol=1e-6)


ROWS = np.random.default_rng(0).standard_normal((len(KEYS), 6)).astype(np.float32)


def write_npz(path):
    np.savez(path, ROWS)


def write_named_npz(path):
    np.savez(path, vectors=ROWS[::-1], names=np.array([s.name for s in taxonomy()])[::-1])


def write_safetensors(path):
    save_file({s.name: row for s, row in zip(taxonomy(), ROWS, strict=True)}, path)


def write_pth(path):
    torch.save(torch.from_numpy(ROWS), path)


def write_half_pth(path):
    torch.save({s.key: torch.from_numpy(row).double() for s, row in zip(taxonomy(), ROWS, strict=True)}, path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.npz", write_npz),
        ("named.npz", write_named_npz),
        ("named.safetensors", write_safetensors),
        ("rows.pth", write_pth),
        ("named.pt", write_half_pth),
    ],
)
def test_vectors_come_from_a_file_by_name_or_in_id_order(tmp_path, name, write):
    write(tmp_path / name)
    encoder = load(str(tmp_path / name))
    np.testing.assert_allclose(encoder.encode(["liver", "spleen"]), ROWS[[5, 0]])


def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was run",))

    path = tmp_path / "trap.pth"
    path.write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(CheckpointError, match="cannot be read safely"):
        from_file(path)
    torch.save({"rows": Trap()}, path)
    with pytest.raises(CheckpointError, match="cannot be read safely"):
        from_file(path)
    np.savez(tmp_path / "trap.npz", rows=np.array([Trap()], dtype=object))
    with pytest.raises(CheckpointError, match="cannot be read safely"):
        from_file(tmp_path / "trap.npz")


@pytest.mark.parametrize(
    ("rows", "error", "told"),
    [
        ({"vectors": ROWS[:3]}, SettingError, "3 rows for the 32 classes"),
        ({"vectors": ROWS[:3], "names": np.array(["liver", "spleen"])}, SettingError, "3 rows for 2 names"),
        ({"livver": ROWS[0]}, ClassNameError, "'livver'"),
        ({"kidneys": ROWS[0]}, ClassNameError, "means 2 classes"),
        ({"liver": ROWS[0], "spleen": ROWS[0][:2]}, SettingError, "no table of vectors"),
        ({"a": ROWS, "b": ROWS}, ClassNameError, "'a'"),
        ({}, SettingError, "no table of vectors"),
        ({"liver": np.full(3, np.inf, np.float32)}, SettingError, "NaN"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, rows, error, told):
    path = tmp_path / "bad.npz"
    np.savez(path, **rows)
    with pytest.raises(error, match=told):
        from_file(path)


def test_a_bank_is_not_an_encoder(tmp_path):
    make([taxonomy()["liver"]], FakeEncoder(), prompt("v3")).save(tmp_path / "bank.safetensors")
    with pytest.raises(SettingError, match="text bank"):
        load(str(tmp_path / "bank.safetensors"))


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
def test_a_damaged_file_is_told(tmp_path, suffix, content):
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        from_file(path)


@pytest.mark.parametrize("spec", ["nope", "random:x", "no/such/folder", "./missing", "missing.npz", ""])
def test_what_is_no_encoder_is_told_with_those_there_are(spec):
    with pytest.raises(SettingError, match="minilm, clip"):
        load(spec)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "vectors.csv").write_text("1,2")
    with pytest.raises(SettingError, match=r"not from \.csv"):
        load(str(tmp_path / "vectors.csv"))
