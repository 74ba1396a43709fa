"""Manifests → what the instruments ask about: answered talks of each kind, and the recordings they end with.

Of a large manifest some lines are drawn, the same ones every time. Groups are what a probe is split by and what
intervals are drawn over: speakers where the manifest names them, else the words that are said.
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
    """A talk with its answer.

    Attributes:
        conversation: ends with the answer.
        speech: the last recording of the last user turn.
        group: its speaker, or its words.
    """

    conversation: Conversation
    speech: Speech
    group: str

    @property
    def asked(self) -> Conversation:
        """The talk without its answer."""
        return Conversation(self.conversation.system, self.conversation.turns[:-1])

    @property
    def answer(self) -> str:
        """What is answered."""
        return " ".join(str(part) for part in self.conversation.turns[-1].parts)

    def saying(self, answer: str) -> Conversation:
        """The same talk with another answer."""
        return self.asked.assistant(answer)

    def spoken(self, speech: Speech) -> Item:
        """The same talk with another recording in place of its last one."""
        return replace(self, conversation=swapped(self.conversation, self.speech, speech), speech=speech)


@dataclass
class Material:
    """Items by kind.

    Attributes:
        words: transcriptions.
        voices: questions about a voice, one exchange each.
        replies: conversations.
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
        """Emotion, where several are asked about, else the first such attribute; "" where there is none."""
        names = {name for item in self.voices for name in asks_for(item)}
        told = [
            name for name in sorted(names, key=lambda name: (name != "emotion", name)) if len(self.choices(name)) > 1
        ]
        return told[0] if told else ""

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
        DualSLMError: a manifest that cannot be read, or a line that is no talk.
    """
    return of_rows(((row, path.parent) for path in paths for _, row in rows(path)), limit=limit, seed=seed)


def of_rows(told: Iterable[tuple[Mapping[str, Any], Path]], *, limit: int = LIMIT, seed: int = 0) -> Material:
    """The items of lines and the folders that their recordings count from."""
    found: dict[TaskKind, list[tuple[float, int, Item]]] = {kind: [] for kind in TASK_KINDS}
    for line, (row, folder) in enumerate(told):
        for made in finished(row, seed):
            for item in _items(made, folder, seed):
                draw = random.Random(f"{seed}/{made['id']}/{len(item.conversation.turns)}/{item.answer}").random()
                kept = found[made["kind"]]
                push = heapq.heappush if len(kept) < limit else heapq.heappushpop
                push(kept, (-draw, -line, item))
    return Material(*([item for _, _, item in sorted(kept, key=lambda one: one[:2])] for kept in found.values()))


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
    for place in range(0, len(conversation.turns) - 1, 2):  # several questions about one recording: each on its own
        question: list[Part] = [part for part in conversation.turns[place].parts if isinstance(part, str)]
        one = Conversation(conversation.system).user(speech, *question).assistant(*conversation.turns[place + 1].parts)
        yield Item(one, speech, group)


def asks_for(item: Item) -> list[str]:
    """The attributes whose value, and whose alone, the answer names."""
    named = [name for name, value in item.speech.labels.items() if _names(item.answer, value)]
    return named if len(named) == 1 else []


def with_value(item: Item, attribute: str, value: str) -> str:
    """The answer with another value of the attribute."""
    own = re.escape(item.speech.labels[attribute])
    return re.sub(rf"\b{own}\b", value, item.answer, flags=re.IGNORECASE)


def _names(text: str, value: str) -> bool:
    return re.search(rf"\b{re.escape(value)}\b", text, re.IGNORECASE) is not None


def swapped(conversation: Conversation, old: Speech, new: Speech) -> Conversation:
    """A talk with one recording in place of another."""
    turns = [
        replace(turn, parts=tuple(new if part is old else part for part in turn.parts)) for turn in conversation.turns
    ]
    return Conversation(conversation.system, turns)
