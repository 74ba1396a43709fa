"""Chains of thought are cut from what an LLM writes: no reply that is spoken aloud begins with one (ours).

An LLM marks its thoughts by tags of its own, by channels (`<|channel|>analysis`), or, where its chat template has
opened the thought already, by the closing tag alone. What cannot be told from the answer is no target, and is counted.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from dualslm.prompt import Prompt, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ALOUD = "thinks aloud"  # the reason for a thought without an end, or without an answer after it
UNMARKED = "thought that cannot be told from the answer"
WORD = r"(?:seed:)?(?:think|thinking|thought|thoughts|reasoning|reflection|analysis|scratchpad|inner_monologue)"
# In order: tags, Magistral, Kimi, Cohere and OpenThinker, Solar and Holo, Apertus, Gemma 4.
OPENS = (
    rf"<{WORD}>|\[THINK\]|\u25c1think\u25b7|<\|(?:START_THINKING|begin_of_thought)\|>|<\|think(?:ing)?\|>"
    r"|<\|inner_prefix\|>|<\|channel>\s*thought"
)
CLOSES = (
    rf"</{WORD}>|\[/THINK\]|\u25c1/think\u25b7|<\|(?:END_THINKING|end_of_thought)\|>|<\|/think(?:ing)?\|>|<\|content\|>"
    r"|<\|inner_suffix\|>|<channel\|>"
)
MARK = re.compile(f"(?P<opens>{OPENS})|(?P<closes>{CLOSES})", re.IGNORECASE)
# OpenAI's channels, as tokens, and as what is left of them where a server leaves special tokens out.
CHANNEL = re.compile(r"<\|channel\|>|<\|message\|>|^(?:analysis|commentary)(?=[A-Z])")
# A head may also name the form of its message.
FINAL = re.compile(
    r"(?:<\|channel\|>\s*final[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>|assistantfinal)(.*)$", re.DOTALL
)
# Granite's marks are sentences, at the beginning of a reply.
IN_WORDS = re.compile(
    r"\s*Here(?: is|'s) my thought process:(?:.*?Here(?: is|'s) my response:(?P<answer>.*))?", re.DOTALL
)
# What stands around an answer: tags, and the special tokens that end it.
AROUND = re.compile(
    r"</?(?:answer|response|final_answer|output)>"
    r"|<\|(?:START_RESPONSE|END_RESPONSE|begin_of_solution|end_of_solution|begin_of_box|end_of_box)\|>"
    r"|<\|(?:start|end|return|im_end|eot_id)\|>",
    re.IGNORECASE,
)

# Marks as they come in a stream: a channel's head is a mark as well, and so is what begins a message of a channel.
HEAD = r"<\|channel\|>\s*(?P<channel>\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
STREAMED = re.compile(
    f"{HEAD}|(?P<begins><\\|start\\|>)|(?P<opens>{OPENS})|(?P<closes>{CLOSES})|(?P<around>{AROUND.pattern})",
    re.IGNORECASE,
)
# What may be the beginning of a mark, at the end of what has come.
BEGUN = re.compile(
    r"(?:<\|channel\|>[^<]{0,40}(?:<\|constrain\|>[^<]{0,40})?(?:<\|?[a-z]{0,9}\|?)?|<\|channel>\s*\w{0,8}|<[/|]{0,2}[\w:]{0,24}\|?|\[/?\w{0,6}"
    r"|\u25c1/?\w{0,6})$",
    re.IGNORECASE,
)
TAIL = 64  # tokens of a prompt that are looked at for a thought that it opens

Thought: TypeAlias = Literal["none", "own", "opened", "endless"]
"""No thought; one that the LLM opened and closed; one that was opened before the reply; one without an end."""


class Separated(NamedTuple):
    """A reply without its chain of thought.

    Attributes:
        answer: what is left.
        thought: what kind of thought was found.
    """

    answer: str
    thought: Thought


def separate(text: str) -> Separated:
    """Cuts the chains of thought from a reply."""
    if CHANNEL.search(text.lstrip()):
        final = FINAL.search(text)
        return Separated(AROUND.sub("", final[1]).strip(), "own") if final else Separated("", "endless")
    if in_words := IN_WORDS.match(text):
        answered = (in_words["answer"] or "").strip()
        return Separated(answered, "own" if answered else "endless")
    parts: list[str] = []
    within = False
    end = 0  # of the last mark
    thought: Thought = "none"
    for mark in MARK.finditer(text):
        if mark["opens"]:
            # Not nested: a template and the LLM may both open the same thought, and a thought may speak of its tag.
            if not within:
                parts.append(text[end : mark.start()])
            within = True
        elif within:
            within = False
            thought = "opened" if thought == "opened" else "own"
        else:
            parts.clear()  # a lone closing tag: the thought began before the reply
            thought = "opened"
        end = mark.end()
    if within:
        return Separated("", "endless")
    if thought == "none":
        return Separated(text.strip(), "none")
    return Separated(AROUND.sub("", "".join([*parts, text[end:]])).strip(), thought)


def opens_thought(prompt: str) -> bool:
    """Whether a prompt ends within a thought, so that the reply begins there."""
    # The last mark alone is the template's: what a user typed before it may hold any tag.
    tags = list(MARK.finditer(prompt))
    return bool(tags) and bool(tags[-1]["opens"]) and not prompt[tags[-1].end() :].strip()


def text_with_marks(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of a reply's tokens, with special ones only where they mark a thought or a channel."""
    whole = str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if MARK.search(whole) or CHANNEL.search(whole):
        return whole
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


class AnswerStream:
    """What may be spoken of a reply that comes in pieces: its chains of thought are left out as they come.

    Text is held back only while it may be the beginning of a mark. A closing tag whose thought nobody opened comes too
    late, when the thought was spoken: hence `opened`, which the prompt tells.

    Args:
        opened: whether the prompt has opened a thought already.
    """

    def __init__(self, opened: bool = False) -> None:
        self.within = opened
        self.thought = opened  # whether there was any: the answer after it begins with its first letter
        self.answered = False
        self.held = ""

    def add(self, text: str) -> str:
        """What can be spoken now that this text has come."""
        self.held += text
        said = ""
        while (mark := STREAMED.search(self.held)) is not None:
            said += self._spoken(self.held[: mark.start()])
            self.held = self.held[mark.end() :]
            channel = mark["channel"]
            if mark["around"] and not self.thought:
                said += self._spoken(mark[0])  # an ordinary word of a reply without thoughts
            elif not mark["around"]:
                self.thought = True
                self.within = bool(mark["opens"] or mark["begins"] or (channel and channel.lower() != "final"))
        begun = BEGUN.search(self.held)
        shown = begun.start() if begun is not None else len(self.held)
        said += self._spoken(self.held[:shown])
        self.held = self.held[shown:]
        return said

    def rest(self) -> str:
        """What was held back, when no more text comes."""
        rest, self.held = self.held, ""
        return self._spoken(rest)

    def _spoken(self, text: str) -> str:
        if self.within:
            return ""
        if self.thought and not self.answered:
            text = text.lstrip()
        self.answered = self.answered or bool(text)
        return text


def answer(text: str, opened: bool = False) -> str:
    """What may be spoken of a whole reply: as `AnswerStream` gives it."""
    stream = AnswerStream(opened)
    return stream.add(text) + stream.rest()


@lru_cache(maxsize=8)
def special_tokens(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, int]:
    """The tokens that decoding leaves out: those that the tokenizer names, and those that are only flagged special."""
    flagged = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return flagged | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


@lru_cache(maxsize=8)
def mark_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The special tokens that mark thoughts or channels, which stay in a text that thoughts are to be cut from."""
    tokens = special_tokens(tokenizer).items()
    channels = ("<|channel|>", "<|message|>", "<|start|>")
    return frozenset(number for token, number in tokens if MARK.fullmatch(token) or token in channels)


def begins_within(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Hashable]) -> bool:
    """Whether the reply to a prompt begins within a thought, which its end has opened.

    Args:
        tokenizer: the LLM's.
        prompt: what stands at each position: a token id, or anything else for a position of a recording.
    """
    tail: list[int] = []
    for key in reversed(prompt[-TAIL:]):
        if not isinstance(key, int):
            break
        tail.insert(0, key)
    return opens_thought(str(tokenizer.decode(tail, skip_special_tokens=False)))


def opens_in_thought(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> bool:
    """Whether the reply to a rendered prompt begins within a thought."""
    last = prompt.segments[-1]
    return isinstance(last, Text) and begins_within(tokenizer, last.ids)
