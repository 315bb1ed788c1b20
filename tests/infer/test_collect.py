"""Slabs in, soft masks out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from viscera.errors import VisceraError
from viscera.infer.collect import SoftMaskCollector, level_probabilities
from viscera.infer.window import Slab
from viscera.io.grid import mask_on_scan
from viscera.shapes import Box


def collected(logits, cuts, thresholds=None, keep_from=None):
    collector = SoftMaskCollector(tuple(logits.shape[1:]), thresholds or [0.5] * logits.shape[0], keep_from)
    edges = [0, *cuts, logits.shape[-1]]
    for a, b in itertools.pairwise(edges):
        collector.add(Slab(a, logits[..., a:b]))
    return collector.finish()


def smooth_logits():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 1, 14, 12, 20, generator=generator)
    smooth = torch.nn.functional.avg_pool3d(noise, 3, 1, 1)[:, 0]
    smooth[2] = -9  # a class that is nowhere
    return smooth * 6 - 1


def test_a_mask_is_where_the_logit_is_positive():
    logits = smooth_logits()
    for k, soft in enumerate(collected(logits, [])):
        whole = np.zeros(logits.shape[1:], bool)
        whole[soft.box.slices] = soft.mask
        assert np.array_equal(whole, (logits[k] >= 0).numpy())


@pytest.mark.parametrize("cuts", [[1], [10], [3, 4, 5], list(range(1, 20))])
def test_the_cut_into_slabs_does_not_change_the_surface(cuts):
    logits = smooth_logits()
    grid = tuple(logits.shape[1:])
    for one, many in zip(collected(logits, []), collected(logits, cuts), strict=True):
        a, b = (mask_on_scan(soft, grid, (3.0, 3.0, 3.0), (40, 34, 58), (1.0, 1.0, 1.0)) for soft in (one, many))
        assert a[0] == b[0]
        assert np.array_equal(a[1], b[1])


def test_a_threshold_moves_the_mask():
    logits = torch.tensor([math.log(0.3 / 0.7) - 0.01, math.log(0.3 / 0.7) + 0.01]).reshape(1, 1, 1, 2)
    (soft,) = collected(logits, [], [0.3])
    assert soft.mask.tolist() == [[[False, True]]]
    assert soft.mean_probability == pytest.approx(0.3, abs=0.01)


def test_the_mean_probability_is_that_of_the_voxels_called():
    logits = torch.tensor([-3.0, 1.0, 2.0]).reshape(1, 1, 1, 3)
    (soft,) = collected(logits, [])
    assert soft.mean_probability == pytest.approx(float(torch.sigmoid(logits[..., 1:]).mean()), abs=1 / 256)


def test_nan_from_the_network_is_an_error():
    with pytest.raises(VisceraError, match="NaN"):
        collected(torch.full((1, 2, 2, 2), math.nan), [])


@pytest.mark.parametrize("cuts", [[], [1], [3, 4, 5], list(range(1, 20))])
def test_faint_voxels_are_kept_where_they_are_asked_for_and_leave_the_mask_alone(cuts):
    logits = smooth_logits()
    strict = collected(logits, cuts, [0.5, 0.5, 0.5])
    for k, soft in enumerate(collected(logits, cuts, [0.5, 0.5, 0.5], [0.05, None, 1e-6])):
        level = soft.embedded_in(Box.whole(logits.shape[1:])).level
        true = (256 * torch.sigmoid(logits[k] / 2)).numpy().astype(np.uint8)
        kept = true >= (48, 128, 1)[k]  # 0.05 = sigmoid(2 * logit(47.8 / 256))
        assert np.array_equal(level[kept], true[kept])
        small = soft.shrunk()
        assert small.box == strict[k].box
        assert np.array_equal(small.level[small.mask], strict[k].level[small.mask])
        assert small.mean_probability == pytest.approx(strict[k].mean_probability, nan_ok=True)


@pytest.mark.parametrize("threshold", [0.5, 0.3, 0.8])
def test_a_level_is_a_probability(threshold):
    p = level_probabilities(threshold)
    assert p[127] < threshold <= p[128] and (np.diff(p) > 0).all() and p[0] == 0 and p[255] == 1
    shift = math.log(threshold / (1 - threshold))
    logit = torch.logit(torch.from_numpy(p)) - shift
    assert (256 * torch.sigmoid(logit / 2)).clamp(max=255).int().tolist() == list(range(256))


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_a_surface_between_voxels_that_are_almost_sure_lies_where_their_rest_puts_it(threshold):
    shift = math.log(threshold / (1 - threshold))
    (soft,) = collected(torch.tensor([-9.0, 7.0]).reshape(1, 1, 1, 2) + shift, [], [threshold])
    _, mask = mask_on_scan(soft, (1, 1, 2), (1.0, 1.0, 1.0), (1, 1, 10001), (1.0, 1.0, 1e-4))
    # p(z) = 0.00012 + z * (0.99909 - 0.00012) reaches a half at z = 0.50039, not at 0.5
    assert 10001 - mask.sum() == pytest.approx(5003.9, abs=1.5)
