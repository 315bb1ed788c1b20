"""The memory a scan takes: what people write, what is chosen, and whether the model of it holds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from viscera.errors import SettingError
from viscera.infer.memory import Sizes, Tiling, bytes_of, chosen_tiling, needed_bytes
from viscera.model.build import untrained

LONG = Sizes((512, 512, 300), (120, 120, 150), (118, 90, 150))


@pytest.fixture(scope="module")
def lite():
    """The light network in one pass, where that fits."""
    model = untrained("lite")
    inference = replace(model.config.inference, mode="whole", patch_voxels=(128, 128, 128))
    model.config = replace(model.config, inference=inference)
    return model


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 * 10**9), ("1500 MB", 15 * 10**8), ("2GiB", 2**31), ("1.5g", 15 * 10**8), ("800Mi", 800 * 2**20)],
)
def test_sizes_as_people_write_them(text, size):
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "much", "-2GB", "0GB", "2 TB", "2GB2", "GB"])
def test_what_is_no_size_is_refused_by_its_name(text):
    with pytest.raises(SettingError, match=re.escape(repr(text))):
        bytes_of(text)


def need(model, tiling, sizes=LONG):
    return needed_bytes(model, sizes, tiling, 0.25, "bf16", "torch")


def chosen(model, max_bytes, sizes=LONG):
    return chosen_tiling(model, sizes, 0.25, "bf16", "torch", max_bytes)


def test_without_a_limit_it_is_the_models_own_way(lite):
    assert chosen(lite, None) == Tiling(None)
    assert chosen_tiling(untrained("unet"), LONG, 0.5, "bf16", "torch") == Tiling((96, 96, 96))


def test_the_best_that_fits_is_taken_and_the_error_names_the_least_that_works(lite):
    longer = Sizes((256, 256, 1000), (150, 150, 640), (150, 150, 640))  # the network takes more than the scan
    whole, window = need(lite, Tiling(None), longer), need(lite, Tiling((128, 128, 128), 1), longer)
    assert window < whole
    assert chosen(lite, whole, longer) == Tiling(None)
    assert chosen(lite, window, longer).window is not None
    with pytest.raises(SettingError, match=r"needs at least \d.*--max-memory allows 0.10 GB") as told:
        chosen(lite, 100_000_000, longer)
    least = bytes_of(re.search(r"Allow (\S+GB)", str(told.value))[1])
    assert need(lite, chosen(lite, least, longer), longer) <= least
    with pytest.raises(SettingError):
        chosen(lite, least - 20_000_000, longer)


def test_smaller_windows_need_less_and_fit_the_backbone():
    model = untrained("unet")
    large = Sizes((512, 512, 300), (260, 260, 300), (240, 200, 300))
    own = need(model, Tiling((96, 96, 96)), large)
    smaller = chosen(model, own - 300_000_000, large).window
    assert smaller is not None and smaller < (96, 96, 96)
    assert all(n % model.backbone.multiple == 0 for n in smaller)


def test_the_model_of_the_memory_holds_for_a_small_scan(tmp_path):
    """Loosely: the operating system's peak of a run lies below what was foretold, and not far below."""
    from tests.phantoms import body

    shape = (256, 256, 160)
    nib.save(nib.Nifti1Image(body(shape), np.diag([1.5, 1.5, 1.5, 1])), tmp_path / "ct.nii.gz")
    command = [sys.executable, "-m", "viscera", "segment", str(tmp_path / "ct.nii.gz"), "-o", str(tmp_path / "out")]
    subprocess.run([*command, "-m", "lite", "-c", "liver", "--quiet", "--max-memory", "1.5GB"], check=True)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    grid = (129, 129, 81)
    model = untrained("lite")
    window = model.config.inference.patch_voxels
    assert record["used"]["window_voxels"] == list(window)
    foretold = need(model, Tiling(window), Sizes(shape, grid, grid)) / 1e6
    assert 0.4 * foretold < record["peak_memory_mb"] < 1.1 * foretold
