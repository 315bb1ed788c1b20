"""What values and files mean: tables, groups, folders of masks, painted maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.report.evaluation.scenes import LIVER, SHAPE, SPLEEN, organs, save, scene
from viscera.errors import ImageError, SettingError
from viscera.report.evaluation.grid import lookup
from viscera.report.evaluation.labels import (
    LabelTable,
    canonical,
    own_labels,
    parts_of,
    read_label_table,
    read_side,
    unpainted,
)


def test_names_become_keys_where_they_mean_a_class() -> None:
    assert canonical("Left Kidney") == "left_kidney"
    assert canonical("kidneys") == "kidneys"
    assert canonical("adrenals") == "adrenal_glands"
    assert canonical("left_toe") == "left_toe"


def test_label_tables_in_every_notation(tmp_path: Path) -> None:
    texts = {
        "plain.toml": 'liver = [6, 27]\n"left kidney" = 3\nbackground = 0\nleft_toe = 9',
        "nnunet.json": json.dumps({"labels": {"background": 0, "liver": [27, 6], "left kidney": 3, "left_toe": 9}}),
        "decathlon.json": json.dumps(
            {"labels": {"0": "background", "6": "liver", "27": "liver", "3": "left kidney", "9": "left_toe"}}
        ),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        table = read_label_table(tmp_path / name)
        assert table == LabelTable({"liver": (6, 27), "left_kidney": (3,), "left_toe": (9,)}), name


def test_label_tables_that_are_refused(tmp_path: Path) -> None:
    for text, message in (
        ("liver = -1", "gives 'liver' the value -1"),
        ("liver = 'one'", "gives 'liver' the value 'one'"),
        ("liver = ", "not valid TOML"),
        ("background = 0", "names no class"),
    ):
        (tmp_path / "t.toml").write_text(text)
        with pytest.raises(SettingError, match=message):
            read_label_table(tmp_path / "t.toml")
    with pytest.raises(SettingError, match="cannot be read"):
        read_label_table(tmp_path / "absent.toml")


def test_a_group_is_made_up_of_its_members() -> None:
    assert parts_of("kidneys", ["left_kidney", "right_kidney"]) == ("right_kidney", "left_kidney")
    assert parts_of("kidneys", ["kidneys", "left_kidney"]) == ("kidneys",)
    assert parts_of("kidneys", ["left_kidney"]) == ()
    assert parts_of("left_toe", ["liver"]) == ()


def test_what_is_painted_over_an_organ_belongs_to_it() -> None:
    inside = (slice(4, 6), slice(5, 7), slice(4, 6))
    labels = organs(liver=LIVER, liver_tumor=inside, spleen=SPLEEN)
    same, values = unpainted(labels, own_labels().values)
    assert same is labels
    assert set(values["liver"]) == {6, 15, 27, 29}  # hepatic vessel and its tumour lie in it too
    assert values["spleen"] == (1,) and values["liver_tumor"] == (27,)


def test_a_tumour_of_a_paired_organ_belongs_to_the_side_it_touches() -> None:
    box = slice(3, 7)
    labels = organs(right_kidney=(slice(1, 7), box, box), left_kidney=(slice(9, 15), box, box))
    tumour = np.zeros(SHAPE, bool)
    tumour[6:8, 4:6, 4:6] = True  # on the right kidney's border
    labels[tumour] = 26
    labels[14, 4, 4] = 32  # a cyst in the left one
    labels[8, 15, 12] = 26  # a piece that touches neither
    array, values = unpainted(labels, own_labels().values)
    assert array is not labels

    def voxels(key: str) -> np.ndarray:
        return np.isin(array, values[key])

    assert np.array_equal(voxels("right_kidney"), (labels == 2) | tumour)
    assert np.array_equal(voxels("left_kidney"), (labels == 3) | (labels == 32))
    assert np.array_equal(voxels("kidney_tumor"), labels == 26)
    assert np.array_equal(voxels("kidney_cyst"), labels == 32)


def test_a_map_and_a_folder_of_masks_give_the_same_masks(tmp_path: Path) -> None:
    labels = scene()
    whole = read_side(save(labels, tmp_path / "map.nii.gz"), own_labels())
    for name, value in (("Liver", 6), ("spleen", 1)):
        save(labels == value, tmp_path / "masks" / f"{name}.nii.gz")
    folder = read_side(tmp_path / "masks", own_labels())
    assert folder.keys == ("liver", "spleen")
    stay = lookup(whole.grid, whole.grid, "case")
    for key in ("liver", "spleen"):
        one, two = whole.masks([key], stay), folder.masks([key], stay)
        assert one.box(key) == two.box(key)
        assert np.array_equal(one.crop(key, one.box(key)), two.crop(key, one.box(key)))


def test_masks_of_one_folder_must_share_a_grid(tmp_path: Path) -> None:
    save(scene() == 6, tmp_path / "liver.nii.gz")
    save((scene() == 1)[:-1], tmp_path / "spleen.nii.gz")
    side = read_side(tmp_path, own_labels())
    with pytest.raises(ImageError, match=r"spleen\.nii\.gz has another grid than the masks beside it"):
        side.masks(["spleen"], lookup(side.grid, side.grid, "case"))


def test_fractions_and_negative_values_are_no_labels(tmp_path: Path) -> None:
    import nibabel as nib

    from viscera.io.labels import read_labels

    for array, message in ((np.full(SHAPE, 0.5), "holds fractions"), (np.full(SHAPE, -1.0), r"down to -1\)")):
        nib.save(nib.Nifti1Image(array.astype(np.float32), np.eye(4)), tmp_path / "x.nii.gz")
        with pytest.raises(ImageError, match=message):
            read_labels(tmp_path / "x.nii.gz")
