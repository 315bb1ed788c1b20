from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from viscera.cli.main import app
from viscera.data.catalogue import dataset_keys

run = CliRunner()


def call(*arguments, code=0):
    result = run.invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    call("phantom", folder, "--set", "lits", "--set", "chaos", "-n", 1, "--spacing-mm", 6)
    return folder


def test_list_names_every_table():
    assert [row["key"] for row in json.loads(call("data", "list", "--json"))] == list(dataset_keys())
    assert "btcv" in call("data", "list")


def test_show_tells_what_is_annotated_and_how():
    told = json.loads(call("data", "show", "kits", "--json"))
    assert told["groups"][0]["annotated"] == ["right_kidney", "left_kidney", "kidney_tumor", "kidney_cyst"]
    text = call("data", "show", "kits")
    assert "KiTS19 does not draw cysts" in text and "segmentation{ext}" in text
    assert "one of colon, rectum" in call("data", "show", "totalsegmentator")


def test_show_takes_ones_own_table(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('title = "t"\nimage = "i/{case}"\nlabel = "l/{case}"\n[labels]\n1 = "liver"\n')
    assert "annotated: liver" in call("data", "show", path)


def test_verify_says_all_is_well_and_exits_with_0(phantoms):
    assert "All 2 cases can be used" in call("data", "verify", f"lits={phantoms}/lits", f"chaos={phantoms}/chaos")


def test_verify_lists_faults_as_text_and_json_and_exits_with_1(phantoms, tmp_path):
    (phantoms / "lits/volume-7.nii").touch()
    out = tmp_path / "faults.json"
    text = call("data", "verify", f"lits={phantoms}/lits", "--json", out, code=1)
    assert "error   lits/7: the image has no label" in text and "1 of 2 cases have errors" in text
    assert json.loads(out.read_text())["faults"][0]["check"] == "pair"
    assert json.loads(call("data", "verify", f"lits={phantoms}/lits", "--json", "-", code=1))["errors"] == 1
    (phantoms / "lits/volume-7.nii").unlink()


def test_cache_fills_and_finds(phantoms, tmp_path):
    arguments = ("data", "cache", f"lits={phantoms}/lits", "-o", tmp_path / "cache", "--spacing-mm", 6)
    assert "1 cases cached, 0 were there already, 0 failed" in call(*arguments)
    assert "0 cases cached, 1 were there already, 0 failed" in call(*arguments)


def test_cache_exits_with_1_where_a_case_fails(phantoms, tmp_path):
    (phantoms / "lits/volume-9.nii").write_bytes(b"no image")
    (phantoms / "lits/segmentation-9.nii").write_bytes(b"no image")
    out = call("data", "cache", f"lits={phantoms}/lits", "-o", tmp_path / "cache", code=1)
    assert "lits/9:" in out and "1 failed" in out
    for name in ("volume", "segmentation"):
        (phantoms / f"lits/{name}-9.nii").unlink()


def test_what_is_no_set_is_refused(tmp_path):
    assert "neither SET=FOLDER nor a folder" in call("data", "verify", "lits", code=2)
    assert "no data-set table 'litts'" in call("data", "verify", f"litts={tmp_path}", code=2)


def test_phantom_does_not_write_over_anything(phantoms):
    assert "exists already" in call("phantom", phantoms, "--set", "lits", code=2)
