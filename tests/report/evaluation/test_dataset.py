"""References as data sets: what their tables say is scored, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.report.evaluation.scenes import LIVER, SHAPE, organs, save, scene
from viscera.data.catalogue import dataset_keys, dataset_table
from viscera.data.layout import find_cases, with_labels_of
from viscera.data.phantom import PhantomSettings, phantom_cases, write_dataset
from viscera.errors import InputError
from viscera.io.orientation import to_ras
from viscera.io.read import read_volume
from viscera.report.evaluation.dataset import dataset_cases
from viscera.report.evaluation.evaluate import Evaluation, EvaluationSettings, evaluate
from viscera.report.evaluation.report import picture_of
from viscera.taxonomy import taxonomy

BOX = slice(3, 7)
KIDNEYS = {"right_kidney": (slice(1, 7), BOX, BOX), "left_kidney": (slice(9, 15), BOX, BOX)}


def run(table: str, root: Path) -> Evaluation:
    return evaluate(dataset_cases(table, root / "data", root / "p"), EvaluationSettings(annotated=None))


def scan(root: Path, path: str) -> None:
    """Something that looks like a CT, where the table expects one."""
    hu = np.full(SHAPE, -1000, np.int16)
    hu[2:-2, 2:-2, 2:-2] = 40
    save(hu, root / "data" / path)


def test_a_tumour_is_its_organ_too_and_merged_kidneys_are_one_group(tmp_path: Path) -> None:
    tumour = (slice(5, 7), slice(4, 6), slice(4, 6))
    prediction = organs(**KIDNEYS, kidney_tumor=tumour)
    reference = (prediction > 0).astype(np.uint8)
    reference[tumour] = 2
    scan(tmp_path, "dataset/case_00000/imaging.nii.gz")
    save(reference, tmp_path / "data" / "dataset" / "case_00000" / "segmentation.nii.gz")
    save(prediction, tmp_path / "p" / "00000.nii.gz")
    (case,) = run("kits", tmp_path).cases
    assert set(case.scores) == {"kidneys", "kidney_tumor", "kidney_cyst"}
    assert case.scores["kidneys"].dice == case.scores["kidney_tumor"].dice == 1
    assert np.isnan(case.scores["kidney_cyst"].dice)  # looked for and absent on both sides
    both = EvaluationSettings(classes=("right_kidney", "left_kidney"))
    assert evaluate(dataset_cases("kits", tmp_path / "data", tmp_path / "p"), both).classes == ("kidneys",)
    assert case.data_set == "kits" and case.groups == {"group": "kits23"}


def test_values_of_the_set_are_not_ours(tmp_path: Path) -> None:
    reference = np.zeros(SHAPE, np.uint8)
    reference[LIVER] = 1
    tumour = (slice(4, 6), slice(5, 7), slice(4, 6))
    reference[tumour] = 2
    scan(tmp_path, "volume-1.nii")
    save(reference, tmp_path / "data" / "segmentation-1.nii")
    save(organs(liver=LIVER, liver_tumor=tumour, spleen=(slice(10, 15), BOX, BOX)), tmp_path / "p" / "1.nii.gz")
    (case,) = run("lits", tmp_path).cases
    assert {key: score.dice for key, score in case.scores.items()} == {"liver": 1, "liver_tumor": 1}
    cases = dataset_cases("lits", tmp_path / "data", tmp_path / "p")
    assert picture_of(cases[0], "liver", EvaluationSettings()).reference.sum() == (reference > 0).sum()


def test_one_mask_per_structure(tmp_path: Path) -> None:
    scan(tmp_path, "s0001/ct.nii.gz")
    for name, value in (("liver", 6), ("spleen", 1)):
        save(scene() == value, tmp_path / "data" / "s0001" / "segmentations" / f"{name}.nii.gz")
    save(scene(1), tmp_path / "p" / "s0001.nii.gz")
    (case,) = run("totalsegmentator", tmp_path).cases
    assert case.scores["liver"].dice == pytest.approx(8 / 9)
    assert "spleen" in case.scores
    assert case.reference.endswith("s0001/segmentations")


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    table = tmp_path / "mine.toml"
    table.write_text(
        'title = "Mine"\nimage = "ct/{case}{ext}"\nlabel = "seg/{case}{ext}"\n'
        '[labels]\n7 = "liver"\n8 = { union = ["stomach", "duodenum"] }\n'
    )
    reference = np.zeros(SHAPE, np.uint8)
    reference[LIVER], reference[12:15, 12:15] = 7, 8
    scan(tmp_path, "ct/a.nii.gz")
    save(reference, tmp_path / "data" / "seg" / "a.nii.gz")
    save(organs(liver=LIVER, stomach=(slice(12, 15), slice(12, 15), slice(0, 14))), tmp_path / "p" / "a.nii.gz")
    (case,) = run(str(table), tmp_path).cases
    assert set(case.scores) == {"liver"}  # stomach or duodenum: nobody drew which


def test_missing_predictions_and_sets(tmp_path: Path) -> None:
    scan(tmp_path, "volume-1.nii")
    save(scene(), tmp_path / "data" / "segmentation-1.nii")
    with pytest.raises(InputError, match="There is no prediction of this case"):
        run("lits", tmp_path)
    with pytest.raises(InputError, match="no data-set table 'mars'"):
        dataset_cases("mars", tmp_path, tmp_path)


SETTINGS = PhantomSettings(spacing_mm=(7.0, 7.0, 8.0))


@pytest.mark.parametrize("key", dataset_keys())
def test_the_truth_of_a_phantom_is_perfect_in_every_layout(key: str, tmp_path: Path) -> None:
    """Pictures, DICOM, merged sides, tumours over organs, masks, several groups: the patient's own masks score 1."""
    folder = tmp_path / "data"
    table = dataset_table(key)
    write_dataset(table, folder, 1, 3, SETTINGS)
    patients = {case.name: case.phantom for case in phantom_cases(with_labels_of(table, folder), 1, 3, SETTINGS)}
    for case in find_cases(table, folder).cases:
        assert case.image is not None
        _, affine, _ = to_ras(read_volume(case.image))
        for name, mask in patients[case.name].masks.items():
            if name in taxonomy():
                save(mask, tmp_path / "p" / case.name / f"{name}.nii.gz", affine)
    result = run(key, tmp_path)
    assert not result.failures and result.classes
    for evaluated in result.cases:
        assert {name: score.dice for name, score in evaluated.scores.items() if score.reference_ml > 0} == {
            name: 1.0 for name, score in evaluated.scores.items() if score.reference_ml > 0
        }
        assert any(score.reference_ml > 0 for score in evaluated.scores.values())
        assert evaluated.notes == () or "axes" in evaluated.notes[0]
