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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dualslm.audio import FRAMES_PER_SECOND
from dualslm.conversation import Conversation, Speech, View
from dualslm.inference.audio_cache import AudioCache, PromptEmbeds
from dualslm.inference.describe import Description, P, Question, Questions
from dualslm.model.generation import text_of
from dualslm.model.llm import pad_left
from dualslm.prompt import Prompt, Text, render

PIECES = 24  # at most so many pieces of L are left out in turn, to bound the work
SHORTEST = 2  # L embeddings of a piece: 0.2 s at 10 a second

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
        ears: hear the recording.
        speech: the recording.
        questions: that were asked.
        heard: what was answered; a question whose answer names no choice is left out.
    """
    tokenizer, prompts = audio_cache.model.llm.tokenizer, []
    known = {name: value for name, value in heard.attributes.items() if value is not None}
    for name, value in known.items():
        one = questions.attributes[name]
        asked = Conversation(one.system).user(speech, *filter(None, [one.question]))
        answers = [_instead(one, heard.answers[name], value, other) for other in one.values]
        prompts += [render(asked.copy().assistant(answer), tokenizer, P, supervise="last") for answer in answers]
    scores = (
        torch.stack([row.sum() for row in _scores(audio_cache, prompts, audio_cache.rows(prompts))])
        if prompts
        else Tensor()
    )
    counts = [len(questions.attributes[name].values) for name in known]
    shares = [some.softmax(0).tolist() for some in scores.split(counts)]
    return {
        name: dict(zip(questions.attributes[name].values, some, strict=True))
        for name, some in zip(known, shares, strict=True)
    }


def influence(audio_cache: AudioCache, talk: Conversation, reply: str, view: View) -> Influence:
    """What the reply to a talk rests on.

    Args:
        ears: hear the recordings.
        talk: ends with a spoken user turn.
        reply: that was given.
        view: in which it was given.

    Raises:
        DualSLMError: a recording that cannot be used.
    """
    whole = talk.copy().assistant(reply)
    views = [view, View("none", view.ling), View(view.para, "none")]
    tokenizer = audio_cache.model.llm.tokenizer
    prompts = [render(whole, tokenizer, one, history=view, supervise="last", cut_off=True) for one in views]
    rows = audio_cache.rows(prompts)
    spans = _spans(rows[0])
    prompts += [prompts[0]] * len(spans)
    rows += [_without(rows[0], span) for span in spans]
    full_K, no_para_K, no_ling_K, *without = _scores(audio_cache, prompts, rows)
    ids = [token for one in prompts[0].segments if isinstance(one, Text) and one.loss for token in one.ids]
    seconds = audio_cache.model.ling.stack / FRAMES_PER_SECOND
    first = spans[0].start if spans else 0
    lost = [float((full_K - one_K).sum()) for one_K in without]
    pieces = [
        ((span.start - first) * seconds, (span.stop - first) * seconds, loss)
        for span, loss in zip(spans, lost, strict=True)
    ]
    tokens = [text_of(tokenizer, [token]) for token in ids]
    return Influence(tokens, (full_K - no_para_K).tolist(), (full_K - no_ling_K).tolist(), pieces)


def _instead(asked: Question, answer: str, value: str, other: str) -> str:
    """The answer with another choice in the place of its own."""

    def put(match: re.Match[str]) -> str:
        word = match[0]
        names = asked.spellings.get(word.lower(), word.lower()) == value
        return other if names and other != value else word

    return re.sub(r"[A-Za-z]+", put, answer)


def _spans(row: PromptEmbeds) -> list[range]:
    """The positions of the last recording's L, in pieces."""
    ling = [place for place, mark in enumerate(row.keys) if isinstance(mark, tuple) and mark[0] == "ling"]
    if not ling:
        return []
    start = max(place for place in ling if row.keys[place][2] == 0)  # type: ignore[index]
    length = ling[-1] + 1 - start
    step = max(SHORTEST, -(-length // PIECES))
    return [range(start + at, start + min(at + step, length)) for at in range(0, length, step)]


def _without(row: PromptEmbeds, span: range) -> PromptEmbeds:
    keep = [place for place in range(len(row.keys)) if place not in span]
    return PromptEmbeds(row.embeds_TD[keep], [row.keys[place] for place in keep])


@torch.no_grad()
def _scores(audio_cache: AudioCache, prompts: Sequence[Prompt], rows: Sequence[PromptEmbeds]) -> list[Tensor]:
    """The log-likelihood of each learnt token of each row, in nats; what is learnt stands at the end of a row."""
    llm = audio_cache.model.llm
    ids = [[t for one in prompt.segments if isinstance(one, Text) and one.loss for t in one.ids] for prompt in prompts]
    embeds_RTD, mask_RT = pad_left([row.embeds_TD for row in rows])
    longest = embeds_RTD.shape[1]
    place_T = torch.arange(longest, device=llm.device)
    tails_R = torch.tensor([len(some) for some in ids], device=llm.device)
    keep_RT = (place_T >= longest - 1 - tails_R[:, None]) & (place_T < longest - 1)
    logits_KV = llm(embeds_RTD, None if bool(mask_RT.all()) else mask_RT, keep_BT=keep_RT)
    labels_K = torch.tensor([token for some in ids for token in some], device=llm.device)
    scores_K = -F.cross_entropy(logits_KV.float(), labels_K, reduction="none")
    return list(scores_K.cpu().split([len(some) for some in ids]))
