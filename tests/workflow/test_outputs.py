"""A result folder is whole, or does not look whole; and what is not ours stays."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from viscera.errors import OutputError
from viscera.report.manifest import SCHEMA
from viscera.workflow.outputs import file_sizes, is_whole, refuse_existing, staged


def write(folder: Path, **files: str) -> None:
    """A result of these files (`a` is a.txt) written as a run does it."""
    with staged(folder, overwrite=True) as work:
        for name, text in files.items():
            (work / f"{name}.txt").write_text(text)
        (work / "run.json").write_text(json.dumps({"schema": SCHEMA, "outputs": file_sizes(work)}))


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != "run.json"}


def test_a_result_is_whole_until_a_file_is_gone_or_cut(tmp_path):
    write(tmp_path / "out", a="12345", z="1")
    assert is_whole(tmp_path / "out") and contents(tmp_path / "out") == {"a.txt": "12345", "z.txt": "1"}
    (tmp_path / "out" / "a.txt").write_text("123")
    assert not is_whole(tmp_path / "out")
    assert not is_whole(tmp_path / "nowhere")


@pytest.mark.parametrize("moves", range(3))
def test_a_run_killed_while_moving_in_never_looks_whole(tmp_path, monkeypatch, moves):
    """Three files are moved; the process dies before each of them in turn. The record comes last."""
    write(tmp_path / "out", a="old", z="old")
    real, done = os.replace, []

    def dying(source: Path, target: Path) -> None:
        if len(done) == moves:
            raise SystemExit
        done.append(Path(target).name)
        real(source, target)

    monkeypatch.setattr("viscera.workflow.outputs.os.replace", dying)
    with pytest.raises(SystemExit):
        write(tmp_path / "out", a="new", z="new")
    assert done == ["a.txt", "z.txt"][:moves]
    assert not is_whole(tmp_path / "out") and not (tmp_path / "out" / "run.json").exists()
    assert not list((tmp_path / "out").glob(".unfinished*"))


def test_files_of_the_earlier_result_go_and_foreign_ones_stay(tmp_path):
    write(tmp_path / "out", a="1", b="2")
    (tmp_path / "out" / "notes.md").write_text("mine")
    write(tmp_path / "out", b="3")
    assert contents(tmp_path / "out") == {"b.txt": "3", "notes.md": "mine"}


def test_another_programs_run_json_does_not_say_what_to_delete(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scans").write_text("mine")
    (tmp_path / "out" / "run.json").write_text('{"outputs": {"scans": 4}}')
    with pytest.raises(OutputError, match="already holds"):
        refuse_existing(tmp_path / "out", overwrite=False)
    write(tmp_path / "out", a="1")
    assert contents(tmp_path / "out") == {"a.txt": "1", "scans": "mine"}


def test_folders_made_for_a_result_that_failed_are_removed_and_others_stay(tmp_path):
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "new" / "deep" / "out", tmp_path / "there"):
        with pytest.raises(ZeroDivisionError), staged(folder, overwrite=False) as work:
            (work / "a.txt").write_text("half")
            raise ZeroDivisionError
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
