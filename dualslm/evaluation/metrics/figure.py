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
        value: in percent.
        low: lower end of the interval; NaN where there is none.
        high: upper end.
        n: items it was measured on.
        clusters: groups of items that the interval was drawn over; 0 where items were taken one by one.
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int = 0

    def __str__(self) -> str:
        return f"{self.value:.1f}" + ("" if math.isnan(self.low) else f" [{self.low:.1f}, {self.high:.1f}]")

    def as_json(self) -> dict[str, float | None]:
        """For a report; NaN, which JSON lacks, becomes null."""
        return {key: None if math.isnan(value) else value for key, value in asdict(self).items()}


def wilson(right: float, n: int) -> tuple[float, float]:
    """The ends of Wilson's interval of a proportion, in percent.

    Args:
        right: the proportion, 0 to 1.
        n: of how many.
    """
    z = 1.959964
    middle = (right + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (right * (1 - right) / n + z * z / (4 * n * n)) ** 0.5
    return 100 * (0.0 if right == 0 else middle - half), 100 * (1.0 if right == 1 else middle + half)


def share(right: Sequence[bool]) -> Figure:
    """The percentage that is right, with Wilson's interval."""
    n, proportion = len(right), sum(right) / len(right)
    return Figure(100 * proportion, *wilson(proportion, n), n)
