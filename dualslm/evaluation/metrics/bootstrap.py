"""Intervals and comparisons that respect clusters: utterances of one dialogue or speaker are not independent.

Every measure is a statistic of summed counts: each item gives C counts, a resample draws whole clusters and sums
them, and the statistic turns the sums into a figure. So one function serves accuracy, F1 and word error rate, and
another compares two systems on the same items. Percentiles are widened for few clusters as Hesterberg (2015)
has it, with Student's t in place of the normal.

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
AT_ONCE = 4_000_000  # draws of clusters held in memory
Floats: TypeAlias = NDArray[np.float64]
Statistic: TypeAlias = Callable[[Floats], Floats]
"""Summed counts (..., C) → figures (...)."""


@dataclass(frozen=True)
class Difference:
    """How two systems differ on the same items, in the measure's own unit.

    Attributes:
        value: the first's figure minus the second's.
        low: lower end of the 95 % interval of the paired bootstrap over clusters.
        high: upper end.
        p: of the two-sided test that swaps the systems on whole clusters at random.
        n: shared items.
        clusters: shared clusters.
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    clusters: int


def rate(sums: Floats) -> Floats:
    """Counts [part, whole] → percent; NaN of nothing."""
    part, whole = sums[..., 0], sums[..., 1]
    out: Floats = 100 * part / np.where(whole > 0, whole, np.nan)
    return out


def figure(counts_NC: NDArray[Any], clusters: Sequence[str], statistic: Statistic = rate, *, seed: int = 0) -> Figure:
    """A measure with its interval over clusters.

    Args:
        counts_NC: of each item.
        clusters: the name of each item's cluster.
        statistic: of the summed counts.
        seed: of the resamples.

    Returns:
        The figure; without an interval where there is one cluster only. Where every resample gives 0 or 100 %, the
        interval is Wilson's with the clusters as items: no resample can show what was never seen.
    """
    sums_KC = _by_cluster(counts_NC, clusters)
    value = float(statistic(sums_KC.sum(0)))
    drawn = np.concatenate([statistic(weights @ sums_KC) for weights in _draws(len(sums_KC), seed)])
    low, high = _ends(drawn, len(sums_KC))
    if low == high == value and value in (0.0, 100.0) and len(sums_KC) > 1:
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
    """Two systems on the same items: the paired bootstrap's interval and the sign-flip test's p.

    Args:
        first_NC: counts of each item by one system.
        second_NC: by the other, items in the same order.
        clusters: the name of each item's cluster.
        statistic: of the summed counts.
        seed: of resamples and swaps.
    """
    one_KC, two_KC = _by_cluster(first_NC, clusters), _by_cluster(second_NC, clusters)
    value = float(statistic(one_KC.sum(0)) - statistic(two_KC.sum(0)))
    drawn = np.concatenate([statistic(w @ one_KC) - statistic(w @ two_KC) for w in _draws(len(one_KC), seed)])
    low, high = _ends(drawn, len(one_KC))
    as_far = 0
    for swaps_RK in _swaps(len(one_KC), seed):
        moved_RC = swaps_RK @ (two_KC - one_KC)
        gaps = statistic(one_KC.sum(0) + moved_RC) - statistic(two_KC.sum(0) - moved_RC)
        as_far += int((np.abs(gaps) >= abs(value) - 1e-9).sum())
    return Difference(value, low, high, (1 + as_far) / (1 + RESAMPLES), len(first_NC), len(one_KC))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction: the p-values of a family of tests, each as it counts among the others."""
    adjusted, least = [0.0] * len(p), 0.0
    for place, index in enumerate(sorted(range(len(p)), key=lambda index: p[index])):
        least = max(least, min(1.0, (len(p) - place) * p[index]))
        adjusted[index] = least
    return adjusted


def _by_cluster(counts_NC: NDArray[Any], clusters: Sequence[str]) -> Floats:
    """Summed counts (K, C); clusters in order of their names, so that the order of items changes nothing."""
    assert len(counts_NC) == len(clusters) > 0
    names, place_N = np.unique(np.array(clusters, dtype=object).astype(str), return_inverse=True)
    sums_KC = np.zeros((len(names), counts_NC.shape[1]))
    np.add.at(sums_KC, place_N, counts_NC)
    return sums_KC


def _draws(clusters: int, seed: int) -> Iterator[Floats]:
    """How often each cluster is drawn in each resample, (R, K) in parts."""
    rng = np.random.default_rng([seed, 1])
    for size in _parts(clusters):
        yield rng.multinomial(clusters, np.full(clusters, 1 / clusters), size).astype(np.float64)


def _swaps(clusters: int, seed: int) -> Iterator[Floats]:
    rng = np.random.default_rng([seed, 2])
    for size in _parts(clusters):
        yield rng.integers(0, 2, (size, clusters)).astype(np.float64)


def _parts(clusters: int) -> Iterator[int]:
    size, left = max(1, min(RESAMPLES, AT_ONCE // clusters)), RESAMPLES
    while left > 0:
        yield min(size, left)
        left -= size


def _ends(drawn_R: Floats, clusters: int) -> tuple[float, float]:
    """The percentiles that make the interval; NaN with one cluster."""
    if clusters < 2 or np.isnan(drawn_R).all():
        return math.nan, math.nan
    tail = NormalDist().cdf(-math.sqrt(clusters / (clusters - 1)) * student(clusters - 1))
    low, high = np.nanpercentile(drawn_R, [100 * tail, 100 * (1 - tail)])
    return float(low), float(high)


def student(freedom: int) -> float:
    """The 97.5 % point of Student's t; exact for 1 and 2 degrees of freedom, else Abramowitz and Stegun 26.7.5."""
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
