"""Writes the pages of a report into a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualslm.evaluation.report import html, markdown
from dualslm.files import replacing


def write(report: Mapping[str, Any], out: Path) -> tuple[Path, Path]:
    """Writes report.html and report.md.

    Args:
        report: contents of report.json.
        out: folder for the pages; made where it does not exist.

    Returns:
        The two files.
    """
    out.mkdir(parents=True, exist_ok=True)
    pages = {"report.html": html.page(report), "report.md": markdown.page(report)}
    for name, text in pages.items():
        with replacing(out / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return out / "report.html", out / "report.md"
