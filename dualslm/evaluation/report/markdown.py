"""A report as Markdown; what others said is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dualslm.errors import for_markdown
from dualslm.evaluation.report import tables
from dualslm.evaluation.report.table import Table


def page(report: Mapping[str, Any]) -> str:
    """The whole report."""
    parts = ["# Evaluation", "\n".join([*map(for_markdown, facts(report)), ""])]
    parts += [written(table) for table in tables.tables(report)]
    for table, explanation in tables.diagnostics(report):
        parts.append(written(table) + (f"\n{for_markdown(explanation)}\n" if explanation else ""))
    parts += [_confusions(report), written(tables.counts(report)), _skipped(report)]
    return "\n".join(part for part in parts if part)


def facts(report: Mapping[str, Any]) -> list[str]:
    """How the figures were made: commands, versions, protocols, systems, normalizer, judges; the lines of a list."""
    # All that a figure depends on, so that nobody compares two figures that were measured differently.
    protocols = [f"{name} {value}" for name, value in report["protocols"].items()]
    judged = report["judged"]
    systems = []
    for card in report["systems"]:
        settings = [f"{key} {value}" for key, value in card.items() if key != "name" and value not in (None, {}, [])]
        systems.append(f"- system {card['name']}: {', '.join(settings)}")
    lines = [
        *(f"- predicted by `{source['command']}`" for source in report["sources"] if source.get("command")),
        f"- reported by `{report['command']}`",
        f"- versions: {', '.join(f'{name} {value}' for name, value in report['versions'].items())}",
        f"- protocols: {', '.join(protocols)}",
        f"- normaliser: {report['normaliser'] or 'none used'}",
        f"- intervals: 95 %, {report['resamples']} resamples over clusters, seed {report['seed']}",
        *systems,
        *(f"- judge {one['judge']}: {one['model']}" for one in judged.get("judges", [])),
        *(f"- judge protocol {one['protocol']}, {', '.join(one['prints'])}" for one in judged.get("protocols", [])),
    ]
    if not judged:
        lines.append("- judges: none was asked")
    return lines


def written(table: Table, heading: str = "##") -> str:
    """A table in Markdown.

    Args:
        table: table to write.
        heading: Markdown prefix of its title.
    """
    head = ["", *table.columns, "n"]
    lines = [f"{heading} {for_markdown(table.title)}\n", _row(head), "|---|" + "--:|" * (len(head) - 1)]
    for line in table.lines:
        label = line.label if line.kind == "ours" else f"*{line.label}*"
        lines.append(_row([label, *(f"{cell.text} {cell.more}".strip() for cell in line.cells), line.n]))
    return "\n".join([*lines, "", *([f"{for_markdown(table.note)}\n"] if table.note else [])])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(for_markdown, cells)) + " |"


def _confusions(report: Mapping[str, Any]) -> str:
    lines = []
    for one in tables.confusions(report):
        labels = one["confusion"]["labels"]
        lines.append(f"## {for_markdown(tables.confusion_title(one))}\n")
        lines.append(_row(["true, down; predicted, across", *labels, "none"]))
        lines.append("|---|" + "--:|" * (len(labels) + 1))
        lines += [_row([label, *map(str, row)]) for label, row in zip(labels, one["confusion"]["rows"], strict=True)]
        lines.append("")
    return "\n".join(lines)


def _skipped(report: Mapping[str, Any]) -> str:
    lines = [f"- {count}: {for_markdown(why)}" for why, count in report["skipped"].items()] or ["- nothing"]
    return "\n".join(["## Not asked\n", *lines, ""])
