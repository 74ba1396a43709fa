"""How far judges agree: on items, and on the order of the systems.

Krippendorff's alpha (2011, ordinal), Cohen's kappa with quadratic weights, Spearman's rho, and Kendall's tau-b of
rankings. Where a judge gives everything the same score these have no value, and None says so; the shares of equal and
of neighbouring scores stand beside them, because with scores at a ceiling alpha falls though nobody disagrees.

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
    counts_NV = counts_NV[counts_NV.sum(1) > 1].astype(np.float64)  # an item that one judge scored compares nothing
    if len(values) < 2 or not len(counts_NV):
        return None
    pairs_N = counts_NV.sum(1) - 1
    seen_VV = (counts_NV / pairs_N[:, None]).T @ counts_NV - np.diag((counts_NV / pairs_N[:, None]).sum(0))
    often_V = seen_VV.sum(1)
    by_chance_VV = (np.outer(often_V, often_V) - np.diag(often_V)) / (often_V.sum() - 1)
    upto_V = np.cumsum(often_V) - often_V / 2
    apart_VV = (upto_V[:, None] - upto_V[None, :]) ** 2
    chance = float((by_chance_VV * apart_VV).sum())
    return 1 - float((seen_VV * apart_VV).sum()) / chance if chance else None


def kappa(one_N: Scores, two_N: Scores, scale: Sequence[int]) -> float | None:
    """Cohen's kappa with quadratic weights; None where both judges give one and the same score throughout."""
    place = {value: index for index, value in enumerate(scale)}
    seen_VV = np.zeros((len(scale), len(scale)))
    for a, b in zip(one_N, two_N, strict=True):
        seen_VV[place[int(a)], place[int(b)]] += 1
    by_chance_VV = np.outer(seen_VV.sum(1), seen_VV.sum(0)) / max(1.0, seen_VV.sum())
    index_V = np.arange(len(scale))
    apart_VV = (index_V[:, None] - index_V[None, :]) ** 2
    chance = float((by_chance_VV * apart_VV).sum())
    return 1 - float((seen_VV * apart_VV).sum()) / chance if chance else None


def spearman(one_N: Scores, two_N: Scores) -> float | None:
    """Spearman's rho, ties at their mean rank; None where one of the two never varies."""
    ranks = [_ranks(one_N), _ranks(two_N)]
    if len(one_N) < 2 or any(rank.std() == 0 for rank in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def tau(one: Sequence[float], two: Sequence[float]) -> float | None:
    """Kendall's tau-b of two rankings of the same systems; None where one of them ranks nothing."""
    signs = [(np.sign(one[i] - one[j]), np.sign(two[i] - two[j])) for i, j in combinations(range(len(one)), 2)]
    apart = [sum(sign[side] != 0 for sign in signs) for side in (0, 1)]
    if not all(apart):
        return None
    return float(sum(a * b for a, b in signs) / (apart[0] * apart[1]) ** 0.5)


def near(one_N: Scores, two_N: Scores, within: int) -> float:
    """The share of items whose scores differ by no more, 0 to 1."""
    return float((np.abs(one_N - two_N) <= within).mean())


def _ranks(values_N: Scores) -> Scores:
    _, place_N, often_V = np.unique(values_N, return_inverse=True, return_counts=True)
    ranks: Scores = (np.cumsum(often_V) - (often_V - 1) / 2)[place_N]
    return ranks
