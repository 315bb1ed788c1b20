"""The commands about evidence, as a user types them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.report.evaluation.scenes import LIVER, SHAPE, organs, save, scene
from typer.testing import CliRunner

from viscera.cli.main import app


def viscera(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i in range(3):
        save(scene(), tmp_path / "r" / f"{i}.nii.gz")
        save(scene(1), tmp_path / "p" / f"{i}.nii.gz")
    return tmp_path


def evaluated(root: Path, *more: object, output: str = "out") -> Any:
    return viscera("evaluate", root / "p", root / "r", "-o", root / output, "--workers", 1, "--pictures", 0, *more)


def test_evaluate_writes_its_files_and_says_where(root: Path) -> None:
    done = evaluated(root)
    assert done.exit_code == 0, done.output
    assert "liver" in done.output and "0.889" in done.output
    names = {path.name for path in (root / "out").iterdir()}
    assert names == {"report.html", "report.md", "scores.csv", "summary.csv", "evaluation.json"}
    assert json.loads((root / "out" / "evaluation.json").read_text())["name"] == "p"


def test_a_broken_file_ends_with_1_and_the_rest_is_there(root: Path) -> None:
    (root / "p" / "1.nii.gz").write_bytes(b"\x1f\x8bnothing")
    done = evaluated(root)
    assert done.exit_code == 1
    assert "1 of 3 cases could not be scored" in done.output
    data = json.loads((root / "out" / "evaluation.json").read_text())
    assert [case["name"] for case in data["cases"]] == ["0", "2"]


def test_options_reach_the_scores(root: Path) -> None:
    (root / "labels.toml").write_text('liver = 6\n"left toe" = 1\n')
    done = evaluated(
        root, "--labels", root / "labels.toml", "--classes", "left toe", "--tolerance", 7, "--name", "mine", "--quiet"
    )
    assert (done.exit_code, done.output) == (0, "")
    data = json.loads((root / "out" / "evaluation.json").read_text())
    assert data["name"] == "mine"
    assert list(data["cases"][0]["scores"]) == ["left toe"]
    assert data["cases"][0]["scores"]["left toe"]["tolerance_mm"] == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "p"], "Give two places"),
        (["evaluate", "p", "r", "--model", "lite"], "--model needs --dataset and one place"),
        (["evaluate", "p", "r", "--dataset", "lits", "--labels", "x.toml"], "--dataset brings its own labels"),
        (["evaluate", "p", "nowhere"], "There is no nowhere"),
        (["evaluate", "p", "r", "--classes", "left toe"], "No class is called 'left toe'"),
        (["evaluate", "p", "r", "--match", "luck"], "not by 'luck'"),
        (["compare", "p"], "holds no evaluation"),
        (["agreement", "p"], "two readers or more"),
        (["check-reports", "x.csv", "p"], "cannot be read"),
        (["export", "olympics", "p"], "no challenge 'olympics'"),
        (["splits", "nowhere"], "There is no nowhere"),
        (["splits", "r", "--folds", "9"], "9 folds of 3 cases"),
        (["splits", "r", "--shares", "a,b"], "give three numbers"),
    ],
)
def test_mistakes_end_with_2_and_a_sentence(
    root: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(root)
    done = viscera(*arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


def test_compare(root: Path) -> None:
    evaluated(root, "--name", "one", output="a")
    evaluated(root, "--name", "two", output="b")
    done = viscera("compare", root / "a", root / "b", "-o", root / "c", "--metrics", "dice")
    assert done.exit_code == 0, done.output
    assert "0 / 3 / 0" in done.output and "Decathlon ranks: one 1.50, two 1.50" in done.output
    assert (root / "c" / "comparison.html").is_file()


def test_agreement(root: Path) -> None:
    done = viscera(
        "agreement", f"A={root / 'r'}", f"B={root / 'p'}", "-m", root / "r", "-o", root / "x", "--workers", 1
    )
    assert done.exit_code == 0, done.output
    assert "liver: readers 0.889, model 0.944: above (n = 3)" in done.output


def test_check_reports(root: Path) -> None:
    (root / "truths.csv").write_text("case,class,present\na,liver tumor,yes\n")
    (root / "out" / "a").mkdir(parents=True)
    (root / "out" / "a" / "findings.json").write_text(json.dumps({"findings": [{"key": "liver_tumor", "lesions": []}]}))
    done = viscera("check-reports", root / "truths.csv", root / "out", "-o", root / "check")
    assert done.exit_code == 0, done.output
    assert "liver tumor: sensitivity 0.00 (0/1; 0.00 to 0.79)" in done.output
    assert "1 to review, 0 without an answer" in done.output


def test_export_and_splits(root: Path) -> None:
    save(organs(liver=LIVER), root / "out" / "spleen_3" / "segmentation.nii.gz")
    done = viscera("export", "decathlon", root / "out", "-o", root / "sub")
    assert done.exit_code == 0 and "1 of 1 cases" in done.output
    assert (root / "sub" / "Task09_Spleen" / "spleen_3.nii.gz").is_file()
    assert viscera("export", "decathlon", root / "out", "-o", root / "sub").exit_code == 1  # it is there already

    done = viscera("splits", root / "r", "-o", root / "s.json", "--folds", 3)
    assert done.exit_code == 0, done.output
    assert [fold["val"] for fold in json.loads((root / "s.json").read_text())] != []
    assert viscera("splits", root / "r", "-o", root / "s.json").exit_code == 2
    (root / "names.txt").write_text("a\nb\nc\nd\n")
    done = viscera("splits", root / "names.txt", "-o", root / "t.json", "--shares", "0.5,0.25,0.25")
    assert "4 cases" in done.output and "2 train, 1 val, 1 test" in done.output


def test_a_model_on_a_data_set(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segmenting is somebody else's; what is asked of it and what becomes of its masks is ours."""
    import viscera.workflow.cohort as cohort

    asked = {}

    def segment_many(cases: Any, model: Any, settings: Any, save_settings: Any, **options: Any) -> list[Any]:
        asked.update(classes=settings.classes, masks=save_settings.masks, resume=options["resume"])
        for case in cases:
            save(scene() == 6, case.output / "masks" / "liver.nii.gz")
            save(np.zeros(SHAPE), case.output / "masks" / "liver_tumor.nii.gz")
        return [cohort.Outcome(case, "done") for case in cases]

    monkeypatch.setattr(cohort, "segment_many", segment_many)
    save(scene(), root / "lits" / "volume-1.nii")
    save(scene() == 6, root / "lits" / "segmentation-1.nii")
    done = viscera(
        "evaluate", root / "lits", "--model", "lite", "--dataset", "lits", "-o", root / "ext", "--workers", 1
    )
    assert done.exit_code == 0, done.output
    assert "UNTRAINED" in done.output
    assert asked == {"classes": ["liver", "liver_tumor"], "masks": True, "resume": True}
    data = json.loads((root / "ext" / "evaluation.json").read_text())
    assert data["name"] == "lite"
    assert {key: score["dice"] for key, score in data["cases"][0]["scores"].items()} == {
        "liver": 1.0,
        "liver_tumor": None,
    }


def many(root: Path, cases: int, broken: int) -> None:
    """So many cases, predictions moved by 0, 1 or 2 of the liver's 9 voxels; one of them is cut off in the middle."""
    for i in range(cases):
        save(scene(), root / "r" / f"case_{i:04d}.nii.gz")
        save(scene(i % 3), root / "p" / f"case_{i:04d}.nii.gz")
    file = root / "p" / f"case_{broken:04d}.nii.gz"
    file.write_bytes(file.read_bytes()[:100])


def evaluate_many(root: Path, cases: int, broken: int) -> None:
    """One command with workers, as a process of its own; every number of every case, and the broken file, are right."""
    many(root, cases, broken)
    command = [sys.executable, "-m", "viscera", "evaluate", str(root / "p"), str(root / "r"), "-o", str(root / "out")]
    done = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert f"case_{broken:04d}" in done.stdout and "truncated" in " ".join(done.stdout.split())
    with (root / "out" / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (cases - 1)
    for row in rows:
        shift = int(row["case"].removeprefix("case_")) % 3
        length = {"liver": 9, "spleen": 6}[row["class"]]
        assert float(row["dice"]) == pytest.approx((length - shift) / length, abs=1e-5)
        assert row["case"] in row["prediction"] and row["case"] in row["reference"]
    data = json.loads((root / "out" / "evaluation.json").read_text())
    assert [failure["name"] for failure in data["failures"]] == [f"case_{broken:04d}"]
    html = (root / "out" / "report.html").read_text()
    assert f"case_{cases - 1:04d}" in html and html.count("<img") >= 5


def test_a_few_cases_with_workers_and_a_broken_file(tmp_path: Path) -> None:
    evaluate_many(tmp_path, 7, broken=4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_cases_with_workers_and_a_broken_file(tmp_path: Path) -> None:
    evaluate_many(tmp_path, 1000, broken=417)
