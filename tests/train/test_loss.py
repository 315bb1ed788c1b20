"""The masked loss against hand-made answers, and the promise that what is not annotated teaches nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from viscera.errors import SettingError
from viscera.train.loss import LossSettings, masked_loss

ALL = [LossSettings(), LossSettings(voxelwise="focal"), LossSettings(overlap="tversky")]


def test_two_voxels_by_hand():
    """Logits 0, 0 (probability 1/2), truth 1, 0: cross entropy ln 2; Dice (1/2 + 1) / (1/2 + 1/4 + 1/4 + 1)."""
    loss = masked_loss(
        torch.zeros(1, 1, 1, 1, 2), torch.tensor([1, 0]).reshape(1, 1, 1, 1, 2), torch.ones(1, 1, dtype=torch.bool)
    )
    assert loss.voxelwise.tolist() == pytest.approx([math.log(2)])
    assert loss.overlap.tolist() == pytest.approx([1 - 1.5 / 2])
    assert float(loss.total) == pytest.approx(math.log(2) + 0.25)


def test_focal_with_gamma_zero_is_cross_entropy_and_tversky_half_is_dice():
    logits = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    target, annotated = logits > 0.5, torch.ones(2, 3, dtype=torch.bool)
    plain = masked_loss(logits, target, annotated)
    same = masked_loss(
        logits,
        target,
        annotated,
        LossSettings(voxelwise="focal", focal_gamma=0, overlap="tversky", tversky_alpha=0.5),
    )
    assert torch.allclose(plain.voxelwise, same.voxelwise)
    assert torch.allclose(plain.overlap, same.overlap)


@settings(max_examples=40, deadline=None)
@given(annotated=st.lists(st.booleans(), min_size=6, max_size=6), which=st.integers(0, 2), seed=st.integers(0, 9))
def test_what_is_not_annotated_has_exactly_no_gradient_and_no_say(annotated, which, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor(annotated).reshape(2, 3)
    logits = torch.randn(2, 3, 3, 4, 5, generator=generator, requires_grad=True)
    target = torch.rand(2, 3, 3, 4, 5, generator=generator) > 0.5
    loss = masked_loss(logits, target, mask, ALL[which])
    loss.total.backward()
    assert (logits.grad[~mask] == 0).all()
    assert (logits.grad[mask] != 0).any(dim=-1).all() or not mask.any()
    other = target.clone()
    other[~mask] = ~other[~mask]
    assert masked_loss(logits, other, mask, ALL[which]).total == loss.total
    assert loss.pairs.tolist() == mask.nonzero().tolist()


def test_a_true_negative_teaches():
    """A class annotated in the set and absent in the scan pushes its logits down."""
    logits = torch.zeros(1, 1, 2, 2, 2, requires_grad=True)
    masked_loss(logits, torch.zeros(1, 1, 2, 2, 2), torch.ones(1, 1, dtype=torch.bool)).total.backward()
    assert (logits.grad > 0).all()


@pytest.mark.parametrize(
    "wrong", [{"voxelwise": "mse"}, {"overlap": "iou"}, {"focal_gamma": -1.0}, {"tversky_alpha": 1.0}, {"smooth": 0.0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(SettingError, match=str(next(iter(wrong.values())))):
        LossSettings(**wrong)


def test_an_absent_class_weighs_as_the_settings_say():
    """Nothing drawn, both probabilities 1/2: cross entropy ln 2, Dice loss 1 - 1 / (1/4 + 1/4 + 1)."""
    inputs = torch.zeros(1, 1, 1, 1, 2), torch.zeros(1, 1, 1, 1, 2), torch.ones(1, 1, dtype=torch.bool)
    for weight in (1.0, 0.1, 0.0):
        total = float(masked_loss(*inputs, LossSettings(absent=weight)).total)
        assert total == pytest.approx(math.log(2) + weight * (1 - 1 / 1.5))
    with pytest.raises(SettingError, match="absent -1"):
        LossSettings(absent=-1.0)
