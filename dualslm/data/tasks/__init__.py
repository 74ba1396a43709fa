"""Training tasks: from a recording with its labels to conversations that end with an answer (paper §III-B).

A line of a manifest names its tasks, and `finished` gives one conversation for each task that the recording has a label
for. A task is one file, or one entry of a table, and one entry of `TASKS`. Every draw is determined by the seed, the
id of the line and the task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from dualslm.data.tasks.asr import Transcription
from dualslm.data.tasks.attributes import ATTRIBUTES
from dualslm.data.tasks.captions import caption
from dualslm.data.tasks.respond import Response
from dualslm.data.tasks.task import NO_AUDIO, Clip, Seed, Task, draw

__all__ = [
    "TASKS",
    "Clip",
    "Seed",
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

# The text is counted in reports, and `manifest.py` compares it to find the lines whose targets are written.
NO_ANSWER = "no answer (run dualslm targets)"
# The order is stored in index files (`manifest_index.py`), whose key changes with it.
TASKS: Mapping[str, Task] = {"asr": Transcription(), **ATTRIBUTES, "respond": Response()}


def finished(row: Row, seed: Seed = 0) -> Iterator[Row]:
    """The conversations of a line: the line itself where it has a `kind`, else one for each task that is possible.

    Args:
        row: line of a manifest.
        seed: seed of every draw.

    Raises:
        ValueError: the line has neither a kind nor known tasks, or tasks and no spoken user turn at the end.
    """
    if asks(row):
        out = left_out(row)
        yield from (one_task(row, name, seed) for name in row["tasks"] if name not in out)
    elif not left_out(row):
        yield row


def one_task(row: Row, name: str, seed: Seed = 0, *, unseen: bool = False) -> Row:
    """The conversation of a line and one of its tasks.

    Args:
        row: line of a manifest.
        name: name of the task.
        seed: seed of every draw.
        unseen: draw from the prompts that no training draws from, also where the line has a system text of its own.

    Returns:
        A line with a kind. For `respond` it ends with the user's turn, because its answer has yet to be written.
    """
    task = TASKS[name]
    clip = last_clip(row)
    system = task.ask(clip, draw(seed, str(row["id"]), name), task.unseen_prompts if unseen else task.prompts)
    answer = task.answer(clip)
    made = {key: value for key, value in row.items() if key != "tasks"}
    made |= {"id": f"{row['id']}/{name}", "kind": task.kind}
    if answer is None:
        return {**made, "system": (not unseen and row.get("system")) or system}
    # Transcripts and attributes are properties of the last recording alone, so earlier turns are left out.
    turns = [{"role": "user", "parts": [clip]}, {"role": "assistant", "parts": [answer]}]
    return {**made, "system": system, "turns": turns}


def waiting(row: Row, seed: Seed = 0) -> Row | None:
    """The conversation of a line whose answer the frozen LLM has yet to write; None where there is none."""
    names = [name for name, why in left_out(row).items() if why == NO_ANSWER]
    return one_task(row, names[0], seed) if names else None


def left_out(row: Row) -> dict[str, str]:
    """The tasks of a checked line that give no conversation, or the kind of a line that gives none, with reasons."""
    spoken = (part for turn in row["turns"] for part in turn["parts"] if not isinstance(part, str))
    if any(part.get("audio", "") is None for part in spoken):
        return dict.fromkeys(row.get("tasks") or [row["kind"]], NO_AUDIO)
    if "tasks" not in row:
        return {}
    clip = last_clip(row)
    return {name: reason for name in row["tasks"] if (reason := _reason(row, name, clip))}


def last_clip(row: Row) -> Clip:
    """The last recording of the user's last turn.

    Raises:
        ValueError: the line does not end with a spoken user turn.
    """
    last = row["turns"][-1] if row["turns"] else {"role": "no", "parts": []}
    clips: list[Clip] = [part for part in last["parts"] if not isinstance(part, str)]
    if last["role"] != "user" or not clips or clips[-1].get("audio", "") == "":  # null is counted, not refused
        raise ValueError("tasks, and no spoken user turn at the end")
    return clips[-1]


def asks(row: Row) -> bool:
    """Whether a line has tasks.

    Raises:
        ValueError: a task is unknown, or the line cannot have tasks.
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


def _reason(row: Row, name: str, clip: Clip) -> str | None:
    """Why a task of a line, whose last recording is given, gives no conversation; None where it gives one."""
    task = TASKS[name]
    if (reason := task.lacks(clip)) or task.answer(clip) is not None:
        return reason
    # The frozen LLM reads the whole conversation as text to write its answer.
    spoken = (part for turn in row["turns"] for part in turn["parts"] if isinstance(part, Mapping))
    return NO_ANSWER if all(part.get("transcript") for part in spoken) else "an earlier turn without transcript"
