from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from viscera.data.lateral import midplane, right_half, right_of_nearest

MM = (2.0, 2.0, 2.0)
SHAPE = (80, 40, 30)
MIDDLE = 39.5


def ball(centre, radius):
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"))
    return ((grid - np.array(centre)[:, None, None, None]) ** 2).sum(0) < radius**2


RIGHT, LEFT = ball((60, 20, 15), 8), ball((20, 20, 14), 8)


def test_two_organs_are_told_apart_by_where_they_lie():
    np.testing.assert_array_equal(right_half(RIGHT | LEFT, MM, MIDDLE), RIGHT)


@pytest.mark.parametrize(("mask", "right"), [(RIGHT, RIGHT), (LEFT, LEFT & False)])
def test_one_organ_absent(mask, right):
    np.testing.assert_array_equal(right_half(mask, MM, MIDDLE), right)


def test_nothing_drawn():
    assert not right_half(np.zeros(SHAPE, bool), MM, MIDDLE).any()


def test_more_than_two_parts_each_go_to_their_side():
    fragment = ball((28, 20, 27), 2)  # a bit of the left one beyond a cyst
    upper = ball((60, 20, 27), 2)
    np.testing.assert_array_equal(right_half(RIGHT | LEFT | fragment | upper, MM, MIDDLE), RIGHT | upper)


def test_a_small_part_near_the_middle_goes_with_its_neighbour():
    spur = ball((43, 20, 15), 2) | ball((49, 20, 15), 2)  # right of the middle, and the right organ is nearer
    across = ball((35, 20, 15), 2)
    assert (right_half(RIGHT | LEFT | spur | across, MM, MIDDLE) & (spur | across)).sum() == spur.sum()


def test_a_horseshoe_is_cut_at_its_bridge():
    bridge = np.zeros(SHAPE, bool)
    bridge[20:61, 18:22, 13:17] = True
    both = RIGHT | LEFT | bridge
    right = right_half(both, MM, MIDDLE)
    assert (right & RIGHT).sum() == RIGHT.sum() and not (right & LEFT).any()
    edge = np.flatnonzero((right & bridge).any((1, 2))).min()
    assert abs(edge - 40) <= 2, "the bridge is cut half-way"


def test_two_halves_that_no_erosion_parts_are_cut_near_the_middle():
    slab = np.zeros(SHAPE, bool)
    slab[10:70, 15:25, 10:20] = True
    slab[38, 15:20, 10:20] = False  # the thinnest place
    right = right_half(slab, MM, MIDDLE)
    first = np.flatnonzero(right.any((1, 2))).min()
    assert first in (38, 39)


def test_a_wrong_mid_plane_does_not_put_both_organs_on_one_side():
    np.testing.assert_array_equal(right_half(RIGHT | LEFT, MM, 5.0), RIGHT)


def test_two_parts_of_one_organ_stay_on_its_side():
    upper, lower = ball((18, 20, 24), 5), ball((22, 20, 6), 5)
    assert not right_half(upper | lower, MM, MIDDLE).any()


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(bool, (9, 7, 5)), st.floats(-2, 11), st.tuples(*[st.floats(0.5, 30)] * 3))
def test_the_halves_always_add_up_to_the_whole(mask, middle, spacing):
    right = right_half(mask, spacing, middle)
    assert not (right & ~mask).any()


def test_a_lesion_goes_with_the_nearer_organ():
    near_right = ball((45, 20, 15), 3)
    np.testing.assert_array_equal(right_of_nearest(near_right, RIGHT, LEFT, MM, MIDDLE), near_right)
    beside_left = ball((30, 20, 15), 3)
    assert not right_of_nearest(beside_left, RIGHT, LEFT, MM, MIDDLE).any()
    none = np.zeros(SHAPE, bool)
    np.testing.assert_array_equal(right_of_nearest(beside_left, RIGHT, none, MM, MIDDLE), beside_left)
    assert not right_of_nearest(beside_left, none, none, MM, MIDDLE).any(), "no organ: the mid-plane decides"


def test_the_mid_plane_is_where_most_bone_is():
    hu = np.full(SHAPE, -1000.0)
    hu[10:70] = 40
    hu[28:34, 5:12] = 500  # the spine
    assert abs(midplane(hu, (4.0, 4.0, 4.0)) - 30.5) <= 1
    kidney = ball((60, 20, 15), 9)
    assert abs(midplane(np.where(kidney, 900, hu), (4.0, 4.0, 4.0), without=kidney) - 30.5) <= 1


def test_without_bone_the_body_decides_and_without_a_body_the_image():
    hu = np.full(SHAPE, -1000.0)
    assert midplane(hu, MM) == 39.5
    hu[20:40] = 0
    assert abs(midplane(hu, MM) - 29.5) <= 1


def test_a_wrong_mid_plane_through_an_organ_does_not_cut_it():
    np.testing.assert_array_equal(right_half(RIGHT | LEFT, MM, 60.0), RIGHT)
