"""Many scans: names, failures, resuming."""

from __future__ import annotations

import threading

import nibabel as nib
import numpy as np
import pytest

from viscera.errors import InputError
from viscera.infer.predict import InferenceSettings
from viscera.workflow.cohort import find_cases, segment_many
from viscera.workflow.scan import SaveSettings, SegmentSettings

from .conftest import phantom_hu


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "scans" / name).mkdir(parents=True)
        nib.save(nib.Nifti1Image(phantom_hu(), np.diag([3.0, 3, 3, 1])), tmp_path / "scans" / name / "ct.nii.gz")
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(b"not an image")
    return tmp_path / "scans"


def test_scans_of_the_same_file_name_get_names_of_their_own(folder, tmp_path):
    cases = find_cases([folder], tmp_path / "out")
    assert [case.name for case in cases] == ["a_ct", "b_ct", "broken"]
    assert cases[0].output == tmp_path / "out" / "a_ct"


def test_a_scan_named_twice_and_an_empty_folder_are_errors(folder, tmp_path):
    scan = folder / "a" / "ct.nii.gz"
    with pytest.raises(InputError, match="twice"):
        find_cases([scan, scan], tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no scans"):
        find_cases([tmp_path / "empty"], tmp_path)


def test_goes_on_after_a_failure_and_resume_does_only_what_is_missing(bands, folder, tmp_path):
    cases = find_cases([folder], tmp_path / "out")
    settings, save = SegmentSettings(), SaveSettings(picture=False)
    first = segment_many(cases, bands, settings, save)
    assert [o.status for o in first] == ["done", "done", "failed"]
    assert "broken.nii.gz" in str(first[2].error)
    assert not cases[2].output.exists()

    again = segment_many(cases, bands, settings, save)
    assert [o.status for o in again] == ["failed"] * 3, "an earlier result is not replaced without being told to"

    (cases[1].output / "segmentation.nii.gz").unlink()  # as if interrupted
    resumed = segment_many(cases, bands, settings, save, resume=True)
    assert [o.status for o in resumed] == ["skipped", "done", "failed"]

    other = segment_many(cases[:1], bands, SegmentSettings(classes="liver"), save, resume=True)
    assert [o.status for o in other] == ["done"], "a result of another request does not count"


def test_even_a_bug_in_one_scan_does_not_stop_the_others(bands, folder, tmp_path, monkeypatch):
    from viscera.workflow import cohort

    real = cohort.make_ready

    def sometimes(scan, *arguments, **more):
        if "a" in scan.parts:
            raise RuntimeError("not enough memory: you tried to allocate 1 byte")
        return real(scan, *arguments, **more)

    monkeypatch.setattr(cohort, "make_ready", sometimes)
    outcomes = segment_many(
        find_cases([folder], tmp_path / "out"), bands, SegmentSettings(), SaveSettings(picture=False)
    )
    assert [o.status for o in outcomes] == ["failed", "done", "failed"]
    assert isinstance(outcomes[0].error, RuntimeError)


@pytest.mark.timeout(60)
def test_the_next_scan_is_read_and_the_last_one_written_while_the_network_works(bands, tmp_path, monkeypatch):
    from viscera.workflow import cohort

    for name in ("a", "b", "c"):
        nib.save(nib.Nifti1Image(phantom_hu(), np.diag([3.0, 3, 3, 1])), tmp_path / f"{name}.nii.gz")
    read = {name: threading.Event() for name in "abc"}
    written = {name: threading.Event() for name in "abc"}
    make_ready, find_masks, describe = cohort.make_ready, cohort.find_masks, cohort.describe

    def reading(scan, *arguments):
        ready = make_ready(scan, *arguments)
        read[scan.name[0]].set()
        return ready

    def computing(ready, *arguments):
        name = ready.path.name[0]
        if name != "c":
            assert read[chr(ord(name) + 1)].wait(30), "the next scan is not read meanwhile"
        if name != "a":
            assert written[chr(ord(name) - 1)].wait(30), "the last scan is not written meanwhile"
        return find_masks(ready, *arguments)

    def describing(masked, *arguments):
        result = describe(masked, *arguments)
        written[masked.ready.path.name[0]].set()
        return result

    for name, stand_in in (("make_ready", reading), ("find_masks", computing), ("describe", describing)):
        monkeypatch.setattr(cohort, name, stand_in)
    told = []
    outcomes = segment_many(
        find_cases([tmp_path], tmp_path / "out"),
        bands,
        SegmentSettings(),
        SaveSettings(picture=False),
        begun=lambda case: told.append(f"begun {case.name}"),
        ended=lambda outcome, result: told.append(f"ended {outcome.case.name}"),
    )
    assert [o.status for o in outcomes] == ["done"] * 3, [o.error for o in outcomes]
    assert [item for item in told if item.startswith("ended")] == ["ended a", "ended b", "ended c"]
    assert all(told.index(f"begun {name}") < told.index(f"ended {name}") for name in "abc")


def test_with_limited_memory_it_is_one_scan_after_the_other(bands, tmp_path, monkeypatch):
    from viscera.workflow import cohort

    for name in ("a", "b", "c"):
        nib.save(nib.Nifti1Image(phantom_hu(), np.diag([3.0, 3, 3, 1])), tmp_path / f"{name}.nii.gz")
    order = []
    make_ready, describe = cohort.make_ready, cohort.describe

    def reading(scan, *arguments):
        order.append(f"read {scan.name[0]}")
        return make_ready(scan, *arguments)

    def describing(masked, *arguments):
        order.append(f"describe {masked.ready.path.name[0]}")
        return describe(masked, *arguments)

    monkeypatch.setattr(cohort, "make_ready", reading)
    monkeypatch.setattr(cohort, "describe", describing)
    settings = SegmentSettings(inference=InferenceSettings(max_memory_bytes=4_000_000_000))
    outcomes = segment_many(find_cases([tmp_path], tmp_path / "out"), bands, settings, SaveSettings(picture=False))
    assert [o.status for o in outcomes] == ["done"] * 3, [o.error for o in outcomes]
    assert order == [f"{what} {name}" for name in "abc" for what in ("read", "describe")]
