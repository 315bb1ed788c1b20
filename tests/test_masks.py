"""Soft masks and boxes, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from viscera.masks import MaskSet, SoftMask
from viscera.shapes import Box

SHAPE = (4, 5, 6)


@given(arrays(bool, SHAPE))
def test_a_mask_survives_cropping_and_embedding(mask):
    soft = SoftMask.of(mask)
    masks = MaskSet(SHAPE, (1.0, 1.0, 1.0), {"liver": soft})
    assert np.array_equal(masks.whole("liver"), mask)
    assert np.array_equal(soft.embedded_in(Box.whole(SHAPE)).mask, mask)


@given(arrays(bool, SHAPE), st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 5)))
def test_a_crop_is_the_crop_of_the_whole(mask, start):
    box = Box(start, SHAPE)
    masks = MaskSet(SHAPE, (1.0, 1.0, 1.0), {"liver": SoftMask.of(mask)})
    assert np.array_equal(masks.crop("liver", box), mask[box.slices])


@given(arrays(bool, SHAPE))
def test_the_box_is_tight(mask):
    box = Box.around(mask)
    assert mask[box.slices].sum() == mask.sum()
    if mask.any():
        places = np.argwhere(mask)
        assert box == Box(tuple(places.min(0)), tuple(places.max(0) + 1))
    else:
        assert box.is_empty


def test_levels_stay_where_the_mask_stays():
    level = np.array([[[10, 130, 200, 127]]], np.uint8)
    soft = SoftMask(Box.whole((1, 1, 4)), level)
    assert soft.mask.tolist() == [[[False, True, True, False]]]
    changed = soft.with_mask(np.array([[[True, True, False, False]]]))
    assert changed.level.tolist() == [[[255, 130, 0, 127]]]
    assert soft.level.tolist() == level.tolist(), "the original is not touched"


def test_an_empty_mask_can_be_embedded_anywhere():
    assert not SoftMask.empty().embedded_in(Box((3, 4, 5), (6, 6, 6))).mask.any()


def test_what_is_no_box_is_refused():
    with pytest.raises(ValueError, match="not a box"):
        Box((2, 0, 0), (1, 1, 1))
    with pytest.raises(ValueError, match="uint8"):
        SoftMask(Box.whole((1, 1, 2)), np.zeros((1, 1, 2), np.int16))
