"""Scores of masks and label maps: hand-made answers, and the table of empty masks."""

from __future__ import annotations

from dataclasses import fields
from math import inf, isnan, nan

import numpy as np
import pytest

from viscera.errors import SettingError
from viscera.masks import MaskSet, SoftMask
from viscera.metrics import edge_cases
from viscera.metrics.edge_cases import METRICS, metric
from viscera.metrics.score import LabelMap, Score, score_classes, score_masks
from viscera.shapes import Box

MM = (1.0, 2.0, 5.0)  # a voxel is 0.01 ml


def test_overlap_by_hand() -> None:
    reference, prediction = np.zeros((2, 10, 1, 1), bool)
    reference[2:6], prediction[4:10] = True, True  # 4 and 6 voxels, 2 in both, 2 in neither
    score = score_masks(reference, prediction, MM, 1.0)
    assert score.dice == pytest.approx(2 * 2 / 10)
    assert score.sensitivity == pytest.approx(2 / 4)
    assert score.precision == pytest.approx(2 / 6)
    assert score.specificity == pytest.approx(2 / 6)
    assert score.volume_error_ml == pytest.approx(0.02)
    assert score.volume_error_percent == pytest.approx(50)
    assert (score.reference_ml, score.prediction_ml) == pytest.approx((0.04, 0.06))


def test_only_specificity_depends_on_the_whole_grid() -> None:
    reference, prediction = np.zeros((2, 3, 1, 1), bool)
    reference[0], prediction[1] = True, True
    assert score_masks(reference, prediction, MM, 1.0).specificity == pytest.approx(1 / 2)
    assert score_masks(reference, prediction, MM, 1.0, voxels=101).specificity == pytest.approx(99 / 100)


NOTHING, PART = np.zeros((4, 1, 1), bool), np.array([True, True, False, False]).reshape(4, 1, 1)
EMPTY = {  # the module's table as numbers: both empty, reference empty, prediction empty
    "dice": (nan, 0, 0),
    "nsd": (nan, 0, 0),
    "hd95_mm": (nan, inf, inf),
    "asd_mm": (nan, inf, inf),
    "volume_error_ml": (nan, 0.02, -0.02),
    "volume_error_percent": (nan, nan, -100),
    "sensitivity": (nan, nan, 0),
    "precision": (nan, 0, nan),
    "specificity": (1, 0.5, 1),
}


@pytest.mark.parametrize("key", METRICS)
def test_empty_masks(key: str) -> None:
    for (reference, prediction), expected in zip(
        [(NOTHING, NOTHING), (NOTHING, PART), (PART, NOTHING)], EMPTY[key], strict=True
    ):
        assert getattr(score_masks(reference, prediction, MM, 1.0), key) == pytest.approx(expected, nan_ok=True)


def test_the_docstring_table_lists_every_metric_in_order() -> None:
    lines = (edge_cases.__doc__ or "").splitlines()
    rows = [line.split()[0] for line in lines if line.split()[:1] and line.split()[0] in METRICS]
    assert rows == list(EMPTY) == [*dict.fromkeys(rows)]
    assert set(METRICS) == set(rows)


def test_every_metric_is_a_field_of_the_score() -> None:
    assert set(METRICS) <= {field.name for field in fields(Score)}


def test_empty_against_full() -> None:
    score = score_masks(np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool), MM, 1.0)
    assert (score.dice, score.hd95_mm, score.specificity) == (0, inf, 0)
    full = score_masks(np.ones((3, 3, 3), bool), np.ones((3, 3, 3), bool), MM, 1.0)
    assert (full.dice, full.nsd, full.hd95_mm, full.sensitivity) == (1, 1, 0, 1)
    assert isnan(full.specificity)  # there is no voxel to leave alone


def test_label_maps_and_masks_give_the_same_scores() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 6, (2, 9, 8, 7)).astype(np.uint8)
    values = {"x": (1,), "y": (2, 5), "absent": (9,)}
    tolerance = {"x": 1.0, "y": 2.0, "absent": 1.0}
    by_map = score_classes(LabelMap(a, values), LabelMap(b, values), MM, tolerance)
    sets = [MaskSet(m.shape, MM, {k: SoftMask.of(np.isin(m, v)) for k, v in values.items()}) for m in (a, b)]
    by_mask = score_classes(*sets, MM, tolerance)
    assert list(by_map) == ["x", "y", "absent"]
    for key in values:
        assert vars(by_map[key]) == pytest.approx(vars(by_mask[key]), nan_ok=True)
    assert by_map["x"] == score_masks(a == 1, b == 1, MM, 1.0)
    assert isnan(by_map["absent"].dice)


def test_the_order_in_memory_does_not_matter() -> None:
    a = np.zeros((4, 5, 6), np.uint8)
    a[1:3, 2:5, 3] = 7
    for array in (a, np.asfortranarray(a), a[::-1, :, ::-1], a.transpose(2, 0, 1)):
        assert LabelMap(array, {"x": (7,)}).box("x") == Box.around(array == 7)


def test_each_side_may_have_its_own_values() -> None:
    a = np.array([1, 2, 0], np.uint8).reshape(3, 1, 1)
    b = np.array([6, 27, 0], np.uint8).reshape(3, 1, 1)
    scores = score_classes(
        LabelMap(a, {"liver": (1, 2), "liver_tumor": (2,)}),
        LabelMap(b, {"liver": (6, 27), "liver_tumor": (27,)}),
        MM,
        {"liver": 1.0, "liver_tumor": 1.0},
    )
    assert scores["liver"].dice == scores["liver_tumor"].dice == 1


def test_refusals() -> None:
    with pytest.raises(ValueError, match="different shapes"):
        score_masks(np.zeros((1, 1, 1)), np.zeros((1, 1, 2)), MM, 1.0)
    with pytest.raises(ValueError, match="0 is the background"):
        LabelMap(np.zeros((1, 1, 1), np.uint8), {"x": (0,)})
    with pytest.raises(SettingError, match="no metric 'dise'; choose from dice, nsd"):
        metric("dise")
