"""The command train, as people use it."""

from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console
from tests.train.conftest import TINY, as_toml
from typer.testing import CliRunner

from viscera.cli import train as command
from viscera.cli.main import app
from viscera.model.checkpoint import load_checkpoint
from viscera.train.loop import LAST, STATE, Report, Tally


@pytest.fixture
def train(sets, cache, tmp_path, monkeypatch):
    """A function that calls `viscera train` on the tiny recipe and gives the result."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(as_toml(TINY))
    places = [part for key in sets for part in ("--data", f"{key}={sets[key]}")]

    def call(*arguments, code=0):
        fixed = ["train", "tiny.toml", *places, "--cache", str(cache), "--device", "cpu"]
        result = CliRunner().invoke(app, [*fixed, *arguments])
        assert result.exit_code == code, result.output
        return result

    return call


def test_a_dry_run_tells_the_plan_and_trains_nothing(train, tmp_path):
    told = train("--dry-run").output
    assert "tiny: lite at 10 x 10 x 10 mm, from random weights" in told
    assert "amos: 2 scans to learn from, 0 to validate on" in told
    rows = {line.split()[0]: line.split()[1:] for line in told.splitlines() if line.strip()}
    assert rows["liver"] == ["2", "2"] and rows["spleen"] == ["2"] and rows["liver_tumor"] == ["2"]
    assert "6 steps of 2 patches of 16 x 16 x 16" in told and "GB" in told
    assert not (tmp_path / "runs").exists()


def test_it_trains_and_says_where_the_model_lies(train, tmp_path):
    result = train("--steps", "4")
    assert result.stdout.strip() == "runs/tiny/last.safetensors"
    assert "step 4/4" in result.stderr and "patches/s" in result.stderr and "data wait" in result.stderr
    assert load_checkpoint(tmp_path / "runs/tiny" / LAST).config.training["steps"] == 4
    rows = list(csv.DictReader((tmp_path / "runs/tiny/classes.csv").read_text().splitlines()))
    assert {row["dataset"] for row in rows} == {"amos", "lits"}
    assert not [row for row in rows if row["dataset"] == "lits" and row["class"] not in ("liver", "liver_tumor")]


def test_a_stopped_run_exits_with_130_and_goes_on(train, tmp_path, monkeypatch):
    asked = []

    class Flag:
        def __init__(self, console) -> None: ...

        def __enter__(self):
            return lambda: asked.append(1) or len(asked) == 2

        def __exit__(self, *error) -> None: ...

    with monkeypatch.context() as patch:
        patch.setattr(command, "_stop_flag", Flag)
        assert "Stopped at step 2" in train(code=130).stderr
    assert "Going on at step 2 of 6" in train().stderr
    assert load_checkpoint(tmp_path / "runs/tiny" / LAST).config.training["steps"] == 6


def test_overwrite_forgets_a_run_and_nothing_else(train, tmp_path):
    train("--steps", "2")
    assert "another recipe" in train("--steps", "3", code=2).output
    train("--steps", "3", "--overwrite")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_bytes(b"cat")
    assert "holds no training run" in train("-o", "photos", "--overwrite", code=2).output
    assert (tmp_path / "photos/cat.jpg").exists() and not (tmp_path / "photos" / STATE).exists()


def test_the_live_table_shows_every_class_of_all_sets():
    report = Report(
        step=50,
        steps=200,
        loss=0.75,
        learning_rate=1e-3,
        gradient_length=1.0,
        patches_per_s=2.5,
        wait_share=0.04,
        remaining_s=7260.0,
        classes={
            ("amos", "liver"): Tally(patches=6, drawn=3, dice=1.8),
            ("lits", "liver"): Tally(patches=4, drawn=1, dice=0.6),
            ("lits", "liver_tumor"): Tally(patches=4),
        },
    )
    written = io.StringIO()
    Console(file=written, width=120).print(command._live_table(report, {"liver": 0.5}))
    lines = [line.split() for line in written.getvalue().splitlines()]
    assert " ".join(lines[0]) == "step 50/200 loss 0.750 2.50 patches/s data wait 4% left 2 h 01 min"
    assert ["liver", "10", "0.60", "0.50"] in lines, "(1.8 + 0.6) / 4 patches in which it is drawn"
    assert ["liver_tumor", "4", "-", "-"] in lines


def test_a_wrong_set_is_named(train, tmp_path):
    result = CliRunner().invoke(app, ["train", "tiny.toml", "--data", "amos"])
    assert result.exit_code == 2 and "write SET=FOLDER" in result.output
    result = CliRunner().invoke(app, ["train", "tiny.toml"])
    assert result.exit_code == 2 and "names no data set" in result.output
