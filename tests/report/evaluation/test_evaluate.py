"""From folders of predictions and references to scores, tables and the page."""

from __future__ import annotations

import csv
import json
from math import inf, isnan
from pathlib import Path

import numpy as np
import pytest

from tests.report.evaluation.scenes import AFFINE, LIVER, SHAPE, SPLEEN, organs, save, scene
from viscera.errors import InputError, OutputError, SettingError
from viscera.io.volume import Volume
from viscera.io.write import write_probabilities
from viscera.metrics.detection import FROC_THRESHOLDS
from viscera.report import page
from viscera.report.as_json import plain
from viscera.report.evaluation.cases import Case, Places, find_cases, listed_cases, listed_scans
from viscera.report.evaluation.evaluate import Evaluation, EvaluationSettings, evaluate
from viscera.report.evaluation.report import picture_of, worst, write_evaluation
from viscera.report.evaluation.store import json_text, read_evaluation
from viscera.report.evaluation.summary import detection_rows, summary_rows
from viscera.report.evaluation.tables import csv_text, markdown_text, score_table


def run(
    root: Path, settings: EvaluationSettings | None = None, table: Path | None = None, **places: Path
) -> Evaluation:
    """Evaluate root/p against root/r."""
    return evaluate(find_cases(Places(root / "p", root / "r", **places), table), settings)


def cases_in(root: Path) -> list[Case]:
    return find_cases(Places(root / "p", root / "r"))


def three_cases(root: Path) -> None:
    """a: equal; b: moved by one voxel; c: no liver predicted."""
    for name, prediction in (("a", scene()), ("b", scene(1)), ("c", np.where(scene() == 6, 0, scene()))):
        save(scene(), root / "r" / f"{name}.nii.gz")
        save(prediction, root / "p" / f"{name}.nii.gz")


def test_scores_by_class_and_case(tmp_path: Path) -> None:
    three_cases(tmp_path)
    result = run(tmp_path)
    assert [case.name for case in result.cases] == ["a", "b", "c"]
    assert result.classes == ("spleen", "liver")
    assert result.values("liver", "dice") == pytest.approx([1, 8 / 9, 0])  # 9 voxels along the axis, 8 shared
    assert result.values("liver", "hd95_mm")[2] == inf
    assert result.values("spleen", "dice")[2] == 1
    voxel_ml = 1.5 * 2 * 3 / 1000
    assert result.cases[2].scores["liver"].reference_ml == pytest.approx(7 * 9 * 8 * voxel_ml)
    assert all(case.notes == () and len(case.reference_sha256 or "") == 64 for case in result.cases)


def test_a_broken_file_and_a_missing_one_are_reported_and_the_rest_is_scored(tmp_path: Path) -> None:
    three_cases(tmp_path)
    whole = (tmp_path / "p" / "b.nii.gz").read_bytes()
    (tmp_path / "p" / "b.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "p" / "c.nii.gz").unlink()
    told: list[str] = []
    cases = find_cases(Places(tmp_path / "p", tmp_path / "r"))
    result = evaluate(cases, ended=lambda name, _: told.append(name))
    assert told == ["a", "b", "c"]
    assert [case.name for case in result.cases] == ["a"]
    assert {f.name: f.error for f in result.failures} == {
        "b": f"{tmp_path / 'p' / 'b.nii.gz'} is truncated: its {len(whole) // 2:,} bytes hold less than its header "
        "announces. Copy or download it again.",
        "c": "There is no prediction of this case.",
    }


def test_workers_give_the_same_result_and_outlive_a_dead_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three_cases(tmp_path)
    cases = find_cases(Places(tmp_path / "p", tmp_path / "r"))
    alone, together = evaluate(cases), evaluate(cases, workers=2)
    assert [plain(case.scores) for case in together.cases] == [plain(case.scores) for case in alone.cases]

    import viscera.report.evaluation.evaluate as module
    from tests.report.evaluation import deadly

    monkeypatch.setattr(module, "_attempt", deadly.attempt)  # dies in the case "b"
    result = evaluate(cases, workers=2)
    assert [case.name for case in result.cases] == ["a", "c"]
    assert [(f.name, "worker process died" in f.error) for f in result.failures] == [("b", True)]


def test_classes_that_no_reference_holds_are_not_scored(tmp_path: Path) -> None:
    # Nobody annotated the spleen; predicting it must neither cost nor earn anything.
    for name in "ab":
        save(organs(liver=LIVER), tmp_path / "r" / f"{name}.nii.gz")
        save(scene(), tmp_path / "p" / f"{name}.nii.gz")
    assert run(tmp_path).classes == ("liver",)
    # Unless somebody says that it was looked for: then it is a false positive.
    told = run(tmp_path, EvaluationSettings(annotated=("liver", "spleen")))
    assert told.values("spleen", "dice") == [0, 0]


def test_a_class_absent_on_both_sides_is_no_success_and_no_failure(tmp_path: Path) -> None:
    for name, labels in (("a", scene()), ("b", organs(liver=LIVER))):
        save(labels, tmp_path / "r" / f"{name}.nii.gz")
        save(labels, tmp_path / "p" / f"{name}.nii.gz")
    result = run(tmp_path)
    dice = {row.key: row.summary for row in summary_rows(result, ["dice"])}
    assert (dice["liver"].n, dice["spleen"].n, dice["spleen"].mean) == (2, 1, 1)
    assert isnan(result.cases[1].scores["spleen"].dice)


def test_the_table_of_cases_says_sets_groups_and_what_is_annotated(tmp_path: Path) -> None:
    three_cases(tmp_path)
    table = tmp_path / "cases.csv"
    table.write_text("case,set,annotated,phase\na,one,liver,portal\nb,two,liver;spleen,portal\nc,two,,arterial\n")
    result = run(tmp_path, table=table)
    assert [sorted(case.scores) for case in result.cases] == [["liver"], ["liver", "spleen"], ["liver", "spleen"]]
    groups = {(row.grouping, row.group): row.summary.n for row in summary_rows(result, ["dice"]) if row.key == "liver"}
    assert groups == {
        ("", "all cases"): 3,
        ("set", "one"): 1,
        ("set", "two"): 2,
        ("phase", "arterial"): 1,
        ("phase", "portal"): 2,
    }


def test_annotation_is_told_set_by_set(tmp_path: Path) -> None:
    save(scene(), tmp_path / "r" / "a.nii.gz")
    save(organs(liver=LIVER), tmp_path / "r" / "b.nii.gz")
    for name in "ab":
        save(scene(), tmp_path / "p" / f"{name}.nii.gz")
    table = tmp_path / "cases.csv"
    table.write_text("case,set\na,one\nb,two\n")
    assert [sorted(case.scores) for case in run(tmp_path, table=table).cases] == [["liver", "spleen"], ["liver"]]
    assert [sorted(case.scores) for case in run(tmp_path).cases] == [["liver", "spleen"], ["liver", "spleen"]]


def test_other_grids_are_looked_up_with_a_note_and_strangers_refused(tmp_path: Path) -> None:
    for name in "abc":
        save(scene(), tmp_path / "r" / f"{name}.nii.gz")
    flipped = AFFINE @ np.array([[-1.0, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    save(scene()[::-1], tmp_path / "p" / "a.nii.gz", flipped)
    save(scene(), tmp_path / "p" / "b.nii.gz", flipped)  # the same array with another affine is another anatomy
    save(scene(), tmp_path / "p" / "c.nii.gz", AFFINE + half_a_metre_up())
    result = run(tmp_path)
    a, b = result.cases
    assert a.scores["liver"].dice == 1 and "resampled" in a.notes[0]
    assert b.scores["liver"].dice < 0.9 and "resampled" in b.notes[0]
    assert [(f.name, "share no space" in f.error) for f in result.failures] == [("c", True)]


def half_a_metre_up() -> np.ndarray:
    shift = np.zeros((4, 4))
    shift[2, 3] = 500
    return shift


def test_merged_classes_are_compared_as_groups(tmp_path: Path) -> None:
    box = slice(3, 7)
    sides = organs(right_kidney=(slice(1, 7), box, box), left_kidney=(slice(9, 15), box, box))
    save(sides > 0, tmp_path / "r" / "a" / "kidneys.nii.gz")
    save(sides, tmp_path / "p" / "a.nii.gz")
    assert run(tmp_path).cases[0].scores["kidneys"].dice == 1
    # and the other way round
    save(sides > 0, tmp_path / "q" / "a" / "kidneys.nii.gz")
    turned = evaluate(find_cases(Places(tmp_path / "q", tmp_path / "p")))
    assert turned.cases[0].scores["kidneys"].dice == 1
    assert turned.not_compared == ()


def test_what_a_prediction_cannot_tell_is_named_and_not_scored(tmp_path: Path) -> None:
    save(scene(), tmp_path / "r" / "a.nii.gz")
    save(scene() == 6, tmp_path / "p" / "a" / "liver.nii.gz")
    result = run(tmp_path)
    assert result.classes == ("liver",) and result.not_compared == ("spleen",)
    assert "that are not scored: spleen." in markdown_text(result)


def test_folders_that_viscera_wrote_are_understood(tmp_path: Path) -> None:
    save(scene(), tmp_path / "r" / "a.nii.gz")
    save(scene(), tmp_path / "p" / "a" / "segmentation.nii.gz")
    save(np.zeros(SHAPE), tmp_path / "p" / "a" / "other.nii.gz")
    assert run(tmp_path).cases[0].prediction.endswith("a/segmentation.nii.gz")
    save(scene() == 6, tmp_path / "p" / "a" / "masks" / "liver.nii.gz")
    only = run(tmp_path)
    assert only.classes == ("liver",) and only.cases[0].prediction.endswith("a/masks")


def test_lesions_are_counted_one_by_one(tmp_path: Path) -> None:
    near, far_off = (slice(3, 5), slice(4, 6), slice(3, 5)), (slice(6, 8), slice(9, 11), slice(7, 9))
    save(organs(liver=LIVER, liver_tumor=near), tmp_path / "r" / "a.nii.gz")
    save(organs(liver=LIVER, liver_tumor=near) + 21 * (organs(liver=far_off) > 0), tmp_path / "p" / "a.nii.gz")
    save(organs(liver=LIVER), tmp_path / "r" / "b.nii.gz")
    save(organs(liver=LIVER), tmp_path / "p" / "b.nii.gz")
    result = run(tmp_path)
    (row,) = detection_rows(result)
    assert row.key == "liver_tumor"
    assert (row.patients.true_positive, row.patients.true_negative) == (1, 1)
    assert (row.lesions.sensitivity.count, row.lesions.precision.total, row.lesions.false_per_case) == (1, 2, 0.5)
    assert result.values("liver", "dice") == [1, 1]  # the tumour hides the liver and still is liver
    centre = AFFINE @ (3.5, 4.5, 3.5, 1)
    assert result.cases[0].lesions["liver_tumor"].reference[0].centre_mm == pytest.approx(centre[:3])


def test_froc_from_probability_maps(tmp_path: Path) -> None:
    import nibabel as nib

    near = (slice(3, 5), slice(4, 6), slice(3, 5))
    labels = organs(liver=LIVER, liver_tumor=near)
    for side in "pr":
        save(labels, tmp_path / side / "a.nii.gz")
    probability = np.zeros(SHAPE, np.float32)
    probability[near], probability[12, 15, 12] = 0.75, 0.25
    (tmp_path / "q" / "a").mkdir(parents=True)
    nib.save(nib.Nifti1Image(probability, AFFINE), tmp_path / "q" / "a" / "liver_tumor.nii.gz")
    (row,) = detection_rows(run(tmp_path, probabilities=tmp_path / "q"))
    curve = {point.threshold: (point.sensitivity, point.false_per_case) for point in row.froc}
    assert tuple(curve) == FROC_THRESHOLDS
    assert (curve[0.2], curve[0.3], curve[0.8]) == ((1, 1), (1, 0), (0, 0))
    nib.save(nib.Nifti1Image(probability - 1, AFFINE), tmp_path / "q" / "a" / "liver_tumor.nii.gz")
    with pytest.raises(InputError, match="no probability map"):
        run(tmp_path, probabilities=tmp_path / "q")


def test_froc_of_what_segment_wrote(tmp_path: Path) -> None:
    """Maps beside the predictions are found without being named; a case without one means no curve, and a note."""
    near = (slice(3, 5), slice(4, 6), slice(3, 5))
    labels = organs(liver=LIVER, liver_tumor=near)
    levels = np.zeros(SHAPE, np.uint8)
    levels[near] = 1  # 1 / 256 everywhere: no map of 0 and 1
    for name in "ab":
        save(labels, tmp_path / "r" / f"{name}.nii.gz")
        save(labels, tmp_path / "p" / name / "segmentation.nii.gz")
        (tmp_path / "p" / name / "probabilities").mkdir()
    grid = Volume(levels, AFFINE)
    write_probabilities(levels, grid, tmp_path / "p" / "a" / "probabilities" / "liver_tumor.nii.gz")
    result = run(tmp_path)
    (row,) = detection_rows(result)
    assert (row.maps, row.froc) == (1, ())
    assert "holds no probability map of kidney_tumor, liver_tumor" in result.cases[1].notes[0]
    levels[near] = 192  # 0.75
    for name in "ab":
        write_probabilities(levels, grid, tmp_path / "p" / name / "probabilities" / "liver_tumor.nii.gz")
    with pytest.raises(InputError, match="no folder named after a reference"):
        run(tmp_path, probabilities=tmp_path / "r")
    (row,) = detection_rows(run(tmp_path))
    curve = {point.threshold: (point.sensitivity, point.false_per_case) for point in row.froc}
    assert (curve[0.05], curve[0.7], curve[0.8]) == ((1, 0), (1, 0), (0, 0))


def test_the_scan_is_found_beside_its_labels(tmp_path: Path) -> None:
    for name in ("ct", "labels"):
        save(scene(), tmp_path / "i" / "a" / f"{name}.nii.gz")
    save(scene(), tmp_path / "i" / "b" / "volume.nii.gz")
    for name in ("one", "two"):
        save(scene(), tmp_path / "i" / "c" / f"{name}.nii.gz")
    save(scene(), tmp_path / "i" / "d.nii.gz")
    found = {name: path.relative_to(tmp_path / "i").as_posix() for name, path in listed_scans(tmp_path / "i").items()}
    assert found == {"a": "a/ct.nii.gz", "b": "b/volume.nii.gz", "d": "d.nii.gz"}


def test_the_channel_of_nnunet_is_no_part_of_a_name_but_a_number_is(tmp_path: Path) -> None:
    for name in ("a_0000", "b_0000"):
        save(scene(), tmp_path / "p" / f"{name}.nii.gz")
        save(scene(), tmp_path / "r" / f"{name.removesuffix('_0000')}.nii.gz")
    assert [case.prediction for case in cases_in(tmp_path)] == [tmp_path / "p" / f"{n}_0000.nii.gz" for n in "ab"]
    for name in ("case_0000", "case_0001"):
        save(scene(), tmp_path / "q" / f"{name}.nii.gz")
    assert list(listed_cases(tmp_path / "q")) == ["case_0000", "case_0001"]


def test_what_cannot_be_evaluated_is_refused(tmp_path: Path) -> None:
    three_cases(tmp_path)
    with pytest.raises(InputError, match="There is no"):
        find_cases(Places(tmp_path / "p", tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no reference"):
        find_cases(Places(tmp_path / "p", tmp_path / "empty"))
    with pytest.raises(InputError, match="has the name of a reference"):
        find_cases(Places(tmp_path / "empty", tmp_path / "r"))
    with pytest.raises(SettingError, match="'left_toe' is not among the labels of the references"):
        run(tmp_path, EvaluationSettings(classes=("left_toe",)))
    for text, message in (
        ("name\na\n", "needs a first line with the column `case`"),
        ("case\na\na\n", "the case 'a' twice"),
        ("case\nz\n", "has no reference"),
    ):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(SettingError, match=message):
            run(tmp_path, table=tmp_path / "t.csv")


def test_tolerance_by_class_or_for_all() -> None:
    assert EvaluationSettings().tolerances(["liver", "aorta"]) == {"liver": 5, "aorta": 2}
    assert EvaluationSettings(tolerance_mm=1).tolerances(["liver", "aorta"]) == {"liver": 1, "aorta": 1}
    assert EvaluationSettings(tolerance_mm={"liver": 1.0}).tolerances(["liver", "aorta"]) == {"liver": 1, "aorta": 2}


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path) -> tuple[Evaluation, Path]:
    three_cases(tmp_path)
    result = run(tmp_path)
    write_evaluation(result, tmp_path / "out", cases_in(tmp_path), EvaluationSettings(), pictures=2)
    return result, tmp_path / "out"


def test_csv_has_one_row_per_case_and_class_with_its_files(written: tuple[Evaluation, Path]) -> None:
    result, out = written
    rows = list(csv.DictReader((out / "scores.csv").read_text().splitlines()))
    assert [(r["case"], r["class"]) for r in rows] == [(c, k) for c in "abc" for k in ("spleen", "liver")]
    last = rows[-1]
    assert (last["dice"], last["hd95_mm"], last["precision"]) == ("0", "inf", "")
    assert Path(last["prediction"]).is_file() and Path(last["reference"]).is_file()
    assert {r["metric"] for r in csv.DictReader((out / "summary.csv").read_text().splitlines())} >= {
        "dice",
        "nsd",
        "hd95_mm",
    }
    assert not (out / "lesions.csv").exists()
    assert csv_text([]) == "" and len(score_table(result)) == 6


def test_json_is_valid_and_reads_back_equal(written: tuple[Evaluation, Path]) -> None:
    result, out = written
    data = json.loads((out / "evaluation.json").read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity
    assert data["cases"][2]["scores"]["liver"]["hd95_mm"] == "inf"
    assert data["cases"][2]["scores"]["liver"]["precision"] is None
    again = read_evaluation(out)
    assert json_text(again) == json_text(result)
    assert again.values("liver", "dice") == result.values("liver", "dice")


def test_what_is_no_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no evaluation"):
        read_evaluation(tmp_path)
    for text, message in (("{", "is damaged"), ("{}", "is not an evaluation")):
        (tmp_path / "evaluation.json").write_text(text)
        with pytest.raises(InputError, match=message):
            read_evaluation(tmp_path)


def test_an_earlier_evaluation_is_not_replaced_unasked(written: tuple[Evaluation, Path]) -> None:
    result, out = written
    with pytest.raises(OutputError, match="Use --overwrite"):
        write_evaluation(result, out, [], EvaluationSettings())
    write_evaluation(result, out, [], EvaluationSettings(), pictures=0, overwrite=True)


def test_the_page_needs_nothing_but_itself(written: tuple[Evaluation, Path]) -> None:
    html = (written[1] / "report.html").read_text()
    assert "http" not in html and "<link" not in html and "@import" not in html
    assert html.count("<img") == html.count("src=") == html.count('src="data:image/png;base64,') >= 6
    for text in ("liver", "Worst cases", "1 inf", "How it was measured"):
        assert text in html


def test_names_in_the_page_are_escaped(tmp_path: Path) -> None:
    save(scene(), tmp_path / "r" / "<b>x&y.nii.gz")
    save(scene(), tmp_path / "p" / "<b>x&y.nii.gz")
    result = run(tmp_path)
    write_evaluation(result, tmp_path / "out", cases_in(tmp_path), EvaluationSettings())
    html = (tmp_path / "out" / "report.html").read_text()
    assert "<b>x" not in html and "&lt;b&gt;x&amp;y" in html


def test_cells_of_the_page() -> None:
    row = page.table(["a"], [[page.Cell("<b>", 2.5, 1.0, title='"x"')]])
    assert '<td data-v="2.5" style="background:hsl(160 70% 92%)" title="&quot;x&quot;">&lt;b&gt;</td>' in row
    assert page.heat(-1) == page.heat(0) != page.heat(1) == page.heat(7)


def test_markdown_lists_classes_and_failures(tmp_path: Path) -> None:
    three_cases(tmp_path)
    (tmp_path / "p" / "c.nii.gz").unlink()
    text = markdown_text(run(tmp_path))
    assert "2 cases, 1 could not be scored; 2 classes" in text
    assert "| liver | 2 | 0.944 ± 0.079 |" in text
    assert "- **c**: There is no prediction of this case." in text


def test_the_worst_cases_are_varied_while_there_are_others(tmp_path: Path) -> None:
    """Case a is bad at everything; its fourth class gives way to another case's, unless there are few."""
    box = slice(2, 6)
    keys = ("liver", "spleen", "stomach", "pancreas")
    truth = organs(**{key: (slice(4 * i, 4 * i + 4), box, box) for i, key in enumerate(keys)})
    for name, shift in (("a", 3), ("b", 1)):
        save(truth, tmp_path / "r" / f"{name}.nii.gz")
        save(np.roll(truth, shift, axis=1), tmp_path / "p" / f"{name}.nii.gz")
    result = run(tmp_path)
    assert [case.name for case, _ in worst(result, 4)] == ["a", "a", "a", "b"]
    assert [case.name for case, _ in worst(result, 9)] == ["a"] * 4 + ["b"] * 4


def test_the_worst_cases_come_first_and_show_the_patient_right_on_the_left(written: tuple[Evaluation, Path]) -> None:
    result, out = written
    assert [(case.name, key) for case, key in worst(result, 3)] == [("c", "liver"), ("b", "spleen"), ("b", "liver")]
    picture = picture_of(cases_in(out.parent)[1], "spleen", EvaluationSettings())
    # The second file axis runs to the patient's left (2 mm), RAS x to the right: moved by +1 voxel is one to the left.
    assert picture.spacing_mm == (2.0, 3.0, 1.5)
    reference, prediction = (np.flatnonzero(m.any(axis=(1, 2))) for m in (picture.reference, picture.prediction))
    assert reference[0] - prediction[0] == 1
    assert picture.reference.sum() == (scene() == 1).sum() == np.prod([s.stop - s.start for s in SPLEEN])
