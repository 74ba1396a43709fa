"""How a reply is drawn, token by token, and how its tokens become text.

Dimensions: B prompts, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dualslm.conversation import View
from dualslm.errors import DualSLMError
from dualslm.model.reasoning import AnswerStream, mark_ids, special_tokens

COUNTS = range(2**31)  # of tokens: more than any LLM reads
MOST = 10**9  # of any other number
SEEDS = range(-(2**63), 2**64)  # that torch takes
MIN_TEMPERATURE = 1e-4  # less counts as 0: logits that are divided by less overflow
DECODE_WINDOW = 16  # tokens, to twice as many, that `TextStreamer` decodes at each step


@dataclass(frozen=True)
class GenerationSettings:
    """How a reply is drawn.

    Attributes:
        max_new_tokens: a reply is cut off after so many.
        temperature: 0, or less than 1e-4, takes the likeliest token each time: the same prompt gets the
            same reply.
        top_p: draw from the likeliest tokens that together have this probability.
        seed: of the draw; None draws anew each time.
        top_k: draw from so many of the likeliest tokens; 0 for all.
        min_p: draw from tokens with at least this share of the likeliest one's probability.
        repetition_penalty: divides the logits of tokens that the reply has already (multiplies those below 0).
        presence_penalty: taken from the logits of tokens that the reply has already.
        frequency_penalty: the same, as often as the reply has them.
        logprobs: likeliest tokens whose log-probabilities are told beside each token's own, before any of the above;
            None tells none.
        response_format: what the reply must be, as OpenAI's JSON; for servers that can hold an LLM to it.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None
    response_format: str | None = None

    def __post_init__(self) -> None:
        # A card or a command line may give anything, and torch would refuse it in the middle of a reply, if at all.
        for one in dataclasses.fields(self):
            self._check_kind(one.name, str(one.type), getattr(self, one.name))
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise DualSLMError(
                "these decoding settings make no sense",
                got=f"{self}",
                do="use max_new_tokens >= 1, temperature >= 0 and 0 < top_p <= 1",
            )
        if self.top_k < 0 or not 0 <= self.min_p <= 1 or not self.repetition_penalty > 0:
            do = "use top_k >= 0, 0 <= min_p <= 1 and repetition_penalty > 0"
            raise DualSLMError("these decoding settings make no sense", got=f"{self}", do=do)

    def _check_kind(self, name: str, kind: str, value: Any) -> None:
        if value is None and kind.endswith("None"):
            return
        if kind.startswith("int"):
            allowed = SEEDS if name == "seed" else COUNTS
            fits = isinstance(value, Integral) and value in allowed
            do = f"give a whole number from {allowed[0]} to {allowed[-1]}"
        elif kind == "float":
            fits = isinstance(value, int | float | np.number) and bool(-MOST < value < MOST)  # NaN is neither
            do = f"give a number of less than {MOST}"
        else:
            fits = isinstance(value, str)
            do = "give JSON as text"
        if not fits or isinstance(value, bool):
            raise DualSLMError(f"{name} makes no sense", got=f"{value!r:.80}", do=do)

    def changed(self, **values: Any) -> GenerationSettings:
        """The same settings with other values; what is None stays as it was."""
        return replace(self, **{key: value for key, value in values.items() if value is not None})

    def as_openai(self) -> dict[str, Any]:
        """The settings as fields of an OpenAI-compatible request; what another server draws by is stated here alone."""
        fields = {"max_tokens": self.max_new_tokens, "temperature": self.temperature, "top_p": self.top_p}
        fields |= self.beyond_the_first
        if self.response_format is not None:
            fields["response_format"] = json.loads(self.response_format)
        return fields if self.seed is None else {**fields, "seed": self.seed}

    @property
    def stated(self) -> dict[str, Any]:
        """As provenance has it: the seed is that of the run, and newer settings stand there where they are used."""
        first = {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature, "top_p": self.top_p}
        return first | self.beyond_the_first

    @property
    def penalizes(self) -> bool:
        """Whether the next token depends on those that were drawn by more than the LLM's own reading of them."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)

    @property
    def beyond_the_first(self) -> dict[str, Any]:
        """Settings that are not at their defaults, without the four that are always stated."""
        always = ("max_new_tokens", "temperature", "top_p", "seed", "response_format")
        return {
            one.name: getattr(self, one.name)
            for one in dataclasses.fields(self)
            if one.name not in always and getattr(self, one.name) != one.default
        }


GREEDY = GenerationSettings()


class ReplyOptions(TypedDict, total=False):
    """The keyword arguments of `DualSLM.reply`."""

    view: View | str
    system: str | None
    generation: GenerationSettings
    max_new_tokens: int | None
    temperature: float | None
    top_p: float | None
    seed: int | None


class Sampler:
    """Draws the next token by the decoding settings, and counts what it drew where a penalty asks for it.

    Args:
        generation: settings of the reply.
        device: of the logits.

    Attributes:
        greedy: the likeliest token is taken and no penalty holds, so that whoever has the logits may do it himself.

    Raises:
        DualSLMError: a format of the reply is asked for.
    """

    def __init__(self, generation: GenerationSettings, device: torch.device) -> None:
        if generation.response_format is not None:
            do = "run the LLM in vLLM, or ask for the format in the system text"
            raise DualSLMError("no format can be enforced in this process", got=generation.response_format, do=do)
        self.generation = generation
        self.likeliest = generation.temperature < MIN_TEMPERATURE
        self.greedy = self.likeliest and not generation.penalizes
        self.drawn_BV: Tensor | None = None  # how often each token was drawn
        self.generator = torch.Generator(device)
        self.generator.seed() if generation.seed is None else self.generator.manual_seed(generation.seed)
        self.warp = LogitsProcessorList()
        if not self.likeliest:
            self.warp.append(TemperatureLogitsWarper(generation.temperature))
            if generation.top_k:
                self.warp.append(TopKLogitsWarper(generation.top_k))
            if generation.top_p < 1:
                self.warp.append(TopPLogitsWarper(generation.top_p))
            if generation.min_p:
                self.warp.append(MinPLogitsWarper(generation.min_p))

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """The next token (B,) of each."""
        if self.greedy:
            return logits_BV.argmax(-1)
        logits_BV = self._penalized(logits_BV.float())
        if self.likeliest:
            token_B = logits_BV.argmax(-1)
        else:
            none = torch.empty(0, dtype=torch.long, device=logits_BV.device)
            chances_BV = self.warp(none, logits_BV).softmax(-1)
            token_B = torch.multinomial(chances_BV, 1, generator=self.generator)[:, 0]
        if self.drawn_BV is not None:
            self.drawn_BV.scatter_add_(1, token_B[:, None], torch.ones_like(self.drawn_BV[:, :1]))
        return token_B

    def _penalized(self, logits_BV: Tensor) -> Tensor:
        """The logits with OpenAI's two penalties and that of transformers and vLLM, over the reply's own tokens."""
        by = self.generation
        if not by.penalizes:
            return logits_BV
        if self.drawn_BV is None:
            self.drawn_BV = torch.zeros_like(logits_BV)
        said_BV = self.drawn_BV > 0
        repeated_BV = torch.where(logits_BV > 0, logits_BV / by.repetition_penalty, logits_BV * by.repetition_penalty)
        logits_BV = torch.where(said_BV, repeated_BV, logits_BV)
        return logits_BV - by.presence_penalty * said_BV - by.frequency_penalty * self.drawn_BV


class TextStreamer:
    """The text of a reply as it grows; joined, the pieces are the text of all tokens. None splits a character.

    A character is shown once all its bytes are there, and shown text is never taken back. Each step decodes the last 16
    to 32 tokens alone, some of them already shown, because a token's text may depend on the one before it (as vLLM and
    TGI do).

    Args:
        tokenizer: the LLM's.
        keep_special: special tokens that stay in the text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, keep_special: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.keep_special = keep_special
        self.ids: list[int] = []
        self.start = 0  # of the tokens that are decoded now; no character begins before it
        self.next_start = 0  # of those that will be decoded next
        self.seen = ""  # the text of these tokens that was shown
        self.shown = 0  # letters

    def add(self, token: int) -> str:
        """What can be shown now that this token has come; empty while a character is not whole."""
        self.ids.append(token)
        text = text_of(self.tokenizer, self.ids[self.start :], self.keep_special)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):  # the bytes of a character are not all there yet
            return ""
        if not text.startswith(self.seen):  # a byte that is of no character: those before it are written otherwise now
            self._look_from(len(self.ids) - 1)
            return self.rest()
        piece, self.seen = text[len(self.seen) :], text
        self.shown += len(piece)
        if len(self.ids) - self.next_start >= DECODE_WINDOW:
            self._look_from(self.next_start)
        return piece

    def rest(self) -> str:
        """What was held back, when no more tokens come."""
        piece = text_of(self.tokenizer, self.ids, self.keep_special)[self.shown :]
        self.shown += len(piece)
        return piece

    def _look_from(self, start: int) -> None:
        """Makes text of the tokens from `start` on alone, which were all shown."""
        seen = text_of(self.tokenizer, self.ids[start:], self.keep_special)
        if seen.strip():  # otherwise a space that stands in front of a text would be lost
            self.start, self.seen, self.next_start = start, seen, len(self.ids)


class ReplyStreamer:
    """The text of a reply as it grows, without the LLM's chains of thought.

    Args:
        tokenizer: the LLM's.
        opened: whether the prompt has opened a thought already; see `reasoning.begins_within`.
        keep_special: special tokens that stay in the text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, opened: bool = False, keep_special: Sequence[str] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self._text = TextStreamer(tokenizer, keep_special)
        self._answer = AnswerStream(opened)

    def add(self, token: int) -> str:
        """What can be spoken now that this token has come."""
        return self._answer.add(self._text.add(token))

    def rest(self) -> str:
        """What was held back, when no more tokens come."""
        return self._answer.add(self._text.rest()) + self._answer.rest()


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], keep_special: Sequence[str] = ()) -> str:
    """The text of a reply's tokens, without special ones except those that mark a thought and those that are kept."""
    known = special_tokens(tokenizer)
    if kept_ids := mark_ids(tokenizer) | {known[token] for token in keep_special if token in known}:
        special = {*known.values()} - kept_ids
        ids = [token for token in ids if token not in special]
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
