"""A table as plain data: what Markdown and HTML both are made from."""

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
        text: the value as it is read.
        more: its interval.
        number: the value, low and high, for a plot; None where it is words.
    """

    text: str
    more: str = ""
    number: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Line:
    """One row.

    Attributes:
        label: what it is about.
        cells: one for each column.
        n: items it was measured on; None where they are not known.
        kind: "ours", "line" (oracle, majority, other bounds) or "paper".
    """

    label: str
    cells: tuple[Cell, ...]
    n: str = ""
    kind: str = "ours"


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: with the paper's number.
        columns: names of the measures.
        lines: rows.
        note: what a reader must know.
        span: the ends of the axis on which every cell's interval is drawn; None where nothing is drawn.
        zero: a place on that axis to be marked.
        folded: a page shows its rows when they are asked for.
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
    value, low, high = float(number["value"]), number.get("low"), number.get("high")
    if low is None or high is None:
        return Cell(f"{value:.{digits}f}", "", (value, value, value))
    return Cell(f"{value:.{digits}f}", f"[{low:.{digits}f}, {high:.{digits}f}]", (value, float(low), float(high)))


def quoted(value: float | None, digits: int = 1) -> Cell:
    """A published figure, which has no interval."""
    return BLANK if value is None else Cell(f"{value:.{digits}f}", "", (value, value, value))
