"""Conversation × View × chat template → token ids and slots (paper eq. 3, Fig. 2).

The only place where text becomes tokens. The tokenizer's own chat template is rendered once with a placeholder
for every spoken part and every target; the string is cut at the placeholders and each piece is tokenised on its
own, so that ids never depend on what stands on the other side of a cut. A spoken part becomes its P slot and its
L slot, in that order, or their text, or nothing, as the view says.

No torch here: the model fills the slots.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dualslm.conversation import CHANNELS, Channel, Conversation, Speech, Turn, View
from dualslm.errors import DualSLMError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Supervise: TypeAlias = Literal["none", "last", "all"]
BOTH: frozenset[Channel] = frozenset(CHANNELS)
NORMAL = View()
JOIN = "\n"  # between the parts of a turn, and between turns of one speaker in a row
PLAIN = (  # for a base LLM without a chat template
    "{{ bos_token or '' }}{% for m in messages %}{{ m['content'] if m['role'] == 'system' else "
    "m['role'].capitalize() + ': ' + m['content'] }}{{ eos_token if m['role'] == 'assistant' }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)
MARK = re.compile("\ue000(\\d+)\ue001")


@dataclass(frozen=True)
class Text:
    """Token ids.

    Attributes:
        ids: in order.
        loss: whether the LLM is to produce them.
    """

    ids: tuple[int, ...]
    loss: bool = False


@dataclass(frozen=True)
class Slot:
    """A place for one channel's embeddings of one recording.

    Attributes:
        channel: "para" (fixed length) or "ling" (10 a second).
        clip: index into `Prompt.clips`.
        frozen: its embeddings are detached: this example teaches the other adapter.
    """

    channel: Channel
    clip: int
    frozen: bool = False


@dataclass(frozen=True)
class Prompt:
    """What the model sees: segments in order, and the recordings that the slots refer to."""

    segments: tuple[Text | Slot, ...]
    clips: tuple[Speech, ...]


def styled(caption: str) -> str:
    """A caption as it stands before the transcript: what the P slot stands in for."""
    return f"[{caption.strip()}] "


def render(
    conversation: Conversation,
    tokenizer: PreTrainedTokenizerBase,
    view: View = NORMAL,
    *,
    history: View | None = None,
    learns: frozenset[Channel] = BOTH,
    supervise: Supervise = "none",
    cut_off: bool = False,
) -> Prompt:
    """Renders a talk for the LLM.

    Args:
        conversation: ends with a user turn to be answered, or, when supervised, with the assistant's answer.
        tokenizer: of the LLM, whose chat template is used.
        view: the sources of spoken turns.
        history: the sources of all spoken parts but those of the last user turn; `view` when None.
        learns: channels whose embeddings carry gradient.
        supervise: "last" puts loss on the last assistant turn, "all" on every one, with its end of turn.
        cut_off: the last target was cut off, so it is not taught to end there.

    Raises:
        DualSLMError: nothing to answer, turns that the template refuses, or a source that a clip lacks.
    """
    writer = _Writer(tokenizer, view, history or view, learns)
    turns = _merged(conversation.turns)
    _check_end(turns, supervise)
    targets = {len(turns) - 1} if supervise == "last" else set()
    if supervise == "all":
        targets = {index for index, turn in enumerate(turns) if turn.role == "assistant"}
    asked = max(index for index, turn in enumerate(turns) if turn.role == "user")
    contents = [writer.content(turn, index in targets, index == asked) for index, turn in enumerate(turns)]
    messages = [{"role": turn.role, "content": text} for turn, text in zip(turns, contents, strict=True)]
    answered = messages[:-1] if supervise != "none" else messages
    text = _template(tokenizer, conversation.system, answered, generation=True)
    if supervise != "none":
        text += messages[-1]["content"]
    return writer.write(text, cut_off=cut_off)


class _Writer:
    """Gives spoken parts and targets their placeholders, and turns the rendered text into segments."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, view: View, history: View, learns: frozenset[Channel]
    ) -> None:
        self.tokenizer, self.view, self.history, self.learns = tokenizer, view, history, learns
        self.held: list[tuple[Speech, View] | str] = []
        self.clips: list[Speech] = []

    def content(self, turn: Turn, target: bool, last: bool) -> str:
        """A turn's content with placeholders."""
        if target:
            return self._hold(JOIN.join(_words(part) for part in turn.parts))
        view = self.view if last else self.history
        return JOIN.join(part if isinstance(part, str) else self._hold((part, view)) for part in turn.parts)

    def _hold(self, item: tuple[Speech, View] | str) -> str:
        self.held.append(item)
        return f"\ue000{len(self.held) - 1}\ue001"

    def write(self, text: str, *, cut_off: bool) -> Prompt:
        """Cuts the rendered text at the placeholders and tokenises each piece on its own."""
        segments: list[Text | Slot] = []
        pieces = MARK.split(text)
        ends = end_of_turn(self.tokenizer)
        after_target = False
        for index, piece in enumerate(pieces):
            if index % 2 == 0:
                segments += self._plain(piece, ends if after_target else None)
                continue
            item = self.held[int(piece)]
            after_target = isinstance(item, str)
            segments += [self._text(item, loss=True)] if isinstance(item, str) else self._spoken(*item)
        if after_target and pieces[-1] == "" and not cut_off:
            segments.append(Text((ends,), loss=True))
        return Prompt(tuple(s for s in segments if isinstance(s, Slot) or s.ids), tuple(self.clips))

    def _plain(self, piece: str, ends: int | None) -> list[Text | Slot]:
        ids = self._text(piece).ids
        if ends is not None and ids[:1] == (ends,):
            return [Text(ids[:1], loss=True), Text(ids[1:])]
        return [Text(ids)]

    def _text(self, text: str, loss: bool = False) -> Text:
        return Text(tuple(self.tokenizer.encode(text, add_special_tokens=False)), loss)

    def _spoken(self, speech: Speech, view: View) -> Iterator[Text | Slot]:
        """P before L (paper eq. 3)."""
        tone = speech.tone or speech
        if view.para == "text":
            yield self._text(styled(_known(tone.caption, "caption", 'view "text" for P')))
        if view.para == "speech":
            yield self._slot("para", tone)
        if view.ling == "text":
            yield self._text(_known(speech.transcript, "transcript", 'view "text" for L').strip())
        if view.ling == "speech":
            yield self._slot("ling", speech)

    def _slot(self, channel: Channel, speech: Speech) -> Slot:
        _known(speech.audio, "recording", 'view "speech"')
        place = next((i for i, clip in enumerate(self.clips) if clip is speech), len(self.clips))
        if place == len(self.clips):
            self.clips.append(speech)
        return Slot(channel, place, frozen=channel not in self.learns)


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a reply: the special token after an assistant's words in the template, else eos."""
    probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\ue0000\ue001"}]
    after = MARK.split(_apply(tokenizer, probe, generation=False))[-1]
    ids = tokenizer.encode(after.lstrip(), add_special_tokens=False)
    if ids and ids[0] in _specials(tokenizer):
        return int(ids[0])
    if tokenizer.eos_token_id is None:
        raise DualSLMError(
            "nothing tells this LLM's tokenizer where a reply ends",
            got="no eos token and no special token after a reply",
            do="set tokenizer.eos_token or give it a chat template",
        )
    return int(tokenizer.eos_token_id)


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens at which a reply stops: the template's end of turn, and eos."""
    eos = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
    return frozenset((end_of_turn(tokenizer), *eos))


def _specials(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def _template(
    tokenizer: PreTrainedTokenizerBase, system: str | None, messages: list[dict[str, str]], *, generation: bool
) -> str:
    """Renders the chat template; a system text that it has no place for opens the first user turn."""
    if system is None:
        return _apply(tokenizer, messages, generation)
    try:
        text = _apply(tokenizer, [{"role": "system", "content": system}, *messages], generation)
        if system.strip() in text:
            return text
    except _template_errors():
        pass
    first, *rest = messages
    return _apply(tokenizer, [{**first, "content": system + JOIN * 2 + first["content"]}, *rest], generation)


def _apply(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], generation: bool) -> str:
    own = getattr(tokenizer, "chat_template", None)
    rendered: Any = tokenizer.apply_chat_template(
        messages,
        chat_template=None if own else PLAIN,
        tokenize=False,
        add_generation_prompt=generation,
        enable_thinking=False,
    )
    return str(rendered)


def _template_errors() -> tuple[type[Exception], ...]:
    from jinja2 import TemplateError

    return (TemplateError,)


def _merged(turns: Sequence[Turn]) -> list[Turn]:
    """Turns of one speaker in a row become one: many templates insist on alternation."""
    merged: list[Turn] = []
    for turn in turns:
        if merged and merged[-1].role == turn.role:
            turn = Turn(turn.role, merged.pop().parts + turn.parts)
        merged.append(turn)
    return merged


def _check_end(turns: Sequence[Turn], supervise: Supervise) -> None:
    wanted = "user" if supervise == "none" else "assistant"
    if not turns or turns[-1].role != wanted or turns[0].role != "user":
        raise DualSLMError(
            f"a talk begins with a user turn and ends with the {wanted}'s",
            got=" ".join(turn.role for turn in turns) or "no turn",
            do=f"add the {wanted} turn" + " before asking for a reply" * (supervise == "none"),
        )


def _words(part: str | Speech) -> str:
    return part if isinstance(part, str) else _known(part.transcript, "transcript", "a target").strip()


def _known(value: Any, what: str, why: str) -> Any:
    if value is None:
        raise DualSLMError(f"a Speech has no {what}", got=f"{why}", do=f"give Speech({what}=...) or another view")
    return value
