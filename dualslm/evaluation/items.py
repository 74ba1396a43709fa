"""Manifests → items: the questions that every system is asked (docs/manifest.md, docs/evaluation.md).

A line with tasks gives an item for each, a finished talk one: its last answer is what is asked for. Which attribute
a finished talk asks about is the one whose label its answer names. No torch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dualslm.conversation import Conversation, Speech, View
from dualslm.data.manifest import read_conversation
from dualslm.data.manifest_index import TARGETS, rows
from dualslm.data.tasks import TASKS, asks, one_task
from dualslm.data.tasks.attributes import ATTRIBUTES
from dualslm.errors import DualSLMError
from dualslm.evaluation.systems.item import Item
from dualslm.recipe import TaskKind

REVERSED = "-reversed"  # how the name of a split with swapped roles ends
ASR: Mapping[TaskKind, str] = {"linguistic": "asr", "dual": "respond"}


@dataclass
class Exam:
    """The items of some manifests.

    Attributes:
        items: in order of the lines.
        skipped: how many questions are not asked, by reason.
    """

    items: list[Item] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def read(paths: Sequence[Path], *, tasks: Sequence[str] = (), limit: int | None = None, seed: int = 0) -> Exam:
    """The items of manifests.

    Args:
        paths: of the manifests.
        tasks: only these; all that the lines ask for where empty.
        limit: at most so many items of each task and manifest.
        seed: of prompts, choices and captions that are drawn.

    Raises:
        DualSLMError: an unknown task, a manifest that cannot be read, no item, or an id that stands twice.
    """
    if unknown := [name for name in tasks if name not in TASKS]:
        raise DualSLMError("unknown task", got=unknown[0], do=f"choose some of {', '.join(TASKS)}")
    exam = Exam()
    for path in paths:
        taken: Counter[str] = Counter()
        for item in _of(path, tasks, seed, exam.skipped):
            if limit is None or taken[item.task] < limit:
                taken[item.task] += 1
                exam.items.append(item)
    often = Counter(item.id for item in exam.items)
    if often and (twice := often.most_common(1)[0])[1] > 1:
        raise DualSLMError("an item stands twice", got=twice[0], do="name every manifest once, under names that differ")
    if not exam.items:
        why = ", ".join(f"{count} {reason}" for reason, count in exam.skipped.items()) or "no line"
        raise DualSLMError("nothing to ask", got=why, do="name manifests whose lines have tasks or kinds")
    return exam


def lacks(item: Item, view: View) -> str | None:
    """Why an item cannot be heard through a view; None where it can."""
    clips = [clip for turn in item.conversation.turns for clip in turn.speeches]
    if view.ling == "text" and any(clip.transcript is None for clip in clips):
        return "no transcript"
    if view.para == "text" and any(clip.caption is None for clip in clips):
        return "no caption"
    if "speech" in (view.para, view.ling) and any(clip.audio is None for clip in clips):
        return "no recording"
    return None


def _of(path: Path, tasks: Sequence[str], seed: int, skipped: Counter[str]) -> Iterator[Item]:
    for _, row in rows(path):
        for made, task in _finished(row, seed, skipped):
            if tasks and task not in tasks:
                continue
            item = _item(made, task, path, seed)
            if isinstance(item, Item):
                yield item
            else:
                skipped[item] += 1


def _finished(row: Mapping[str, Any], seed: int, skipped: Counter[str]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """The talks of a line with their tasks; "" where a finished talk does not say."""
    if not asks(row):
        yield row, ASR.get(row["kind"], "")
        return
    for name in row["tasks"]:
        clip = row["turns"][-1]["parts"][-1]
        if why := TASKS[name].lacks(clip):
            skipped[f"{name}: {why}"] += 1
        else:
            yield one_task(row, name, seed), name


def _item(row: Mapping[str, Any], task: str, path: Path, seed: int) -> Item | str:
    """A finished talk as an item, or why it is none."""
    whole = read_conversation(row, path.parent, seed)
    answered = whole.turns[-1].role == "assistant"
    conversation = Conversation(whole.system, whole.turns[: len(whole.turns) - answered])
    target = " ".join(str(part) for part in whole.turns[-1].parts) if answered else None
    said = _last_clip(row)
    if said is None:
        return "no recording in the user's last turn"
    attribute = task if task in ATTRIBUTES else "" if task else _attribute(said, target or "")
    if not (task or attribute):
        return "paralinguistic: the answer names no label of the recording, or two"
    name = path.name.removesuffix(".jsonl").removesuffix(TARGETS.removesuffix(".jsonl"))
    corpus = str(row.get("corpus") or path.parent.name or "talks")
    truth, choices = target or row.get("reference"), None
    if attribute:
        truth, choices = _label(said, attribute, asked=bool(task))
    if attribute and (choices is None or truth not in choices):
        return f"{attribute}: no choices"
    task = task or attribute
    return Item(
        id=f"{corpus}/{name}/{row['id']}",
        task=task,
        kind=row["kind"],
        corpus=corpus,
        split=name,
        cluster=f"{corpus}/{_cluster(row, said)}",
        conversation=conversation,
        speech=_speech(conversation),
        direction=("reversed" if name.endswith(REVERSED) else "forward") if task == "respond" else None,
        choices=choices,
        truth=truth,
        target=target,
        seconds=row.get("seconds"),
    )


def _last_clip(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The last recording of the last user turn that has one."""
    for turn in reversed(row["turns"]):
        if turn["role"] == "user":
            clips = [part for part in turn["parts"] if isinstance(part, Mapping)]
            if clips:
                found: Mapping[str, Any] = clips[-1]
                return found
    return None


def _speech(conversation: Conversation) -> Speech:
    return next(turn.speeches[-1] for turn in reversed(conversation.turns) if turn.role == "user" and turn.speeches)


def _attribute(clip: Mapping[str, Any], answer: str) -> str:
    """The one attribute whose label an answer names; of those with choices, where there are any."""
    labels = clip.get("labels") or {}
    asked = [name for name in clip.get("choices") or labels if name in labels]
    named = [name for name in asked if re.search(rf"\b{re.escape(labels[name])}\b", answer, re.IGNORECASE)]
    return named[0] if len(named) == 1 else ""


def _label(clip: Mapping[str, Any], attribute: str, *, asked: bool) -> tuple[str, tuple[str, ...] | None]:
    """The true value of an attribute and its choices: in our spelling where a task asks, else as the talk has them."""
    known = ATTRIBUTES.get(attribute)
    if asked and known is not None:
        return str(known.value(clip)), known.choices(clip)
    value, own = str(clip["labels"][attribute]), (clip.get("choices") or {}).get(attribute)
    if own:
        return value, tuple(own)
    return value, known.values if known is not None and value in known.values else None


def _cluster(row: Mapping[str, Any], clip: Mapping[str, Any]) -> str:
    for name in ("group", "dialogue", "speaker"):
        if row.get(name):
            return f"{name} {row[name]}"
    return str(clip.get("transcript") or row["id"]).lower()
