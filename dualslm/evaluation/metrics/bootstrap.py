"""Intervals and comparisons that respect clusters: utterances of one dialogue or speaker are not independent.

Every measure is a statistic of summed counts: each item gives C counts, a resample draws whole clusters and sums
their counts, and the statistic turns the sums into a figure. So one function serves accuracy, F1 and word error rate,
and another compares two systems on the same items. The percentiles are those of the expanded percentile interval of
Hesterberg (2015), which is wider for few clusters: Student's t stands in place of the normal distribution.

Dimensions: N items, K clusters, C counts of an item, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dualslm.evaluation.metrics.figure import Figure, wilson

RESAMPLES = 2000
MAX_WEIGHTS = 4_000_000  # resamples x clusters held in memory at once: 32 MB of floats
Floats: TypeAlias = NDArray[np.float64]
Statistic: TypeAlias = Callable[[Floats], Floats]
"""Maps summed counts (..., C) to figures (...)."""


@dataclass(frozen=True)
class Difference:
    """How two systems differ on the same items, in the measure's own unit.

    Attributes:
        value: figure of the first system minus figure of the second.
        low: lower end of the 95 % interval of the paired bootstrap over clusters; NaN with one cluster.
        high: upper end of that interval; NaN with one cluster.
        p: p-value of the two-sided test that swaps the two systems on whole clusters at random; NaN where there is no
            difference to test, because the measure has no value.
        n: number of shared items.
        clusters: number of shared clusters.
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    clusters: int


def rate(sums: Floats) -> Floats:
    """The statistic of counts [part, whole]: part of whole in percent, NaN where the whole is 0."""
    part = sums[..., 0]
    whole = sums[..., 1]
    # Not 0: a resample of empty references has no error rate, and `nanpercentile` passes over it.
    out: Floats = 100 * part / np.where(whole > 0, whole, np.nan)
    return out


def figure(
    counts_NC: NDArray[Any],
    clusters: Sequence[str],
    statistic: Statistic = rate,
    *,
    is_share: bool = True,
    seed: int = 0,
) -> Figure:
    """A measure with its 95 % interval over clusters.

    Args:
        counts_NC: counts of each item, (N, C).
        clusters: name of each item's cluster, N of them.
        statistic: statistic of the summed counts.
        is_share: whether the measure is a share of the items; counts, lengths and scores are none.
        seed: seed of the resamples.

    Returns:
        The figure, without an interval where there is one cluster only. Where every resample gives 0 or 100 %, the
        interval of a share is Wilson's, with clusters in place of items.
    """
    sums_KC = _by_cluster(counts_NC, clusters)
    value = float(statistic(sums_KC.sum(0)))
    resampled_R = np.concatenate([statistic(weights_RK @ sums_KC) for weights_RK in _resamples(len(sums_KC), seed)])
    low, high = _interval(resampled_R, len(sums_KC))
    # A sample without an error has only resamples without one: the bootstrap would claim certainty.
    if is_share and low == high == value and value in (0.0, 100.0) and len(sums_KC) > 1:
        low, high = wilson(value / 100, len(sums_KC))
    return Figure(value, low, high, len(counts_NC), len(sums_KC))


def difference(
    first_NC: NDArray[Any],
    second_NC: NDArray[Any],
    clusters: Sequence[str],
    statistic: Statistic = rate,
    *,
    seed: int = 0,
) -> Difference:
    """Compares two systems on the same items: interval of the paired bootstrap, p of the sign-flip test.

    Args:
        first_NC: counts of each item by the first system, (N, C).
        second_NC: counts of the same items, in the same order, by the second system.
        clusters: name of each item's cluster, N of them.
        statistic: statistic of the summed counts.
        seed: seed of the resamples and of the swaps.
    """
    one_KC = _by_cluster(first_NC, clusters)
    two_KC = _by_cluster(second_NC, clusters)
    value = float(statistic(one_KC.sum(0)) - statistic(two_KC.sum(0)))
    # Paired: a resample draws the same clusters for both systems, so that what is hard for both cancels out.
    resampled_R = np.concatenate(
        [
            statistic(weights_RK @ one_KC) - statistic(weights_RK @ two_KC)
            for weights_RK in _resamples(len(one_KC), seed)
        ]
    )
    low, high = _interval(resampled_R, len(one_KC))
    if math.isnan(value):
        return Difference(value, low, high, math.nan, len(first_NC), len(one_KC))
    as_extreme = 0
    rng = np.random.default_rng([seed, 2])  # a stream of its own, beside that of the resamples
    for size in _chunks(len(one_KC)):
        # If the systems were alike, each cluster's counts could as well have come from the other one.
        swaps_RK = rng.integers(0, 2, (size, len(one_KC))).astype(np.float64)
        moved_RC = swaps_RK @ (two_KC - one_KC)
        gaps_R = statistic(one_KC.sum(0) + moved_RC) - statistic(two_KC.sum(0) - moved_RC)
        as_extreme += int((np.abs(gaps_R) >= abs(value) - 1e-9).sum())  # sums of floats differ in their last digits
    # The observed assignment counts as one of the swaps: p is never 0 (Phipson and Smyth 2010).
    p = (1 + as_extreme) / (1 + RESAMPLES)
    return Difference(value, low, high, p, len(first_NC), len(one_KC))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction for several tests: the adjusted p-value of each, in the order given; NaN is no test."""
    adjusted = [math.nan] * len(p)
    least = 0.0
    tested = [index for index in range(len(p)) if not math.isnan(p[index])]
    for rank, index in enumerate(sorted(tested, key=lambda index: p[index])):
        least = max(least, min(1.0, (len(tested) - rank) * p[index]))
        adjusted[index] = least
    return adjusted


def _by_cluster(counts_NC: NDArray[Any], clusters: Sequence[str]) -> Floats:
    """The counts of each cluster, summed, (K, C)."""
    assert len(counts_NC) == len(clusters) > 0
    # Clusters are sorted by name, so that the order of the items changes no interval.
    names, index_N = np.unique(np.array(clusters, dtype=object).astype(str), return_inverse=True)
    sums_KC = np.zeros((len(names), counts_NC.shape[1]))
    np.add.at(sums_KC, index_N, counts_NC)
    return sums_KC


def _resamples(clusters: int, seed: int) -> Iterator[Floats]:
    """How often each resample draws each cluster: chunks (R, K) that together hold `RESAMPLES` rows."""
    rng = np.random.default_rng([seed, 1])
    for size in _chunks(clusters):
        yield rng.multinomial(clusters, np.full(clusters, 1 / clusters), size).astype(np.float64)


def _chunks(clusters: int) -> Iterator[int]:
    """Sizes that sum to `RESAMPLES` and keep an array (size, clusters) within `MAX_WEIGHTS`."""
    size = max(1, min(RESAMPLES, MAX_WEIGHTS // clusters))
    left = RESAMPLES
    while left > 0:
        yield min(size, left)
        left -= size


def _interval(resampled_R: Floats, clusters: int) -> tuple[float, float]:
    """The two percentiles that bound the interval; NaN with one cluster, which shows no variation."""
    if clusters < 2 or np.isnan(resampled_R).all():
        return math.nan, math.nan
    # Resampling K clusters understates the variance by (K - 1) / K; the factor under the root makes up for it.
    tail = NormalDist().cdf(-math.sqrt(clusters / (clusters - 1)) * student(clusters - 1))
    low, high = np.nanpercentile(resampled_R, [100 * tail, 100 * (1 - tail)])
    return float(low), float(high)


def student(freedom: int) -> float:
    """The 97.5 % point of Student's t distribution, within 0.2 %.

    Args:
        freedom: degrees of freedom, at least 1.
    """
    # Abramowitz and Stegun 26.7.5, in powers of 1 / freedom, is far off for 1 and 2. scipy, which has the exact
    # values, is not among the packages that an evaluation requires.
    if freedom <= 2:
        return (12.7062, 4.3027)[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / freedom**power for power, term in enumerate(terms, 1)))
