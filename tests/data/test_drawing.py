from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from viscera.data.catalogue import parse_labels
from viscera.data.drawing import Drawing, Drawn, drawing_of_map, drawing_of_masks, require_same_grid, with_sides
from viscera.errors import ImageError
from viscera.io.volume import Volume

SHAPE = (4, 3, 2)
VALUES = st.sampled_from([0, 1, 2, 7, 255, 699, 70_000])


@given(hnp.arrays(np.int64, SHAPE, elements=VALUES))
def test_every_label_map_is_read_back_from_its_codes(values):
    drawing = drawing_of_map(values)
    assert drawing.codes.dtype == np.uint8 and drawing.meanings[0] == ()
    for value in (1, 2, 7, 255, 699, 70_000):
        np.testing.assert_array_equal(drawing.mask(str(value)), values == value)


def test_more_than_255_values_take_two_bytes():
    values = np.arange(300).reshape(10, 10, 3)
    drawing = drawing_of_map(values)
    assert drawing.codes.dtype == np.uint16
    np.testing.assert_array_equal(drawing.mask("299"), values == 299)


@given(st.lists(hnp.arrays(bool, SHAPE), min_size=1, max_size=5))
def test_every_mask_is_read_back_however_they_overlap(masks):
    drawing = drawing_of_masks({f"m{number}": mask for number, mask in enumerate(masks)})
    for number, mask in enumerate(masks):
        np.testing.assert_array_equal(drawing.mask(f"m{number}"), mask)
    assert len(drawing.meanings) <= 1 + np.prod(SHAPE), "only combinations that occur have a code"


def test_masks_of_one_name_are_joined():
    upper, lower = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    upper[0], lower[2] = True, True
    drawing = drawing_of_masks(iter([("lung", upper), ("lung", lower)]))
    np.testing.assert_array_equal(drawing.mask("lung"), upper | lower)


SOURCES = parse_labels({"1": "kidneys", "2": "kidney_tumor", "3": "liver"}, "test")


@settings(deadline=None)
@given(hnp.arrays(np.uint8, (8, 4, 3), elements=st.integers(0, 3)))
def test_splitting_sides_loses_nothing_and_touches_nothing_else(values):
    drawing = drawing_of_map(values)
    sided = with_sides(drawing, SOURCES, (20.0, 20.0, 20.0), 3.5)
    for value in "123":
        np.testing.assert_array_equal(sided.mask(value), drawing.mask(value))
    for value in "12":
        right, left = sided.mask(value, "right"), sided.mask(value, "left")
        assert not (right & left).any()
        np.testing.assert_array_equal(right | left, drawing.mask(value))
    assert all(drawn.side is None for meaning in sided.meanings for drawn in meaning if drawn.value == "3")


def test_a_tumour_is_on_the_side_of_the_kidney_it_grows_from():
    sources = parse_labels({"1": "right_kidney", "2": "left_kidney", "3": "kidney_tumor"}, "test")
    values = np.zeros((20, 3, 3), np.uint8)
    # A tumour of the left kidney that grew beyond the mid-plane: most of it lies nearer to the right one.
    values[15:18], values[3:5], values[5:9, 1], values[9:14] = 1, 2, 3, 3
    sided = with_sides(drawing_of_map(values), sources, (3.0, 3.0, 3.0), 8.0)
    assert sided.mask("3", "left").sum() == (values == 3).sum()


def test_overlapping_masks_keep_their_company_when_split():
    lungs, tumor, vessel = (np.zeros((20, 3, 3), bool) for _ in range(3))
    lungs[1:6], lungs[14:19], tumor[15], vessel[15] = True, True, True, True
    sources = parse_labels({"lungs": "lungs", "tumor": "lung_tumor", "vessel": {"name": "vessels"}}, "test")
    drawing = drawing_of_masks({"lungs": lungs, "tumor": tumor, "vessel": vessel})
    sided = with_sides(drawing, sources, (10.0, 10.0, 10.0), 9.5)
    code = sided.codes[15, 0, 0]
    assert sided.meanings[code] == (Drawn("lungs", "right"), Drawn("tumor", "right"), Drawn("vessel"))
    assert sided.meanings[sided.codes[2, 0, 0]] == (Drawn("lungs", "left"),)


def test_labels_must_lie_on_the_images_grid():
    image = Volume(np.zeros((4, 5, 6)), np.diag([2.0, 2.0, 3.0, 1.0]))
    moved = image.affine.copy()
    moved[0, 3] += 0.1
    require_same_grid(Volume(image.array, moved), image, "label")  # 0.1 mm of 2 mm: rounding
    moved[0, 3] += 1
    with pytest.raises(ImageError, match=r"label lies up to 1\.1 mm away"):
        require_same_grid(Volume(image.array, moved), image, "label")
    with pytest.raises(ImageError, match=r"shape \(4, 5, 5\), its image \(4, 5, 6\)"):
        require_same_grid(Volume(np.zeros((4, 5, 5)), image.affine), image, "label")


def test_unused_codes_are_dropped():
    drawing = Drawing(np.array([[[0, 2]]], np.uint8), ((), (Drawn("1"),), (Drawn("2"),)))
    assert with_sides(drawing, SOURCES, (9.0, 9.0, 9.0), 0.5).values() == {"2"}
