"""A large scan in a file instead of memory: the same numbers, whatever their order and type."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest

from viscera.io.aside import in_slabs, let_go, set_aside
from viscera.io.grid import resample_image
from viscera.io.volume import Volume


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_the_numbers_stay(order, dtype):
    array = np.asarray(np.arange(2 * 3 * 4).reshape(2, 3, 4), dtype=dtype, order=order)
    aside = set_aside(Volume(array, np.eye(4)), least_bytes=1)
    assert isinstance(aside.array, np.memmap) and not aside.array.flags.writeable
    assert aside.array.dtype == dtype and np.array_equal(aside.array, array)
    assert set_aside(aside, least_bytes=1) is aside
    let_go(aside.array)
    assert np.array_equal(aside.array, array)


def test_a_part_of_a_larger_array_stays_itself():
    array = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)[::2, 1:, ::-1]
    assert np.array_equal(set_aside(Volume(array, np.eye(4)), least_bytes=1).array, array)


def test_a_small_scan_stays_in_memory():
    volume = Volume(np.zeros((2, 2, 2), np.int16), np.eye(4))
    assert set_aside(volume) is volume


def test_without_room_on_the_disk_it_stays_in_memory(monkeypatch):
    def full(*_args, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    volume = Volume(np.zeros((2, 2, 2), np.int16), np.eye(4))
    assert set_aside(volume, least_bytes=1) is volume


def test_slab_by_slab_it_is_the_whole():
    array = np.arange(2 * 3 * 150, dtype=np.int16).reshape(2, 3, 150)
    aside = set_aside(Volume(array, np.eye(4)), least_bytes=1).array
    for whole in (array, aside, aside[:, ::-1, 10:], aside.transpose(2, 0, 1)):
        parts = list(in_slabs(whole))
        assert np.array_equal(np.concatenate([part for _, part in parts], axis=2), whole)
        assert all(np.array_equal(whole[:, :, z], part) for z, part in parts)


@pytest.mark.parametrize(("order", "times"), [("F", 3), ("C", 0)])
def test_it_is_let_go_slab_by_slab_while_it_is_resampled_unless_every_slab_needs_all_pages(order, times, monkeypatch):
    array = np.random.default_rng(0).integers(-1000, 1000, (20, 18, 70)).astype(np.int16)
    stored = np.asarray(array, order=order)
    aside = set_aside(Volume(stored, np.eye(4)), least_bytes=1).array
    calls = []
    monkeypatch.setattr("viscera.io.aside.let_go", lambda part: calls.append(part) or let_go(part))
    found = resample_image(aside, (1.0, 1.0, 1.0), (2.0, 2.0, 1.0), smooth=True)
    assert np.array_equal(found, resample_image(array, (1.0, 1.0, 1.0), (2.0, 2.0, 1.0), smooth=True))
    assert len([part for part in calls if isinstance(part, np.memmap)]) == times
