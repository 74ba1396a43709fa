"""How far judges agree: on items, and on the order of the systems.

Krippendorff's alpha (2011, ordinal), Cohen's kappa with quadratic weights, Spearman's rho, and Kendall's tau-b of
rankings. They are not defined where a judge gives everything the same score, and are None there. The shares of equal
and of neighboring scores are given too: when most scores are at a ceiling, alpha is low though nobody disagrees.

Dimensions: N items, J judges, V values of the scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
"""(J, N), NaN where a judge has no verdict."""


def alpha(scores_JN: Scores) -> float | None:
    """Krippendorff's alpha for ordinal scores, missing ones allowed; None where all scores are the same."""
    values = np.unique(scores_JN[~np.isnan(scores_JN)])
    counts_NV = np.stack([(scores_JN == value).sum(0) for value in values], 1) if len(values) else np.zeros((0, 0))
    counts_NV = counts_NV[counts_NV.sum(1) > 1].astype(np.float64)  # an item with one score has nothing to compare
    if len(values) < 2 or not len(counts_NV):
        return None
    # Krippendorff's coincidence matrix: every ordered pair of scores of one item, weighted by 1 / (scores - 1), so that
    # an item weighs as much as it has scores. The diagonal loses the pairs of a score with itself.
    weighted_NV = counts_NV / (counts_NV.sum(1) - 1)[:, None]
    observed_VV = weighted_NV.T @ counts_NV - np.diag(weighted_NV.sum(0))
    totals_V = observed_VV.sum(1)
    expected_VV = (np.outer(totals_V, totals_V) - np.diag(totals_V)) / (totals_V.sum() - 1)
    # The ordinal distance of two values: how many scores lie between their mid-ranks, squared.
    midrank_V = np.cumsum(totals_V) - totals_V / 2
    distance_VV = (midrank_V[:, None] - midrank_V[None, :]) ** 2
    expected = float((expected_VV * distance_VV).sum())
    return 1 - float((observed_VV * distance_VV).sum()) / expected if expected else None


def kappa(one_N: Scores, two_N: Scores, scale: Sequence[int]) -> float | None:
    """Cohen's kappa with quadratic weights; None where both judges give one and the same score throughout.

    Args:
        one_N: scores of one judge.
        two_N: scores of the other, of the same items.
        scale: values of the scale, the lowest first.
    """
    row = {value: index for index, value in enumerate(scale)}
    observed_VV = np.zeros((len(scale), len(scale)))
    for a, b in zip(one_N, two_N, strict=True):
        observed_VV[row[int(a)], row[int(b)]] += 1
    expected_VV = np.outer(observed_VV.sum(1), observed_VV.sum(0)) / max(1.0, observed_VV.sum())
    index_V = np.arange(len(scale))
    distance_VV = (index_V[:, None] - index_V[None, :]) ** 2
    expected = float((expected_VV * distance_VV).sum())
    return 1 - float((observed_VV * distance_VV).sum()) / expected if expected else None


def spearman(one_N: Scores, two_N: Scores) -> float | None:
    """Spearman's rho, ties at their mean rank; None where one of the two never varies."""
    ranks = [_ranks(one_N), _ranks(two_N)]
    if len(one_N) < 2 or any(rank.std() == 0 for rank in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def tau(one: Sequence[float], two: Sequence[float]) -> float | None:
    """Kendall's tau-b of two rankings of the same systems; None where one of them ranks nothing."""
    # tau-b: pairs of systems that a ranking ties count for neither side, and shorten its part of the denominator.
    signs = [(np.sign(one[i] - one[j]), np.sign(two[i] - two[j])) for i, j in combinations(range(len(one)), 2)]
    untied = [sum(sign[side] != 0 for sign in signs) for side in (0, 1)]
    if not all(untied):
        return None
    return float(sum(a * b for a, b in signs) / (untied[0] * untied[1]) ** 0.5)


def near(one_N: Scores, two_N: Scores, within: int) -> float:
    """The share of items, 0 to 1, whose two scores differ by at most `within` points."""
    return float((np.abs(one_N - two_N) <= within).mean())


def _ranks(values_N: Scores) -> Scores:
    _, index_N, count_V = np.unique(values_N, return_inverse=True, return_counts=True)
    ranks: Scores = (np.cumsum(count_V) - (count_V - 1) / 2)[index_N]
    return ranks
