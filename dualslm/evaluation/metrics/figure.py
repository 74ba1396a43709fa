"""A measured figure: its value, its 95 % interval, and how many items it was measured on.

No torch here; every measure of this package is a count over a count, so that an interval can stand beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Figure:
    """A measured proportion or rate in percent, or a mean on a scale of its own, with its 95 % interval.

    Attributes:
        value: the measured value, in percent or on the scale of the mean.
        low: lower end of the interval; NaN where there is none.
        high: upper end of the interval; NaN where there is none.
        n: number of items that it was measured on.
        clusters: number of groups of items that were resampled; 0 where the interval takes items as independent.
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int = 0

    def __str__(self) -> str:
        return f"{self.value:.1f}" + ("" if math.isnan(self.low) else f" [{self.low:.1f}, {self.high:.1f}]")

    def as_json(self) -> dict[str, float | None]:
        """The attributes by name, for a report; NaN, which JSON lacks, becomes null."""
        return {key: None if math.isnan(value) else value for key, value in asdict(self).items()}


def wilson(proportion: float, n: int) -> tuple[float, float]:
    """The ends of Wilson's 95 % interval of a proportion, in percent.

    Args:
        proportion: share of the items that are right, 0 to 1.
        n: number of items, at least 1.
    """
    z = 1.959964
    middle = (proportion + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (proportion * (1 - proportion) / n + z * z / (4 * n * n)) ** 0.5
    # At 0 and 1 the formula gives the end of the scale exactly; rounding errors would print as -0.0.
    low = 0.0 if proportion == 0 else middle - half
    high = 1.0 if proportion == 1 else middle + half
    return 100 * low, 100 * high


def share(right: Sequence[bool]) -> Figure:
    """The percentage that is right, with Wilson's interval."""
    n = len(right)
    proportion = sum(right) / n
    return Figure(100 * proportion, *wilson(proportion, n), n)
