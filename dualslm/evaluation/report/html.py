"""A report as one HTML file without links to others: tables with drawn intervals, confusion matrices, recordings.

Whatever a model said is escaped before it stands in the page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files

from dualslm.errors import for_html as escape
from dualslm.evaluation.report import tables
from dualslm.evaluation.report.markdown import facts
from dualslm.evaluation.report.rows import Row, row_label
from dualslm.evaluation.report.table import Cell, Line, Table

PLOT_WIDTH = 92.0  # px, of a drawn interval; style.css says the same
PLOT_MIDDLE = 4.5  # px from its upper edge
LEGEND = (
    '<p class="key"><span><i style="background:var(--ours)"></i>measured here</span>'
    '<span><i style="background:var(--bound)"></i>bounds: oracle, transcript alone, majority</span>'
    '<span><i style="background:var(--quote)"></i>published figures</span></p>'
)


def page(report: Row) -> str:
    """The whole file."""
    every = tables.tables(report)
    sections = [(table.title, _table(table)) for table in every if not table.folded]
    for table, explanation in tables.diagnostics(report):
        sections.append((table.title, _table(table) + (f"<p>{escape(explanation)}</p>" if explanation else "")))
    sections += [("Confusions", _confusions(tables.confusions(report)))]
    sections += [("Listen", "".join(map(_example, report["examples"])))]
    sections += [(table.title, _table(table)) for table in every if table.folded]
    counts = tables.counts(report)
    sections += [(counts.title, _table(counts) + _skipped(report)), ("How this was made", _facts(report))]
    shown = [(title, body) for title, body in sections if body]
    links = "".join(f'<a href="#{_anchor(title)}">{escape(_short(title))}</a>' for title, _ in shown)
    body = "".join(f'<section id="{_anchor(title)}"><h2>{escape(title)}</h2>{text}</section>' for title, text in shown)
    # The style is part of the file, so that a report can be mailed or archived alone.
    style = (files("dualslm.evaluation.report") / "style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Evaluation · {escape(_names(report))}</title><style>{style}</style></head><body><main>"
        f"<h1>Evaluation</h1><p>{escape(_names(report))}</p>"
        f'<p class="soft">Every figure stands with its 95 % interval over clusters and with n. {_judges(report)}</p>'
        f"{LEGEND}"
        f"<nav>{links}</nav>{body}</main></body></html>\n"
    )


# ---------------------------------------------------------------------- tables


def _table(table: Table) -> str:
    """A table; where it has an axis, each cell has its interval drawn."""
    head = "".join(f"<th>{escape(name)}</th>" for name in (*table.columns, "n"))
    rows: list[str] = []
    before = ""
    for line in table.lines:
        rows.append(_line(line, table, first=line.kind == "paper" != before))  # ruled off from ours
        before = line.kind
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    whole = f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    shown = f'<div class="wide">{whole}</div>'
    return f"<details><summary>{len(rows)} rows</summary>{shown}</details>{note}" if table.folded else shown + note


def _line(line: Line, table: Table, *, first: bool) -> str:
    cells = "".join(f"<td>{_cell(cell, table)}</td>" for cell in line.cells)
    kind = f"{line.kind} first" if first else line.kind
    return f'<tr class="{kind}"><th scope="row">{escape(line.label)}</th>{cells}<td>{escape(line.n)}</td></tr>'


def _cell(cell: Cell, table: Table) -> str:
    more = f"<small>{escape(cell.more)}</small>" if cell.more else ""
    drawn = _interval(cell.number, table.span, table.zero) if table.span and cell.number else ""
    return f"<b>{escape(cell.text)}</b>{more}{drawn}"


def _interval(number: tuple[float, float, float], span: tuple[float, float], zero: float | None) -> str:
    """A dot for the value on a bar for the interval, on an axis that ends at `span`."""
    low, high = span

    def x(value: float) -> float:
        # A word error rate can be above 100 %: it is drawn at the end of the axis.
        return round(PLOT_WIDTH * (min(max(value, low), high) - low) / (high - low), 1)

    dot, left, right = map(x, number)
    level = f'y1="{PLOT_MIDDLE}" y2="{PLOT_MIDDLE}"'
    axis = f'<line class="axis" x1="0" x2="{PLOT_WIDTH}" {level}/>'
    zero_line = f'<line class="zero" x1="{x(zero)}" x2="{x(zero)}" y1="0" y2="9"/>' if zero is not None else ""
    bar = f'<line class="span" x1="{left}" x2="{right}" {level}/>' if right > left else ""
    return (
        f'<svg class="i" viewBox="0 0 {PLOT_WIDTH} 9" preserveAspectRatio="none" aria-hidden="true">'
        f'{axis}{zero_line}{bar}<circle class="dot" cx="{dot}" cy="{PLOT_MIDDLE}" r="3"/></svg>'
    )


def _confusions(found: Sequence[Row]) -> str:
    """Confusion matrices, side by side."""
    return f'<div class="grid">{"".join(map(_confusion, found))}</div>' if found else ""


def _confusion(one: Row) -> str:
    labels = one["confusion"]["labels"]
    head = "".join(f"<th>{escape(label)}</th>" for label in (*labels, "none"))
    rows = []
    for label, row in zip(labels, one["confusion"]["rows"], strict=True):
        # Shaded by the share of the true class: classes differ in size by far (in MELD 1256 to 50).
        total = sum(row) or 1
        cells = "".join(
            f'<td style="background:rgb(var(--heat) / {0.85 * count / total:.2f})">{count}</td>' for count in row
        )
        rows.append(f"<tr><th>{escape(label)}</th>{cells}</tr>")
    caption = tables.confusion_title(one).partition(" · ")[2]
    return (
        f"<figure><figcaption>{escape(caption)}; true, down; predicted, across</figcaption>"
        f'<div class="wide"><table class="heat"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></figure>"
    )


# ---------------------------------------------------------------------- examples, and how the report was made


def _example(one: Row) -> str:
    """A recording with its transcript and labels, and the answers of all systems."""
    tags = "".join(
        f'<span class="tag">{escape(f"{key}: {value}")}</span>' for key, value in (one["labels"] or {}).items()
    )
    context = "".join(f"<br>{escape(turn['role'])}: {escape(turn['text'])}" for turn in one["context"] or [])
    before = f'<p class="soft">before:{context}</p>' if context else ""
    asked = f'<p class="soft">asked: {escape(one["asked"])}</p>' if one.get("asked") else ""
    said = "".join(
        f"<dt>{escape(row_label(answer))}</dt><dd>{escape(answer['answer']) or '(nothing)'}</dd>"
        for answer in one["answers"]
    )
    truth = f"<dt>reference</dt><dd><b>{escape(str(one['truth']))}</b></dd>" if one["truth"] else ""
    words = escape(one["transcript"] or "")
    return (
        f'<div class="clip">{before}<span class="tag"><b>{escape(one["task"])}</b></span>{tags}'
        f'<audio controls preload="none" src="{escape(one["audio"])}"></audio>'
        f"<p>“{words}”</p>{asked}<dl>{truth}{said}</dl></div>"
    )


def _facts(report: Row) -> str:
    # From the Markdown, so that the two pages cannot say different things.
    lines = [line.removeprefix("- ") for line in facts(report)]
    coded = [re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(line)) for line in lines]
    return "".join(f'<p class="fact">{line}</p>' for line in coded)


def _skipped(report: Row) -> str:
    items = "".join(f"<br>{count}: {escape(why)}" for why, count in report["skipped"].items())
    return f'<p class="note">Not asked:{items or " nothing"}</p>'


def _judges(report: Row) -> str:
    named = [str(one["judge"]) for one in report["judged"].get("judges", [])]
    return f"Judges: {escape(', '.join(named))}." if named else "No judge was asked."


def _names(report: Row) -> str:
    return ", ".join(dict.fromkeys(str(card["name"]) for card in report["systems"])) or "predictions"


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _short(title: str) -> str:
    """A title, shortened for the navigation."""
    parts = title.split(" · ")
    return " · ".join(parts[:2]).split(",")[0] if parts[0].startswith("Table") else parts[0]
