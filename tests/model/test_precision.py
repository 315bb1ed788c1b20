"""Which numbers a network computes in, by what the hardware has."""

from __future__ import annotations

import pytest
import torch

import viscera.model.precision as precision

CPU = torch.device("cpu")


@pytest.fixture
def hardware(monkeypatch):
    """Sets whether there is bfloat16."""
    precision._tell_that_bf16_is_slow.cache_clear()
    yield lambda has: monkeypatch.setattr(precision, "has_fast_bf16", lambda device: has)
    precision._tell_that_bf16_is_slow.cache_clear()


@pytest.mark.parametrize(("has", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_the_faster_one(hardware, has, expected, caplog):
    hardware(has)
    assert precision.resolved_precision("auto", CPU) == expected
    assert not caplog.text


def test_what_is_asked_for_stays_and_a_slow_one_is_told_of_once(hardware, caplog):
    hardware(False)
    assert [precision.resolved_precision(each, CPU) for each in ("fp32", "bf16", "bf16")] == ["fp32", "bf16", "bf16"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "set fp32" in caplog.text


def test_a_quick_one_is_not_told_of(hardware, caplog):
    hardware(True)
    assert precision.resolved_precision("bf16", CPU) == "bf16"
    assert not caplog.text
