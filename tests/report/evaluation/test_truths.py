"""Findings against reports: a table of truths, findings as `viscera segment` writes them."""

from __future__ import annotations

import json
from math import isnan
from pathlib import Path
from typing import Any

import pytest

from viscera.errors import ClassNameError, OutputError, SettingError
from viscera.report.evaluation.truths import check_markdown, check_reports, read_truths, write_check

TABLE = """case,class,present,size_mm
p1,liver tumor,yes,20
p2,liver tumor,yes,30
p3,liver tumor,yes,12
p4,liver tumor,no,
p5,liver tumor,no,
p1,kidney,No,
p6,liver tumor,yes,
p7,liver tumor,no,
"""


def lesion(size_mm: float, volume_ml: float, host: str | None = "liver") -> dict[str, Any]:
    return {"longest_diameter_mm": size_mm, "volume_ml": volume_ml, "centre_mm": [1.2, -3.4, 5.0], "host": host}


def findings(root: Path, case: str, **lesions: list[dict[str, Any]]) -> None:
    rows = [{"key": key, "lesions": of_class} for key, of_class in lesions.items()]
    (root / case).mkdir(parents=True)
    (root / case / "findings.json").write_text(json.dumps({"schema": "viscera findings 1", "findings": rows}))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "truths.csv").write_text(TABLE)
    findings(tmp_path / "out", "p1", liver_tumor=[lesion(22, 4.0), lesion(5, 0.1)], kidney_tumor=[])
    findings(tmp_path / "out", "p2", liver_tumor=[lesion(36, 9.0)])
    findings(tmp_path / "out", "p3", liver_tumor=[])
    findings(tmp_path / "out", "p4", liver_tumor=[])
    findings(tmp_path / "out", "p5", liver_tumor=[lesion(8, 0.2, None)])
    findings(tmp_path / "out", "p7", liver=[])
    return tmp_path


def test_every_truth_gets_its_verdict(results: Path) -> None:
    check = check_reports(read_truths(results / "truths.csv"), results / "out")
    assert [(r.truth.case, r.verdict) for r in check.rows] == [
        ("p1", "true positive"),
        ("p2", "true positive"),
        ("p3", "false negative"),
        ("p4", "true negative"),
        ("p5", "false positive"),
        ("p1", "true negative"),
        ("p6", "no answer"),
        ("p7", "no answer"),
    ]
    found = check.detection("liver tumor")
    assert (found.sensitivity.count, found.sensitivity.total) == (2, 3)
    assert (found.specificity.count, found.specificity.total) == (1, 2)
    assert check.detection().specificity.total == 3
    assert check.rows[0].size_mm == 22 and check.rows[0].volume_ml == pytest.approx(4.1)
    assert [r.why for r in check.rows[-2:]] == [
        "there is no findings.json of this case",
        "it was not segmented for liver_tumor",
    ]


def test_sizes_of_the_true_positives(results: Path) -> None:
    sizes = check_reports(read_truths(results / "truths.csv"), results / "out").sizes()
    assert (sizes.n, sizes.spearman, sizes.pearson) == (2, pytest.approx(1), pytest.approx(1))
    assert sizes.difference_mm.bias == pytest.approx((2 + 6) / 2)


def test_missed_ones_are_reviewed_first(results: Path) -> None:
    check = check_reports(read_truths(results / "truths.csv"), results / "out")
    assert [r.truth.case for r in check.disagreements] == ["p3", "p5"]
    assert check.disagreements[1].places == "no organ at (1, -3, 5) mm, 0.20 ml"
    text = check_markdown(check)
    assert "| p3 | liver tumor | false negative | 12.0 |" in text
    assert "- p6, liver tumor: there is no findings.json of this case" in text


def test_organs_and_any_ask_for_their_tumours(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("case,class,present\na,kidney,yes\na,lungs,no\na,any,yes\na,kidney cyst,no\n")
    keys = [truth.keys for truth in read_truths(tmp_path / "t.csv")]
    assert keys[0] == ("kidney_tumor",) and keys[1] == ("lung_tumor",) and keys[3] == ("kidney_cyst",)
    assert len(keys[2]) == 6
    assert isnan(read_truths(tmp_path / "t.csv")[0].size_mm)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("case,class\na,liver\n", SettingError, "needs the columns case, class and present"),
        ("case,class,present\na,liver tumor,maybe\n", SettingError, "line 2: present is 'maybe'"),
        ("case,class,present,size_mm\na,liver tumor,yes,big\n", SettingError, "line 2: size_mm is 'big'"),
        ("case,class,present\na,aorta,yes\n", SettingError, "no tumour class for 'aorta'"),
        ("case,class,present\na,left toe,yes\n", ClassNameError, "left toe"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(error, match=message):
        read_truths(tmp_path / "t.csv")


def test_files_of_a_check(results: Path) -> None:
    check = check_reports(read_truths(results / "truths.csv"), results / "out")
    names = [path.name for path in write_check(check, results / "check")]
    assert names == ["check.csv", "check.md", "check.html", "check.json"]
    data = json.loads((results / "check" / "check.json").read_text())
    assert data["questions"][0]["asked"] == "all"
    assert data["rows"][3]["truth"]["size_mm"] is None
    with pytest.raises(OutputError):
        write_check(check, results / "check")
