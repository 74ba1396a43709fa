"""How likely given words are: the choices of a question, and a reply without parts of what was heard (ours).

A gauge that shows one answer hides how sure it is. The question's other choices are put in its place, and the LLM
says how likely each is, given P alone: their shares of one are the *degrees*.

What a reply rests on is found by leaving out: P as a whole, L as a whole, and L piece by piece. How much less likely
each token of the reply becomes, in nats, is its *influence*. It is measured on the reply that was given, so it says
what this reply needs, not what another would have been.

Dimensions: T tokens of a prompt, K tokens of a reply, R rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dualslm.audio import FRAMES_PER_SECOND
from dualslm.conversation import P_ONLY, Conversation, Speech, View
from dualslm.inference.audio_cache import AudioCache
from dualslm.inference.describe import Description, Question, Questions
from dualslm.model.dualslm import DualSLM
from dualslm.model.generation import text_of
from dualslm.model.inputs import IGNORE_INDEX, PromptEmbeds
from dualslm.model.llm import FrozenLM
from dualslm.model.loss import label_log_probs
from dualslm.prompt import render

MAX_PIECES = 24  # of L that are left out in turn, which bounds the work
MAX_POSITIONS = 8192  # of all rows that are read at once
MIN_PIECE = 2  # embeddings of L in a piece: 0.2 s at 10 a second

Degrees = Mapping[str, float]
"""The share of each choice of a question."""


@dataclass(frozen=True)
class Influence:
    """What a reply rests on, in nats of log-likelihood that are lost without it.

    Attributes:
        tokens: of the reply, as text.
        para: lost by each token without P.
        ling: lost by each token without L.
        pieces: start and end in s of pieces of the last recording, and what the whole reply loses without each.
    """

    tokens: Sequence[str]
    para: Sequence[float]
    ling: Sequence[float]
    pieces: Sequence[tuple[float, float, float]]


def degrees(audio_cache: AudioCache, speech: Speech, questions: Questions, heard: Description) -> dict[str, Degrees]:
    """How likely the LLM finds each choice of each question about a voice, given P alone.

    Args:
        audio_cache: encodes the recording.
        speech: the recording.
        questions: that were asked.
        heard: what was answered; a question whose answer names no choice is left out.
    """
    tokenizer = audio_cache.model.llm.tokenizer
    known = {name: value for name, value in heard.attributes.items() if value is not None}
    prompts = []
    for name, value in known.items():
        question = questions.attributes[name]
        answers = [_instead(question, heard.answers[name], value, other) for other in question.values]
        answered = [question.about(speech).assistant(answer) for answer in answers]
        prompts += [render(conversation, tokenizer, P_ONLY, supervise="last") for conversation in answered]
    if not prompts:
        return {}
    scores = torch.stack([one_K.sum() for one_K in _reply_log_probs(audio_cache.model.llm, audio_cache.embed(prompts))])
    counts = [len(questions.attributes[name].values) for name in known]
    return {
        name: dict(zip(questions.attributes[name].values, some.softmax(0).tolist(), strict=True))
        for name, some in zip(known, scores.split(counts), strict=True)
    }


def influence(audio_cache: AudioCache, conversation: Conversation, reply: str, view: View) -> Influence:
    """What the reply to a conversation rests on.

    Args:
        audio_cache: encodes the recordings.
        conversation: ends with a spoken user turn.
        reply: that was given.
        view: in which it was given.

    Raises:
        DualSLMError: a recording that cannot be used.
    """
    return weighed(audio_cache.model, weighed_prompts(audio_cache, conversation, reply, view))


def weighed_prompts(audio_cache: AudioCache, conversation: Conversation, reply: str, view: View) -> list[PromptEmbeds]:
    """The conversation with its reply, as it is, without P and without L; see `influence`."""
    whole = conversation.copy().assistant(reply)
    views = [view, View("none", view.ling), View(view.para, "none")]
    tokenizer = audio_cache.model.llm.tokenizer
    prompts = [render(whole, tokenizer, one, history=view, supervise="last", cut_off=True) for one in views]
    return audio_cache.embed(prompts)


def weighed(model: DualSLM, prompts: Sequence[PromptEmbeds], go_on: Callable[[], None] = lambda: None) -> Influence:
    """What the reply in `weighed_prompts` rests on.

    Args:
        model: its LLM tells how likely the reply is.
        prompts: from `weighed_prompts`.
        go_on: called between two parts of the work; what it raises ends it.
    """
    full, no_para, no_ling = prompts
    spans = _spans(full)
    pieces_left_out = [full.without(span) for span in spans]
    rows = [full, no_para, no_ling, *pieces_left_out]
    full_K, no_para_K, no_ling_K, *without = _reply_log_probs(model.llm, rows, go_on)
    ids = full.labels_T[full.labels_T != IGNORE_INDEX].tolist()
    seconds = model.ling.stack / FRAMES_PER_SECOND
    first = spans[0].start if spans else 0
    pieces = [
        ((span.start - first) * seconds, (span.stop - first) * seconds, float((full_K - one_K).sum()))
        for span, one_K in zip(spans, without, strict=True)
    ]
    tokens = [text_of(model.llm.tokenizer, [token]) for token in ids]
    return Influence(tokens, (full_K - no_para_K).tolist(), (full_K - no_ling_K).tolist(), pieces)


def _instead(asked: Question, answer: str, value: str, other: str) -> str:
    """The answer with another choice in the place of its own."""

    def put(match: re.Match[str]) -> str:
        word = match[0]
        names = asked.spellings.get(word.lower(), word.lower()) == value
        return other if names and other != value else word

    return re.sub(r"[A-Za-z]+", put, answer)


def _spans(prompt: PromptEmbeds) -> list[range]:
    """The positions of the last recording's L, in pieces."""
    ling = [
        (position, key[2]) for position, key in enumerate(prompt.keys) if isinstance(key, tuple) and key[0] == "ling"
    ]
    if not ling:
        return []
    start = max(position for position, index in ling if index == 0)
    length = ling[-1][0] + 1 - start
    step = max(MIN_PIECE, -(-length // MAX_PIECES))
    return [range(start + at, start + min(at + step, length)) for at in range(0, length, step)]


def _reply_log_probs(
    llm: FrozenLM, prompts: Sequence[PromptEmbeds], go_on: Callable[[], None] = lambda: None
) -> list[Tensor]:
    """The log-probability of each token of each prompt's reply (K), in nats."""
    rows = max(1, MAX_POSITIONS // max(len(prompt.keys) for prompt in prompts))
    found = []
    for start in range(0, len(prompts), rows):
        go_on()
        found += [
            log_probs_KV.gather(1, labels_K[:, None])[:, 0].cpu()
            for log_probs_KV, labels_K in label_log_probs(llm, prompts[start : start + rows])
        ]
    return found
