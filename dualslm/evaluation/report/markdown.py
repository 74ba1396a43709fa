"""A report as Markdown, and its first tables as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dualslm.evaluation.report import tables
from dualslm.evaluation.report.table import Cell, Line, Table


def page(report: Mapping[str, Any]) -> str:
    """The whole report."""
    said = ["# Evaluation", facts(report)]
    said += [written(table) for table in tables.tables(report)]
    for table, reading in tables.instruments(report):
        said.append(written(table) + (f"\n{reading}\n" if reading else ""))
    said += [_confusions(report), written(tables.counts(report)), _skipped(report)]
    return "\n".join(part for part in said if part)


def text(report: Mapping[str, Any]) -> str:
    """The paper's tables, and how many answers could not be read."""
    return "\n".join(written(table, "###") for table in tables.tables(report) if table.title.startswith("Table"))


def facts(report: Mapping[str, Any]) -> str:
    """What stands above every table: commands, versions, protocols, systems, normaliser, judges."""
    protocols = [f"{name} {value}" for name, value in report["protocols"].items()]
    judged = report["judged"]
    lines = [
        *(f"- predicted by `{source['command']}`" for source in report["sources"] if source.get("command")),
        f"- reported by `{report['command']}`",
        f"- versions: {', '.join(f'{name} {value}' for name, value in report['versions'].items())}",
        f"- protocols: {', '.join(protocols)}",
        f"- normaliser: {report['normaliser'] or 'none used'}",
        f"- intervals: 95 %, {report['resamples']} resamples over clusters, seed {report['seed']}",
        *(f"- system {_card(card)}" for card in report["systems"]),
        *(f"- judge {one['judge']}: {one['model']}" for one in judged.get("judges", [])),
        *(f"- judge protocol {one['protocol']}, {', '.join(one['prints'])}" for one in judged.get("protocols", [])),
    ]
    if not judged:
        lines.append("- judges: none was asked")
    return "\n".join([*lines, ""])


def written(table: Table, heading: str = "##") -> str:
    """A table."""
    head = ["", *table.columns, "n"]
    lines = [f"{heading} {table.title}\n", _row(head), "|---|" + "--:|" * (len(head) - 1)]
    lines += [_line(line) for line in table.lines]
    return "\n".join([*lines, "", *([f"{table.note}\n"] if table.note else [])])


def _line(line: Line) -> str:
    label = f"*{line.label}*" if line.kind != "ours" else line.label
    return _row([label, *map(_cell, line.cells), line.n])


def _cell(cell: Cell) -> str:
    return f"{cell.text} {cell.more}".strip()


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _card(card: Mapping[str, Any]) -> str:
    told = ", ".join(f"{key} {value}" for key, value in card.items() if key != "name" and value not in (None, {}, []))
    return f"{card['name']}: {told}"


def _confusions(report: Mapping[str, Any]) -> str:
    said = []
    for one in tables.confusions(report):
        labels = one["confusion"]["labels"]
        said.append(f"## {tables.confusion_title(one)}\n\n" + _row(["true, down; heard, across", *labels, "none"]))
        said.append("|---|" + "--:|" * (len(labels) + 1))
        said += [_row([label, *map(str, row)]) for label, row in zip(labels, one["confusion"]["rows"], strict=True)]
        said.append("")
    return "\n".join(said)


def _skipped(report: Mapping[str, Any]) -> str:
    lines = [f"- {count}: {why}" for why, count in report["skipped"].items()] or ["- nothing"]
    return "\n".join(["## Not asked\n", *lines, ""])
