"""`viscera segment` as a user types it, with a network whose answer is known."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from tests.conftest import REPOSITORY
from tests.io.dicom_phantom import dicom_series
from tests.phantoms import nifti_file, stored_as
from tests.workflow.conftest import BANDS, BandNetwork, phantom_hu
from typer.testing import CliRunner

from viscera.cli.main import app
from viscera.model.build import build
from viscera.model.checkpoint import save_checkpoint
from viscera.model.config import packaged_config
from viscera.taxonomy import taxonomy
from viscera.workflow.outputs import is_whole

GRID = np.diag([3.0, 3.0, 3.0, 1.0])
FILES = {
    "segmentation.nii.gz", "findings.json", "findings.csv", "slicer.ctbl", "itksnap.txt", "preview.png", "run.json",
}  # fmt: skip


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> BandNetwork:
    """The closed-form network in the place of any model that is asked for."""
    bands = BandNetwork()
    monkeypatch.setattr("viscera.model.store.load_model", lambda name: bands)
    return bands


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and a terminal wide enough that no line is broken."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    return tmp_path


@pytest.fixture
def scan(here: Path) -> Path:
    return nifti_file(here / "ct.nii.gz", phantom_hu(), GRID)


@pytest.fixture
def cohort(here: Path) -> Path:
    """Two scans, and between them a file that is none."""
    (here / "scans").mkdir()
    for name in ("a", "c"):
        nifti_file(here / "scans" / f"{name}.nii.gz", phantom_hu(), GRID)
    (here / "scans" / "b.nii.gz").write_bytes(b"not an image")
    return here / "scans"


def viscera(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def words(done: Any) -> str:
    """What was printed, in one line."""
    return " ".join(done.output.split())


def files(folder: Path) -> set[str]:
    """Everything in a folder, hidden files too."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")} if folder.exists() else set()


def labels(folder: Path) -> Any:
    return np.asarray(nib.load(folder / "segmentation.nii.gz").dataobj)


def record(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return data


# --- one scan --------------------------------------------------------------------------------------------------------


def test_one_scan_gets_all_its_files_and_a_table(network, scan, here):
    done = viscera("segment", scan)
    assert done.exit_code == 0, done.output
    assert files(here / "ct_viscera") == FILES
    assert is_whole(here / "ct_viscera")
    assert "UNTRAINED" in done.output and "Written to ct_viscera/" in done.output
    assert "1 found, the largest 7 mm in the right kidney" in words(done)  # two voxels of 3 mm, diagonally: 3√2 + 3
    counts = np.bincount(labels(here / "ct_viscera").ravel())
    assert counts[taxonomy()["kidney_tumor"].id] == 8 and counts[taxonomy()["left_kidney"].id] == 4 * 5 * 7


def test_a_dicom_folder_is_one_scan(network, here):
    array, affine = stored_as(phantom_hu(), GRID, (0, 1, 2), (True, True, False))
    dicom_series(here / "series", array, affine)
    done = viscera("segment", here / "series", "-o", here / "out", "--classes", "liver")
    assert done.exit_code == 0, done.output
    expected = (phantom_hu() == 100)[::-1, ::-1]
    assert np.array_equal(labels(here / "out") == taxonomy()["liver"].id, expected)
    assert record(here / "out")["input"]["format"] == "DICOM"


def test_a_study_with_a_folder_for_each_series_is_one_scan_where_a_series_is_named(network, here):
    """As scanners export it. Without --series each folder is a scan; of two studies each has its own series."""
    array, affine = stored_as(phantom_hu(), GRID, (0, 1, 2), (True, True, False))
    for name in ("plain", "venous"):
        describe = partial(setattr_of_slice, SeriesDescription=name)
        dicom_series(here / "study" / name, array, affine, edit=describe, series_uid=f"1.2.{len(name)}")
    ask = ("segment", here / "study", "-o", here / "out", "-c", "liver", "--no-preview")
    for wanted in ("2", "venous"):
        done = viscera(*ask, "--series", wanted, "--overwrite")
        assert done.exit_code == 0, done.output
        assert record(here / "out")["input"]["path"] == str(here / "study")
        assert record(here / "out")["request"]["series"] == wanted
    shutil.rmtree(here / "out")
    done = viscera(*ask, "--series", "late")
    assert done.exit_code == 2 and "2 CT venous" in words(done)
    assert table(viscera(*ask)) == {"plain": "done", "venous": "done"}

    other = partial(setattr_of_slice, SeriesDescription="venous", StudyInstanceUID="1.2.9")
    dicom_series(here / "study" / "other", array, affine, edit=other, series_uid="1.2.99")
    done = viscera(*ask, "--series", "venous", "--overwrite")
    assert table(done).items() >= {"other": "done", "plain": "failed", "venous": "done"}.items()


def setattr_of_slice(dataset: Any, z: int, **values: str) -> None:
    for keyword, value in values.items():
        setattr(dataset, keyword, value)


def test_only_the_classes_asked_for_are_found(network, scan, here):
    done = viscera("segment", scan, "-o", here / "out", "--classes", 'liver,"left kidney"', "--masks")
    assert done.exit_code == 0, done.output
    ids = {taxonomy()[key].id for key in ("liver", "left_kidney")}
    assert set(np.unique(labels(here / "out"))) == {0, *ids}
    assert files(here / "out" / "masks") == {"liver.nii.gz", "left_kidney.nii.gz"}


def test_masks_are_whole_where_the_label_map_is_painted_over(network, scan, here):
    assert viscera("segment", scan, "-o", here / "out", "--masks").exit_code == 0
    assert files(here / "out" / "masks") == {f"{key}.nii.gz" for key in BANDS}
    tumour = nib.load(here / "out" / "masks" / "kidney_tumor.nii.gz")
    assert tumour.get_data_dtype() == np.uint8 and int(np.asarray(tumour.dataobj).sum()) == 8
    for key in BANDS:
        mask = np.asarray(nib.load(here / "out" / "masks" / f"{key}.nii.gz").dataobj) == 1
        assert mask[labels(here / "out") == taxonomy()[key].id].all()


def test_probability_maps_are_written_when_asked_for(network, scan, here):
    assert viscera("segment", scan, "-o", here / "out", "--probabilities", "--no-preview").exit_code == 0
    assert files(here / "out" / "probabilities") == {"kidney_tumor.nii.gz"}
    done = viscera("segment", scan, "-o", here / "no", "--probabilities", "-c", "liver")
    assert done.exit_code == 2 and "tumours and cysts" in words(done)


def test_without_rules_a_stray_piece_stays(network, here):
    """A voxel of liver far from the liver: the rules take it away, --no-post leaves it."""
    hu = phantom_hu()
    hu[5, 20, 4] = 100
    scan = nifti_file(here / "ct.nii.gz", hu, GRID)
    for name, options in {"with": (), "without": ("--no-post",)}.items():
        assert viscera("segment", scan, "-o", here / name, "--no-preview", *options).exit_code == 0
    assert (labels(here / "with")[5, 20, 4], labels(here / "without")[5, 20, 4]) == (0, taxonomy()["liver"].id)
    assert record(here / "without")["request"]["post"] is False


def test_options_reach_the_request(network, scan, here):
    done = viscera(
        "segment", scan, "-o", here / "out", "--no-crop", "--no-preview", "--force", "--overlap", 0.25,
        "--precision", "fp32", "--device", "cpu",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    asked = record(here / "out")["request"]
    assert {key: asked[key] for key in ("crop", "force", "overlap", "precision", "device")} == {
        "crop": False, "force": True, "overlap": 0.25, "precision": "fp32", "device": "cpu",
    }  # fmt: skip
    assert files(here / "out") == FILES - {"preview.png"}


def test_quiet_prints_nothing(network, scan, here):
    assert viscera("segment", scan, "-q", "--no-preview").output == ""


def test_a_packaged_model_goes_all_the_way(here):
    """The smallest real architecture on a tiny scan, untrained: every part of the path is the true one."""
    scan = nifti_file(here / "ct.nii.gz")
    done = viscera("segment", scan, "-o", here / "out", "-c", "liver", "--no-preview", "--model", "lite")
    assert done.exit_code == 0, done.output
    assert record(here / "out")["model"]["name"] == "lite"
    assert labels(here / "out").shape == nib.load(scan).shape


def test_the_starter_runs_by_default_where_the_package_has_its_weights(here, monkeypatch):
    """A small stand-in that calls itself trained."""
    monkeypatch.setattr("viscera.model.store.weights_folder", lambda: here / "package")
    config = packaged_config("lite")
    config = replace(config, name="starter", trained=True, backbone_settings={"channels": (16, 32)}, classes=("liver",))
    with torch.random.fork_rng(devices=[]):
        stand_in = build(config, torch.ones(1, config.text_dim))
    save_checkpoint(stand_in, here / "package" / "starter.safetensors", half=True)
    scan = nifti_file(here / "ct.nii.gz")
    done = viscera("segment", scan, "-o", here / "out", "--no-preview")
    assert done.exit_code == 0, done.output
    assert "UNTRAINED" not in done.output
    model = record(here / "out")["model"]
    assert (model["name"], model["trained"]) == ("starter", True)


def test_without_the_starter_the_untrained_network_runs_and_says_so(here, monkeypatch):
    monkeypatch.setattr("viscera.model.store.weights_folder", lambda: here / "package")
    done = viscera("segment", nifti_file(here / "ct.nii.gz"), "-o", here / "out", "-c", "liver", "--no-preview")
    assert done.exit_code == 0 and "UNTRAINED" in done.output
    assert record(here / "out")["model"]["name"] == "lite"


def test_the_demo_ends_with_a_table_the_picture_and_the_time(network, scan, here, monkeypatch):
    monkeypatch.setattr("viscera.workflow.demo.fetch_demo_scan", lambda: scan)
    done = viscera("demo", "-o", "demo")
    assert done.exit_code == 0, done.output
    lines = done.output.rstrip().splitlines()
    assert lines[-2].split() == ["Picture", "demo/preview.png"] and (here / "demo" / "preview.png").is_file()
    assert re.fullmatch(r"Time     \d+\.\d s from the scan to the files", lines[-1])
    liver = next(line.split() for line in lines if line.split()[:1] == ["liver"])
    assert float(liver[1]) == pytest.approx(27.0, abs=0.1)  # 11 x 13 x 7 voxels of 27 mm3
    assert "adults have 500-4500 ml" in done.output


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_an_earlier_result_is_kept_unless_overwrite(network, scan, here):
    assert viscera("segment", scan, "--no-preview", "-c", "liver").exit_code == 0
    before = (here / "ct_viscera" / "run.json").read_bytes()
    refused = viscera("segment", scan, "--no-preview")
    assert refused.exit_code == 2
    assert "already holds a result" in words(refused) and "--overwrite" in words(refused)
    assert (here / "ct_viscera" / "run.json").read_bytes() == before
    assert viscera("segment", scan, "--no-preview", "--overwrite").exit_code == 0
    assert record(here / "ct_viscera")["request"]["classes"] == list(BANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "livver"], "Did you mean liver"),
        (["--classes", "spleen"], "does not have: spleen"),
        (["--classes", ""], "No class was named"),
        (["--overlap", "1"], "at least 0 and less than 1"),
        (["--device", "toaster"], "'toaster' cannot be used here"),
        (["--precision", "int8"], "'int8' is not one of"),
        (["--threads", "0"], "Invalid value for '--threads'"),
    ],
)
def test_a_wrong_option_is_told_before_any_scan_is_read(network, scan, here, monkeypatch, arguments, message):
    monkeypatch.setattr("viscera.workflow.scan.read_volume", lambda *_, **__: pytest.fail("the scan was read"))
    done = viscera("segment", scan, "-o", here / "out", *arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())
    assert not (here / "out").exists()


def test_an_unknown_model_is_refused_with_the_nearest_names(scan, here):
    done = viscera("segment", scan, "--model", "lit")
    assert done.exit_code == 2
    assert "There is no model 'lit'. Did you mean lite" in words(done)
    done = viscera("segment", scan, "--model", "xyz")
    assert done.exit_code == 2
    assert "There are:" in words(done) and "swin_unetr" in done.output


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("nowhere.nii.gz", None, "nowhere.nii.gz"), ("broken.nii.gz", b"not an image", "broken.nii.gz")],
)
def test_a_scan_that_cannot_be_read_is_named(network, here, name, content, message):
    if content:
        (here / name).write_bytes(content)
    done = viscera("segment", here / name, "-o", here / "out")
    assert done.exit_code == 2
    assert message in words(done) and "Traceback" not in done.output
    assert not (here / "out").exists()


def test_an_output_that_cannot_be_written_is_told_before_the_network_runs(network, scan, here, monkeypatch):
    monkeypatch.setattr(network, "encode", lambda image: pytest.fail("the network ran"))
    (here / "file").write_text("mine")
    for output in (here / "file", here / "file" / "out"):
        done = viscera("segment", scan, "-o", output)
        assert done.exit_code == 2, done.output
        assert str(output) in words(done) and "--output" in words(done)
    assert (here / "file").read_text() == "mine"


def test_a_protected_folder_is_told_before_the_network_runs(network, scan, here, monkeypatch):
    """Permissions do not bind every user, so the system's answer is put in its place."""
    monkeypatch.setattr(network, "encode", lambda image: pytest.fail("the network ran"))
    real = os.access
    monkeypatch.setattr("os.access", lambda path, mode, **more: Path(path) != here and real(path, mode, **more))
    done = viscera("segment", scan, "-o", here / "deep" / "out")
    assert done.exit_code == 2, done.output
    assert f"nothing may be written in {here}" in words(done) and str(here / "deep" / "out") in words(done)
    assert not (here / "deep").exists()


def full_disk(*arguments: object, **more: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "where",
    [
        "viscera.io.atomic.os.replace",  # after the first file
        "viscera.io.write.nifti_bytes",  # in the label map
        "viscera.report.findings.findings_csv",
        "matplotlib.figure.Figure.savefig",
        "viscera.workflow.outputs.file_sizes",
        "viscera.workflow.outputs.tempfile.mkdtemp",
    ],
)
@pytest.mark.parametrize("earlier", [False, True])
def test_a_full_disk_is_told_and_leaves_nothing_half_written(network, scan, here, monkeypatch, where, earlier):
    out = here / "out"
    if earlier:
        assert viscera("segment", scan, "-o", out, "-c", "liver").exit_code == 0
    before = {name: (out / name).read_bytes() for name in files(out)}
    if where.endswith("file_sizes"):
        monkeypatch.setattr("viscera.workflow.scan.file_sizes", full_disk)
    else:
        monkeypatch.setattr(where, full_disk)
    done = viscera("segment", scan, "-o", out, "--overwrite")
    monkeypatch.undo()
    assert done.exit_code == 2, repr(done.exception)
    assert "No space left on device" in words(done) and "Written to" not in done.output
    assert str(out) in words(done) and ".unfinished" not in done.output
    assert {name: (out / name).read_bytes() for name in files(out)} == before
    assert out.exists() == earlier


# --- many scans ------------------------------------------------------------------------------------------------------


def table(done: Any) -> dict[str, str]:
    """Scan -> how it went, from the printed table."""
    lines = done.output.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split()[:2] == ["scan", "result"])
    rows = [line.split() for line in lines[head + 1 :]]
    return {row[0]: row[1] for row in rows if len(row) > 2}


def test_a_broken_scan_does_not_stop_the_others(network, cohort, here):
    done = viscera("segment", cohort, "-o", here / "out", "--no-preview")
    assert done.exit_code == 1, done.output
    assert table(done) == {"a": "done", "b": "failed", "c": "done"}
    assert "b: " in done.output and "b.nii.gz" in done.output
    assert {path.name for path in (here / "out").iterdir()} == {"a", "c"}
    assert is_whole(here / "out" / "a") and is_whole(here / "out" / "c")


def test_several_named_scans_are_a_cohort_too(network, cohort, here):
    done = viscera("segment", cohort / "a.nii.gz", cohort / "c.nii.gz", "--no-preview")
    assert done.exit_code == 0, done.output
    assert table(done) == {"a": "done", "c": "done"}
    assert is_whole(here / "viscera_out" / "c")


def test_resume_keeps_whole_results_and_does_half_ones_again(network, cohort, here):
    again = ("segment", cohort, "-o", here / "out", "--no-preview", "--resume")
    assert table(viscera(*again)) == {"a": "done", "b": "failed", "c": "done"}
    whole, half = here / "out" / "a" / "segmentation.nii.gz", here / "out" / "c" / "segmentation.nii.gz"
    written, answer = whole.stat().st_mtime_ns, half.read_bytes()
    half.write_bytes(answer[:100])  # cut short

    done = viscera(*again)
    assert table(done) == {"a": "skipped", "b": "failed", "c": "done"}
    assert whole.stat().st_mtime_ns == written
    assert half.read_bytes() == answer

    nifti_file(cohort / "b.nii.gz", phantom_hu(), GRID)  # mended
    done = viscera(*again)
    assert done.exit_code == 0
    assert table(done) == {"a": "skipped", "b": "done", "c": "skipped"}


def test_resume_does_a_scan_again_that_was_asked_for_otherwise(network, scan, here):
    first = ("segment", scan, "-o", here / "out", "--no-preview", "--resume")
    assert viscera(*first).exit_code == 0
    done = viscera(*first)
    assert done.exit_code == 0 and "already holds the whole result of this request: skipped" in words(done)
    done = viscera(*first, "--classes", "liver")
    assert "skipped" not in done.output and record(here / "out")["request"]["classes"] == ["liver"]
    done = viscera(*first, "--classes", "liver", "--masks")
    assert "skipped" not in done.output and (here / "out" / "masks" / "liver.nii.gz").is_file()


def test_without_resume_earlier_results_are_kept(network, cohort, here):
    viscera("segment", cohort, "-o", here / "out", "--no-preview")
    done = viscera("segment", cohort, "-o", here / "out", "--no-preview")
    assert done.exit_code == 1
    assert table(done) == {"a": "failed", "b": "failed", "c": "failed"}
    assert "already holds a result" in words(done)


def test_results_that_lie_among_the_scans_are_not_taken_for_scans(network, cohort, here):
    (cohort / "b.nii.gz").unlink()
    for _ in range(2):
        done = viscera("segment", cohort, "-o", cohort / "out", "--no-preview", "--masks", "--resume")
        assert done.exit_code == 0, done.output
        assert set(table(done)) == {"a", "c"}
    assert set(table(done).values()) == {"skipped"}


def test_a_folder_without_scans_and_a_scan_named_twice(network, scan, here):
    (here / "empty").mkdir()
    for arguments, message in ((["empty"], "holds no scans"), ([scan, scan], "was named twice")):
        done = viscera("segment", *arguments)
        assert done.exit_code == 2 and message in words(done)


# --- being stopped ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["viscera.workflow.scan.predict", "viscera.workflow.scan.write_findings"])
def test_ctrl_c_ends_with_130_and_keeps_what_was_whole(network, cohort, here, monkeypatch, where):
    """The second scan is stopped while the network runs, or while its result is being written."""
    import viscera.workflow.scan as scan_module

    name, calls = where.rsplit(".", 1)[1], []
    real = getattr(scan_module, name)

    def second_time(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    monkeypatch.setattr(where, second_time)
    done = viscera("segment", cohort, "-o", here / "out", "--no-preview")
    assert done.exit_code == 130
    assert "Stopped. Nothing half-written was left behind." in done.output
    assert files(here / "out") == {"a", *(f"a/{file}" for file in FILES - {"preview.png"})}


@pytest.mark.parametrize(
    ("size", "told"),
    [("much", "'much' is not a size of memory; write it as 2GB"), ("100MB", "needs at least")],
)
def test_a_limit_that_cannot_be_kept_is_told_with_the_way_out(network, scan, size, told):
    done = viscera("segment", scan, "-o", "out", "--max-memory", size)
    assert done.exit_code == 2 and told in words(done)
    assert not Path("out").exists()


def test_a_model_that_finds_the_region_is_named_in_the_record(network, scan):
    assert viscera("segment", scan, "-o", "out", "-c", "left kidney", "--coarse", "starter").exit_code == 0
    told = record(Path("out"))
    assert told["request"]["coarse_sha256"] and told["used"]["region_voxels"]


STOPPABLE = """
    import sys, time
    import viscera.model.store
    from tests.workflow.conftest import BandNetwork
    from viscera.cli.main import main

    class Slow(BandNetwork):
        def encode(self, image):
            print("the network runs", flush=True)
            time.sleep(60)

    viscera.model.store.load_model = lambda name: Slow()
    sys.argv = ["viscera", "segment", "ct.nii.gz", "-o", "out", "--quiet"]
    main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_program_at_once_with_130(scan, here, number):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(STOPPABLE)],
        cwd=here, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Tests that a shell started in the background ignore Ctrl-C, and what they start would, too.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "the network runs\n"
        process.send_signal(number)
        sent = time.monotonic()
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert time.monotonic() - sent < 10
    assert process.returncode == 130
    assert "Stopped." in errors and "Traceback" not in errors
    assert files(here) == {"ct.nii.gz"}


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_shows_examples_and_every_option(here):
    done = viscera("segment", "--help")
    assert done.exit_code == 0
    text = words(done)
    assert "Examples" in text and "viscera segment scan.nii.gz" in text and "--series 2" in text
    for option in ("--classes", "--masks", "--no-post", "--resume", "--overwrite", "--force", "--quiet", "--threads"):
        assert option in text
    assert "viscera demo -o demo/" in words(viscera("demo", "--help"))


def test_no_scan_at_all_is_a_mistake(here):
    done = viscera("segment")
    assert done.exit_code == 2 and "Missing argument" in words(done)
