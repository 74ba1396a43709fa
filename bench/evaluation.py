"""Writes the tables of docs/evaluation.md from a report; nothing there is typed.

    python bench/evaluation.py [REPORT.json] [--check]

A report that is given becomes docs/results/evaluation.json, without its recordings. With `--check` the page is only
compared; the exit status is 1 where it is stale.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from dualslm.evaluation import score
from dualslm.evaluation.report import markdown, tables
from dualslm.tiny.build.readme import put

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "evaluation.md"
RESULT = ROOT / "docs" / "results" / "evaluation.json"
SHOWN = ("Table", "Replies", "Can")  # how the titles of the tables on the page begin


def main() -> int:
    """Stores a report where one is given, and writes or compares the page."""
    given = [Path(word) for word in sys.argv[1:] if not word.startswith("-")]
    if given:
        # Without its examples: their recordings are most of a report's bytes, and the page shows none.
        report = {**score.read(given[0]), "examples": []}
        RESULT.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    fresh = put(text, "evaluation", page(score.read(RESULT)))
    if "--check" in sys.argv:
        return int(fresh != text)
    PAGE.write_text(fresh, encoding="utf-8")
    return 0


def page(report: dict[str, Any]) -> str:
    """The paper's tables, and how they were made."""
    shown = [table for table in tables.tables(report) if table.title.startswith(SHOWN)]
    # Of one core: how long asking took on the clock depends on how busy the machine was.
    took = sum(source["cpu_s"] or 0 for source in report["sources"])
    head = f"`{report['command']}`, of which asking took {took:.0f} s of one core.\n"
    return "\n".join([head, *(markdown.written(table, "###") for table in shown)])


if __name__ == "__main__":
    sys.exit(main())
