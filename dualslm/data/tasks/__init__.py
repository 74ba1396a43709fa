"""Training tasks: from a recording with its labels to talks that end with an answer (paper §III-B).

A line of a manifest names its tasks, and `finished` gives one talk for each that the recording has a label for.
A task is one file, or one entry of a table, and one entry of `TASKS`. Every draw follows from the seed, the
talk's id and the task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from dualslm.data.tasks.asr import Transcription
from dualslm.data.tasks.attributes import ATTRIBUTES
from dualslm.data.tasks.captions import caption
from dualslm.data.tasks.respond import Response
from dualslm.data.tasks.task import Clip, Task, draw

__all__ = [
    "TASKS",
    "Clip",
    "Task",
    "asks",
    "caption",
    "draw",
    "finished",
    "last_clip",
    "left_out",
    "one_task",
    "waiting",
]

Row: TypeAlias = Mapping[str, Any]
"""A line of a manifest."""

NO_ANSWER = "no answer (run dualslm targets)"
TASKS: Mapping[str, Task] = {"asr": Transcription(), **ATTRIBUTES, "respond": Response()}


def finished(row: Row, seed: int = 0) -> Iterator[Row]:
    """The talks of a line: the line itself where it has a `kind`, else one for each task that can be asked.

    Args:
        row: a line of a manifest.
        seed: of every draw.

    Raises:
        ValueError: neither a kind nor known tasks; tasks and no spoken user turn at the end.
    """
    if asks(row):
        out = left_out(row)
        yield from (one_task(row, name, seed) for name in row["tasks"] if name not in out)
    else:
        yield row


def one_task(row: Row, name: str, seed: int = 0) -> Row:
    """The talk that one task makes of a line; the talk of `respond` ends with the user, its answer to be written.

    A simple task is asked of the last recording alone; `respond` keeps the whole talk and its own system text.
    """
    task, clip = TASKS[name], last_clip(row)
    system = task.ask(clip, draw(seed, str(row["id"]), name))
    answer = task.answer(clip)
    kept = {key: value for key, value in row.items() if key != "tasks"}
    made = {**kept, "id": f"{row['id']}/{name}", "kind": task.kind}
    if answer is None:
        return {**made, "system": row.get("system") or system}
    turns = [{"role": "user", "parts": [clip]}, {"role": "assistant", "parts": [answer]}]
    return {**made, "system": system, "turns": turns}


def waiting(row: Row, seed: int = 0) -> Row | None:
    """The talk of a line whose answer the frozen LLM has yet to write; None where there is none."""
    names = [name for name, why in left_out(row).items() if why == NO_ANSWER]
    return one_task(row, names[0], seed) if names else None


def left_out(row: Row) -> dict[str, str]:
    """The tasks that a checked line asks for and that give no talk, each with the reason."""
    if "tasks" not in row:
        return {}
    clip = last_clip(row)
    return {name: why for name in row["tasks"] if (why := _waits(row, name, clip))}


def last_clip(row: Row) -> Clip:
    """The last recording of the user's last turn.

    Raises:
        ValueError: the line does not end with a spoken user turn.
    """
    last = row["turns"][-1] if row["turns"] else {"role": "no", "parts": []}
    clips: list[Clip] = [part for part in last["parts"] if not isinstance(part, str)]
    if last["role"] != "user" or not clips or not clips[-1].get("audio"):
        raise ValueError("tasks, and no spoken user turn at the end")
    return clips[-1]


def asks(row: Row) -> bool:
    """Whether a line has tasks.

    Raises:
        ValueError: they are unknown, or the line is none that can have tasks.
    """
    names = row.get("tasks")
    if names is None:
        return False
    if "kind" in row:
        raise ValueError("both kind and tasks")
    if not isinstance(names, list) or not names or len({*map(str, names)}) != len(names):
        raise ValueError(f"tasks {names!r}, not a list of different names")
    for name in names:
        if name not in TASKS:
            raise ValueError(f"task {name!r}, not one of {', '.join(TASKS)}")
    last_clip(row)
    return True


def _waits(row: Row, name: str, clip: Clip) -> str | None:
    """Why a task of a line, whose last recording is given, gives no talk."""
    task = TASKS[name]
    if (why := task.lacks(clip)) or task.answer(clip) is not None:
        return why
    said = (part for turn in row["turns"] for part in turn["parts"] if isinstance(part, Mapping))
    return NO_ANSWER if all(part.get("transcript") for part in said) else "an earlier turn without transcript"
