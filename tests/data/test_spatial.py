from __future__ import annotations

import numpy as np
import pytest
import torch

from viscera.data.spatial import LARGEST_BEND, SpatialPlan, _bspline, apply_spatial, control_shape, inside, rotation

SHAPE = (12, 10, 9)
RNG = np.random.default_rng(0)
HU = RNG.normal(0, 100, SHAPE).astype(np.int16)
CODES = RNG.integers(0, 5, SHAPE).astype(np.uint8)


def patch(plan, centre, size):
    start, stop = plan.source_box(centre, size)
    box = inside(start, stop, SHAPE)
    return apply_spatial(HU[box.slices], CODES[box.slices], box.start, plan, centre, size)


def test_a_plain_crop_is_exact():
    image, codes = patch(SpatialPlan(), (5.5, 4.5, 4.0), (4, 6, 5))
    np.testing.assert_array_equal(image, HU[4:8, 2:8, 2:7])
    np.testing.assert_array_equal(codes, CODES[4:8, 2:8, 2:7])


def test_beyond_the_scan_is_air_that_belongs_to_nothing():
    image, codes = patch(SpatialPlan(), (0.5, 4.5, 4.0), (4, 6, 5))
    assert (image[0] == -1024).all() and (codes[0] == 0).all()
    np.testing.assert_array_equal(image[1:], HU[:3, 2:8, 2:7])
    for plan in (SpatialPlan(), SpatialPlan(np.eye(3) * 1.5)):
        image, codes = patch(plan, (500.0, 4.0, 4.0), (4, 4, 4))
        assert (image == -1024).all() and not codes.any()


def test_an_identity_that_is_resampled_is_the_crop():
    still = SpatialPlan(control=torch.zeros(3, *control_shape((4, 6, 5), 4.0)), control_step=4.0)
    image, codes = patch(still, (5.5, 4.5, 4.0), (4, 6, 5))
    np.testing.assert_allclose(image, HU[4:8, 2:8, 2:7], atol=1e-3)
    np.testing.assert_array_equal(codes, CODES[4:8, 2:8, 2:7])


def test_a_quarter_turn_is_a_quarter_turn():
    turn = np.rint(rotation((0.0, 0.0, 90.0)))
    image, codes = patch(SpatialPlan(turn), (5.5, 4.5, 4.0), (6, 6, 5))
    np.testing.assert_allclose(image, np.rot90(HU[3:9, 2:8, 2:7], -1), atol=1e-3)
    np.testing.assert_array_equal(codes, np.rot90(CODES[3:9, 2:8, 2:7], -1))


def test_a_mirror_exchanges_left_and_right():
    image, _ = patch(SpatialPlan(np.diag([-1.0, 1.0, 1.0]), mirrored=True), (5.5, 4.5, 4.0), (4, 6, 5))
    np.testing.assert_allclose(image, HU[4:8, 2:8, 2:7][::-1], atol=1e-3)


def test_zooming_in_interpolates_between_voxels():
    image, _ = patch(SpatialPlan(np.eye(3) / 2), (5.0, 4.0, 4.0), (3, 1, 1))
    expected = [(HU[4, 4, 4] / 2 + HU[5, 4, 4] / 2), HU[5, 4, 4], (HU[5, 4, 4] / 2 + HU[6, 4, 4] / 2)]
    np.testing.assert_allclose(image[:, 0, 0], expected, atol=1e-3)


def test_turns_are_rotations():
    turn = rotation((10.0, -20.0, 30.0))
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1)
    np.testing.assert_allclose(rotation((0, 0, 90.0)) @ [1, 0, 0], [0, 1, 0], atol=1e-12)


def test_the_spline_moves_everything_alike_where_all_control_points_do():
    basis = _bspline(17, 5.3)
    assert basis.shape == (17, control_shape((17, 17, 17), 5.3)[0])
    np.testing.assert_allclose(basis.sum(1), 1, atol=1e-6)
    control = torch.zeros(3, *control_shape((4, 6, 5), 4.0))
    control[0] = 2.0
    image, codes = patch(SpatialPlan(control=control, control_step=4.0), (5.5, 4.5, 4.0), (4, 6, 5))
    np.testing.assert_allclose(image, HU[6:10, 2:8, 2:7], atol=1e-3)
    np.testing.assert_array_equal(codes, CODES[6:10, 2:8, 2:7])


@pytest.mark.parametrize("seed", range(5))
def test_the_strongest_bend_does_not_fold(seed):
    size, step = (24, 24, 24), 8.0
    rng = np.random.default_rng(seed)
    moved = rng.choice([-1.0, 1.0], (3, *control_shape(size, step))) * LARGEST_BEND * step
    basis = _bspline(24, step)
    field = torch.einsum("xa,yb,zc,nabc->nxyz", basis, basis, basis, torch.from_numpy(moved.astype(np.float32))).numpy()
    where = field + np.stack(np.meshgrid(*[np.arange(24.0)] * 3, indexing="ij"))
    jacobian = np.stack([np.stack(np.gradient(where[axis]), -1) for axis in range(3)], -2)
    assert np.linalg.det(jacobian).min() > 0


def test_the_source_box_holds_all_that_is_looked_at():
    rng = np.random.default_rng(1)
    for _ in range(20):
        control = torch.from_numpy(rng.uniform(-2, 2, (3, *control_shape((6, 6, 6), 4.0))).astype(np.float32))
        plan = SpatialPlan(rotation(tuple(rng.uniform(-40, 40, 3))) * rng.uniform(0.5, 1.5), control, 4.0)
        centre = tuple(rng.uniform(3, 6, 3))
        small = patch(plan, centre, (6, 6, 6))
        whole = apply_spatial(HU, CODES, (0, 0, 0), plan, centre, (6, 6, 6))
        np.testing.assert_allclose(small[0], whole[0], atol=2e-2)
        # Nearest neighbours may differ where a point lies half-way between two voxels, to float32.
        assert (small[1] != whole[1]).float().mean() < 0.02
