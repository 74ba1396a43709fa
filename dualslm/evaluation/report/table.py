"""A table as plain data, from which both Markdown and HTML are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Number: TypeAlias = Mapping[str, Any]
"""A figure of a report: value, low, high, n."""


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: value, formatted.
        more: interval, formatted.
        number: value, low and high, for a plot; None for words.
    """

    text: str
    more: str = ""
    number: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Line:
    """One row.

    Attributes:
        label: name of the row.
        cells: one cell for each column.
        n: number of items that the row was measured on; empty where it is not known.
        kind: "ours", "line" (oracle, majority and other bounds) or "paper".
    """

    label: str
    cells: tuple[Cell, ...]
    n: str = ""
    kind: str = "ours"


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: title, with the number of the paper's table.
        columns: names of the measures.
        lines: rows.
        note: what a reader must know, printed below.
        span: ends of the axis on which the interval of every cell is drawn; None to draw nothing.
        zero: position of a dashed line on that axis; None for none.
        folded: whether the HTML page shows the rows only on a click.
    """

    title: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    note: str = ""
    span: tuple[float, float] | None = None
    zero: float | None = None
    folded: bool = False


BLANK = Cell("-")


def cell(number: Number | None, digits: int = 1) -> Cell:
    """A figure with its interval."""
    if not number or number.get("value") is None:
        return BLANK
    value = float(number["value"])
    low = number.get("low")
    high = number.get("high")
    # With a single cluster there is no interval (null in JSON); the dot is drawn alone.
    if low is None or high is None:
        return quoted(value, digits)
    return Cell(f"{value:.{digits}f}", f"[{low:.{digits}f}, {high:.{digits}f}]", (value, float(low), float(high)))


def quoted(value: float | None, digits: int = 1) -> Cell:
    """A published figure, which has no interval."""
    return BLANK if value is None else Cell(f"{value:.{digits}f}", "", (value, value, value))
