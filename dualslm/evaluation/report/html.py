"""A report as one HTML file that needs nothing else: tables with drawn intervals, confusions, recordings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from dualslm.evaluation.report import tables
from dualslm.evaluation.report.table import Cell, Line, Table

WIDTH, MIDDLE = 92.0, 4.5  # of a drawn interval, in px
KEY = (
    '<p class="key"><span><i style="background:var(--ours)"></i>measured here</span>'
    '<span><i style="background:var(--bound)"></i>bounds: oracle, transcript alone, majority</span>'
    '<span><i style="background:var(--quote)"></i>published figures</span></p>'
)
Row = Mapping[str, Any]


def page(report: Row) -> str:
    """The whole file."""
    every = tables.tables(report)
    sections = [(table.title, _table(table)) for table in every if not table.folded]
    sections += [(table.title, _table(table) + _paragraph(text)) for table, text in tables.instruments(report)]
    sections += [("Confusions", _confusions(tables.confusions(report)))]
    sections += [("Listen", "".join(map(_example, report["examples"])))]
    sections += [(table.title, _table(table)) for table in every if table.folded]
    counts = tables.counts(report)
    sections += [(counts.title, _table(counts) + _skipped(report)), ("How this was made", _facts(report))]
    shown = [(title, body) for title, body in sections if body]
    links = "".join(f'<a href="#{_anchor(title)}">{escape(_short(title))}</a>' for title, _ in shown)
    body = "".join(_section(title, text) for title, text in shown)
    style = (files("dualslm.evaluation.report") / "style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Evaluation · {escape(_names(report))}</title><style>{style}</style></head><body><main>"
        f"<h1>Evaluation</h1><p>{escape(_names(report))}</p>"
        f'<p class="soft">Every figure stands with its 95 % interval over clusters and with n. {_judges(report)}</p>'
        f"{KEY}"
        f"<nav>{links}</nav>{body}</main></body></html>\n"
    )


# ---------------------------------------------------------------------- tables


def _table(table: Table) -> str:
    """A table; each cell with its interval drawn where the table has an axis."""
    head = "".join(f"<th>{escape(name)}</th>" for name in (*table.columns, "n"))
    rows, before = [], ""
    for line in table.lines:
        rows.append(_line(line, table, first=line.kind == "paper" != before))
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
    """A dot on a bar on an axis."""
    low, high = span

    def x(value: float) -> float:
        return round(WIDTH * (min(max(value, low), high) - low) / (high - low), 1)

    dot, left, right = map(x, number)
    mark = f'<line class="zero" x1="{x(zero)}" x2="{x(zero)}" y1="0" y2="9"/>' if zero is not None else ""
    bar = f'<line class="span" x1="{left}" x2="{right}" y1="{MIDDLE}" y2="{MIDDLE}"/>' if right > left else ""
    axis = f'<line class="axis" x1="0" x2="{WIDTH}" y1="{MIDDLE}" y2="{MIDDLE}"/>'
    return (
        f'<svg class="i" viewBox="0 0 {WIDTH} 9" preserveAspectRatio="none" aria-hidden="true">'
        f'{axis}{mark}{bar}<circle class="dot" cx="{dot}" cy="{MIDDLE}" r="3"/></svg>'
    )


def _confusions(found: Sequence[Row]) -> str:
    """Confusion matrices, shaded by the share of each true class."""
    return f'<div class="grid">{"".join(map(_confusion, found))}</div>' if found else ""


def _confusion(one: Row) -> str:
    labels = one["confusion"]["labels"]
    head = "".join(f"<th>{escape(label)}</th>" for label in (*labels, "none"))
    rows = []
    for label, row in zip(labels, one["confusion"]["rows"], strict=True):
        total = sum(row) or 1
        cells = "".join(
            f'<td style="background:rgb(var(--heat) / {0.85 * count / total:.2f})">{count}</td>' for count in row
        )
        rows.append(f"<tr><th>{escape(label)}</th>{cells}</tr>")
    caption = tables.confusion_title(one).partition(" · ")[2]
    return (
        f"<figure><figcaption>{escape(caption)}; true, down; heard, across</figcaption>"
        f'<div class="wide"><table class="heat"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></figure>"
    )


# ---------------------------------------------------------------------- to listen to, and how it was made


def _example(one: Row) -> str:
    """A recording, what it says, and what everybody made of it."""
    tags = "".join(
        f'<span class="tag">{escape(f"{key}: {value}")}</span>' for key, value in (one["labels"] or {}).items()
    )
    context = "".join(f"<br>{escape(turn['role'])}: {escape(turn['text'])}" for turn in one["context"] or [])
    before = f'<p class="soft">before:{context}</p>' if context else ""
    asked = f'<p class="soft">asked: {escape(one["asked"])}</p>' if one.get("asked") else ""
    said = "".join(
        f"<dt>{escape(tables.row_label(answer))}</dt><dd>{escape(answer['answer']) or '(nothing)'}</dd>"
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
    from dualslm.evaluation.report.markdown import facts

    lines = [line.removeprefix("- ") for line in facts(report).splitlines() if line]
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


def _section(title: str, body: str) -> str:
    return f'<section id="{_anchor(title)}"><h2>{escape(title)}</h2>{body}</section>'


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>" if text else ""


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _short(title: str) -> str:
    """A title for the list at the top."""
    parts = title.split(" · ")
    return " · ".join(parts[:2]).split(",")[0] if parts[0].startswith("Table") else parts[0]
