"""The record of a run: what it holds, whether it is true, and whether it survives being written and read."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.io.dicom_phantom import dicom_series
from tests.phantoms import body, nifti_file, stored_as
from tests.workflow.conftest import BANDS, BandNetwork, phantom_hu
from viscera.infer.predict import InferenceSettings
from viscera.model.checkpoint import model_sha256
from viscera.report.as_json import plain, write_json
from viscera.report.manifest import PACKAGES, machine, peak_memory_mb, versions
from viscera.workflow.cohort import Case, is_done
from viscera.workflow.outputs import file_sizes, read_record
from viscera.workflow.scan import SaveSettings, SegmentSettings, file_state, segment_scan

KEYS = {
    "schema", "started", "input", "model", "request", "used", "rules", "warnings", "timings_s", "peak_memory_mb",
    "versions", "machine", "outputs",
}  # fmt: skip
FP32 = SegmentSettings(inference=InferenceSettings(precision="fp32", device="cpu"))


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """The phantom as a scanner stores it: left, back, head."""
    array, affine = stored_as(phantom_hu(), np.diag([3.0, 3, 3, 1]), (0, 1, 2), (True, True, False))
    return nifti_file(tmp_path / "ct.nii.gz", array, affine)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_run_json_holds_everything(scan, tmp_path):
    network = BandNetwork()
    out = segment_scan(scan, network, FP32).save(tmp_path / "out")
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert set(record) == KEYS
    assert record["schema"] == "viscera run 1"
    assert record["model"] == {
        "name": "bands",
        "sha256": model_sha256(network),
        "trained": False,
        "licence": network.config.licence,
        "source": network.config.source,
    }
    assert record["request"]["classes"] == list(BANDS)
    used = {"precision": "fp32", "overlap": None, "device": "cpu", "runtime": "torch"}
    assert record["used"] == used | {"region_voxels": [30, 26, 22], "window_voxels": None, "max_memory_bytes": None}
    assert set(record["timings_s"]) == {
        "Reading", "Preparing", "Network", "Rules", "Findings", "Writing", "Picture",
    }  # fmt: skip
    assert all(seconds >= 0 for seconds in record["timings_s"].values())
    assert "UNTRAINED" in record["warnings"][0]
    assert datetime.fromisoformat(record["started"]).utcoffset() is not None


def test_the_input_is_described_as_it_is_stored(scan, tmp_path):
    record = segment_scan(scan, BandNetwork(), FP32).record["input"]
    stored = nib.load(scan)
    assert record["sha256"] == sha256(scan)
    assert (record["path"], record["format"], record["orientation"]) == (str(scan), "NIfTI", "LPS")
    assert tuple(record["shape"]) == stored.shape and record["spacing_mm"] == [3, 3, 3]
    np.testing.assert_array_equal(record["affine"], stored.affine)


def test_one_other_byte_gives_another_hash(scan):
    before = segment_scan(scan, BandNetwork(), FP32).record["input"]["sha256"]
    changed = phantom_hu()
    changed[0, 0, 0] = -999
    nifti_file(scan, changed, np.diag([3.0, 3, 3, 1]))
    after = segment_scan(scan, BandNetwork(), FP32).record["input"]["sha256"]
    assert before != after == sha256(scan)


def test_a_dicom_series_is_told_with_its_modality(tmp_path):
    record = segment_scan(dicom_series(tmp_path / "series"), BandNetwork(), FP32).record["input"]
    assert (record["format"], record["modality"], record["orientation"]) == ("DICOM", "CT", "LPS")
    assert len(record["sha256"]) == 64 and record["shape"] == [*body().shape]


def test_the_outputs_are_listed_with_their_true_sizes(scan, tmp_path):
    out = segment_scan(scan, BandNetwork(), FP32).save(tmp_path / "out", SaveSettings(masks=True))
    outputs = json.loads((out / "run.json").read_text(encoding="utf-8"))["outputs"]
    there = {name: size for name, size in file_sizes(out).items() if name != "run.json"}
    assert outputs == there and len(outputs) == 6 + len(BANDS)


def test_rules_tell_what_they_changed(tmp_path):
    """A second, far smaller piece of liver is taken away by its rule: 1 voxel of 27 cubic millimetres."""
    hu = phantom_hu()
    hu[5, 20, 4] = 100
    scan = nifti_file(tmp_path / "ct.nii", hu, np.diag([3.0, 3, 3, 1]))
    notes = segment_scan(scan, BandNetwork(), FP32).record["rules"]
    liver = [note for note in notes if note["key"] == "liver"]
    assert sum(note["removed_ml"] for note in liver) == pytest.approx(0.027)
    assert segment_scan(scan, BandNetwork(), SegmentSettings(post=False)).record["rules"] == []


def test_a_record_is_the_same_after_writing_and_reading(scan, tmp_path):
    record = segment_scan(scan, BandNetwork(), FP32).record
    write_json(record, tmp_path / "run.json")
    assert read_record(tmp_path) == plain(record)
    assert plain(plain(record)) == plain(record)


def test_a_record_says_whether_the_same_was_asked_before(scan, tmp_path):
    """The request in run.json, read back, equals the next one; not after the scan or a setting changed."""
    network, case = BandNetwork(), Case("ct", scan, tmp_path / "out")
    segment_scan(scan, network, FP32).save(case.output)
    assert is_done(case, network, FP32, SaveSettings())
    assert not is_done(case, network, FP32, SaveSettings(masks=True))
    assert not is_done(case, network, SegmentSettings(post=False, inference=FP32.inference), SaveSettings())
    other = BandNetwork()
    other.weight.data += 1
    assert not is_done(case, other, FP32, SaveSettings())
    scan.write_bytes(scan.read_bytes() + b"\0")
    assert not is_done(case, network, FP32, SaveSettings())


def test_a_records_damage_is_no_record(tmp_path):
    for text in ("", "{", "[1]", '"text"', "\x80"):
        (tmp_path / "run.json").write_text(text, encoding="latin-1")
        assert read_record(tmp_path) is None
    assert read_record(tmp_path / "nowhere") is None


def test_the_state_of_a_folder_counts_all_its_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_bytes(b"123")
    (tmp_path / "two").write_bytes(b"45")
    state = file_state(tmp_path)
    assert (state["files"], state["bytes"], state["path"]) == (2, 5, str(tmp_path))
    assert file_state(tmp_path / "two")["bytes"] == 2


def test_versions_and_machine_are_this_ones():
    found = versions()
    assert set(found) == {"python", *PACKAGES}
    assert found["python"] == platform.python_version() and found["torch"] == version("torch")
    here = machine()
    assert here["cores"] >= 1 and here["cpu"] and here["memory_gb"] > 0.1


def test_the_peak_of_memory_is_that_of_this_process_in_mb():
    """200 million bytes are 191 MB, and no process holds more than the machine has."""
    block = np.ones(200_000_000, np.uint8)
    assert block.nbytes / 1024**2 < peak_memory_mb() < machine()["memory_gb"] * 1e9 / 1024**2


def test_settings_round_trip_as_plain_values():
    settings = InferenceSettings(precision="fp32", overlap=0.25, device="cpu")
    assert InferenceSettings(**json.loads(json.dumps(plain(asdict(settings))))) == settings
