"""What the fields of a prediction may hold, so that a file of other hands is refused before anything is counted."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType, NoneType
from typing import Any

from dualslm.data.tasks import TASKS
from dualslm.data.tasks.attributes import ATTRIBUTES

TEXT, MAYBE_TEXT = (str,), (str, NoneType)
NEEDED: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {
        "id": TEXT,
        "system": TEXT,
        "view": MAYBE_TEXT,
        "task": TEXT,
        "corpus": TEXT,
        "split": TEXT,
        "cluster": TEXT,
        "choices": (list, NoneType),
        "truth": MAYBE_TEXT,
        "answer": TEXT,
        "ended": (bool,),
    }
)
"""Fields of every prediction."""

MORE: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {
        "kind": MAYBE_TEXT,
        "direction": MAYBE_TEXT,
        "system_text": MAYBE_TEXT,
        "asked": MAYBE_TEXT,
        "transcript": MAYBE_TEXT,
        "caption": MAYBE_TEXT,
        "audio": MAYBE_TEXT,
        "context": (list, NoneType),
        "labels": (dict, NoneType),
        "seconds": (int, float, NoneType),
        "likelihoods": (dict, NoneType),
    }
)
"""Fields that may be left out."""


def wrong(row: Any) -> str | None:
    """What is wrong with a prediction, in words; None where nothing is."""
    if not isinstance(row, dict):
        return "no object"
    for name in NEEDED:
        if name not in row:
            return f"no {name}"
    for name, kinds in (*NEEDED.items(), *MORE.items()):
        # True is an int to Python, and no number of seconds.
        if name in row and (not isinstance(row[name], kinds) or (isinstance(row[name], bool) and bool not in kinds)):
            return f"{name} {row[name]!r}"[:80]
    if not all(isinstance(choice, str) for choice in row["choices"] or ()):
        return f"choices {row['choices']!r}"[:80]
    # No table would show either of these.
    if row["task"] not in TASKS:
        return f"task {row['task']!r}"[:80] + f", where {', '.join(TASKS)} are known"
    if bool(row["choices"]) != (row["task"] in ATTRIBUTES):
        return f"choices {row['choices']!r}"[:80] + f" for the task {row['task']}"
    return None
