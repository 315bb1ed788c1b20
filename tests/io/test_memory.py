"""Reading and writing must not hold several copies of a scan: 512 x 512 x 1024 voxels are 2 GB as float64."""

import tracemalloc

import numpy as np
import pytest

from tests.phantoms import grid, nifti_file
from viscera.io.hounsfield import compact
from viscera.io.read import read_volume
from viscera.io.volume import Volume
from viscera.io.write import write_label_map


@pytest.fixture(scope="module")
def scan():
    """32 MB of int16: large against everything else that is allocated."""
    z = np.arange(256, dtype=np.int16)
    return np.broadcast_to(np.where(z % 2, -1000, 40), (256, 256, 256)).astype(np.int16, order="F")


def peak_bytes(action):
    tracemalloc.start()
    try:
        kept = action()
        return tracemalloc.get_traced_memory()[1], kept
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_reading_holds_one_copy(tmp_path, scan, ending):
    path = nifti_file(tmp_path / f"ct{ending}", scan, grid())
    read_volume(path)  # imports
    peak, volume = peak_bytes(lambda: read_volume(path))
    assert volume.array.nbytes == scan.nbytes
    assert peak < 1.4 * scan.nbytes


def test_converting_holds_the_result_and_one_slab(scan, monkeypatch):
    monkeypatch.setattr("viscera.io.hounsfield._SLAB_VOXELS", 1 << 18)
    stored = scan.astype(np.float32)
    peak, _ = peak_bytes(lambda: compact(stored, 1.0, -24.0))
    assert peak < 1.3 * scan.nbytes


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_writing_holds_no_copy_of_the_labels(tmp_path, scan, ending):
    labels = np.zeros(scan.shape, np.uint8)  # not in the file's memory order
    volume = Volume(scan, grid())
    peak, _ = peak_bytes(lambda: write_label_map(labels, volume, tmp_path / f"seg{ending}"))
    assert peak < 0.5 * labels.nbytes
