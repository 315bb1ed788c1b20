from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.conftest import write_nifti
from viscera.data.cache import CacheSettings, cache_case, cache_cases, entry_path, open_cached
from viscera.data.catalogue import dataset_table, parse_table
from viscera.data.drawing import drawing_of_map
from viscera.data.layout import find_cases
from viscera.errors import InputError, SettingError
from viscera.io.grid import resample_labels
from viscera.shapes import Box, triple

WHOLE = CacheSettings(spacing_mm=(2.0, 2.0, 2.0), crop_to_body=False)
SHAPE = (20, 18, 16)


def table(labels=None):
    fields = {"title": "t", "image": "images/{case}{ext}", "label": "labels/{case}{ext}"}
    return parse_table("mine", {**fields, "labels": labels or {"1": "liver", "2": "spleen"}})


@pytest.fixture
def folder(tmp_path):
    """One scan of noise with two labels, RAS at 2 mm."""
    rng = np.random.default_rng(0)
    write_nifti(tmp_path / "set/images/a.nii.gz", rng.normal(0, 300, SHAPE).astype(np.int16))
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:8, 4:9, 5:9], labels[12:15, 4:9, 5:9] = 1, 2
    write_nifti(tmp_path / "set/labels/a.nii.gz", labels)
    return tmp_path / "set"


def opened(folder, cache, settings=WHOLE, dataset=None):
    cases = find_cases(dataset or table(), folder).cases
    outcomes = cache_cases(cases, cache, settings)
    assert [outcome.status for outcome in outcomes] in (["made"], ["found"]), outcomes
    return open_cached(cases, cache, settings)[0][0], outcomes[0].status


def test_what_goes_in_comes_out(folder, tmp_path):
    entry, _ = opened(folder, tmp_path / "cache")
    image = nib.load(folder / "images/a.nii.gz").get_fdata()
    labels = nib.load(folder / "labels/a.nii.gz").get_fdata()
    np.testing.assert_array_equal(entry.image(), image.clip(-1024, 3071))
    np.testing.assert_array_equal(entry.drawing().mask("2"), labels == 2)
    assert entry.annotated == ("spleen", "liver") and entry.shape == SHAPE and entry.id == "mine/a"
    assert sum(entry.voxels) == np.prod(SHAPE)


def test_a_scan_in_another_axis_order_gives_the_same_entry(folder, tmp_path):
    first, _ = opened(folder, tmp_path / "cache")
    turned = np.array([[0, 0, -2.0, 30], [-2, 0, 0, 38], [0, 2, 0, 7], [0, 0, 0, 1]])  # stored back, head, left
    for kind in ("images", "labels"):
        array = np.asanyarray(nib.load(folder / kind / "a.nii.gz").dataobj)
        write_nifti(tmp_path / "other" / kind / "a.nii.gz", array.transpose(1, 2, 0)[::-1, :, ::-1], affine=turned)
    second, _ = opened(tmp_path / "other", tmp_path / "cache")
    np.testing.assert_array_equal(second.image(), first.image())
    np.testing.assert_array_equal(second.codes(), first.codes())


BOUND = st.tuples(*(st.tuples(st.integers(0, n), st.integers(0, n)).map(sorted) for n in (31, 36, 76)))


@settings(max_examples=60, deadline=None)
@given(box=BOUND)
def test_a_patch_is_the_crop_of_the_whole(entries, box):
    entry = entries[0]
    low = triple(min(a, n) for (a, _), n in zip(box, entry.shape, strict=True))
    high = triple(min(b, n) for (_, b), n in zip(box, entry.shape, strict=True))
    part = Box(low, high)
    np.testing.assert_array_equal(entry.image(part), entry.image()[part.slices])
    np.testing.assert_array_equal(entry.codes(part), entry.codes()[part.slices])


def test_labels_are_resampled_as_a_label_map_is(folder, tmp_path):
    entry, _ = opened(folder, tmp_path / "cache", replace(WHOLE, spacing_mm=(3.0, 3.0, 3.0)))
    labels = np.asanyarray(nib.load(folder / "labels/a.nii.gz").dataobj)
    np.testing.assert_array_equal(entry.codes(), drawing_of_map(resample_labels(labels, (2.0,) * 3, (3.0,) * 3)).codes)


def test_the_crop_keeps_the_patient_and_everything_drawn(folder, tmp_path):
    array = np.full((120, 100, 60), -1000, np.int16)
    array[40:80, 30:70, 20:40] = 40
    labels = np.zeros(array.shape, np.uint8)
    labels[50, 50, 30] = labels[5, 50, 30] = 1  # the second lies in the air, where no patient is
    write_nifti(folder / "images/a.nii.gz", array)
    write_nifti(folder / "labels/a.nii.gz", labels)
    entry, _ = opened(folder, tmp_path / "cache", replace(WHOLE, crop_to_body=True))
    assert entry.voxels[1] == 2
    assert entry.shape[0] == 80 + 5 - 5 and entry.shape[1] < 60


def test_every_sampled_voxel_holds_its_code(entries):
    for entry in entries:
        codes = entry.codes()
        for code, voxels in enumerate(entry.voxels):
            points = entry.coordinates(code)
            assert len(points) == min(1000, voxels) and len(np.unique(points, axis=0)) == len(points)
            assert (codes[tuple(points.T)] == code).all()


def test_a_second_run_finds_and_a_change_makes_anew(folder, tmp_path):
    cache = tmp_path / "cache"
    assert opened(folder, cache)[1] == "made"
    assert opened(folder, cache)[1] == "found"
    assert opened(folder, cache, replace(WHOLE, smooth=True))[1] == "made", "other settings"
    os.utime(folder / "images/a.nii.gz")
    assert opened(folder, cache)[1] == "found", "touched, but the same bytes"
    labels = np.asanyarray(nib.load(folder / "labels/a.nii.gz").dataobj).copy()
    labels[0, 0, 0] = 1
    write_nifti(folder / "labels/a.nii.gz", labels)
    assert opened(folder, cache)[1] == "made", "another label"
    assert opened(folder, cache)[0].voxels[1] == (labels == 1).sum()


def test_what_a_value_means_is_looked_up_anew(folder, tmp_path):
    opened(folder, tmp_path / "cache")
    entry, status = opened(folder, tmp_path / "cache", dataset=table({"1": "stomach", "2": "spleen"}))
    assert status == "found" and entry.annotated == ("spleen", "stomach")
    _, status = opened(folder, tmp_path / "cache", dataset=table({"1": "kidneys", "2": "spleen"}))
    assert status == "made", "sides are split on the way in"


def test_values_that_the_table_does_not_explain_are_refused(folder, tmp_path):
    case = find_cases(table({"1": "liver"}), folder).cases[0]
    outcome = cache_case(case, tmp_path / "cache", WHOLE)
    assert outcome.status == "failed" and "holds the values 2" in outcome.message and "name = ..." in outcome.message


def test_a_case_that_fails_does_not_stop_the_others(folder, tmp_path):
    (folder / "images/b.nii.gz").write_bytes(b"no image")
    write_nifti(folder / "labels/b.nii.gz", np.zeros(SHAPE, np.uint8))
    outcomes = cache_cases(find_cases(table(), folder).cases, tmp_path / "cache", WHOLE)
    assert [outcome.status for outcome in outcomes] == ["made", "failed"]
    entries, missing = open_cached(find_cases(table(), folder).cases, tmp_path / "cache", WHOLE)
    assert [entry.id for entry in entries] == ["mine/a"] and [case.name for case in missing] == ["b"]


def test_a_damaged_entry_is_refused(folder, tmp_path):
    entry, _ = opened(folder, tmp_path / "cache")
    with (entry.folder / "codes.b2nd").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="is damaged: its files have other sizes"):
        open_cached(find_cases(table(), folder).cases, tmp_path / "cache", WHOLE)
    (entry.folder / "entry.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        open_cached(find_cases(table(), folder).cases, tmp_path / "cache", WHOLE)


def test_an_open_entry_travels_to_another_process(entries):
    entries[0].image()
    again = pickle.loads(pickle.dumps(entries[0]))
    np.testing.assert_array_equal(again.codes(), entries[0].codes())


def test_several_workers_make_the_same_cache(hospitals, tmp_path):
    cases = find_cases(dataset_table("amos"), hospitals / "amos").cases
    coarse = CacheSettings(spacing_mm=(8.0, 8.0, 8.0))
    cache_cases(cases, tmp_path / "one", coarse)
    heard = []
    outcomes = cache_cases(cases, tmp_path / "two", coarse, workers=2, ended=heard.append)
    assert {outcome.status for outcome in outcomes} == {"made"} and len(heard) == len(cases)
    for case in cases:
        for name in ("image.b2nd", "codes.b2nd", "points.npy"):
            one, two = (entry_path(case, tmp_path / root, coarse) / name for root in ("one", "two"))
            assert one.read_bytes() == two.read_bytes()


def test_a_spacing_out_of_range_is_refused():
    with pytest.raises(SettingError, match=r"from 0\.2 to 10"):
        CacheSettings(spacing_mm=(0.0, 1.0, 1.0))


FILL = """
import os, signal, sys
from pathlib import Path
from viscera.data.cache import CacheSettings, cache_cases
from viscera.data.catalogue import dataset_table
from viscera.data.layout import find_cases

folder, cache = map(Path, sys.argv[1:3])
cases = find_cases(dataset_table("amos"), folder).cases
settings = CacheSettings(spacing_mm=(4.0, 4.0, 4.0))
"""

FILL_ONCE = (
    FILL
    + """
print("ready", flush=True)
cache_cases(cases, cache, settings)
"""
)

# Each child kills itself the moment it touches its cache for the n-th time: open, mkdir, rename, remove ...
FILL_AND_DIE_EVERYWHERE = (
    FILL
    + """
def run(place, moment):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if any(isinstance(a, (str, os.PathLike)) and str(place) in str(a) for a in arguments):
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    cache_cases(cases[:1], place, settings)
    os._exit(0)

for moment in range(1, 999):
    child = os.fork()
    if not child:
        run(cache / str(moment), moment)
    if os.waitpid(child, 0)[1] == 0:
        break
print(moment)
"""
)


def kill_while_caching(folder, cache, after_s):
    process = subprocess.Popen([sys.executable, "-c", FILL_ONCE, str(folder), str(cache)], stdout=subprocess.PIPE)
    process.stdout.readline()
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def require_no_broken_entry(cases, cache, clean):
    """What a killed run left opens and equals the undisturbed cache; the next run completes it and sweeps up."""
    coarse = CacheSettings(spacing_mm=(4.0, 4.0, 4.0))
    entries, missing = open_cached(cases, cache, coarse)
    assert len(entries) + len(missing) == len(cases)
    cache_cases(cases, cache, coarse)
    entries, missing = open_cached(cases, cache, coarse)
    assert not missing and not list(cache.rglob(".unfinished*"))
    for entry in entries:
        for name, size in json.loads((entry.folder / "entry.json").read_text())["bytes"].items():
            pure = (clean / entry.folder.relative_to(cache) / name).read_bytes()
            assert len(pure) == size and (entry.folder / name).read_bytes() == pure


@pytest.fixture(scope="module")
def undisturbed(hospitals, tmp_path_factory):
    """The cases of a set and the cache that nobody killed."""
    clean = tmp_path_factory.mktemp("clean")
    cases = find_cases(dataset_table("amos"), hospitals / "amos").cases
    cache_cases(cases, clean, CacheSettings(spacing_mm=(4.0, 4.0, 4.0)))
    return cases, clean


def test_kill_9_wherever_the_cache_is_touched_leaves_no_broken_entry(hospitals, tmp_path, undisturbed):
    cases, clean = undisturbed
    command = [sys.executable, "-c", FILL_AND_DIE_EVERYWHERE, str(hospitals / "amos"), str(tmp_path)]
    moments = int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    assert moments > 15
    for moment in range(1, moments + 1):
        require_no_broken_entry(cases[:1], tmp_path / str(moment), clean)


@pytest.mark.slow
def test_kill_9_at_twenty_random_moments_leaves_no_broken_entry(hospitals, tmp_path, undisturbed):
    cases, clean = undisturbed
    for number, moment in enumerate(np.random.default_rng(0).uniform(0, 1.2, 20)):
        kill_while_caching(hospitals / "amos", tmp_path / str(number), moment)
        require_no_broken_entry(cases, tmp_path / str(number), clean)


def test_temporary_folders_of_dead_runs_are_swept_up_and_never_read(folder, tmp_path):
    cases = find_cases(table(), folder).cases
    final = entry_path(cases[0], tmp_path / "cache", WHOLE)
    dead, alive = (final.parent / f".unfinished-{pid}-x" for pid in (2**22 + 1, os.getpid()))
    for left in (dead, alive):
        left.mkdir(parents=True)
        (left / "entry.json").write_text("{}")
    assert open_cached(cases, tmp_path / "cache", WHOLE) == ([], list(cases))
    cache_cases(cases, tmp_path / "cache", WHOLE)
    assert not dead.exists() and alive.exists(), "a run that is still at work keeps its folder"
