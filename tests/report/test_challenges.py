"""What challenges take, and splits."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.report.evaluation.scenes import AFFINE, LIVER, organs, save, scene
from viscera.errors import InputError, SettingError
from viscera.report.challenges import challenge, export_challenge, fold_splits, share_split
from viscera.taxonomy import table_names


@pytest.mark.parametrize("key", table_names("challenges"))
def test_every_challenge_is_whole(key: str) -> None:
    about = challenge(key)
    assert about.title and about.home.startswith("http") and about.source and about.tasks
    for task in about.tasks:
        assert sorted(task.labels.values()) == list(range(1, len(task.labels) + 1))
        assert task.file.endswith(".nii.gz")


@pytest.mark.parametrize(
    ("key", "case", "expected"),
    [
        ("decathlon", "liver_132", "Task03_Liver/liver_132.nii.gz"),
        ("decathlon", "hepaticvessel_003", "Task08_HepaticVessel/hepaticvessel_003.nii.gz"),
        ("decathlon", "colon_007", "Task10_Colon/colon_007.nii.gz"),
        ("btcv", "img0061", "label0061.nii.gz"),
        ("amos", "amos_0401", "amos_0401.nii.gz"),
        ("flare22", "FLARETs_0001_0000", "FLARETs_0001.nii.gz"),
        ("flare22", "FLARE22_Tr_0001", "FLARE22_Tr_0001.nii.gz"),
        ("amos", "liver_132", None),
    ],
)
def test_names(key: str, case: str, expected: str | None) -> None:
    names = [
        f"{task.folder}/{name}".lstrip("/")
        for task in challenge(key).tasks
        if (name := task.file_name(case)) is not None
    ]
    assert names == ([expected] if expected else [])


def test_a_decathlon_submission(tmp_path: Path) -> None:
    tumour = (slice(4, 6), slice(5, 7), slice(4, 6))
    labels = organs(liver=LIVER, liver_tumor=tumour)
    save(labels, tmp_path / "out" / "liver_132" / "segmentation.nii.gz")
    save(scene(), tmp_path / "out" / "spleen_9" / "segmentation.nii.gz")
    save(scene(), tmp_path / "out" / "something_else.nii.gz")
    done = export_challenge("decathlon", tmp_path / "out", tmp_path / "sub")
    assert [d.file for d in done] == [
        tmp_path / "sub" / "Task03_Liver" / "liver_132.nii.gz",
        tmp_path / "sub" / "Task09_Spleen" / "spleen_9.nii.gz",
    ]
    written = nib.load(done[0].file)
    assert np.allclose(written.affine, AFFINE) and written.get_data_dtype() == np.uint8
    expected = (labels == 6) * 1 + (labels == 27) * 2  # the tumour over the liver
    assert np.array_equal(np.asarray(written.dataobj), expected)
    again = export_challenge("decathlon", tmp_path / "out", tmp_path / "sub")
    assert all(d.file is None and "Use --overwrite" in d.error for d in again)


def test_thirteen_organs_get_their_own_values(tmp_path: Path) -> None:
    row = np.zeros((20, 4, 4), np.uint8)
    for key_id in range(1, 15):
        row[key_id] = key_id
    save(row, tmp_path / "out" / "img0061.nii.gz")
    (done,) = export_challenge("btcv", tmp_path / "out", tmp_path / "sub")
    assert done.file == tmp_path / "sub" / "label0061.nii.gz"
    values = np.asarray(nib.load(done.file).dataobj)[:, 0, 0]
    assert values.tolist() == [
        0,
        *range(1, 14),
        0,
        *[0] * 5,
    ]  # viscera's order is BTCV's; 14, the duodenum, is not in it


def test_masks_that_lack_a_class_are_refused_case_by_case(tmp_path: Path) -> None:
    save(scene() == 6, tmp_path / "out" / "liver_1" / "masks" / "liver.nii.gz")
    (done,) = export_challenge("decathlon", tmp_path / "out", tmp_path / "sub")
    assert done.file is None and "lacks liver_tumor" in done.error


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no challenge 'olympics'; choose from amos, btcv"):
        challenge("olympics")
    save(scene(), tmp_path / "x.nii.gz")
    with pytest.raises(InputError, match=r"holds no case of .*, only x"):
        export_challenge("btcv", tmp_path, tmp_path / "sub")


def test_folds() -> None:
    names = [f"img{i:04}" for i in range(1, 31)]
    folds = fold_splits(names, 5)
    assert [len(fold["val"]) for fold in folds] == [6] * 5
    assert sorted(name for fold in folds for name in fold["val"]) == names
    assert all(sorted(fold["train"] + fold["val"]) == names for fold in folds)
    assert fold_splits(names[::-1], 5) == folds != fold_splits(names, 5, seed=1)
    with pytest.raises(SettingError, match="5 folds of 3 cases"):
        fold_splits(names[:3], 5)


def test_shares() -> None:
    names = [str(i) for i in range(10)]
    split = share_split(names, (0.7, 0.1, 0.2))
    assert [len(split[part]) for part in ("train", "val", "test")] == [7, 1, 2]
    assert sorted([*split["train"], *split["val"], *split["test"]]) == names
    few = share_split(names[:8], (0.7, 0.1, 0.2))
    assert [len(few[part]) for part in ("train", "val", "test")] == [5, 1, 2]  # 0.8 of a case is one case
    assert [len(part) for part in share_split(names[:2], (0.5, 0.5, 0)).values()] == [1, 1, 0]
    with pytest.raises(SettingError, match="sum to 1"):
        share_split(names, (0.7, 0.1, 0.1))
