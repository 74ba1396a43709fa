"""Conversation, View and chat template → token ids and slots (paper eq. 3, Fig. 2).

The only place where text becomes tokens. The tokenizer's own chat template is rendered once with a
placeholder for every spoken part and every target; the string is cut at the placeholders and each piece is
tokenised on its own, so that ids never depend on what stands on the other side of a cut. A spoken part
becomes its P slot and its L slot, in that order, or their text, or nothing, as the view says.

Conventions: the parts of a turn, and turns of one speaker in a row, are joined by a newline; a system text
that the template cannot take opens the first user turn, followed by an empty line; an LLM without a chat
template gets `PLAIN`. Captions, transcripts and targets are stripped. A control token spelt out in any of
these texts stays plain text, whoever wrote it: a turn cannot be forged.

No torch here: the model fills the slots.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dualslm.chat_template import ANCHOR, CLOSE, OPEN, Ids, format_of, plain_ids, rendered, token_ids
from dualslm.chat_template import PLAIN as PLAIN
from dualslm.chat_template import special_ids as special_ids
from dualslm.conversation import CHANNELS, NORMAL, NOTHING, Channel, Conversation, Speech, Turn, View
from dualslm.errors import DualSLMError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Supervise: TypeAlias = Literal["none", "last", "all"]
BOTH: frozenset[Channel] = frozenset(CHANNELS)
JOIN = "\n"


@dataclass(frozen=True)
class Text:
    """Token ids.

    Attributes:
        ids: in order.
        loss: whether the LLM is to produce them.
    """

    ids: Ids
    loss: bool = False


@dataclass(frozen=True)
class Slot:
    """Where one channel's embeddings of one recording go.

    Attributes:
        channel: "para" (fixed length) or "ling" (10 a second).
        clip: index into `Prompt.clips`.
        detached: no gradient flows into it: this example teaches the other adapter.
    """

    channel: Channel
    clip: int
    detached: bool = False


@dataclass(frozen=True)
class Prompt:
    """What the model sees: segments in order, and the recordings that the slots refer to, each once."""

    segments: tuple[Text | Slot, ...]
    clips: tuple[Speech, ...]


def styled(caption: str, transcript: str) -> str:
    """The styled transcript: what `View("text", "text")` reads.

    The P slot stands in for the bracketed caption with the space after it, the L slot for the transcript.
    """
    return _bracketed(caption) + transcript.strip()


def _bracketed(caption: str) -> str:
    return f"[{caption.strip()}] "


def render(
    conversation: Conversation,
    tokenizer: PreTrainedTokenizerBase,
    view: View | str = NORMAL,
    *,
    history: View | None = None,
    learns: frozenset[Channel] = BOTH,
    supervise: Supervise = "none",
    cut_off: bool = False,
) -> Prompt:
    """Renders a conversation for the LLM.

    What is trained is what is generated: without its loss segments, a prompt with `supervise="last"` is the
    prompt of the conversation before that answer.

    Args:
        conversation: ends with a user turn or a tool's result to be answered, or, when supervised, with the
            assistant's answer. A template that knows no tools leaves them out.
        tokenizer: of the LLM, whose chat template is used.
        view: the sources of spoken turns, as a View or as written on the command line ("speech,none").
        history: the sources of every spoken turn but the user's last one; `view` when None. A clip there that has no
            caption is read without one, as the LLM read it that wrote the reply.
        learns: channels whose embeddings carry gradient.
        supervise: "last" puts loss on the last assistant turn and its end-of-turn token, "all" on every one.
        cut_off: the last target was cut off, so it is not taught to end there.

    Raises:
        DualSLMError: nothing to answer, turns that the template refuses, or a source that a clip lacks.
    """
    view = View.parse(view) if isinstance(view, str) else view
    turns = _merged(conversation.turns)
    _check_end(turns, supervise)
    last_spoken = max((i for i, turn in enumerate(turns) if turn.role == "user" and turn.speeches), default=-1)
    targets = {i for i, turn in enumerate(turns) if turn.role == "assistant" and supervise != "none"}
    targets = {len(turns) - 1} if supervise == "last" else targets
    typed = [part for turn in conversation.turns for part in turn.parts if isinstance(part, str)]
    called = [_call_fields(turn) for turn in turns]
    writer = _Writer(tokenizer, learns, [conversation.system or "", *typed, *_texts([called, conversation.tools])])
    messages = []
    for index, turn in enumerate(turns):
        past = history if index != last_spoken else None
        content = writer.target(turn) if index in targets else writer.content(turn, past or view, past=past is not None)
        messages.append({"role": turn.role, "content": content, **_with_texts(called[index], writer.typed)})
    if supervise == "none":
        return writer.write(writer.rendered(conversation, messages), ends=False)
    text = writer.rendered(conversation, messages[:-1])
    return writer.write(text + writer.format.lead + messages[-1]["content"], ends=not cut_off)


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens at which a reply stops: the one that ends it in the chat template, and eos.

    Raises:
        DualSLMError: the tokenizer has neither.
    """
    eos = tokenizer.eos_token_id
    return frozenset({format_of(tokenizer).end} | ({int(eos)} if eos is not None else set()))


# ---------------------------------------------------------------------- segments


class _Writer:
    """Gives spoken parts and targets their placeholders, and turns the rendered text into segments."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, learns: frozenset[Channel], strings: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.learns = learns
        self.format = format_of(tokenizer)
        self.key = _unused_key(strings)
        self.quote = f"{self.key}q"  # begins the placeholder of a control token that is text
        self.held: list[tuple[Speech, View] | str] = []
        self.segments: list[Text | Slot] = []
        self.clips: list[Speech] = []

    def content(self, turn: Turn, view: View, *, past: bool = False) -> str:
        """A turn's content, with placeholders for its spoken parts; without any source they leave nothing.

        In the `past` a clip without a caption is no error, and has none.
        """

        def sources(speech: Speech) -> View:
            captioned = not past or view.para != "text" or _tone_of(speech).caption is not None
            return view if captioned else View("none", view.ling)

        silent = view == NOTHING and not all(isinstance(part, Speech) for part in turn.parts)
        parts = [part for part in turn.parts if isinstance(part, str) or not silent]
        reply = turn.role == "assistant"
        return JOIN.join(
            self.typed(part, reply=reply) if isinstance(part, str) else self._hold((part, sources(part)))
            for part in parts
        )

    def typed(self, text: str, *, reply: bool = False) -> str:
        """A text with placeholders for the control tokens that it spells out, so that no template can read them.

        The text around them stays, because templates trim it and tokens reach across its ends. Of a reply the template
        may read where a chain of thought ends, and drop it.
        """
        controls = self.format.controls
        spared = self.format.parsed if reply else frozenset()
        return controls.replaced(
            text, lambda name: name if name in spared else f"{self.quote}{controls.ids[name]}{CLOSE}"
        )

    def rendered(self, conversation: Conversation, messages: list[dict[str, Any]]) -> str:
        """The template's text up to the reply."""
        system = conversation.system
        if system is not None and self.format.system:
            messages = [{"role": "system", "content": self.typed(system)}, *messages]
        elif system:
            first = next(index for index, message in enumerate(messages) if message["role"] == "user")
            opened = {"role": "user", "content": self.typed(system) + JOIN * 2 + messages[first]["content"]}
            messages = [*messages[:first], opened, *messages[first + 1 :]]
        # names and descriptions of tools come from clients: what they spell out is text as well
        tools = _with_texts(conversation.tools, self.typed)
        return rendered(self.tokenizer, messages, generation=True, tools=tools)

    def target(self, turn: Turn) -> str:
        """The placeholder of a turn whose words are to be learnt."""
        words = [
            part if isinstance(part, str) else _known(part.transcript, "transcript", "to be learnt as a reply")
            for part in turn.parts
        ]
        return self._hold(JOIN.join(words).strip())

    def _hold(self, item: tuple[Speech, View] | str) -> str:
        self.held.append(item)
        return f"{self.key}{len(self.held) - 1}{CLOSE}"

    def write(self, text: str, *, ends: bool) -> Prompt:
        """Cuts the text at the placeholders and tokenises each piece; `ends`: the last target ends."""
        pieces = re.split(f"{self.key}([0-9]+){CLOSE}", text)
        if pieces[1::2] != [str(index) for index in range(len(self.held))]:
            raise DualSLMError(
                "the LLM's chat template drops, repeats or moves turns",
                got=f"{len(pieces) // 2} of {len(self.held)} spoken or learnt turns",
                do="set tokenizer.chat_template to one that renders every turn once, in order",
            )
        learnt = False
        for item, before in zip(self.held, pieces[::2], strict=False):
            lead = self.format.lead if isinstance(item, str) and before.endswith(self.format.lead) else ""
            self._plain(before.removesuffix(lead), after_target=learnt)
            learnt = isinstance(item, str)
            if isinstance(item, str):
                self._add(lead * bool(item) + item, quoted=True, loss=True)
            else:
                self._place_p_and_l(*item)
        self._plain(pieces[-1], after_target=learnt)
        if ends:
            self.segments.append(Text((self.format.end,), loss=True))
        return Prompt(tuple(self.segments), tuple(self.clips))

    def _plain(self, piece: str, *, after_target: bool) -> None:
        """Text of the template; the end-of-turn token that follows a target is to be learnt."""
        ids = self._encode(piece)
        end = self.format.end
        at = ids.index(end) if after_target and end in ids else -1
        if at < 0 or self.tokenizer.decode(ids[:at]).strip():
            self._append(Text(ids))
            return
        for text in (Text(ids[:at]), Text(ids[at : at + 1], loss=True), Text(ids[at + 1 :])):
            self._append(text)

    def _place_p_and_l(self, speech: Speech, view: View) -> None:
        """P before L (paper eq. 3)."""
        tone = _tone_of(speech)
        described = tone is not speech and tone.audio is None and tone.caption is not None
        if view.para == "speech" and not described:
            self._slot("para", tone)
        elif view.para != "none":
            self._add(_bracketed(_known(tone.caption, "caption", 'view "text" of P')), quoted=True)
        if view.ling == "speech":
            self._slot("ling", speech)
        elif view.ling == "text":
            self._add(_known(speech.transcript, "transcript", 'view "text" of L').strip(), quoted=True)

    def _slot(self, channel: Channel, speech: Speech) -> None:
        _known(speech.audio, "audio", f'view "speech" of {channel[0].upper()}')
        index = next((i for i, clip in enumerate(self.clips) if clip is speech), len(self.clips))
        if index == len(self.clips):
            self.clips.append(speech)
        self.segments.append(Slot(channel, index, detached=channel not in self.learns))

    def _add(self, text: str, *, quoted: bool = False, loss: bool = False) -> None:
        self._append(Text(self._encode(text, quoted=quoted), loss))

    def _append(self, text: Text) -> None:
        if text.ids:
            self.segments.append(text)

    def _encode(self, text: str, *, quoted: bool = False) -> Ids:
        """The ids of a piece as it continues what stands before it."""
        if self.quote not in text:
            return self._continued(text, quoted=quoted, begun=bool(self.segments))
        # Between two control tokens of the template's own, text in which others are spelt out is read as text.
        ids: Ids = ()
        own = ""
        for stretch in self.format.controls.cut(text):
            if self.quote not in stretch:
                own += stretch
                continue
            ids += self._continued(own, quoted=False, begun=bool(self.segments or ids))
            ids += self._continued(self._spelt(stretch), quoted=True, begun=bool(self.segments or ids))
            own = ""
        return ids + self._continued(own, quoted=False, begun=bool(self.segments or ids))

    def _spelt(self, text: str) -> str:
        """A text whose control tokens are spelt out again."""
        names = {str(number): name for name, number in self.format.controls.ids.items()}
        return re.sub(f"{self.quote}([0-9]+){CLOSE}", lambda match: names[match[1]], text)

    def _continued(self, text: str, *, quoted: bool, begun: bool) -> Ids:
        """The ids of a text that begins a prompt or continues it; `quoted`: control tokens in it are text."""
        if not text:
            return ()
        encode = plain_ids if quoted else token_ids
        anchor = self.format.anchor if begun else ()
        ids = encode(self.tokenizer, ANCHOR * bool(anchor) + text)
        if ids[: len(anchor)] == anchor:
            return ids[len(anchor) :]
        return encode(self.tokenizer, text)


def _unused_key(strings: Sequence[str]) -> str:
    """Begins a placeholder which nobody has typed: else a user could forge a slot."""
    typed = set(re.findall(f"{OPEN}([0-9]+):", "".join(strings)))  # joined, as a template may join them
    return next(f"{OPEN}{number}:" for number in count() if str(number) not in typed)


def _tone_of(speech: Speech) -> Speech:
    """The utterance that P is taken from: itself, unless the tone was swapped."""
    while speech.tone is not None:
        speech = speech.tone
    return speech


def _known(value: Any, field: str, need: str) -> Any:
    if value is None:
        raise DualSLMError(f"a Speech has no {field}", got=need, do=f"give its {field}, or another view")
    return value


# ---------------------------------------------------------------------- the conversation


def _call_fields(turn: Turn) -> dict[str, Any]:
    """What the message of a turn has beside its content, as transformers' templates expect calls and results."""
    if turn.role == "tool":
        return {"tool_call_id": turn.calls[0].id, "name": turn.calls[0].name}
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in turn.calls
    ]
    return {"tool_calls": calls} if calls else {}


def _texts(value: Any) -> Iterator[str]:
    """The texts in a JSON value, names of fields among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield name
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def _with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with each of its texts changed, names of fields too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): _with_texts(one, change) for name, one in value.items()}
    return [_with_texts(one, change) for one in value] if isinstance(value, list | tuple) else value


def _merged(turns: Sequence[Turn]) -> list[Turn]:
    """Turns of one speaker in a row become one: many templates insist on alternation."""
    merged: list[Turn] = []
    for turn in turns:
        if merged and merged[-1].role == turn.role != "tool":  # each result belongs to a call of its own
            before = merged.pop()
            turn = Turn(turn.role, before.parts + turn.parts, before.calls + turn.calls)
        merged.append(turn)
    return merged


def _check_end(turns: Sequence[Turn], supervise: Supervise) -> None:
    roles = [turn.role for turn in turns]
    got = " ".join(roles) or "no turns"
    if supervise != "none":
        if roles[-2:] != ["user", "assistant"]:
            wrong = "a conversation to learn from ends with a user turn and the assistant's answer"
            raise DualSLMError(wrong, got=got, do="add the answer, or leave out what follows it")
    elif roles[-1:] not in (["user"], ["tool"]):
        raise DualSLMError("a conversation to be answered ends with a user turn", got=got, do="add what is asked")
