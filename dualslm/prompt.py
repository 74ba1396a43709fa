"""Conversation, View and chat template → token ids and slots (paper eq. 3, Fig. 2).

The only place where text becomes tokens. The tokenizer's own chat template is rendered once with a
placeholder for every spoken part and every target; the string is cut at the placeholders and each piece is
tokenised on its own, so that ids never depend on what stands on the other side of a cut. A spoken part
becomes its P slot and its L slot, in that order, or their text, or nothing, as the view says.

Conventions: the parts of a turn, and turns of one speaker in a row, are joined by a newline; a system text
that the template cannot take opens the first user turn, followed by an empty line; an LLM without a chat
template gets `PLAIN`. Captions, transcripts and targets are stripped, and a special token spelt out in them
stays plain text. In other text it is a special token, as transformers has it.

No torch here: the model fills the slots.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from jinja2 import TemplateError

from dualslm.conversation import CHANNELS, NORMAL, NOTHING, Channel, Conversation, Speech, Turn, View
from dualslm.errors import DualSLMError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Supervise: TypeAlias = Literal["none", "last", "all"]
Ids: TypeAlias = tuple[int, ...]
BOTH: frozenset[Channel] = frozenset(CHANNELS)
JOIN = "\n"
OPEN, CLOSE = "\ue000", "\ue001"  # private-use characters around a placeholder
ANCHOR = "\n"
PLAIN = (  # "User: …", newline, "Assistant:"; a reply ends with eos
    "{{ bos }}{% for m in messages %}"
    "{{ m['role'].capitalize() + ': ' if m['role'] != 'system' }}{{ m['content'] }}"
    "{{ eos_token if m['role'] == 'assistant' }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


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
        conversation: ends with a user turn to be answered, or, when supervised, with the assistant's answer.
        tokenizer: of the LLM, whose chat template is used.
        view: the sources of spoken turns, as a View or as written on the command line ("speech,none").
        history: the sources of every spoken turn but the user's last one; `view` when None.
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
    writer = _Writer(tokenizer, learns, [conversation.system or "", *typed])
    messages = []
    for index, turn in enumerate(turns):
        sources = view if index == last_spoken else history or view
        content = writer.target(turn) if index in targets else writer.content(turn, sources)
        messages.append({"role": turn.role, "content": content})
    if supervise == "none":
        return writer.write(_rendered(tokenizer, conversation.system, messages), ends=False)
    text = _rendered(tokenizer, conversation.system, messages[:-1])
    return writer.write(text + _habits(tokenizer).lead + messages[-1]["content"], ends=not cut_off)


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens at which a reply stops: the one that ends it in the chat template, and eos.

    Raises:
        DualSLMError: the tokenizer has neither.
    """
    eos = tokenizer.eos_token_id
    return frozenset({_habits(tokenizer).end} | ({int(eos)} if eos is not None else set()))


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of every special and every added token."""
    return frozenset({*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids})


# ---------------------------------------------------------------------- segments


class _Writer:
    """Gives spoken parts and targets their placeholders, and turns the rendered text into segments."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, learns: frozenset[Channel], strings: Sequence[str]) -> None:
        self.tokenizer, self.learns = tokenizer, learns
        self.habits = _habits(tokenizer)
        # A number that makes a placeholder which nobody has typed: else a user could forge a slot.
        self.key = next(f"{OPEN}{n}:" for n in count() if not any(f"{OPEN}{n}:" in text for text in strings))
        self.held: list[tuple[Speech, View] | str] = []
        self.segments: list[Text | Slot] = []
        self.clips: list[Speech] = []

    def content(self, turn: Turn, view: View) -> str:
        """A turn's content, with placeholders for its spoken parts; without any source they leave nothing."""
        silent = view == NOTHING and not all(isinstance(part, Speech) for part in turn.parts)
        parts = [part for part in turn.parts if isinstance(part, str) or not silent]
        return JOIN.join(part if isinstance(part, str) else self._hold((part, view)) for part in parts)

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
        pieces = re.split(f"{self.key}(\\d+){CLOSE}", text)
        if pieces[1::2] != [str(index) for index in range(len(self.held))]:
            raise DualSLMError(
                "the LLM's chat template drops, repeats or moves turns",
                got=f"{len(pieces) // 2} of {len(self.held)} spoken or learnt turns",
                do="set tokenizer.chat_template to one that renders every turn once, in order",
            )
        learnt = False
        for item, before in zip(self.held, pieces[::2], strict=False):
            lead = self.habits.lead if isinstance(item, str) and before.endswith(self.habits.lead) else ""
            self._plain(before.removesuffix(lead), after_target=learnt)
            learnt = isinstance(item, str)
            if isinstance(item, str):
                self._add(lead * bool(item) + item, quoted=True, loss=True)
            else:
                self._place_p_and_l(*item)
        self._plain(pieces[-1], after_target=learnt)
        if ends:
            self.segments.append(Text((self.habits.end,), loss=True))
        return Prompt(tuple(self.segments), tuple(self.clips))

    def _plain(self, piece: str, *, after_target: bool) -> None:
        """Text of the template; the end-of-turn token that follows a target is to be learnt."""
        ids = self._encode(piece)
        end = self.habits.end
        at = ids.index(end) if after_target and end in ids else -1
        if at < 0 or self.tokenizer.decode(ids[:at]).strip():
            self._append(Text(ids))
            return
        for text in (Text(ids[:at]), Text(ids[at : at + 1], loss=True), Text(ids[at + 1 :])):
            self._append(text)

    def _place_p_and_l(self, speech: Speech, view: View) -> None:
        """P before L (paper eq. 3)."""
        tone = speech
        while tone.tone is not None:
            tone = tone.tone
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
        anchor = self.habits.anchor if self.segments else ()
        ids = _ids(self.tokenizer, ANCHOR * bool(anchor) + text, quoted=quoted) if text else ()
        if ids[: len(anchor)] == anchor:
            return ids[len(anchor) :]
        return _ids(self.tokenizer, text, quoted=quoted) if text else ()


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, quoted: bool = False) -> Ids:
    """Token ids of a text on its own; `quoted`: special tokens spelt out in it are plain text."""
    return tuple(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=quoted))


def _known(value: Any, field: str, need: str) -> Any:
    if value is None:
        raise DualSLMError(f"a Speech has no {field}", got=need, do=f"give its {field}, or another view")
    return value


# ---------------------------------------------------------------------- the conversation


def _merged(turns: Sequence[Turn]) -> list[Turn]:
    """Turns of one speaker in a row become one: many templates insist on alternation."""
    merged: list[Turn] = []
    for turn in turns:
        if merged and merged[-1].role == turn.role:
            turn = Turn(turn.role, merged.pop().parts + turn.parts)
        merged.append(turn)
    return merged


def _check_end(turns: Sequence[Turn], supervise: Supervise) -> None:
    wanted = ["user"] if supervise == "none" else ["user", "assistant"]
    if [turn.role for turn in turns[-len(wanted) :]] != wanted:
        raise DualSLMError(
            "a conversation to be answered ends with a user turn"
            if supervise == "none"
            else "a conversation to learn from ends with a user turn and the assistant's answer",
            got=" ".join(turn.role for turn in turns) or "no turns",
            do="add it: " + "".join(f".{role}(...)" for role in wanted),
        )


# ---------------------------------------------------------------------- the template


@dataclass(frozen=True)
class _Habits:
    """What a tokenizer and its chat template do, found by trying.

    Attributes:
        system: the template takes a system text.
        lead: white space between the generation prompt and a reply, which the LLM has to produce.
        end: the token after a reply, else eos.
        anchor: ids of `ANCHOR` where the tokenizer puts a space before every text, as SentencePiece models
            do: a piece then borrows the anchor, lest it begin with a space of its own. Empty elsewhere.
    """

    system: bool
    lead: str
    end: int
    anchor: Ids


def _habits(tokenizer: PreTrainedTokenizerBase) -> _Habits:
    return _tried(tokenizer, str(tokenizer.chat_template), tokenizer.eos_token_id)


@lru_cache(maxsize=8)
def _tried(tokenizer: PreTrainedTokenizerBase, template: str, eos: int | None) -> _Habits:
    """The template and eos are named for the cache: they can be set anew on the same tokenizer."""
    system, user, reply = ({"role": role, "content": OPEN + role} for role in ("system", "user", "assistant"))
    asked = _apply(tokenizer, [user], generation=True)
    before, _, after = _apply(tokenizer, [user, reply], generation=False).partition(reply["content"])
    lead = before.removeprefix(asked) if before.startswith(asked) else ""
    try:
        takes_system = system["content"] in _apply(tokenizer, [system, user], generation=True)
    except DualSLMError:
        takes_system = False
    one = list(_ids(tokenizer, "a"))
    spaced = tokenizer.decode(one + one) != tokenizer.decode(one) * 2
    return _Habits(
        system=takes_system,
        lead=lead if lead.isspace() else "",
        end=_end(tokenizer, after.lstrip(), eos),
        anchor=_ids(tokenizer, ANCHOR) if spaced else (),
    )


def _end(tokenizer: PreTrainedTokenizerBase, after: str, eos: int | None) -> int:
    ids = _ids(tokenizer, after) if after else ()
    if ids and ids[0] in special_ids(tokenizer):
        return ids[0]
    if eos is None:
        raise DualSLMError(
            "nothing tells where a reply of this LLM ends",
            got="no eos token, and no special token after a reply in the chat template",
            do="set tokenizer.eos_token",
        )
    return int(eos)


def _rendered(tokenizer: PreTrainedTokenizerBase, system: str | None, messages: list[dict[str, str]]) -> str:
    """The template's text up to the reply."""
    if system is not None and _habits(tokenizer).system:
        messages = [{"role": "system", "content": system}, *messages]
    elif system:
        first = next(index for index, message in enumerate(messages) if message["role"] == "user")
        opened = {"role": "user", "content": system + JOIN * 2 + messages[first]["content"]}
        messages = [*messages[:first], opened, *messages[first + 1 :]]
    return _apply(tokenizer, messages, generation=True)


def _apply(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, generation: bool) -> str:
    try:
        rendered: Any = tokenizer.apply_chat_template(
            messages,
            chat_template=None if tokenizer.chat_template else PLAIN,
            tokenize=False,
            add_generation_prompt=generation,
            enable_thinking=False,
            bos="" if tokenizer.chat_template else _own_bos(tokenizer),
        )
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise DualSLMError(
            "the LLM's chat template refuses this conversation",
            got=str(error),
            do="let user and assistant alternate, beginning with the user, or set tokenizer.chat_template",
        ) from error
    return str(rendered)


def _own_bos(tokenizer: PreTrainedTokenizerBase) -> str:
    """The bos token of a tokenizer that puts it before a text of its own accord."""
    adds = tokenizer.bos_token_id is not None and tokenizer.encode("a")[0] == tokenizer.bos_token_id
    return str(tokenizer.bos_token) if adds else ""
