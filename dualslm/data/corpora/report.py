"""Counts of a preparation: report.json, and the same as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dualslm.data.corpora.base import Entry

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLES = 3  # excluded rows that a report names for each reason
HEADINGS = {"talks": "conversations"}  # columns whose key in report.json is an older word


@dataclass
class SplitCounts:
    """Counts of one split.

    Attributes:
        rows: rows of the raw corpus.
        usable: rows that were not excluded.
        seconds: total length of the usable recordings in s.
        conversations: lines of the manifest.
        excluded: number of excluded rows by reason.
        examples: names of the first excluded rows by reason.
        tasks: number of conversations by task.
        labels: number of usable recordings in last turns by attribute and value.
    """

    rows: int = 0
    usable: int = 0
    seconds: float = 0.0
    conversations: int = 0
    excluded: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    tasks: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        """Counts a row."""
        self.rows += 1
        if entry.reason is not None:
            self.excluded[entry.reason] += 1
            examples = self.examples.setdefault(entry.reason, [])
            if len(examples) < EXAMPLES:
                examples.append(entry.name)
            return
        self.usable += 1
        self.seconds += entry.seconds
        for conversation in entry.conversations:
            self.conversations += 1
            self.tasks.update(conversation.get("tasks", ()))
            # Labels of the last turn alone: earlier turns occur in several conversations of one dialogue.
            for part in conversation["turns"][-1]["parts"]:
                for name, value in part.get("labels", {}).items() if isinstance(part, dict) else ():
                    self.labels.setdefault(name, Counter())[value] += 1

    def to_json(self) -> dict[str, Any]:
        """The counts in a fixed order, so that the same corpus gives the same bytes."""
        return {
            "rows": self.rows,
            "usable": self.usable,
            "talks": self.conversations,  # the key of the format since its first version
            "hours": round(self.seconds / 3600, 3),
            "excluded": dict(sorted(self.excluded.items())),
            "examples": dict(sorted(self.examples.items())),
            "tasks": dict(sorted(self.tasks.items())),
            "labels": {name: dict(sorted(counts.items())) for name, counts in sorted(self.labels.items())},
        }


def table(report: Mapping[str, Any]) -> Table:
    """A report as a table with a line for each split."""
    from rich import box
    from rich.table import Table

    splits = report["splits"]
    reasons = sorted({reason for counts in splits.values() for reason in counts["excluded"]})
    title = f"{report['corpus']} in {report['folder']}"
    grid = Table("split", box=box.SIMPLE, title=title, title_justify="left")
    for name in ("rows", "usable", "talks", "hours", *reasons):
        grid.add_column(HEADINGS.get(name, name), justify="right")
    for split, counts in splits.items():
        excluded = [f"{counts['excluded'].get(reason, 0):,}" for reason in reasons]
        numbers = [f"{counts[name]:,}" for name in ("rows", "usable", "talks")]
        grid.add_row(split, *numbers, f"{counts['hours']:.2f}", *excluded)
    if report["notes"]:
        grid.caption = "\n".join(f"{name}: {value}" for name, value in report["notes"].items())
        grid.caption_justify = "left"
    return grid
