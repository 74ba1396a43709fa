"""Chains of thought are cut from what an LLM writes: no reply that is spoken aloud begins with one (ours).

An LLM marks its thoughts by tags of its own, by channels (`<|channel|>analysis`), or, where its chat template has
opened the thought already, by the closing tag alone. What cannot be told from the answer is no target, and is counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ALOUD = "thinks aloud"  # the reason for a thought without an end, or without an answer after it
UNMARKED = "thought that cannot be told from the answer"
WORD = r"(?:seed:)?(?:think|thinking|thought|thoughts|reasoning|reflection|analysis|scratchpad)"
OPENS = rf"<{WORD}>|\[THINK\]|\u25c1think\u25b7|<\|(?:START_THINKING|begin_of_thought)\|>|<\|channel>\s*thought"
CLOSES = rf"</{WORD}>|\[/THINK\]|\u25c1/think\u25b7|<\|(?:END_THINKING|end_of_thought)\|>|<channel\|>"
MARK = re.compile(f"(?P<opens>{OPENS})|(?P<closes>{CLOSES})", re.IGNORECASE)
# OpenAI's channels, as tokens, and as what is left of them where a server leaves special tokens out.
CHANNEL = re.compile(r"<\|channel\|>|<\|message\|>|^(?:analysis|commentary)(?=[A-Z])")
FINAL = re.compile(r"(?:<\|channel\|>\s*final[^<]*<\|message\|>|assistantfinal)(.*)$", re.DOTALL)
# What stands around an answer: tags, and the special tokens that end it.
AROUND = re.compile(
    r"</?(?:answer|response|final_answer)>|<\|(?:START_RESPONSE|END_RESPONSE|begin_of_solution|end_of_solution)\|>"
    r"|<\|(?:start|end|return|im_end|eot_id)\|>",
    re.IGNORECASE,
)

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
