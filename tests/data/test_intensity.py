from __future__ import annotations

import numpy as np
import pytest
import torch

from viscera.data.intensity import (
    blur_matrix,
    cut,
    filtered,
    noise,
    remapped,
    sharpened,
    thick_matrix,
    windowed,
    with_brighter_rim,
    with_structure_means,
)


def test_the_window_maps_its_ends_to_0_and_1():
    hu = torch.tensor([-1000.0, -175, 37.5, 250, 900])
    np.testing.assert_allclose(windowed(hu, (-175.0, 250.0)), [0, 0, 0.5, 1, 1])


def test_structures_reach_their_means_and_others_stay():
    hu = torch.full((20, 20, 20), 40.0)
    codes = torch.zeros(20, 20, 20, dtype=torch.int32)
    codes[4:10], codes[12:18] = 1, 2
    hu[4:10] += torch.arange(6.0)[:, None, None] - 2.5
    out = with_structure_means(hu.clone(), codes, {1: 140.0}, strength=0.5, texture=2.0)
    assert out[6:8].mean() == pytest.approx(90, abs=1)
    assert (out[7] - out[6]).mean() == pytest.approx(2, abs=0.1), "twice the texture"
    np.testing.assert_allclose(out[14:], hu[14:], atol=1e-3)
    assert with_structure_means(hu, codes, {7: 10.0}) is hu, "a code that is not in the patch"


def test_a_rim_is_brighter_and_the_mean_stays():
    """A bar 12 voxels of 2 mm wide: a rim of 6 mm is three voxels on each side."""
    hu = torch.full((20, 30, 30), 40.0)
    codes = torch.zeros(20, 30, 30, dtype=torch.int32)
    codes[4:16] = 1
    out = with_brighter_rim(hu.clone(), codes, 1, 6.0, 60.0, (2.0, 2.0, 2.0))
    np.testing.assert_allclose(out[9:11, 10:20, 10:20], 40 - 30, atol=0.5)
    np.testing.assert_allclose(out[5, 10:20, 10:20], 40 + 30, atol=5)
    assert out.mean() == pytest.approx(40, abs=0.05)
    np.testing.assert_allclose(out[:2], 40)
    assert torch.equal(with_brighter_rim(hu.clone(), codes, 2, 6.0, 60.0, (2.0, 2.0, 2.0)), hu), "not in the patch"


def test_a_remap_goes_through_its_anchors():
    out = remapped(torch.tensor([-1024.0, 0, 50, 100]), [(-1024, -1024), (0, 10), (100, 60), (3071, 3071)])
    np.testing.assert_allclose(out, [-1024, 10, 35, 60], atol=1e-3)


@pytest.mark.parametrize("matrix", [blur_matrix(17, 1.5), thick_matrix(17, 3.3), thick_matrix(17, 17.0)])
def test_filters_keep_a_constant(matrix):
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-5)


def test_each_axis_has_its_own_filter():
    hu = torch.randn(5, 6, 7)
    for axis in range(3):
        last = torch.zeros(hu.shape[axis], hu.shape[axis])
        last[:, -1] = 1  # every voxel takes the last one's value
        out = filtered(hu, [last if a == axis else None for a in range(3)])
        torch.testing.assert_close(out, hu.select(axis, -1).unsqueeze(axis).expand_as(hu))


def test_thick_slices_average_what_they_hold():
    step = torch.tensor([0.0, 0, 0, 0, 90, 90, 90, 90, 90])
    out = thick_matrix(9, 4.0) @ step
    assert 0 < out[3] < out[4] < 90 and out[0] < 20 and out[8] == pytest.approx(90, abs=1e-4)


def test_noise_has_the_deviation_and_the_grain_it_is_asked_for():
    generator = torch.Generator().manual_seed(0)
    white = noise((40, 40, 40), 10.0, 0.0, generator)
    coarse = noise((40, 40, 40), 10.0, 1.5, generator)
    assert white.std() == pytest.approx(10, rel=0.03) and coarse.std() == pytest.approx(10, rel=0.15)
    neighbour = lambda x, axis: torch.corrcoef(  # noqa: E731
        torch.stack([x.narrow(axis, 0, 39).flatten(), x.narrow(axis, 1, 39).flatten()])
    )[0, 1]
    assert abs(neighbour(white, 0)) < 0.05 and neighbour(coarse, 0) > 0.6 and abs(neighbour(coarse, 2)) < 0.05


def test_sharpening_makes_edges_overshoot():
    hu = torch.zeros(12, 12, 12)
    hu[6:] = 100
    out = sharpened(hu, 1.0)
    assert out.max() > 110 and out.min() < -10


def test_a_scan_may_end_on_either_side():
    hu, codes = torch.zeros(4, 4, 4), torch.ones(4, 4, 4, dtype=torch.int32)
    cut(hu, codes, 2, 3, keep_low=True)
    cut(hu, codes, 0, 1, keep_low=False)
    assert (hu[:, :, 3] == -1024).all() and (hu[0] == -1024).all() and (hu[1:, :, :3] == 0).all()
    assert codes.sum() == 3 * 4 * 3
