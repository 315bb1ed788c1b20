"""Statistics over cases: known answers and properties."""

from __future__ import annotations

from math import inf, isnan, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viscera.metrics.agreement import bland_altman, compare_with_readers
from viscera.metrics.edge_cases import METRICS
from viscera.metrics.statistics import (
    Proportion,
    bootstrap_interval,
    compare_paired,
    decathlon_ranks,
    holm,
    rank_models,
    summarise,
)


def test_summary_by_hand() -> None:
    s = summarise([1.0, nan, 2.0, 3.0, 4.0])
    assert (s.n, s.infinite, s.mean, s.median, s.q1, s.q3) == (4, 0, 2.5, 2.5, 1.75, 3.25)
    assert s.sd == pytest.approx(np.sqrt(5 / 3))
    assert 1 <= s.low < 2.5 < s.high <= 4


def test_an_infinite_distance_is_counted_and_is_the_worst() -> None:
    s = summarise([1.0, 3.0, inf, inf])
    assert (s.n, s.infinite, s.mean, s.median, s.q3) == (4, 2, 2.0, inf, inf)
    assert summarise([1.0, 2.0, inf]).median == 2.0


def test_without_a_scored_case_nothing_is_known() -> None:
    s = summarise([nan, nan])
    assert s.n == 0
    assert all(isnan(v) for v in (s.mean, s.sd, s.low, s.high, s.q1, s.median, s.q3))


def test_the_bootstrap_interval_is_the_normal_one_for_many_values_and_repeats() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = bootstrap_interval(values)
    margin = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - margin, values.mean() + margin), abs=0.03)
    assert bootstrap_interval(values) == (low, high)
    assert all(map(isnan, bootstrap_interval([1.0])))


def test_proportion_without_cases() -> None:
    assert isnan(Proportion.of(0, 0).value)
    assert Proportion.of(0, 10).high == pytest.approx(0.2775, abs=1e-4)  # z2 / (n + z2)


def test_costs() -> None:
    assert METRICS["dice"].cost(0.9) == pytest.approx(0.1)
    assert METRICS["volume_error_ml"].cost(-3.0) == 3.0
    assert METRICS["hd95_mm"].cost(inf) == inf


def test_paired_by_hand() -> None:
    a, b = [0.3, 0.2, 0.1, nan, inf, inf, 0.1], [0.1, 0.2, 0.2, 0.1, 1.0, inf, nan]
    result = compare_paired(a, b)
    assert (result.n, result.wins, result.ties, result.losses) == (5, 2, 2, 1)
    assert result.difference == pytest.approx((0.2 + 0 - 0.1 + 0) / 4)


def test_wilcoxon_is_scipys_and_1_without_a_difference() -> None:
    # All of n = 6 differences above 0: the exact two-sided p is 2 / 2^6.
    assert compare_paired([2, 3, 4, 5, 6, 7], [1, 1, 1, 1, 1, 1]).p == pytest.approx(2 / 64)
    assert compare_paired([2, 3, 4, 5, 6, inf], [1, 1, 1, 1, 1, 1]).p == pytest.approx(2 / 64)
    assert compare_paired([1, 2], [1, 2]).p == 1
    assert isnan(compare_paired([nan], [1]).p)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=7))
def test_swapping_the_models_swaps_wins_and_keeps_p(pairs: list[tuple[float, float]]) -> None:
    a, b = zip(*pairs, strict=True)
    one, two = compare_paired(a, b), compare_paired(b, a)
    assert (one.wins, one.ties, one.losses) == (two.losses, two.ties, two.wins)
    assert one.p == pytest.approx(two.p)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, nan]) == pytest.approx([0.03, 0.06, 0.06, nan], nan_ok=True)
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_ranks_by_hand() -> None:
    costs = {"x": [0.1, 0.1, 0.1, nan], "y": [0.2, 0.2, 0.1, 0.0], "z": [0.3, inf, 0.3, 0.1]}
    ranking = rank_models(costs)
    assert ranking.n == 3
    assert ranking.mean_rank == pytest.approx({"x": 3.5 / 3, "y": 5.5 / 3, "z": 3.0})
    # Demsar's table 5: q is 2.343 for three models at 5 %
    assert ranking.critical_difference == pytest.approx(2.343 * np.sqrt(3 * 4 / (6 * 3)), abs=1e-3)
    assert 0.05 < ranking.friedman_p < 0.15


def test_two_models_need_no_friedman() -> None:
    ranking = rank_models({"x": [0.1, 0.1], "y": [0.2, 0.2]})
    assert isnan(ranking.friedman_p)
    assert ranking.critical_difference == pytest.approx(1.960 * np.sqrt(2 * 3 / (6 * 2)), abs=1e-3)


def test_decathlon_ranks_by_hand() -> None:
    rng = np.random.default_rng(2)
    base = rng.uniform(0.1, 0.2, 20)
    good, same, bad = base, base.copy(), base + 0.1
    # good and same beat bad and not each other: scores 1, 1, 0 -> ranks 1.5, 1.5, 3
    assert decathlon_ranks([{"good": good, "same": same, "bad": bad}]) == {"good": 1.5, "same": 1.5, "bad": 3}
    turned = {"good": bad, "same": bad, "bad": base}
    assert decathlon_ranks([{"good": good, "same": same, "bad": bad}, turned]) == {"good": 2, "same": 2, "bad": 2}


def test_bland_altman_by_hand() -> None:
    result = bland_altman([1.0, 2.0, 3.0, nan], [2.0, 4.0, 6.0, 1.0])
    assert (result.n, result.bias) == (3, 2.0)
    assert (result.low, result.high) == pytest.approx((2 - 1.96, 2 + 1.96))
    assert result.bias_margin == pytest.approx(4.30265 / np.sqrt(3), abs=1e-4)
    assert result.limit_margin == pytest.approx(4.30265, abs=1e-4)
    assert isnan(bland_altman([1.0], [1.0]).bias)


def test_readers_by_hand() -> None:
    inter = [[0.90, 0.80, 0.70, nan]]
    model = [[0.90, 0.84, 0.70, 0.9], [0.88, 0.80, 0.72, 0.9]]
    result = compare_with_readers(inter, model, intra=[[0.95, 0.95, nan, 0.95]])
    assert (result.n, result.inter, result.intra) == (3, pytest.approx(0.8), pytest.approx(0.95))
    assert result.difference == pytest.approx((-0.01 + 0.02 + 0.01) / 3)
    assert result.verdict == "within"
    assert compare_with_readers([[0.9, 0.91]], [[0.8, 0.8]]).verdict == "below"
    assert compare_with_readers([[0.8, 0.8]], [[0.9, 0.91]]).verdict == "above"
    assert compare_with_readers([[nan]], [[0.9]]).verdict == "unknown"
    assert compare_with_readers([[0.9]], [[0.8]]).verdict == "unknown"  # one case has no interval
    assert isnan(result.low) is False and isnan(compare_with_readers(inter, model).intra)
