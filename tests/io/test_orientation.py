import hypothesis.strategies as st
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings

from tests.phantoms import GRIDS, ORDERS, body, grid, stored_as
from viscera.io.orientation import Reorientation, closest_to_ras, to_ras
from viscera.io.volume import Volume


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize(("axes", "flips"), ORDERS)
def test_every_axis_order_and_flip_comes_to_the_same_ras_image(axes, flips, name):
    array, affine = body(), GRIDS[name]
    stored, stored_affine = stored_as(array, affine, axes, flips)
    volume = Volume(stored, stored_affine)

    ras, ras_affine, way_back = to_ras(volume)

    np.testing.assert_array_equal(ras, array)
    np.testing.assert_allclose(ras_affine, affine, atol=1e-9)
    np.testing.assert_array_equal(way_back.undo(ras), stored)


@given(
    order=st.sampled_from(ORDERS),
    turn=st.tuples(*[st.floats(-25, 25)] * 3),
    shear=st.floats(-0.3, 0.3),
    spacing=st.tuples(*[st.floats(0.3, 10)] * 3),
)
@settings(max_examples=200, deadline=None)
def test_undo_is_exact_and_oblique_axes_go_to_the_nearest(order, turn, shear, spacing):
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    affine = grid(spacing, turn_degrees=turn, shear=shear)
    stored, stored_affine = stored_as(array, affine, *order)

    ras, ras_affine, way_back = to_ras(Volume(stored, stored_affine))

    np.testing.assert_array_equal(ras, array)
    np.testing.assert_allclose(ras_affine, affine, atol=1e-6)
    np.testing.assert_array_equal(way_back.undo(ras), stored)


def test_the_worked_example():
    affine = np.array([[0, -0.7, 0, 100.0], [0, 0, 0.8, -90.0], [2.5, 0, 0, 300.0], [0, 0, 0, 1]])

    found = closest_to_ras(affine)

    assert found == Reorientation((1, 2, 0), (True, False, False))
    # Voxel 511 of the left-pointing axis becomes voxel 0: 511 x 0.7 mm further to the left of x = 100.
    np.testing.assert_allclose(
        found.apply_affine(affine, (40, 512, 256)),
        [[0.7, 0, 0, 100 - 511 * 0.7], [0, 0.8, 0, -90], [0, 0, 2.5, 300], [0, 0, 0, 1]],
    )


def test_agrees_with_nibabel():
    for axes, flips in ORDERS:
        _, affine = stored_as(np.zeros((2, 3, 4)), GRIDS["oblique and sheared"], axes, flips)
        ornt = nib.orientations.io_orientation(affine)  # for each stored axis: the RAS axis and its sign
        found = closest_to_ras(affine)
        assert [found.axes[int(ras)] for ras in ornt[:, 0]] == [0, 1, 2]
        assert [found.flips[int(ras)] for ras in ornt[:, 0]] == list(ornt[:, 1] < 0)


def test_nothing_is_copied():
    volume = Volume(body(), stored_as(body(), grid(), (2, 0, 1), (True, False, True))[1])
    ras, _, way_back = to_ras(volume)
    assert np.shares_memory(ras, volume.array)
    assert np.shares_memory(way_back.undo(ras), volume.array)


def test_identity_is_known():
    assert closest_to_ras(np.eye(4)).is_identity
    assert not closest_to_ras(np.diag([-1.0, 1, 1, 1])).is_identity
