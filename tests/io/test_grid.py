"""Resampling against the definition, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

from viscera.io.grid import (
    imaged_box,
    linear_taps,
    mask_on_scan,
    resample_image,
    resample_labels,
    resampled_shape,
    values_on_scan,
)
from viscera.masks import SoftMask
from viscera.shapes import Box


def test_the_worked_example():
    line = np.array([0, 10, 20, 30], np.int16).reshape(4, 1, 1)
    out = resample_image(line, (2.0, 1.0, 1.0), (3.0, 1.0, 1.0))
    assert out.ravel().tolist() == [0, 15, 30]
    assert resampled_shape((4, 1, 1), (2.0, 1.0, 1.0), (3.0, 1.0, 1.0)) == (3, 1, 1)


@pytest.mark.parametrize("new", [(1.5, 1.5, 1.5), (0.4, 3.0, 7.0)])
def test_equals_scipy_everywhere(new):
    spacing = (0.7, 0.9, 2.5)
    image = np.random.default_rng(0).integers(-1000, 1000, (40, 33, 37)).astype(np.int16)
    out = resample_image(image, spacing, new)
    points = [
        np.clip(np.arange(n) * t / s, 0, m - 1) for n, t, s, m in zip(out.shape, new, spacing, image.shape, strict=True)
    ]
    expected = RegularGridInterpolator([np.arange(n) for n in image.shape], image.astype(float))(
        np.stack(np.meshgrid(*points, indexing="ij"), -1)
    )
    assert np.abs(out - expected).max() < 1e-3


def test_smooth_shrinking_keeps_ramps_and_averages_noise():
    ramp = np.arange(60, dtype=np.float32).reshape(60, 1, 1) * np.ones((1, 2, 2), np.float32)
    out = resample_image(ramp, (1.0, 1.0, 1.0), (3.0, 1.0, 1.0), smooth=True)[:, 0, 0]
    assert out[2:-2] == pytest.approx(np.arange(21)[2:-2] * 3, abs=1e-4)
    noise = np.random.default_rng(0).normal(0, 1, (200, 4, 4)).astype(np.float32)
    plain, smooth = (resample_image(noise, (1.0,) * 3, (4.0, 1.0, 1.0), smooth=s).std() for s in (False, True))
    assert smooth < 0.6 * plain


def test_labels_take_the_nearest_value_and_keep_their_type():
    labels = np.array([1, 2, 3, 4], np.uint16).reshape(4, 1, 1)
    out = resample_labels(labels, (2.0, 1.0, 1.0), (3.0, 1.0, 1.0))
    assert out.ravel().tolist() == [1, 3, 4]  # coordinates 0, 1.5 (to even: 2), 3
    assert out.dtype == np.uint16


def test_a_mask_on_its_own_grid_comes_back_exactly():
    mask = np.random.default_rng(1).random((9, 8, 7)) > 0.7
    box, back = mask_on_scan(SoftMask.of(mask), mask.shape, (2.0,) * 3, mask.shape, (2.0,) * 3)
    whole = np.zeros(mask.shape, bool)
    whole[box.slices] = back
    assert np.array_equal(whole, mask)


@pytest.mark.parametrize("spacing", [(0.8, 0.7, 2.5), (3.7, 4.0, 6.1)])
def test_a_ball_keeps_its_volume_and_place_on_another_grid(spacing):
    grid_mm, shape = (3.0, 3.0, 3.0), (30, 30, 30)
    scan_shape = resampled_shape(shape, grid_mm, spacing)
    centre, radius = np.array([40.0, 45.0, 42.0]), 26.0
    places = np.stack(np.meshgrid(*[np.arange(n) * 3.0 for n in shape], indexing="ij"), -1)
    distance = np.linalg.norm(places - centre, axis=-1) - radius
    level = np.clip(128 - distance * 20, 0, 255).astype(np.uint8)
    soft = SoftMask(Box.whole(shape), level)
    box, mask = mask_on_scan(soft, shape, grid_mm, scan_shape, spacing)
    same, slabs = values_on_scan(soft, shape, grid_mm, scan_shape, spacing)
    assert same == box and np.array_equal(np.concatenate([value for _, value in slabs], 2) > 0, mask)
    volume = mask.sum() * np.prod(spacing)
    assert volume == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.03)
    middle = (np.argwhere(mask).mean(0) + box.start) * spacing
    assert middle == pytest.approx(centre, abs=0.4)


def test_an_axis_as_a_matrix_is_the_same():
    taps = linear_taps(np.array([0.0, 0.5, 2.0, 9.0]), 3)
    assert (torch.tensor([10.0, 20.0, 40.0]) @ taps.matrix(3)).tolist() == [10, 15, 40, 40]
    values = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(values @ taps.matrix(3), taps(values, 2))


def test_a_mask_lies_in_memory_as_a_scan_in_a_file():
    soft = SoftMask.of(np.ones((4, 5, 6), bool))
    _, mask = mask_on_scan(soft, (4, 5, 6), (1.0, 1.0, 1.0), (8, 9, 11), (0.5, 0.5, 0.5))
    assert mask.shape == (8, 9, 11) and mask.flags.f_contiguous and mask.all()


def test_an_empty_mask_stays_empty():
    box, mask = mask_on_scan(SoftMask.empty(), (5, 5, 5), (3.0,) * 3, (9, 9, 9), (1.0,) * 3)
    assert box.is_empty
    assert mask.size == 0
    box, slabs = values_on_scan(SoftMask.empty(), (5, 5, 5), (3.0,) * 3, (9, 9, 9), (1.0,) * 3)
    assert box.is_empty and not list(slabs)


def test_a_mask_that_touches_the_end_reaches_the_end_of_the_scan():
    mask = np.zeros((4, 4, 4), bool)
    mask[..., -1] = True  # z = 9 mm; the scan's last slice lies at 10 mm
    box, back = mask_on_scan(SoftMask.of(mask), mask.shape, (3.0,) * 3, (10, 10, 11), (1.0,) * 3)
    assert box.stop[2] == 11
    assert back[..., -1].all()


def test_planes_of_a_single_value_at_the_ends_are_no_image():
    rng = np.random.default_rng(0)
    hu = rng.integers(-1000, 1000, (12, 10, 8)).astype(np.int16)
    hu[3:, :9, 4] = 7  # a plane inside stays
    hu[:3] = hu[:, 9:] = -1000
    assert imaged_box(hu) == Box((3, 0, 0), (12, 9, 8))
    assert imaged_box(hu[:, :, :1]) == Box((3, 0, 0), (12, 9, 1))
    assert imaged_box(np.zeros((4, 5, 6))) == Box((0, 0, 0), (4, 5, 6))
