"""Surfaces: hand-made answers, and the numbers of the field's own tools."""

from __future__ import annotations

import json
import warnings
from math import inf, isnan, sqrt
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter

from viscera.metrics.score import score_masks
from viscera.metrics.surface import (
    average_distance_mm,
    neighbourhood_codes,
    robust_hausdorff_mm,
    surface_dice,
    surface_distances,
)
from viscera.metrics.surfels import CORNERS, corner_bit, surfel_areas_mm2

Mask = npt.NDArray[np.bool_]
SPACINGS = [(1.0, 1.0, 1.0), (0.7, 0.7, 5.0), (2.2, 0.3, 0.9), (1.0, 2.0, 3.3)]


def code_of(*corners: tuple[int, int, int]) -> int:
    return sum(1 << corner_bit(corner) for corner in corners)


def voxels(shape: tuple[int, int, int], *places: tuple[int, int, int]) -> Mask:
    mask = np.zeros(shape, bool)
    for place in places:
        mask[place] = True
    return mask


# --- surfels ---------------------------------------------------------------------------------------------------


def test_one_corner_is_cut_off_by_a_triangle() -> None:
    # Middles of the three edges at a corner, half a spacing away from it: with spacings a, b, c the triangle's
    # area is half the length of the normal (bc, ac, ab) / 4.
    a, b, c = 1.0, 2.0, 3.0
    area = sqrt((b * c) ** 2 + (a * c) ** 2 + (a * b) ** 2) / 8
    assert surfel_areas_mm2((a, b, c))[code_of((0, 0, 0))] == pytest.approx(area)


def test_a_face_that_is_in_makes_a_plane() -> None:
    areas = surfel_areas_mm2((1.0, 2.0, 3.0))
    for axis, area in ((0, 6.0), (1, 3.0), (2, 2.0)):
        assert areas[code_of(*(c for c in CORNERS if c[axis] == 0))] == pytest.approx(area)


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_a_mask_and_its_complement_have_the_same_surface(spacing_mm: tuple[float, float, float]) -> None:
    areas = surfel_areas_mm2(spacing_mm)
    assert areas[0] == 0
    assert areas == pytest.approx(areas[::-1])


def test_areas_equal_deepminds_table() -> None:
    tables = pytest.importorskip("surface_distance.lookup_tables")
    their_bit = tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
    same = [sum(int(their_bit[c]) for c in CORNERS if code >> corner_bit(c) & 1) for code in range(256)]
    for spacing_mm in SPACINGS:
        theirs = np.array(tables.create_table_neighbour_code_to_surface_area(spacing_mm))
        assert surfel_areas_mm2(spacing_mm) == pytest.approx(theirs[same], abs=1e-12)


def test_codes_by_hand() -> None:
    codes = neighbourhood_codes(voxels((1, 2, 1), (0, 1, 0)))
    assert codes.shape == (2, 3, 2)
    # The voxel at y = 1 is the later one (y corner 1) of the neighbourhoods at y = 1 and the earlier one at y = 2.
    assert codes[0, 1, 0] == code_of((1, 1, 1))
    assert codes[1, 2, 1] == code_of((0, 0, 0))
    assert np.all(codes[:, 0] == 0)


# --- distances by hand -------------------------------------------------------------------------------------------


def test_two_voxels_two_steps_apart() -> None:
    # Each voxel has 8 equal surfels at its corners. Along x they lie at 2 and 3, and at 4 and 5 (in steps of 1 mm):
    # one half of them 1 mm, the other 2 mm from the other voxel's nearest ones.
    distances = surface_distances(voxels((7, 5, 5), (2, 2, 2)), voxels((7, 5, 5), (4, 2, 2)), (1.0, 1.0, 1.0))
    assert average_distance_mm(distances) == pytest.approx(1.5)
    assert robust_hausdorff_mm(distances, 100) == 2
    assert robust_hausdorff_mm(distances, 50) == 1
    assert surface_dice(distances, 1.0) == pytest.approx(0.5)
    assert surface_dice(distances, 0.99) == 0
    assert surface_dice(distances, 2.0) == 1
    assert distances.reference_mm2.sum() == pytest.approx(sqrt(3))


def test_two_plates_three_steps_apart() -> None:
    # Plates one voxel thick fill the array in y and z; their two sides lie at 5 and 6, and at 8 and 9 steps of 0.7 mm.
    reference, prediction = np.zeros((2, 15, 9, 11), bool)
    reference[5], prediction[8] = True, True
    distances = surface_distances(reference, prediction, (0.7, 1.3, 4.0))
    assert average_distance_mm(distances) == pytest.approx(2.5 * 0.7)
    assert robust_hausdorff_mm(distances) == pytest.approx(3 * 0.7)
    assert surface_dice(distances, 2 * 0.7) == pytest.approx(0.5)


def test_a_distance_equal_to_the_tolerance_counts() -> None:
    # 0.1 * 3 - 0.1 * 1 > 0.2 in floating point: distances must come from whole steps.
    distances = surface_distances(voxels((5, 3, 3), (0, 1, 1)), voxels((5, 3, 3), (2, 1, 1)), (0.1, 1.0, 1.0))
    assert surface_dice(distances, 2 * 0.1) == 1


def test_identical_masks() -> None:
    mask = blob(np.random.default_rng(1), (12, 9, 14))
    distances = surface_distances(mask, mask, (1.0, 2.0, 3.0))
    assert surface_dice(distances, 0.0) == 1
    assert robust_hausdorff_mm(distances, 100) == 0
    assert average_distance_mm(distances) == 0


def test_empty_masks() -> None:
    nothing, something = np.zeros((4, 4, 4), bool), voxels((4, 4, 4), (1, 2, 3))
    both = surface_distances(nothing, nothing, (1.0, 1.0, 1.0))
    assert isnan(surface_dice(both, 1)) and isnan(robust_hausdorff_mm(both)) and isnan(average_distance_mm(both))
    for one in (
        surface_distances(nothing, something, (1.0, 1.0, 1.0)),
        surface_distances(something, nothing, (1.0, 1.0, 1.0)),
    ):
        assert surface_dice(one, 1000.0) == 0
        assert robust_hausdorff_mm(one) == inf
        assert average_distance_mm(one) == inf


def test_masks_of_different_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2, 2\) and \(2, 2, 3\)"):
        surface_distances(np.ones((2, 2, 2), bool), np.ones((2, 2, 3), bool), (1.0, 1.0, 1.0))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), axes=st.permutations([0, 1, 2]), flip=st.tuples(*[st.booleans()] * 3))
def test_the_order_and_direction_of_axes_do_not_matter(
    seed: int, axes: list[int], flip: tuple[bool, bool, bool]
) -> None:
    rng = np.random.default_rng(seed)
    spacing_mm = (0.8, 1.7, 3.0)
    a, b = blob(rng, (10, 8, 7)), blob(rng, (10, 8, 7))
    turned = [np.flip(m, [axis for axis in range(3) if flip[axis]]).transpose(axes) for m in (a, b)]
    x, y, z = (spacing_mm[axis] for axis in axes)
    straight, other = score_masks(a, b, spacing_mm, 2.0), score_masks(turned[0], turned[1], (x, y, z), 2.0)
    assert vars(other) == pytest.approx(vars(straight), nan_ok=True)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_swapping_the_masks_swaps_the_sides(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = blob(rng, (9, 9, 9)), blob(rng, (9, 9, 9))
    one, two = score_masks(a, b, (1.0, 1.5, 2.0), 1.5), score_masks(b, a, (1.0, 1.5, 2.0), 1.5)
    for key in ("dice", "nsd", "hd95_mm", "asd_mm"):
        assert getattr(one, key) == pytest.approx(getattr(two, key), nan_ok=True)
    assert one.sensitivity == pytest.approx(two.precision, nan_ok=True)
    assert one.volume_error_ml == -two.volume_error_ml


# --- other people's numbers ----------------------------------------------------------------------------------------


def blob(rng: np.random.Generator, shape: tuple[int, int, int]) -> Mask:
    """A mask of random smoothness, somewhere between a few lumps and speckle; never empty."""
    noise = gaussian_filter(rng.standard_normal(shape), sigma=rng.uniform(0, 2))
    return np.asarray(noise >= np.quantile(noise, rng.uniform(0.3, 0.98)))


def expect_equal(a: Mask, b: Mask, spacing_mm: tuple[float, float, float], tolerance_mm: float) -> None:
    """Our numbers of this pair equal those of surface-distance and MONAI to 1e-5."""
    import surface_distance as sd
    import torch
    from monai.metrics import compute_dice, compute_surface_dice

    ours = score_masks(a, b, spacing_mm, tolerance_mm)
    reference, prediction = (torch.from_numpy(np.ascontiguousarray(m))[None, None] for m in (a, b))
    with warnings.catch_warnings():
        # surface-distance 0.1 uses old SciPy names, MONAI 1.6 an old argument of its own.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        theirs = sd.compute_surface_distances(a, b, spacing_mm)
        options = {"include_background": True, "spacing": spacing_mm, "use_subvoxels": True}
        monai_nsd = compute_surface_dice(prediction, reference, [tolerance_mm], **options)
    forth, back = sd.compute_average_surface_distance(theirs)
    areas = theirs["surfel_areas_gt"].sum(), theirs["surfel_areas_pred"].sum()
    assert ours.dice == pytest.approx(sd.compute_dice_coefficient(a, b), abs=1e-5)
    assert ours.nsd == pytest.approx(sd.compute_surface_dice_at_tolerance(theirs, tolerance_mm), abs=1e-5)
    assert ours.hd95_mm == pytest.approx(sd.compute_robust_hausdorff(theirs, 95), abs=1e-5)
    assert ours.asd_mm == pytest.approx((forth * areas[0] + back * areas[1]) / sum(areas), abs=1e-5)
    assert ours.dice == pytest.approx(float(compute_dice(prediction, reference)), abs=1e-5)
    assert ours.nsd == pytest.approx(float(monai_nsd), abs=1e-5)


def test_equals_surface_distance_and_monai_on_200_random_pairs() -> None:
    pytest.importorskip("surface_distance")
    rng = np.random.default_rng(0)
    for _ in range(200):
        shape = tuple(rng.integers(3, 20, 3).tolist())
        spacing_mm = tuple(rng.uniform(0.3, 5, 3).round(2).tolist())
        expect_equal(blob(rng, shape), blob(rng, shape), spacing_mm, float(rng.choice([0.5, 1, 2, 3, 5])))


def test_equals_surface_distance_and_monai_on_real_organs(shared_dir: Path) -> None:
    pytest.importorskip("surface_distance")
    import nibabel as nib

    image = nib.load(shared_dir / "data" / "abdomen_pelvis_3mm" / "labels.nii.gz")
    labels = np.asarray(image.dataobj)
    names = json.loads((shared_dir / "data" / "abdomen_pelvis_3mm" / "classes.json").read_text())
    values = [v for v in map(int, np.unique(labels)) if v > 0][:12]
    assert len(names) >= len(values) == 12
    for value in values:
        mask = labels == value
        for other in (np.roll(mask, (2, -1, 1), (0, 1, 2)), binary_erosion(mask), binary_dilation(mask, iterations=2)):
            if other.any():
                expect_equal(mask, other, (3.0, 1.1, 4.5), 3.0)
