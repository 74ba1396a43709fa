"""Speech, Turn, Conversation, View: what is said, by whom, and through which channel it is heard.

A spoken turn reaches the LLM through two channels (paper §III-A): the *paralinguistic* one, P, which tells
how it was said, and the *linguistic* one, L, which tells what was said. `View` names the source of each
channel: the recording itself, its text (the caption for P, the transcript for L), or nothing. Equivalence
replacement (paper §III-C), ablations (Tables I and III), oracles and cascades are all a choice of `View`.

Nothing here reads audio or imports torch.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeGuard, cast, get_args

from dualslm.errors import DualSLMError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Source: TypeAlias = Literal["speech", "text", "none"]
Channel: TypeAlias = Literal["para", "ling"]
History: TypeAlias = Literal["text", "speech"]
Role: TypeAlias = Literal["user", "assistant", "tool"]

SOURCES: tuple[Source, ...] = get_args(Source)
CHANNELS: tuple[Channel, ...] = get_args(Channel)
HISTORIES: tuple[History, ...] = get_args(History)


@dataclass(frozen=True)
class View:
    """Where each channel of a spoken turn comes from.

    `View()` is normal use. `View("text", "text")` is the LLM reading the styled transcript, `View("none",
    "text")` what a cascade of recogniser and LLM knows, `View("speech", "none")` the paper's P-Embs column
    and `View("none", "speech")` its L-Embs column.

    Raises:
        DualSLMError: a source is not one of "speech", "text", "none".
    """

    para: Source = "speech"
    ling: Source = "speech"

    def __post_init__(self) -> None:
        for channel in CHANNELS:
            if getattr(self, channel) not in SOURCES:
                raise DualSLMError(
                    f"unknown source for the channel {channel!r}",
                    got=repr(getattr(self, channel)),
                    do=f"choose one of {', '.join(SOURCES)}",
                )

    @classmethod
    def parse(cls, text: str) -> View:
        """Reads "para,ling", for example "speech,none" (P alone).

        Raises:
            DualSLMError: not two known sources.
        """
        parts = [part.strip() for part in text.split(",")]
        if len(parts) != len(CHANNELS):
            raise DualSLMError("a view is two sources", got=repr(text), do="write for example speech,none")
        return cls(*parts)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.para},{self.ling}"


NORMAL = View()
P_ONLY = View("speech", "none")  # the paper's P-Embs column
L_ONLY = View("none", "speech")  # the paper's L-Embs column
ORACLE = View("text", "text")  # the styled transcript, which training targets answer
TRANSCRIPT = View("none", "text")  # what a cascade of recogniser and LLM knows
CAPTION_AND_L = View("text", "speech")
P_AND_TRANSCRIPT = View("speech", "text")
NOTHING = View("none", "none")


def history_view(history: History, view: View) -> View:
    """The view of the spoken turns before the last one.

    Args:
        history: "text" has them read, as eq. 3 has them in the text prompt; "speech" has them heard.
        view: view of the last spoken turn. Where it leaves P out, no caption of an earlier turn tells of a tone.
    """
    return view if history == "speech" else View("none" if view.para == "none" else "text", "text")


@dataclass(frozen=True)
class Reply:
    """What was answered.

    Attributes:
        text: the words.
        finished: whether the reply came to its own end; False where it was cut off at the longest length.
        likelihoods: mean log-probability per token of each choice of the question, in nats, where it was asked for.
    """

    text: str
    finished: bool = True
    likelihoods: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Speech:
    """One utterance: its recording, and whatever is known of it in words.

    Attributes:
        audio: a path, the bytes of an audio file, or samples in [-1, 1] at `rate`; None for an utterance
            known by its text alone.
        transcript: the words, for `View(ling="text")` and for training.
        caption: how it is said, in words, for `View(para="text")` and for training.
        labels: attribute values, for example {"emotion": "sad"}.
        rate: the sampling rate of `audio` in Hz where it is an array.
        tone: another utterance that the paralinguistic channel is taken from: the source swap. Where it has a
            caption and no recording, P is that text.
    """

    audio: str | os.PathLike[str] | bytes | NDArray[np.floating] | None = None
    transcript: str | None = None
    caption: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    rate: int = 16_000
    tone: Speech | None = None

    def in_the_tone_of(self, other: Speech) -> Speech:
        """These words, said as `other` is said: P comes from `other`, L stays.

        An `other` without a recording is a description: `Speech(caption="sad, slow")`.
        """
        return replace(self, tone=other)


Part: TypeAlias = str | Speech


@dataclass(frozen=True)
class ToolCall:
    """A function that the LLM asks to be called.

    Attributes:
        id: the name by which the result refers to the call.
        name: the name of the function.
        arguments: values by name, as JSON has them.
    """

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: who speaks.
        parts: what is said, text or speech, in order.
        calls: of the assistant: what it asks to be called; of a tool: the one call whose result the turn is.
    """

    role: Role
    parts: tuple[Part, ...]
    calls: tuple[ToolCall, ...] = ()

    @property
    def speeches(self) -> tuple[Speech, ...]:
        """The spoken parts, in order."""
        return tuple(part for part in self.parts if isinstance(part, Speech))


@dataclass
class Conversation:
    """A system text, the turns so far, and the tools that may be called.

    >>> talk = Conversation(system="Answer warmly, in one sentence.")
    >>> talk.user(Speech("hello.wav")).assistant("Good to hear you!").user("And now in text.")
    Conversation(3 turns)
    """

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    tools: Tools = ()

    def user(self, *parts: Part) -> Conversation:
        """Adds a user turn of one or more parts and returns the conversation itself."""
        return self._add("user", parts)

    def assistant(self, *parts: Part, calls: Sequence[ToolCall] = ()) -> Conversation:
        """Adds an assistant turn, of which calls are enough, and returns the conversation itself."""
        return self._add("assistant", parts, tuple(calls))

    def tool(self, result: str, call: ToolCall) -> Conversation:
        """Adds the result of a call and returns the conversation itself."""
        return self._add("tool", (result,), (call,))

    @classmethod
    def from_messages(cls, messages: Sequence[Mapping[str, Any]]) -> Conversation:
        """Chat messages, as OpenAI's clients and transformers' processors write them, as a conversation.

        The content of a message is text, or a list of parts: `{"type": "text", "text": ...}`,
        `{"type": "input_audio", "input_audio": {"data": <base64 of a file>}}`, or
        `{"type": "audio", "audio": <path, bytes or 16 kHz samples>}`.

        Raises:
            DualSLMError: a message, role or part that is none of these; it is named.
        """
        conversation = cls()
        for number, message in enumerate(messages, 1):
            role = message.get("role")
            if role not in ("system", "developer", "user", "assistant"):
                do = "use system, user or assistant"
                raise DualSLMError(f"message {number} has an unknown role", got=repr(role), do=do)
            parts = _parts_of(message.get("content"), number)
            if role in ("user", "assistant"):
                conversation._add(role, parts)
            elif conversation.turns or conversation.system is not None or not all(isinstance(p, str) for p in parts):
                do = "begin with one system message of text"
                raise DualSLMError(f"message {number} is a system text where none may stand", got=role, do=do)
            else:
                conversation.system = "\n".join(map(str, parts))
        return conversation

    @classmethod
    def of(cls, said: Said, system: str | None = None) -> Conversation:
        """Whatever can be answered, as a conversation.

        Args:
            said: a recording, a conversation, or chat messages.
            system: system text, where `said` brings none; a Conversation is taken as it is.
        """
        if isinstance(said, Conversation):
            return said
        if are_messages(said):
            conversation = cls.from_messages(said)
            return conversation if conversation.system is not None else replace(conversation, system=system)
        return cls(system).user(said if isinstance(said, Speech) else Speech(cast("Audio", said)))

    def copy(self) -> Conversation:
        """The same conversation, to be continued without changing this one."""
        return replace(self, turns=list(self.turns))

    def _add(self, role: Role, parts: tuple[Part, ...], calls: tuple[ToolCall, ...] = ()) -> Conversation:
        if not (parts or calls) or not all(isinstance(part, (str, Speech)) for part in parts):
            raise DualSLMError(
                f"a {role} turn is made of text or Speech",
                got=", ".join(type(part).__name__ for part in parts) or "nothing",
                do='write for example talk.user(Speech("hello.wav")) or talk.user("hello")',
            )
        self.turns.append(Turn(role, parts, calls))
        return self

    def __repr__(self) -> str:
        return f"Conversation({len(self.turns)} turn{'s' * (len(self.turns) != 1)})"


def are_messages(said: object) -> TypeGuard[Messages]:
    """Whether this is a list of chat messages."""
    return isinstance(said, list | tuple) and bool(said) and all(isinstance(one, Mapping) for one in said)


def _parts_of(content: object, number: int) -> tuple[Part, ...]:
    """The content of a chat message as the parts of a turn."""
    if isinstance(content, str):
        return (content,)
    if not isinstance(content, list | tuple) or not content:
        do = 'write text, or a list such as [{"type": "text", "text": "hello"}]'
        raise DualSLMError(f"message {number} has no content", got=type(content).__name__, do=do)
    return tuple(_part_of(part, number) for part in content)


def _part_of(part: object, number: int) -> Part:
    if isinstance(part, Mapping):
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            return str(part["text"])
        if part.get("type") == "audio" and part.get("audio") is not None:
            return Speech(part["audio"])
        if part.get("type") == "input_audio" and isinstance(part.get("input_audio"), Mapping):
            try:
                return Speech(base64.b64decode(str(part["input_audio"].get("data")), validate=True))
            except ValueError as error:
                do = "give the bytes of an audio file in base64"
                raise DualSLMError(f"the audio of message {number} is not base64", got=str(error), do=do) from None
    got = f"type {part.get('type')!r}" if isinstance(part, Mapping) else type(part).__name__
    do = 'use parts of type "text", "input_audio" or "audio"'
    raise DualSLMError(f"message {number} has a part that cannot be read", got=got, do=do)


Audio: TypeAlias = "str | os.PathLike[str] | bytes | NDArray[np.floating[Any]]"
"""A recording: a path, the bytes of a file, or 16 kHz samples."""
Messages: TypeAlias = Sequence[Mapping[str, Any]]
"""Chat messages as OpenAI's clients write them."""
Tools: TypeAlias = Sequence[Mapping[str, Any]]
"""Functions as OpenAI's clients and chat templates describe them: `{"type": "function", "function": {...}}`."""
Said: TypeAlias = "Audio | Speech | Conversation | Messages"
"""What can be answered: a recording, a conversation, or chat messages."""
