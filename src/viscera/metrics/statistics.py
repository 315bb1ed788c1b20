"""What many cases say together: summaries with intervals, paired tests, ranks.

Values are per-case metrics: NaN is "not scored" and left out; an infinite distance is the worst value there is
(`edge_cases.py`). Models are compared by *costs*: 0 is perfect, larger is worse (`Metric.cost` turns any metric into
one). Random draws come from a fixed seed, so that the same cases give the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import ceil, isnan, modf, nan, sqrt

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

RESAMPLES = 1000
SEED = 0
CONFIDENCE = 0.95


def ratio(part: float, whole: float) -> float:
    """`part / whole`; NaN if `whole` is 0."""
    return part / whole if whole else nan


@dataclass(frozen=True)
class Proportion:
    """`count` of `total`, with its 95 % Wilson score interval (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    All NaN if `total` is 0.
    """

    count: int
    total: int
    value: float
    low: float
    high: float

    @staticmethod
    def of(count: int, total: int) -> Proportion:
        if not total:
            return Proportion(count, total, nan, nan, nan)
        from scipy.stats import binomtest

        interval = binomtest(count, total).proportion_ci(CONFIDENCE, method="wilson")
        return Proportion(count, total, count / total, float(interval.low), float(interval.high))


@dataclass(frozen=True)
class Summary:
    """One metric of one class over cases. All but the counts are NaN without a scored case."""

    n: int  # scored cases
    infinite: int  # of them infinite: left out of mean, sd and interval; the worst in the quartiles
    mean: float
    sd: float  # of the sample (n - 1); NaN for a single case
    low: float  # 95 % bootstrap interval of the mean; NaN for a single case
    high: float
    q1: float
    median: float
    q3: float


def summarise(values: Sequence[float] | FloatArray) -> Summary:
    """Summarise one metric over cases."""
    scored = np.asarray(values, np.float64)
    scored = scored[~np.isnan(scored)]
    finite = scored[np.isfinite(scored)]
    q1, median, q3 = _quantiles(scored)
    low, high = bootstrap_interval(finite)
    return Summary(
        n=len(scored),
        infinite=len(scored) - len(finite),
        mean=float(finite.mean()) if len(finite) else nan,
        sd=float(finite.std(ddof=1)) if len(finite) > 1 else nan,
        low=low,
        high=high,
        q1=q1,
        median=median,
        q3=q3,
    )


def _quantiles(values: FloatArray) -> tuple[float, float, float]:
    """Quartiles by linear interpolation, infinite where a neighbour is infinite (NumPy's would be NaN)."""
    if not len(values):
        return (nan, nan, nan)
    ordered = np.sort(values)
    quartiles = []
    for share in (0.25, 0.5, 0.75):
        part, low = modf(share * (len(ordered) - 1))
        below, above = float(ordered[int(low)]), float(ordered[ceil(low + part)])
        quartiles.append(below if part == 0 else (1 - part) * below + part * above)
    q1, median, q3 = quartiles
    return (q1, median, q3)


def bootstrap_interval(values: Sequence[float] | FloatArray, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean of finite `values`; NaN for fewer than two."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return (nan, nan)
    draws = np.random.default_rng(SEED).integers(len(values), size=(resamples, len(values)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values[draws].mean(axis=1), (tail, 100 - tail))
    return (float(low), float(high))


@dataclass(frozen=True)
class Paired:
    """Two models, A and B, on the same cases. Differences are A's cost minus B's: above 0, B is better."""

    n: int
    wins: int  # cases in which B is better
    ties: int
    losses: int
    difference: float  # mean, over the cases in which it is finite
    low: float  # 95 % bootstrap interval of it
    high: float
    p: float  # Wilcoxon signed-rank test, two-sided; 1 if all cases tie, NaN without a case


def compare_paired(a: Sequence[float], b: Sequence[float], tie: float = 1e-6) -> Paired:
    """Compare the costs of two models case by case; cases not scored (NaN) for both are left out.

    Differences up to `tie` count as ties. Both infinite is a tie; one infinite is the largest difference there is.
    """
    from scipy.stats import wilcoxon

    differences = cost_differences(a, b)
    differences[np.abs(differences) <= tie] = 0
    finite = differences[np.isfinite(differences)]
    low, high = bootstrap_interval(finite)
    p = nan
    if len(differences):
        p = float(wilcoxon(_for_ranks(differences)).pvalue) if differences.any() else 1.0
    return Paired(
        n=len(differences),
        wins=int((differences > 0).sum()),
        ties=int((differences == 0).sum()),
        losses=int((differences < 0).sum()),
        difference=float(finite.mean()) if len(finite) else nan,
        low=low,
        high=high,
        p=p,
    )


def cost_differences(a: Sequence[float], b: Sequence[float]) -> FloatArray:
    """Cost of A minus cost of B in each case that is scored for both; 0 where both are infinite."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    scored = ~(np.isnan(first) | np.isnan(second))
    first, second = first[scored], second[scored]
    both_infinite = np.isinf(first) & np.isinf(second)
    return np.where(both_infinite, 0.0, first) - np.where(both_infinite, 0.0, second)


def _for_ranks(differences: FloatArray) -> FloatArray:
    """Finite numbers of the same order of size: an infinite one becomes larger than all others."""
    largest = np.abs(differences[np.isfinite(differences)]).max(initial=0) + 1
    return np.clip(differences, -largest, largest)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction for several tests (Holm 1979): adjusted p values, in the same order. NaN stays."""
    adjusted = [nan] * len(p_values)
    tested = sorted((i for i, p in enumerate(p_values) if not isnan(p)), key=lambda i: p_values[i])
    largest = 0.0
    for step, i in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - step) * p_values[i]))
        adjusted[i] = largest
    return adjusted


@dataclass(frozen=True)
class Ranking:
    """Average ranks of several models over cases, 1 is best (Demsar 2006, JMLR 7:1-30)."""

    n: int  # cases
    mean_rank: Mapping[str, float]
    friedman_p: float  # NaN for two models, which Friedman's test cannot part
    critical_difference: float  # Nemenyi, 5 %: mean ranks nearer than this do not differ


def rank_models(costs: Mapping[str, Sequence[float]]) -> Ranking:
    """Rank models on the same cases (model -> cost per case); cases not scored for every model are left out."""
    from scipy.stats import friedmanchisquare, rankdata, studentized_range

    table = np.array([np.asarray(v, np.float64) for v in costs.values()])
    table = table[:, ~np.isnan(table).any(axis=0)]
    models, n = table.shape
    if n == 0:
        return Ranking(0, dict.fromkeys(costs, nan), nan, nan)
    ranks = rankdata(table, axis=0)
    different = bool((ranks != ranks[0]).any())
    p = nan
    if models > 2:
        p = float(friedmanchisquare(*ranks).pvalue) if different else 1.0
    q = float(studentized_range.ppf(CONFIDENCE, models, np.inf)) / sqrt(2)
    return Ranking(
        n=n,
        mean_rank={model: float(r) for model, r in zip(costs, ranks.mean(axis=1), strict=True)},
        friedman_p=p,
        critical_difference=q * sqrt(models * (models + 1) / (6 * n)),
    )


def decathlon_ranks(entries: Sequence[Mapping[str, Sequence[float]]], alpha: float = 0.05) -> dict[str, float]:
    """Rank models as the Medical Segmentation Decathlon did (Antonelli et al. 2022, doi:10.1038/s41467-022-30695-9).

    `entries` holds one (model -> cost per case) per class and metric. In each, a model's score is the number of
    models it beats in a one-sided Wilcoxon signed-rank test at `alpha`, and the scores are ranked (ties share the
    mean rank). The result is each model's mean rank over all entries; 1 is best.
    """
    from scipy.stats import rankdata, wilcoxon

    ranks: dict[str, list[float]] = {}
    for costs in entries:
        beaten = dict.fromkeys(costs, 0)
        for model, other in permutations(costs, 2):
            d = cost_differences(costs[other], costs[model])
            if d.any() and wilcoxon(_for_ranks(d), alternative="greater").pvalue < alpha:
                beaten[model] += 1
        for model, rank in zip(costs, rankdata([-score for score in beaten.values()]), strict=True):
            ranks.setdefault(model, []).append(float(rank))
    return {model: float(np.mean(each)) for model, each in ranks.items()}
