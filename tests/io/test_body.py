"""The patient in an image: the box around it, and what needs no look."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from viscera.io.body import _over_cubes, find_body
from viscera.shapes import Box


def test_the_body_box_leaves_out_air_and_the_table_and_keeps_the_body():
    hu = np.full((100, 80, 40), -1000, np.int16)
    hu[20:80, 30:70, :] = 40
    hu[25:75, 35:65, 5:35] = -850  # lungs, inside
    hu[:, 5:7, :] = 100  # a table top of 6 mm
    box = find_body(hu, (3.0, 3.0, 3.0)).box
    assert box.start[0] <= 20 and box.stop[0] >= 80 and box.start[1] <= 30 and box.stop[1] >= 70
    assert (box.start[2], box.stop[2]) == (0, 40)
    assert box.start[0] > 10 and box.start[1] > 20


def test_without_a_body_the_box_is_the_whole_image():
    assert find_body(np.full((9, 8, 7), -1000, np.int16), (3.0,) * 3).box == Box.whole((9, 8, 7))


def test_a_thin_stack_keeps_its_body():
    hu = np.full((64, 64, 1), 30, np.int16)
    assert find_body(hu, (2.0, 2.0, 5.0)).box == Box.whole((64, 64, 1))


def test_a_region_filled_with_0_hu_is_no_body():
    hu = np.random.default_rng(0).normal(40, 10, (60, 60, 60)).astype(np.int16)
    hu[:, :, 30:] = 0
    box = find_body(hu, (3.0, 3.0, 3.0)).box
    assert box.start == (0, 0, 0) and box.stop[:2] == (60, 60)
    assert 30 <= box.stop[2] <= 30 + 4 + 1, "the margin of 10 mm reaches into it"


def test_a_box_is_reached_where_it_holds_tissue_what_tissue_encloses_or_the_margin():
    hu = np.full((100, 90, 60), -1000, np.int16)
    hu[20:80, 20:70, :30] = 40
    hu[26:74, 26:64, :30] = -850  # lungs: no voxel of them is as dense as a body
    hu[40:60, 40:60, 30:] = 40  # a neck
    body = find_body(hu, (3.0, 3.0, 3.0))
    assert body.reaches(Box((20, 20, 0), (30, 30, 10))), "the wall"
    assert body.reaches(Box((45, 40, 5), (55, 50, 15))), "within the lungs"
    assert body.reaches(Box((10, 20, 0), (17, 30, 10))), "3 voxels away: the margin is 4"
    assert not body.reaches(Box((0, 20, 0), (15, 30, 10)))
    assert not body.reaches(Box((10, 10, 40), (30, 60, 60))), "beside the neck"
    assert find_body(np.full((9, 8, 7), -1000, np.int16), (3.0,) * 3).reaches(Box((0, 0, 0), (1, 1, 1)))


def test_lungs_that_the_scan_cuts_off_count_as_body():
    hu = np.full((80, 80, 40), -850, np.int16)
    hu[:, :10] = hu[:, 70:] = 40  # walls in front and behind only
    assert find_body(hu, (3.0, 3.0, 3.0)).reaches(Box((0, 35, 10), (5, 45, 20)))


@pytest.mark.parametrize("shape", [(12, 9, 7), (2, 9, 7), (12, 1, 7), (3, 3, 3)])
def test_neighbours_are_joined_as_scipy_joins_them_in_a_cube(shape):
    mask = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=shape), 0.8) > 0
    cube = np.ones([3 if n >= 3 else 1 for n in shape], bool)
    eroded, grown = _over_cubes(np.logical_and, mask), _over_cubes(np.logical_or, mask)
    np.testing.assert_array_equal(eroded, ndimage.binary_erosion(mask, cube, border_value=1))
    np.testing.assert_array_equal(grown, ndimage.binary_dilation(mask, cube))
    assert 0 < eroded.sum() < mask.sum() < grown.sum() or shape == (3, 3, 3)
