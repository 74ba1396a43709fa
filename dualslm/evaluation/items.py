"""Manifests → items: the questions that every system is asked (docs/manifest.md, docs/evaluation.md).

A line with tasks gives one item for each task. A finished conversation gives one item, whose question is its last
answer; which attribute it asks about is the one whose label that answer names.

For a second figure an item is asked again under one other circumstance: by a prompt that no training draws from, or
with earlier spoken turns read and not heard. Such items are sets of their own, named after the circumstance. No torch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from dualslm.conversation import Conversation, History, View
from dualslm.data.manifest import read_conversation
from dualslm.data.manifest_index import TARGETS, rows
from dualslm.data.tasks import TASKS, asks, last_clip, left_out, one_task
from dualslm.data.tasks.attributes import ATTRIBUTES
from dualslm.data.tasks.task import NO_AUDIO
from dualslm.errors import DualSLMError
from dualslm.evaluation.systems.item import Item
from dualslm.recipe import TaskKind

Prompts: TypeAlias = Literal["trained", "unseen"]
PROMPTS: tuple[Prompts, ...] = get_args(Prompts)
REVERSED = "-reversed"  # how the name of a split with swapped roles ends
CLUSTER_KEYS = ("group", "dialogue", "speaker")  # the first that a line has names its cluster
# The task of a finished conversation by its kind; a paralinguistic one asks for the attribute that its answer names.
TASK_OF_KIND: Mapping[TaskKind, str] = {"linguistic": "asr", "dual": "respond"}


@dataclass
class Exam:
    """The items of some manifests.

    Attributes:
        items: items in the order of the lines.
        skipped: number of questions that are not asked, by reason.
    """

    items: list[Item] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def read(
    paths: Sequence[Path],
    *,
    tasks: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
    prompts: Sequence[Prompts] = PROMPTS[:1],
    history: Sequence[History] = ("speech",),
) -> Exam:
    """The items of manifests.

    Args:
        paths: manifests.
        tasks: names of the tasks to ask; all that the lines name where empty.
        limit: greatest number of items of each task and manifest; no limit when None.
        seed: seed of prompts, choices and captions that are drawn.
        prompts: which prompts lines with tasks are asked by; those named after the first for a second figure.
        history: how earlier spoken turns are given; those named after the first for a second figure.

    Raises:
        DualSLMError: an unknown task, a manifest that cannot be read, no item, or an id that occurs twice.
    """
    if unknown := [name for name in tasks if name not in TASKS]:
        raise DualSLMError("unknown task", got=unknown[0], do=f"choose some of {', '.join(TASKS)}")
    exam = Exam()
    for path in paths:
        taken: Counter[str] = Counter()
        for _, row in rows(path):
            for asked, task in _questions(row, seed, exam.skipped, unseen=prompts[0] == "unseen"):
                if tasks and task not in tasks:
                    continue
                item = _item(asked, task, path, seed)
                if isinstance(item, str):
                    exam.skipped[item] += 1
                elif limit is None or taken[item.task] < limit:
                    taken[item.task] += 1
                    exam.items.append(replace(item, history=history[0]))
                    exam.items += _second_items(row, exam.items[-1], path, seed, prompts, history)
    # Comparisons pair two systems' predictions by id, so an id that occurs twice would pair the wrong answers.
    often = Counter(item.id for item in exam.items)
    if often and (twice := often.most_common(1)[0])[1] > 1:
        raise DualSLMError("an item stands twice", got=twice[0], do="name every manifest once, under names that differ")
    if not exam.items:
        why = ", ".join(f"{count} {reason}" for reason, count in exam.skipped.items()) or "no line"
        raise DualSLMError("nothing to ask", got=why, do="name manifests whose lines have tasks or kinds")
    return exam


def _second_items(
    row: Mapping[str, Any],
    first: Item,
    path: Path,
    seed: int,
    prompts: Sequence[Prompts],
    history: Sequence[History],
) -> Iterator[Item]:
    """The item again, under each circumstance that is named beside the first, where that changes anything."""
    for name in prompts[1:] if asks(row) else ():
        again = _item(one_task(row, first.task, seed, unseen=name == "unseen"), first.task, path, seed)
        if isinstance(again, Item):
            yield _named(replace(again, history=first.history), f"{name} prompts")
    earlier = [turn for turn in first.conversation.turns[:-1] if turn.role == "user" and turn.speeches]
    for one in history[1:] if earlier else ():
        yield _named(replace(first, history=one), f"history as {one}")


def _named(item: Item, circumstance: str) -> Item:
    """An item of a set that is named after a circumstance."""
    split = f"{item.split} ({circumstance})"
    name = item.id.removeprefix(f"{item.corpus}/{item.split}/")
    direction = item.direction and f"{item.direction}, {circumstance}"
    return replace(item, id=f"{item.corpus}/{split}/{name}", split=split, direction=direction, second=True)


def lacks(item: Item, view: View) -> str | None:
    """Why an item cannot be rendered through a view; None where it can."""
    clips = [clip for turn in item.conversation.turns for clip in turn.speeches]
    if view.ling == "text" and any(clip.transcript is None for clip in clips):
        return "no transcript"
    if view.para == "text" and any(clip.caption is None for clip in clips):
        return "no caption"
    if "speech" in (view.para, view.ling) and any(clip.audio is None for clip in clips):
        return "no recording"
    return None


def _questions(
    row: Mapping[str, Any], seed: int, skipped: Counter[str], *, unseen: bool
) -> Iterator[tuple[Mapping[str, Any], str]]:
    """The conversations of a line with their tasks; "" where a finished conversation does not name its task."""
    if NO_AUDIO in left_out(row).values():
        skipped[NO_AUDIO] += 1
        return
    if not asks(row):
        yield row, TASK_OF_KIND.get(row["kind"], "")
        return
    for name in row["tasks"]:
        # `left_out`, which training uses, would also skip a reply that nobody has written yet: here a system writes it.
        if why := TASKS[name].lacks(last_clip(row)):
            skipped[f"{name}: {why}"] += 1
        else:
            yield one_task(row, name, seed, unseen=unseen), name


def _item(row: Mapping[str, Any], task: str, path: Path, seed: int) -> Item | str:
    """A conversation as an item, or the reason why it is none."""
    conversation = read_conversation(row, path.parent, seed)
    target = None
    if conversation.turns[-1].role == "assistant":
        # The last answer is the reference: it must not stand in the prompt.
        target = " ".join(str(part) for part in conversation.turns[-1].parts)
        conversation = Conversation(conversation.system, conversation.turns[:-1])
    clip = _last_clip(row)
    if clip is None:
        return "no recording in the user's last turn"
    attribute = task if task in ATTRIBUTES else ""
    if not task:
        attribute = _named_attribute(clip, target or "")
        if not attribute:
            return "paralinguistic: the answer names no label of the recording, or two"
    truth = target or row.get("reference")
    choices = None
    if attribute:
        truth, choices = _label(clip, attribute, asked=bool(task))
        # Without the list of choices an answer could not be parsed, and would count as wrong for the wrong reason.
        if choices is None or truth not in choices:
            return f"{attribute}: no choices"
    # `X.jsonl` and the `X.targets.jsonl` that `dualslm targets` writes beside it are one split.
    split = path.name.removesuffix(".jsonl").removesuffix(TARGETS.removesuffix(".jsonl"))
    corpus = str(row.get("corpus") or path.parent.name or "talks")
    # Where nothing is named, recordings of the same words are one cluster: their answers are not independent.
    shared = next((f"{key} {row[key]}" for key in CLUSTER_KEYS if row.get(key)), None)
    cluster = shared or str(clip.get("transcript") or row["id"]).lower()
    users = [turn for turn in conversation.turns if turn.role == "user" and turn.speeches]
    direction = "reversed" if split.endswith(REVERSED) else "forward"
    return Item(
        id=f"{corpus}/{split}/{row['id']}",
        task=task or attribute,
        kind=row["kind"],
        corpus=corpus,
        split=split,
        cluster=f"{corpus}/{cluster}",
        conversation=conversation,
        speech=users[-1].speeches[-1],
        direction=direction if task == "respond" else None,
        choices=choices,
        truth=truth,
        target=target,
        seconds=row.get("seconds"),
    )


def _last_clip(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The last recording of the user's last turn, as training takes it; None where that turn has none."""
    users = [turn for turn in row["turns"] if turn["role"] == "user"]
    # Questions about one voice follow each other, typed: there the recording stands in the turn of the first.
    asked = users if row["kind"] == "paralinguistic" else users[-1:]
    clips: list[Mapping[str, Any]] = [part for turn in asked for part in turn["parts"] if isinstance(part, Mapping)]
    return clips[-1] if clips else None


def _named_attribute(clip: Mapping[str, Any], answer: str) -> str:
    """The one attribute whose label an answer names, "" where it names none or several."""
    labels = clip.get("labels") or {}
    # A recording may have labels that nobody asks about; where it lists choices, only those attributes are meant.
    asked = [name for name in clip.get("choices") or labels if name in labels]
    named = [name for name in asked if re.search(rf"\b{re.escape(labels[name])}\b", answer, re.IGNORECASE)]
    return named[0] if len(named) == 1 else ""


def _label(clip: Mapping[str, Any], attribute: str, *, asked: bool) -> tuple[str, tuple[str, ...] | None]:
    """The true value of an attribute and its choices.

    Args:
        clip: recording as the manifest has it.
        attribute: name of the attribute.
        asked: whether a task asks, in our spelling; a finished conversation has its own.
    """
    known = ATTRIBUTES.get(attribute)
    if asked and known is not None:
        return str(known.value(clip)), known.choices(clip)
    value = str(clip["labels"][attribute])
    own = (clip.get("choices") or {}).get(attribute)
    if own:
        return value, tuple(own)
    return value, known.values if known is not None and value in known.values else None
