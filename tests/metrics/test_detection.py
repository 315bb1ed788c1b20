"""Detection of lesions and patients: small scenes with known answers."""

from __future__ import annotations

from math import isnan, nan

import numpy as np
import numpy.typing as npt
import pytest

from viscera.errors import SettingError
from viscera.metrics.detection import (
    FrocPoint,
    LesionMatch,
    Matching,
    detect_lesions,
    detect_patients,
    froc,
    froc_score,
    match_at_thresholds,
    match_lesions,
)

MM = (1.0, 1.0, 5.0)  # a voxel is 0.005 ml
Mask = npt.NDArray[np.bool_]


def scene(*spans: tuple[int, int]) -> Mask:
    """Lesions along a line of 40 voxels, each from its first to before its last voxel."""
    mask = np.zeros((40, 3, 2), bool)
    for start, stop in spans:
        mask[start:stop, 1, 1] = True
    return mask


def matches(result: LesionMatch) -> list[int | None]:
    return [lesion.match for lesion in result.reference]


def test_overlap_by_hand() -> None:
    # Reference 1 is hit (IoU 3/5), 2 is missed, the prediction has one lesion nowhere.
    result = match_lesions(scene((2, 6), (15, 17)), scene((3, 7), (30, 31)), MM)
    assert matches(result) == [0, None]
    assert [lesion.match for lesion in result.predicted] == [0, None]
    assert result.reference[0].iou == pytest.approx(3 / 5)
    assert result.reference[0].volume_ml == pytest.approx(4 * 0.005)
    assert result.reference[0].centre_mm == pytest.approx((3.5, 1, 5))
    assert (result.found, result.false) == (1, 1)


def test_an_iou_below_the_least_is_no_match() -> None:
    reference, prediction = scene((0, 10)), scene((9, 19))  # IoU 1/19
    assert match_lesions(reference, prediction, MM).found == 0
    assert match_lesions(reference, prediction, MM, Matching(least_iou=1 / 19)).found == 1


def test_one_blob_over_two_lesions_finds_one() -> None:
    result = match_lesions(scene((0, 4), (5, 11)), scene((0, 11)), MM)
    assert matches(result) == [None, 0]  # the larger IoU wins
    assert result.false == 0


def test_of_two_pieces_in_one_lesion_one_is_false() -> None:
    result = match_lesions(scene((0, 11)), scene((0, 4), (5, 11)), MM)
    assert matches(result) == [1]
    assert result.false == 1


def test_the_best_sum_is_chosen_and_not_the_first_best_pair() -> None:
    # Greedy: (0, 0) with IoU 5/9 leaves lesion 1 alone. Together (0, 1) and (1, 0) are worth more.
    likeness = np.array([[0.6, 0.55], [0.5, 0.0]])
    from viscera.metrics.detection import _assign

    assert sorted(_assign(likeness)) == [(0, 1), (1, 0)]


def test_distance_in_millimetres() -> None:
    reference, prediction = np.zeros((2, 9, 9, 9), bool)
    reference[2, 2, 2], prediction[2, 2, 4] = True, True  # 2 voxels of 5 mm
    assert match_lesions(reference, prediction, MM, Matching(by="distance", most_mm=10)).found == 1
    assert match_lesions(reference, prediction, MM, Matching(by="distance", most_mm=9.9)).found == 0


def test_an_affine_places_the_centres() -> None:
    affine = np.array([[0, 2.0, 0, 10], [-1.0, 0, 0, 20], [0, 0, 5.0, 30], [0, 0, 0, 1]])
    result = match_lesions(scene((2, 6)), scene((2, 6)), (1.0, 2.0, 5.0), affine=affine)
    assert result.reference[0].centre_mm == pytest.approx((10 + 2 * 1, 20 - 3.5, 30 + 5 * 1))


def test_small_lesions_are_left_out_on_both_sides() -> None:
    result = match_lesions(scene((0, 1), (10, 14)), scene((0, 1), (10, 14)), MM, Matching(smallest_ml=0.02))
    assert (len(result.reference), len(result.predicted), result.found) == (1, 1, 1)


def test_diagonal_voxels_are_one_lesion() -> None:
    mask = np.zeros((3, 3, 3), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = True
    assert len(match_lesions(mask, mask, MM).reference) == 1


def test_a_single_line_of_voxels() -> None:
    line = np.array([True, False, True]).reshape(3, 1, 1)  # cc3d 4.1 raises on it
    assert len(match_lesions(line, line, MM).reference) == 2


@pytest.mark.parametrize("by", ["overlap", "distance"])
def test_empty_masks(by: str) -> None:
    nothing, something = scene(), scene((3, 5))
    matching = Matching(by=by)  # type: ignore[arg-type]
    assert match_lesions(nothing, nothing, MM, matching) == LesionMatch((), ())
    assert match_lesions(nothing[:0], nothing[:0], MM, matching) == LesionMatch((), ())
    assert match_lesions(nothing, something, MM, matching).false == 1
    assert match_lesions(something, nothing, MM, matching).found == 0


def test_refusals() -> None:
    with pytest.raises(SettingError, match="not by 'luck'"):
        Matching(by="luck")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="least IoU of a match is 0"):
        Matching(least_iou=0)
    with pytest.raises(SettingError, match="above 0 mm"):
        Matching(most_mm=0)
    with pytest.raises(ValueError, match="different shapes"):
        match_lesions(np.ones((1, 1, 1)), np.ones((1, 1, 2)), MM)


def test_patients_by_hand() -> None:
    result = detect_patients([(True, True)] * 3 + [(True, False)] + [(False, True)] * 2 + [(False, False)] * 4)
    assert (result.true_positive, result.false_negative, result.false_positive, result.true_negative) == (3, 1, 2, 4)
    assert result.sensitivity.value == 3 / 4
    assert result.specificity.value == 4 / 6
    assert result.precision.value == 3 / 5
    assert result.f1 == pytest.approx(6 / 9)
    # Wilson interval of 3 of 4, from the formula (z = 1.959964)
    assert (result.sensitivity.low, result.sensitivity.high) == pytest.approx((0.300642, 0.954413), abs=1e-5)


def test_no_patients_give_no_numbers() -> None:
    result = detect_patients([])
    assert isnan(result.sensitivity.value) and isnan(result.f1)


def test_lesions_over_cases_by_size() -> None:
    ball = 4 / 3 * np.pi * 5**3 / 1000  # 10 mm across
    from viscera.metrics.detection import Lesion

    at = (0.0, 0.0, 0.0)
    large, exact, small = Lesion(at, 30 * ball, 0, 1.0), Lesion(at, ball * (1 + 1e-9)), Lesion(at, ball / 2, 1, 0.5)
    cases = [LesionMatch((large, small), (large, small)), LesionMatch((exact,), (Lesion(at, ball),) * 3)]
    result = detect_lesions(cases)
    assert (result.sensitivity.count, result.sensitivity.total) == (2, 3)
    assert (result.precision.count, result.precision.total) == (2, 5)
    assert result.f1 == pytest.approx(4 / 8)
    assert result.false_per_case == pytest.approx(1.5)
    assert [(b.label, b.found.count, b.found.total) for b in result.by_size] == [
        ("< 10 mm", 1, 1),
        ("10-20 mm", 0, 1),
        (">= 20 mm", 1, 1),
    ]


def test_froc_by_hand() -> None:
    reference = scene((0, 4), (20, 24))
    probability = np.zeros(reference.shape)
    probability[0:4, 1, 1], probability[20:24, 1, 1] = 0.9, 0.5
    probability[10:12, 1, 1] = 0.6  # false from 0.6 down
    nothing = np.zeros(reference.shape, bool)
    thresholds = (0.9, 0.6, 0.5)
    cases = [match_at_thresholds(m, probability, MM, thresholds) for m in (reference,)]
    cases.append(match_at_thresholds(nothing, np.zeros(reference.shape), MM, thresholds))
    points = froc(thresholds, cases)
    assert points == (FrocPoint(0.9, 0.5, 0.0), FrocPoint(0.6, 0.5, 0.5), FrocPoint(0.5, 1.0, 0.5))
    # up to 0.25 false per case: 0.5; from 0.5 on: 1
    assert froc_score(points) == pytest.approx((2 * 0.5 + 5 * 1.0) / 7)
    assert isnan(froc_score([FrocPoint(0.5, nan, 0.0)])) and isnan(froc_score([]))
