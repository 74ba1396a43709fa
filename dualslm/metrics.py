"""Measures and their intervals: word error rate and proportions (paper §IV-B).

No torch here; every measure is a count over a count, so that an interval can stand beside it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Figure:
    """A measured proportion or rate in percent, with its 95 % interval.

    Attributes:
        value: in percent.
        low: lower end of the interval.
        high: upper end.
        n: utterances it was measured on.
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


def words(text: str) -> list[str]:
    """Lower-case words without punctuation, for word error rates on plain English."""
    return re.sub(r"[^\w\s']", " ", text.lower()).split()


def word_errors(reference: Sequence[str], heard: Sequence[str]) -> int:
    """Substitutions, deletions and insertions that turn one word sequence into the other, at the fewest."""
    row = list(range(len(heard) + 1))
    for i, wanted in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, got in enumerate(heard, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (wanted != got))
    return row[-1]


def word_error_rate(references: Sequence[str], heard: Sequence[str], *, seed: int = 0) -> Figure:
    """Errors per hundred reference words, with a bootstrap interval over utterances."""
    pairs = [(words(a), words(b)) for a, b in zip(references, heard, strict=True)]
    errors = np.array([word_errors(a, b) for a, b in pairs])
    lengths = np.array([len(a) for a, _ in pairs])
    drawn = np.random.default_rng(seed).integers(0, len(pairs), (RESAMPLES, len(pairs)))
    rates = 100 * errors[drawn].sum(1) / lengths[drawn].sum(1)
    low, high = np.percentile(rates, [2.5, 97.5])
    return Figure(float(100 * errors.sum() / lengths.sum()), float(low), float(high), len(pairs))


def share(right: Sequence[bool]) -> Figure:
    """The percentage that is right, with Wilson's interval."""
    n, p, z = len(right), sum(right) / len(right), 1.959964
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return Figure(100 * p, 100 * max(0.0, middle - half), 100 * min(1.0, middle + half), n)
