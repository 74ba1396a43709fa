"""A report's tables drawn in a terminal (ours)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich import box
from rich.table import Table as Drawn
from rich.text import Text

from dualslm.evaluation.report import tables as made
from dualslm.evaluation.report.rows import Row
from dualslm.evaluation.report.table import Table

STYLES = {"ours": "", "line": "italic", "paper": "dim"}


def tables(report: Row) -> Iterator[Drawn]:
    """The tables that stand for the paper's."""
    for table in made.tables(report):
        if table.title.startswith("Table"):
            yield drawn(table)


def drawn(table: Table) -> Drawn:
    """A table with a rule between our rows and the paper's; an interval stands under its figure."""
    # `Text` everywhere, because labels hold [brackets], which rich would take for markup
    shown = Drawn(
        title=Text(table.title), title_justify="left", caption=Text(table.note), caption_justify="left", box=box.SIMPLE
    )
    shown.add_column("", overflow="fold", ratio=2)
    for name in (*table.columns, "n"):
        shown.add_column(Text(name), justify="right")
    for kind, lines in groupby(table.lines, lambda line: line.kind):
        if kind == "paper":
            shown.add_section()
        for line in lines:
            cells = [Text(f"{cell.text}\n{cell.more}".strip()) for cell in line.cells]
            shown.add_row(Text(line.label), *cells, Text(line.n), style=STYLES[kind])
    return shown
