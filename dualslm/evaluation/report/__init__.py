"""Report → pages: one self-contained HTML file and Markdown, from report.json alone (docs/evaluation.md).

`tables` gives plain tables shaped as the paper's, `markdown` and `html` write them, `published.json` holds the
figures of other systems with their source. Nobody types a number into a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualslm.evaluation.report import html, markdown
from dualslm.files import replacing

__all__ = ["write"]


def write(report: Mapping[str, Any], out: Path) -> tuple[Path, Path, str]:
    """Writes report.html and report.md into a folder.

    Returns:
        The two files, and the tables as text for a terminal.
    """
    out.mkdir(parents=True, exist_ok=True)
    pages = {"report.html": html.page(report), "report.md": markdown.page(report)}
    for name, text in pages.items():
        with replacing(out / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return out / "report.html", out / "report.md", markdown.text(report)
