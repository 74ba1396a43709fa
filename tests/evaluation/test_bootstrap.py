"""Intervals cover the truth as often as they say, and paired tests find what is there and nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dualslm.evaluation.metrics import bootstrap
from dualslm.evaluation.metrics.bootstrap import difference, figure, holm, rate, student

SIMULATIONS = 400


def clustered(rng: np.random.Generator, clusters: int, shift: float = 0.0) -> tuple[np.ndarray, list[str]]:
    """Items that are right or wrong, 3 to 9 in a cluster and alike within it; the true rate is 70 % + shift."""
    rows = []
    names = []
    for cluster in range(clusters):
        chance = rng.beta(7, 3) + shift  # mean 0.7
        size = rng.integers(3, 10)
        rows += [(float(rng.random() < chance), 1.0) for _ in range(size)]
        names += [f"c{cluster}"] * size
    return np.array(rows), names


@pytest.mark.parametrize("clusters", [12, 40])
def test_intervals_cover_the_truth(monkeypatch: pytest.MonkeyPatch, clusters: int) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 600)
    rng = np.random.default_rng(clusters)
    covered = 0
    for seed in range(SIMULATIONS):
        found = figure(*clustered(rng, clusters), seed=seed)
        covered += found.low <= 70.0 <= found.high
    assert 0.93 <= covered / SIMULATIONS <= 0.97


def test_items_taken_as_independent_would_not_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation can fail: the same intervals without clusters miss the truth far more often."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 300)
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        chances = rng.beta(0.7, 0.3, 25)
        rows = np.array([(float(rng.random() < chance), 1.0) for chance in chances for _ in range(8)])
        found = figure(rows, [str(index) for index in range(len(rows))], seed=seed)
        covered += found.low <= 70.0 <= found.high
    assert covered / 200 < 0.85


def test_a_planted_difference_is_found_and_none_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 250)
    rng = np.random.default_rng(3)
    false = 0
    true = 0
    for seed in range(300):
        base, names = clustered(rng, 40)
        flip = rng.random(len(base)) < 0.15  # two systems that differ, but neither is better
        other = base.copy()
        other[flip, 0] = (rng.random(flip.sum()) < 0.7).astype(float)
        same = base.copy()
        swap = rng.random(len(base)) < 0.15
        same[swap, 0] = (rng.random(swap.sum()) < 0.7).astype(float)
        false += difference(other, same, names, rate, seed=seed).p < 0.05
        worse = base.copy()
        worse[rng.random(len(base)) < 0.15, 0] = 0.0
        gap = difference(base, worse, names, rate, seed=seed)
        true += gap.p < 0.05 and gap.low > 0
    assert 0.02 <= false / 300 <= 0.08
    assert true / 300 > 0.95


def test_the_order_of_items_changes_nothing() -> None:
    rows, names = clustered(np.random.default_rng(0), 20)
    order = np.random.default_rng(1).permutation(len(rows))
    assert figure(rows, names) == figure(rows[order], [names[index] for index in order])


def test_ends_of_the_scale_and_a_single_cluster() -> None:
    right = np.ones((30, 2))
    found = figure(right, [f"c{index // 3}" for index in range(30)])
    assert (found.value, found.high) == (100.0, 100.0)
    assert found.low == pytest.approx(72.25, abs=0.01)  # Wilson's, 10 of 10 clusters
    alone = figure(right, ["one"] * 30)
    assert math.isnan(alone.low)
    assert alone.as_json()["low"] is None
    assert str(alone) == "100.0"


def test_student() -> None:
    for freedom in (1, 2, 3, 5, 11, 59, 1000):
        assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
