"""Coarse to fine: what the small model finds bounds where the large one looks, and no organ is cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from viscera.workflow.region import landmarks
from viscera.workflow.scan import SegmentSettings, segment_scan

from .conftest import BANDS, SHAPE, BandNetwork
from .test_scan import expected


class Watched(BandNetwork):
    """Counts the voxels that the network is asked for."""

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.sizes = []

    def encode(self, image):
        self.sizes.append(tuple(image.shape[2:]))
        return super().encode(image)


class Blind(BandNetwork):
    """Finds each class only in the lower left part of what there is of it."""

    def decode(self, features, embedding, classes):
        logits = super().decode(features, embedding, classes)
        logits[..., 9:] = -10
        return logits


@pytest.fixture(autouse=True)
def narrow_margin(monkeypatch):
    monkeypatch.setattr("viscera.workflow.region.MARGIN_MM", 6.0)  # two voxels: the phantom is small


def run(phantom, coarse, classes):
    fine = Watched()
    result = segment_scan(phantom, fine, SegmentSettings(post=False, coarse=coarse, classes=classes))
    return fine, result


def test_the_large_model_looks_only_around_the_organ(phantom):
    fine, result = run(phantom, BandNetwork(), "left kidney")
    assert fine.sizes == [(4 + 4, 5 + 4, 7 + 4)], "the kidney, and two voxels on every side"
    assert result.record["used"]["region_voxels"] == (8, 9, 11)
    assert np.array_equal(result.label_map > 0, expected() == result.label_map.max())
    assert not result.warnings or all("whole body" not in warning for warning in result.warnings)


def test_a_box_that_an_organ_reaches_grows_until_none_does(phantom):
    fine, result = run(phantom, Blind(), "left kidney")  # its upper part is not seen at first
    assert len(fine.sizes) > 1 and fine.sizes[0][2] < fine.sizes[-1][2]
    assert result.mask("left kidney").sum() == 4 * 5 * 7


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda network: replace(network.config, classes=("liver",)), "cannot find left kidney"),
        (lambda network: replace(network.config, thresholds={"left_kidney": 0.9999999999}), "did not find left kidney"),
    ],
)
def test_where_the_small_model_does_not_help_the_whole_body_is_taken_and_said(phantom, change, reason):
    coarse = BandNetwork()
    coarse.config = change(coarse)
    fine, result = run(phantom, coarse, "left kidney")
    assert any(reason in warning.lower() and "whole body" in warning for warning in result.warnings)
    assert fine.sizes[0][0] >= 24 and result.mask("left kidney").sum() == 4 * 5 * 7


def test_a_model_that_never_stops_at_a_face_ends_with_the_whole_body(phantom, monkeypatch):
    monkeypatch.setattr("viscera.workflow.region.LOOKS", 1)
    fine, result = run(phantom, Blind(), "left kidney")
    assert len(fine.sizes) == 2 and result.mask("left kidney").sum() == 4 * 5 * 7
    assert any("whole body" in warning for warning in result.warnings)


def test_all_classes_at_once_give_what_they_give_without_it(phantom):
    _, result = run(phantom, BandNetwork(), None)
    assert result.label_map.shape == SHAPE and np.array_equal(result.label_map, expected())


def test_a_tumour_is_looked_for_where_its_organs_are():
    assert landmarks(["kidney_tumor", "liver"]) == landmarks(["liver", "right_kidney", "left_kidney"])
    assert set(landmarks(BANDS)) == {"right_kidney", "left_kidney", "liver"}
