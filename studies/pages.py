"""Pages of studies: the part between two markers is written from a result file; nobody types a number there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dualslm.tiny.build.readme import put


def write(page: Path, marker: str, tables: Callable[[Any], str], result: Path, *, check: bool = False) -> int:
    """Writes the part of a page that is generated.

    Args:
        page: Markdown file.
        marker: name of the markers around that part.
        tables: makes the part from what stands in the result file.
        result: result file.
        check: whether only to compare the page.

    Returns:
        0, or with `check` 1 where the page is stale.
    """
    text = page.read_text()
    fresh = put(text, marker, tables(json.loads(result.read_text())))
    if check:
        return int(fresh != text)
    page.write_text(fresh)
    return 0


def ranged(found: Mapping[str, float]) -> str:
    """A figure with its interval in brackets."""
    return f"{found['value']:.1f} [{found['low']:.1f}, {found['high']:.1f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; all columns but the first hold numbers."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
