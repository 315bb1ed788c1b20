"""Two models on the same cases; readers among themselves and against a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.report.evaluation.scenes import save, scene
from viscera.errors import InputError, OutputError, SettingError
from viscera.report.evaluation.agreement import Reading, compare_readings, write_agreement
from viscera.report.evaluation.cases import Places, find_cases
from viscera.report.evaluation.compare import better, compare, load_runs, write_comparison
from viscera.report.evaluation.evaluate import Evaluation, EvaluationSettings, evaluate
from viscera.report.evaluation.report import write_evaluation


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six cases: references r; model a off by two voxels, b by one, c like b."""
    root = tmp_path_factory.mktemp("compare")
    for i in range(6):
        for folder, shift in (("r", 0), ("a", 2), ("b", 1), ("c", 1)):
            labels = scene(shift)
            labels[i, 0, 0] = 6  # no two cases are equal
            save(labels, root / folder / f"{i}.nii.gz")
    return root


def run(root: Path, model: str, settings: EvaluationSettings | None = None) -> Evaluation:
    return evaluate(find_cases(Places(root / model, root / "r")), settings, name=model)


def test_the_better_model_wins(folders: Path) -> None:
    result = compare([run(folders, "a"), run(folders, "b")], ["dice", "hd95_mm"])
    assert result.models == ("a", "b") and len(result.cases) == 6
    for row in result.rows:
        assert (row.paired.wins, row.paired.ties, row.paired.losses) == (6, 0, 0)
        assert row.paired.difference > 0 and row.paired.p == pytest.approx(2 / 64)
        assert row.p_holm == pytest.approx(4 / 64)  # two classes
        assert better(row) == "-"  # 0.0625 is not below 5 %
        assert better(replace(row, p_holm=0.01)) == "b"
    (overall,) = result.overall  # Dice only: a mean of distances over classes means little
    assert (overall.metric, overall.paired.wins, overall.p_holm) == ("dice", 6, pytest.approx(2 / 64))
    assert better(overall) == "b"
    of_b = [value for key in ("liver", "spleen") for value in run(folders, "b").values(key, "dice")]
    assert overall.second_mean == pytest.approx(sum(of_b) / 12)
    swapped = compare([run(folders, "b"), run(folders, "a")])
    assert better(replace(swapped.rows[0], p_holm=0.01)) == "b"
    by_dice = result.rankings["dice"].mean_rank
    assert by_dice == {"a": 2, "b": 1}
    assert result.decathlon == {"a": 2, "b": 1}


def test_equal_models_tie(folders: Path) -> None:
    result = compare([run(folders, "b"), run(folders, "c")])
    assert {(r.paired.ties, r.paired.p, better(r)) for r in result.rows} == {(6, 1.0, "-")}
    assert result.rankings["dice"].mean_rank == {"b": 1.5, "c": 1.5}


def test_only_shared_cases_count_and_the_others_are_named(folders: Path) -> None:
    a, b = run(folders, "a"), run(folders, "b")
    result = compare([replace(a, cases=a.cases[1:]), replace(b, cases=b.cases[:-1])])
    assert result.cases == ("1", "2", "3", "4")
    assert result.left_out == {"a": ("5",), "b": ("0",)}


def test_unfair_comparisons_are_refused(folders: Path) -> None:
    a, b = run(folders, "a"), run(folders, "b")
    with pytest.raises(SettingError, match="two evaluations or more"):
        compare([a])
    with pytest.raises(SettingError, match="no metric 'luck'"):
        compare([a, b], ["luck"])
    with pytest.raises(InputError, match="no case in common"):
        compare([replace(a, cases=a.cases[:1]), replace(b, cases=b.cases[1:])])
    other = replace(b, cases=tuple(replace(case, reference_sha256="0") for case in b.cases))
    with pytest.raises(InputError, match="'0' was scored against different references"):
        compare([a, other])
    strict = run(folders, "b", EvaluationSettings(tolerance_mm=1.0))
    with pytest.raises(SettingError, match="spleen was taken at 1 and 3 mm"):
        compare([a, strict])
    assert compare([a, strict], ["dice"]).rows


def test_comparison_files(folders: Path, tmp_path: Path) -> None:
    for model in "abc":
        result = run(folders, model)
        write_evaluation(replace(result, name="out"), tmp_path / model, [], EvaluationSettings(), pictures=0)
    runs = load_runs([tmp_path / model for model in "abc"])
    assert [r.name for r in runs] == [str(tmp_path / model) for model in "abc"]  # all were called "out"
    with pytest.raises(InputError, match="named twice"):
        load_runs([tmp_path / "a", tmp_path / "a"])
    comparison = compare(runs)
    written = write_comparison(comparison, tmp_path / "x")
    assert [path.name for path in written] == ["comparison.csv", "comparison.md", "comparison.html", "comparison.json"]
    html = (tmp_path / "x" / "comparison.html").read_text()
    assert html.count("<img") == 2 + 3 * 3  # two rankings; three pairs of models by three metrics
    assert "http" not in html
    assert len(json.loads((tmp_path / "x" / "comparison.json").read_text())["rows"]) == 3 * 3 * 2
    with pytest.raises(OutputError, match="Use --overwrite"):
        write_comparison(comparison, tmp_path / "x")


def test_a_model_as_good_as_a_reader_lies_within_the_readers(folders: Path, tmp_path: Path) -> None:
    readings = [Reading("r", folders / "r"), Reading("b", folders / "b")]
    result = compare_readings(readings, folders / "c")
    assert [(p.first, p.second, p.kind) for p in result.pairs] == [
        ("r", "b", "inter"),
        ("r", "model", "model"),
        ("b", "model", "model"),
    ]
    # c equals reader b, so it agrees with the readers better than they do with each other: (8/9 + 1) / 2 > 8/9
    assert result.readers["liver"].verdict == "above"
    assert result.readers["liver"].inter == pytest.approx(8 / 9, abs=0.001)
    worse = compare_readings(readings, folders / "a").readers["liver"]
    assert (worse.verdict, worse.n) == ("below", 6)
    write_agreement(result, tmp_path / "x")
    assert "above the readers" in (tmp_path / "x" / "agreement.html").read_text()
    assert json.loads((tmp_path / "x" / "agreement.json").read_text())["readers"]["liver"]["verdict"] == "above"
    with pytest.raises(OutputError):
        write_agreement(result, tmp_path / "x")


def test_a_reader_who_read_twice(folders: Path) -> None:
    readings = [Reading("A", folders / "r"), Reading("A", folders / "c"), Reading("B", folders / "b")]
    result = compare_readings(readings, folders / "a")
    kinds = {(p.first, p.second): p.kind for p in result.pairs}
    assert kinds["A", "A (2)"] == "intra" and kinds["A (2)", "B"] == "inter"
    liver = result.readers["liver"]
    assert liver.intra == pytest.approx(8 / 9, abs=0.001)
    assert liver.inter == pytest.approx((8 / 9 + 1) / 2, abs=0.001)
    row = next(r for r in result.rows if (r.first, r.second, r.key) == ("A", "A (2)", "liver"))
    assert abs(row.volumes_ml.bias) < 0.05
    with pytest.raises(SettingError, match="two readers or more"):
        compare_readings(readings[:1])
