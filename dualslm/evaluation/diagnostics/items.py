"""Manifests → what the diagnostics ask about: answered conversations of each kind, and the recordings they end with.

Of a large manifest some lines are drawn, the same ones every time. Probes are split by group and intervals resample
whole groups: speakers where the manifest names them, else the words that are said.
"""

from __future__ import annotations

import heapq
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dualslm.conversation import Conversation, Part, Speech
from dualslm.data.manifest import read_conversation
from dualslm.data.manifest_index import rows
from dualslm.data.tasks import finished
from dualslm.recipe import TASK_KINDS, TaskKind

LIMIT = 100  # items of each kind


@dataclass(frozen=True)
class Item:
    """A conversation with its answer.

    Attributes:
        conversation: ends with the answer.
        speech: the last recording of the last user turn.
        group: name of its speaker, or its words.
    """

    conversation: Conversation
    speech: Speech
    group: str

    @property
    def asked(self) -> Conversation:
        """The conversation without its answer."""
        return Conversation(self.conversation.system, self.conversation.turns[:-1])

    @property
    def answer(self) -> str:
        """The answer's text."""
        return " ".join(str(part) for part in self.conversation.turns[-1].parts)

    def saying(self, answer: str) -> Conversation:
        """The same conversation with another answer."""
        return self.asked.assistant(answer)

    def spoken(self, speech: Speech) -> Item:
        """The same conversation with another recording in place of its last one."""
        # By identity: two recordings of the same words are equal in everything else, and only one of them is meant.
        turns = [
            replace(turn, parts=tuple(speech if part is self.speech else part for part in turn.parts))
            for turn in self.conversation.turns
        ]
        return replace(self, conversation=Conversation(self.conversation.system, turns), speech=speech)


@dataclass
class Material:
    """Items by kind.

    Attributes:
        words: transcriptions.
        voices: questions about a voice, one exchange each.
        replies: conversations whose last answer is a reply.
    """

    words: list[Item] = field(default_factory=list)
    voices: list[Item] = field(default_factory=list)
    replies: list[Item] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.of: Mapping[TaskKind, list[Item]] = {
            "linguistic": self.words,
            "paralinguistic": self.voices,
            "dual": self.replies,
        }

    def about(self, attribute: str) -> list[Item]:
        """The questions whose answer is the recording's value of an attribute."""
        return [item for item in self.voices if attribute in asks_for(item)]

    @property
    def attribute(self) -> str:
        """The attribute to ask about: emotion where it is asked for, else the first by name; "" where there is none.

        One with a single value tells nothing.
        """
        names = {name for item in self.voices for name in asks_for(item)}
        emotion_first = sorted(names, key=lambda name: (name != "emotion", name))
        return next((name for name in emotion_first if len(self.choices(name)) > 1), "")

    def choices(self, attribute: str) -> list[str]:
        """The values of an attribute that occur, sorted."""
        return sorted({item.speech.labels[attribute] for item in self.about(attribute)})

    @property
    def recordings(self) -> dict[str, Item]:
        """Every recording that a question or a transcription is about, once."""
        return {str(item.speech.audio): item for item in (*self.words, *self.voices) if item.speech.transcript}


def read(paths: Sequence[Path], *, limit: int = LIMIT, seed: int = 0) -> Material:
    """The items of manifests, at most so many of each kind.

    Raises:
        DualSLMError: a manifest that cannot be read, or a line that is no conversation.
    """
    return of_rows(((row, path.parent) for path in paths for _, row in rows(path)), limit=limit, seed=seed)


def of_rows(lines: Iterable[tuple[Mapping[str, Any], Path]], *, limit: int = LIMIT, seed: int = 0) -> Material:
    """The items of lines, at most so many of each kind.

    Args:
        lines: lines of manifests, each with the folder that its recordings' paths count from.
        limit: greatest number of items of each kind.
        seed: seed of the draw, and of prompts and choices.
    """
    drawn: dict[TaskKind, list[tuple[float, int, Item]]] = {kind: [] for kind in TASK_KINDS}
    for number, (row, folder) in enumerate(lines):
        for example in finished(row, seed):
            for item in _items(example, folder, seed):
                # Every item has a random number of its own, and the smallest numbers win: a manifest of any length is
                # read once, with `limit` items in memory, and an item's number does not depend on the other lines.
                draw = random.Random(f"{seed}/{example['id']}/{len(item.conversation.turns)}/{item.answer}").random()
                heap = drawn[example["kind"]]
                push = heapq.heappush if len(heap) < limit else heapq.heappushpop
                push(heap, (-draw, -number, item))
    # The line's number breaks ties: items themselves have no order.
    return Material(*([item for _, _, item in sorted(heap, key=lambda one: one[:2])] for heap in drawn.values()))


def _items(row: Mapping[str, Any], folder: Path, seed: int) -> Iterator[Item]:
    conversation = read_conversation(row, folder, seed)
    users = [turn for turn in conversation.turns if turn.role == "user" and turn.speeches]
    if not users or conversation.turns[-1].role != "assistant":
        return
    speech = users[-1].speeches[-1]
    group = str(row.get("speaker") or (speech.transcript or str(speech.audio)).lower())
    if row["kind"] != "paralinguistic":
        yield Item(conversation, speech, group)
        return
    # Several questions about one recording are asked one by one, so that no answer stands in another's prompt.
    turns = conversation.turns
    for user, assistant in zip(turns[::2], turns[1::2], strict=False):
        question: list[Part] = [part for part in user.parts if isinstance(part, str)]
        yield Item(Conversation(conversation.system).user(speech, *question).assistant(*assistant.parts), speech, group)


def asks_for(item: Item) -> list[str]:
    """The attribute whose value, and whose alone, the answer names; empty where it names several or none."""
    named = [name for name, value in item.speech.labels.items() if _word(value).search(item.answer)]
    return named if len(named) == 1 else []


def with_value(item: Item, attribute: str, value: str) -> str:
    """The answer with another value of the attribute."""
    return _word(item.speech.labels[attribute]).sub(value, item.answer)


def _word(value: str) -> re.Pattern[str]:
    """Finds a value as a word of its own: "male" does not stand in "female"."""
    return re.compile(rf"\b{re.escape(value)}\b", re.IGNORECASE)
