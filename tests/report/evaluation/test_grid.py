"""Predictions on other grids than their references: looked up when they share space, refused when not."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from viscera.errors import ImageError
from viscera.report.evaluation.grid import Grid, lookup

SHAPE = (7, 6, 5)
AFFINE = np.array([[0, -2.0, 0, 40], [0, 0, 3.0, -20], [1.5, 0, 0, 7], [0, 0, 0, 1]])
HERE = Grid(SHAPE, AFFINE)
LABELS = np.random.default_rng(0).integers(0, 9, SHAPE).astype(np.uint8)


def other_grid(matrix: np.ndarray, shape: tuple[int, int, int]) -> Grid:
    """A grid whose voxel `i` lies where voxel ``matrix @ i`` of HERE lies."""
    return Grid(shape, AFFINE @ matrix)


def test_the_same_grid_is_left_alone() -> None:
    nearly = Grid(SHAPE, AFFINE + np.float32(1e-6))
    way = lookup(nearly, HERE, "case")
    assert way.note == ""
    assert way(LABELS) is LABELS


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("flips", list(product((False, True), repeat=3)))
def test_every_axis_order_and_direction_gives_back_the_same_voxels(
    axes: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> None:
    turned = np.flip(LABELS, [a for a in range(3) if flips[a]]).transpose(axes)
    matrix = np.eye(4)
    for axis in range(3):
        if flips[axis]:
            matrix[axis, axis], matrix[axis, 3] = -1, SHAPE[axis] - 1
    matrix[:3, :3] = matrix[:3, :3][:, axes]
    way = lookup(other_grid(matrix, turned.shape), HERE, "case")  # type: ignore[arg-type]
    assert np.array_equal(way(turned), LABELS)
    if (axes, flips) != ((0, 1, 2), (False,) * 3):
        assert "another grid (" in way.note and "covers" not in way.note


def test_a_crop_is_put_in_its_place_and_the_rest_is_empty() -> None:
    matrix = np.eye(4)
    matrix[:3, 3] = 2, 1, 0
    way = lookup(other_grid(matrix, (3, 4, 5)), HERE, "case")
    expected = np.zeros_like(LABELS)
    expected[2:5, 1:5] = LABELS[2:5, 1:5]
    assert np.array_equal(way(LABELS[2:5, 1:5]), expected)
    assert "covers 28.6 % of the reference's grid" in way.note  # 3 * 4 * 5 of 7 * 6 * 5


def test_other_spacing_takes_the_nearest_voxel() -> None:
    coarse = LABELS[::2, :, ::2]
    way = lookup(other_grid(np.diag([2.0, 1, 2, 1]), coarse.shape), HERE, "case")  # type: ignore[arg-type]
    nearest_x, nearest_z = [0, 0, 1, 2, 2, 2, 3], [0, 0, 1, 2, 2]  # halves go to the even voxel, as np.rint has it
    assert np.array_equal(way(coarse), coarse[np.ix_(nearest_x, range(6), nearest_z)])
    assert "spacing 3x2x6 instead of 1.5x2x3" in way.note


@pytest.mark.parametrize("degrees", [0.0, 20.0])
def test_oblique_grids_agree_with_the_definition(degrees: float) -> None:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("zyx", [degrees, 10, 5], degrees=True).as_matrix()
    there = other_grid(matrix, (9, 8, 7))
    labels = np.random.default_rng(1).integers(0, 9, (9, 8, 7)).astype(np.uint8)
    found = lookup(there, HERE, "case")(labels)
    for index in np.ndindex(*SHAPE):
        place = np.rint((np.linalg.inv(there.affine) @ AFFINE @ [*index, 1])[:3]).astype(int)
        inside = (place >= 0).all() and (place < labels.shape).all()
        assert found[index] == (labels[tuple(place)] if inside else 0)


def test_one_slice_on_either_side() -> None:
    flat = Grid((7, 6, 1), AFFINE)
    assert np.array_equal(lookup(flat, HERE, "case")(LABELS[:, :, :1])[:, :, 0], LABELS[:, :, 0])
    assert np.array_equal(lookup(HERE, flat, "case")(LABELS), LABELS[:, :, :1])


def test_images_that_share_no_space_are_refused() -> None:
    far = AFFINE.copy()
    far[0, 3] += 500
    with pytest.raises(ImageError, match=r"^case: prediction and reference lie in different places: x 530 to 540"):
        lookup(Grid(SHAPE, far), HERE, "case")
