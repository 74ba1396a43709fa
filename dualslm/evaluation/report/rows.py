"""Rows of a report's tables: how a system and its view are named, grouped and put on a line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from dualslm.evaluation.report.table import BLANK, Cell, Line

Row: TypeAlias = Mapping[str, Any]
"""A record of report.json, for example one of its `cells`."""

VIEWS = {
    "speech,speech": "P&L-Embs",
    "speech,none": "P-Embs",
    "none,speech": "L-Embs",
    "text,text": "reads the styled transcript (oracle)",
    "none,text": "reads the transcript alone",
    "none,none": "hears nothing",
    "text,speech": "caption & L-Embs",
    "speech,text": "P-Embs & transcript",
}
BOUNDS = ("text,text", "none,text")  # views of the LLM without our adapters, and so bounds of what they can reach
# What a channel should not know: figures above the majority line here speak against the separation (paper §III).
LEAKS = {("linguistic", "speech,none"), ("paralinguistic", "none,speech")}


def row_label(one: Row) -> str:
    """A system and its view, in the paper's names."""
    view = one["view"]
    if view is None:
        return str(one["system"])
    leak = " (leak)" if (one.get("kind"), view) in LEAKS else ""
    return f"{one['system']}, {VIEWS.get(view, view)}{leak}"


def judged_label(label: str) -> str:
    """The judges' name of a system and its view, `system [view]`, in the words of `row_label`."""
    system, _, view = label.removesuffix("]").partition(" [")
    return f"{system}, {VIEWS.get(view, view)}" if view else label


def set_label(one: Row) -> str:
    """A test set: corpus/split."""
    return f"{one['corpus']}/{one['split']}"


def line_kind(one: Row) -> str:
    """The kind of a `Line`: a bound, or a system that was measured."""
    bound = one["view"] in BOUNDS or one["system"] == "majority"
    return "line" if bound else "ours"


def grouped(rows: Iterable[Row], *keys: str) -> list[tuple[tuple[Any, ...], list[Row]]]:
    """Rows by the values of some keys, in order of appearance."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(found.items())


def system_line(head: Row, columns: Sequence[Cell], cells: Sequence[Row]) -> Line:
    """The line of a system and its view.

    Args:
        head: any cell of the system and view.
        columns: values of the line.
        cells: cells of the table, from which n is taken.
    """
    # The tasks of a set can have different numbers of items: not every recording has every label.
    own = [one for one in cells if (one["system"], one["view"]) == (head["system"], head["view"])]
    sizes = sorted({one["n"] for one in own})
    n = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]}-{sizes[-1]}"
    return Line(row_label(head), tuple(columns), n, line_kind(head))


def plain(value: Any, digits: int = 3) -> Cell:
    """A number without an interval."""
    if value is None:
        return BLANK
    return Cell(f"{value:.{digits}f}" if isinstance(value, float) else str(value))
