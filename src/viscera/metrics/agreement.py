"""How far two ways of measuring agree, and whether a model lies within what readers differ by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt
from typing import Literal

import numpy as np

from viscera.metrics.statistics import CONFIDENCE, bootstrap_interval


@dataclass(frozen=True)
class BlandAltman:
    """Bias and 95 % limits of agreement of paired measurements, in their own unit (Bland and Altman 1986).

    Differences are second - first. NaN with fewer than two pairs.
    """

    n: int
    bias: float
    low: float  # bias - 1.96 sd
    high: float  # bias + 1.96 sd
    bias_margin: float  # half the width of the 95 % confidence interval of the bias
    limit_margin: float  # half the width of the 95 % confidence interval of either limit


def bland_altman(first: Sequence[float], second: Sequence[float]) -> BlandAltman:
    """Compare two measurements of the same cases; pairs with a NaN are left out."""
    from scipy.stats import t

    d = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    d = d[~np.isnan(d)]
    n = len(d)
    if n < 2:
        return BlandAltman(n, nan, nan, nan, nan, nan)
    bias, sd = float(d.mean()), float(d.std(ddof=1))
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, n - 1))
    return BlandAltman(
        n=n,
        bias=bias,
        low=bias - 1.96 * sd,
        high=bias + 1.96 * sd,
        bias_margin=quantile * sd / sqrt(n),
        limit_margin=quantile * sd * sqrt(3 / n),
    )


@dataclass(frozen=True)
class ReaderAgreement:
    """A model against readers on one class: mean agreement (Dice or another measure where higher is better)."""

    n: int  # cases
    intra: float  # the same reader twice; NaN where nobody read twice
    inter: float  # different readers
    model: float  # the model and the readers
    difference: float  # model - inter, paired by case
    low: float  # 95 % bootstrap interval of the difference
    high: float

    @property
    def verdict(self) -> Literal["above", "within", "below", "unknown"]:
        """`within` the readers' variance if the interval of the difference holds 0; else on that side of it.

        `unknown` without an interval: fewer than two cases.
        """
        if np.isnan(self.low):
            return "unknown"
        return "above" if self.low > 0 else "below" if self.high < 0 else "within"


def compare_with_readers(
    inter: Sequence[Sequence[float]], model: Sequence[Sequence[float]], intra: Sequence[Sequence[float]] = ()
) -> ReaderAgreement:
    """Compare a model's agreement with readers to the readers' agreement with each other.

    Each argument holds one row per pair (two readers, the model and a reader, one reader twice) with one value per
    case; NaN is not scored. The model lies within reader variance if, case by case, it agrees with the readers as
    well as they agree with each other.
    """
    between, with_model = _by_case(inter), _by_case(model)
    d = with_model - between
    d = d[~np.isnan(d)]
    low, high = bootstrap_interval(d)
    return ReaderAgreement(
        n=len(d),
        intra=_mean(_by_case(intra)) if len(intra) else nan,
        inter=_mean(between),
        model=_mean(with_model),
        difference=_mean(d),
        low=low,
        high=high,
    )


def _by_case(pairs: Sequence[Sequence[float]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The mean over pairs of each case, without NaN; NaN where a case has none."""
    return np.array([_mean(np.array(case, np.float64)) for case in zip(*pairs, strict=True)], np.float64)


def _mean(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    scored = values[~np.isnan(values)]
    return float(scored.mean()) if len(scored) else nan
