"""Classes drawn as one: the union's probability by hand, and what it teaches."""

from __future__ import annotations

import pytest
import torch

from viscera.data.assemble import Batch
from viscera.train.loss import masked_loss
from viscera.train.unions import union_logit, with_unions


def batch(members, target=None) -> Batch:
    union_members = torch.tensor(members, dtype=torch.bool)
    b, u, c = union_members.shape
    union_target = torch.ones(b, u, 2, 2, 2, dtype=torch.uint8) if target is None else target
    nothing = torch.zeros(b, c, 2, 2, 2, dtype=torch.uint8)
    annotated = torch.zeros(b, c, dtype=torch.bool)
    return Batch(torch.zeros(b, 1, 2, 2, 2), nothing, annotated, union_target, union_members, ("a/1",) * b)


def test_the_union_of_two_by_hand():
    """p 1/2 and 1/4: neither 1/2 * 3/4, so the union 5/8."""
    logits = torch.tensor([0.5, 0.25]).logit().reshape(2, 1)
    assert union_logit(logits).sigmoid().item() == pytest.approx(5 / 8)


def test_a_union_of_one_class_is_that_class_also_far_out():
    logits = torch.tensor([[-80.0, -20.0, -1.0, 0.0, 3.0, 40.0, 90.0]])
    assert torch.allclose(union_logit(logits), logits[0], rtol=1e-4, atol=1e-4)


def test_extreme_logits_have_finite_values_and_gradients():
    logits = torch.tensor([[-500.0, 500.0, -90.0], [-500.0, -500.0, 90.0]], requires_grad=True)
    out = union_logit(logits)
    out.sum().backward()
    assert out.isfinite().all() and logits.grad.isfinite().all()


def test_a_union_teaches_its_members_and_nobody_else():
    logits = torch.zeros(1, 3, 2, 2, 2, requires_grad=True)
    masked_loss(*with_unions(logits, batch([[[1, 1, 0]]]))).total.backward()
    assert (logits.grad[:, :2] < 0).all()
    assert (logits.grad[:, 2] == 0).all()


def test_outside_the_union_each_member_is_pushed_down():
    outside = torch.zeros(1, 1, 2, 2, 2, dtype=torch.uint8)
    logits = torch.zeros(1, 2, 2, 2, 2, requires_grad=True)
    masked_loss(*with_unions(logits, batch([[[1, 1]]], outside))).total.backward()
    assert (logits.grad > 0).all()


def test_padding_rows_teach_nothing():
    """A batch of one scan with a union and one without: the second's row is padding."""
    logits = torch.zeros(2, 2, 2, 2, 2, requires_grad=True)
    loss = masked_loss(*with_unions(logits, batch([[[1, 1]], [[0, 0]]])))
    loss.total.backward()
    assert loss.pairs.tolist() == [[0, 2]]
    assert (logits.grad[1] == 0).all()


def test_without_unions_nothing_changes():
    empty = Batch(
        torch.zeros(1, 1, 2, 2, 2),
        torch.zeros(1, 3, 2, 2, 2, dtype=torch.uint8),
        torch.ones(1, 3, dtype=torch.bool),
        torch.zeros(1, 0, 2, 2, 2, dtype=torch.uint8),
        torch.zeros(1, 0, 3, dtype=torch.bool),
        ("a/1",),
    )
    logits = torch.zeros(1, 3, 2, 2, 2)
    assert with_unions(logits, empty)[0] is logits
    assert empty.taught == [0, 1, 2] and empty.pairs == 3
