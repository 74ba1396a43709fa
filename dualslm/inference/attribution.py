"""How likely given words are: the choices of a question, and a reply without parts of what was heard (ours).

A gauge that shows one answer hides how sure it is. The question's other choices are put in its place, and the LLM
says how likely each is, given P alone: their shares of one are the *degrees*.

What decided a reply is found by swapping: the same words in the voice's other emotions, and other words in the same
tone. How much less likely each token of the reply becomes, in nats, is the *influence* of tone and of words. Leaving a
channel out instead would blame both: without L a prompt is so strange that even "glad", which the tone made, is lost.
Which pieces of the recording a reply needs is found by leaving them out. All is measured on the reply that was given.

Dimensions: T tokens of a prompt, K tokens of a reply, R rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import methodcaller

import torch
from torch import Tensor

from dualslm.audio import FRAMES_PER_SECOND
from dualslm.conversation import P_ONLY, Conversation, Speech, View
from dualslm.errors import DualSLMError
from dualslm.inference.audio_cache import AudioCache
from dualslm.inference.describe import Description, Question, Questions, describe
from dualslm.model.dualslm import DualSLM
from dualslm.model.generation import text_of
from dualslm.model.inputs import IGNORE_INDEX, PromptEmbeds
from dualslm.model.llm import FrozenLM
from dualslm.model.loss import label_log_probs
from dualslm.prompt import Prompt, render

MAX_PIECES = 24  # of L that are left out in turn, which bounds the work
# said instead, in the same tone: news good and bad, and none
OTHER_WORDS = (
    "I lost my keys at the station.",
    "My son had a baby this morning.",
    "A thief took my bicycle.",
    "It was a long day.",
)
MAX_POSITIONS = 8192  # of all rows that are read at once
MIN_PIECE = 2  # embeddings of L in a piece: 0.2 s at 10 a second

Degrees = Mapping[str, float]
"""The share of each choice of a question."""


@dataclass(frozen=True)
class Influence:
    """What a reply rests on, in nats of log-likelihood that are lost without it.

    Attributes:
        tokens: of the reply, as text.
        para: lost by each token in the tone in which it is least likely.
        ling: lost by each token after those other words that suit it best; 0 where L was not heard.
        pieces: start and end in s of pieces of the last recording, and what the whole reply loses without each.
    """

    tokens: Sequence[str]
    para: Sequence[float]
    ling: Sequence[float]
    pieces: Sequence[tuple[float, float, float]]


def degrees(audio_cache: AudioCache, speech: Speech, questions: Questions, heard: Description) -> Mapping[str, Degrees]:
    """How likely the LLM finds each choice of each question about a voice, given P alone; where P is read, P itself.

    Args:
        audio_cache: encodes the recording.
        speech: the recording.
        questions: that were asked.
        heard: what was answered; a question whose answer names no choice is left out.
    """
    if audio_cache.model.aligned:
        return heard.shares
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


def influence(
    audio_cache: AudioCache, conversation: Conversation, reply: str, view: View, questions: Questions
) -> Influence:
    """What the reply to a conversation rests on.

    Args:
        audio_cache: encodes the recordings.
        conversation: ends with a spoken user turn.
        reply: that was given.
        view: in which it was given.
        questions: by which the voice of the last recording is found, to be put in other emotions.

    Raises:
        DualSLMError: a recording that cannot be used.
    """
    voice = last_voice(conversation)
    heard = None if voice is None else describe(audio_cache, voice, questions)
    return weighed(audio_cache.model, weighed_prompts(audio_cache, conversation, reply, view, questions, heard))


def last_voice(conversation: Conversation) -> Speech | None:
    """The recording whose channels are swapped, in its own voice; None where the last turn has none."""
    speeches = conversation.turns[-1].speeches
    return replace(speeches[-1], tone=None) if speeches else None


def cannot_be_weighed(got: str, longest: int) -> DualSLMError:
    """The error of a conversation that is too long for `influence`."""
    do = f"weigh conversations of up to {longest} positions with their reply"
    return DualSLMError("this reply cannot be weighed", got=got, do=do)


@dataclass(frozen=True)
class WeighedPrompts:
    """A conversation with its reply, as it is and with a channel swapped.

    Attributes:
        full: as it is.
        para: in the voice's other emotions, or without P; none where P was not heard.
        ling: after other words; none where L was not heard.
    """

    full: PromptEmbeds
    para: Sequence[PromptEmbeds]
    ling: Sequence[PromptEmbeds]


def weighed_prompts(
    audio_cache: AudioCache,
    conversation: Conversation,
    reply: str,
    view: View,
    questions: Questions,
    heard: Description | None,
    *,
    longest: int | None = None,
) -> WeighedPrompts:
    """The prompts from whose likelihoods `weighed` tells what a reply rests on.

    Args:
        audio_cache: encodes the recordings.
        conversation: ends with a spoken user turn.
        reply: that was given.
        view: in which it was given.
        questions: whose values are the emotions that are put in.
        heard: what is heard in `last_voice`; None where there is none.
        longest: positions of the conversation with its reply, at most; any number when None.

    Raises:
        DualSLMError: a recording that cannot be used, or a conversation that is longer.
    """
    tokenizer = audio_cache.model.llm.tokenizer

    def answered(change: Callable[[Speech], Speech], one: View) -> Prompt:
        *before, last = conversation.turns
        parts = [change(part) if isinstance(part, Speech) else part for part in last.parts]
        turns = [*before, replace(last, parts=tuple(parts))]
        whole = replace(conversation, turns=turns).assistant(reply)
        return render(whole, tokenizer, one, history=view, supervise="last", cut_off=True)

    tones = _other_tones(heard, questions) if view.para != "none" else []
    swapped_para = [answered(methodcaller("in_the_tone_of", tone), view) for tone in tones]
    if view.para != "none" and not tones:  # nothing is known of tones that might be swapped
        swapped_para = [answered(lambda speech: speech, View("none", view.ling))]
    swapped_ling = [
        answered(partial(replace, transcript=words), View(view.para, "text"))
        for words in (_other_words(heard) if view.ling != "none" else [])
    ]
    whole = answered(lambda speech: speech, view)
    # before anything is encoded: all the others are as long, but for a few words
    if longest is not None and (positions := audio_cache.length(whole)) > longest:
        raise cannot_be_weighed(f"{positions} positions with the reply", longest)
    full, *others = audio_cache.embed([whole, *swapped_para, *swapped_ling])
    return WeighedPrompts(full, others[: len(swapped_para)], others[len(swapped_para) :])


def weighed(model: DualSLM, prompts: WeighedPrompts, go_on: Callable[[], None] = lambda: None) -> Influence:
    """What the reply in `weighed_prompts` rests on.

    Args:
        model: its LLM tells how likely the reply is.
        prompts: from `weighed_prompts`.
        go_on: called between two parts of the work; what it raises ends it.
    """
    full = prompts.full
    spans = _spans(full)
    rows = [full, *prompts.para, *prompts.ling, *(full.without(span) for span in spans)]
    full_K, *without = _reply_log_probs(model.llm, rows, go_on)
    lost = [full_K - one_K for one_K in without]
    swapped = len(prompts.para) + len(prompts.ling)
    para_RK, ling_RK = lost[: len(prompts.para)], lost[len(prompts.para) : swapped]
    none_K = torch.zeros_like(full_K)
    seconds = model.ling.stack / FRAMES_PER_SECOND
    first = spans[0].start if spans else 0
    pieces = [
        ((span.start - first) * seconds, (span.stop - first) * seconds, float(one_K.sum()))
        for span, one_K in zip(spans, lost[swapped:], strict=True)
    ]
    ids = full.labels_T[full.labels_T != IGNORE_INDEX].tolist()
    return Influence(
        [text_of(model.llm.tokenizer, [token]) for token in ids],
        (torch.stack(para_RK).amax(0) if para_RK else none_K).tolist(),
        (torch.stack(ling_RK).amin(0) if ling_RK else none_K).tolist(),
        pieces,
    )


def _other_tones(heard: Description | None, questions: Questions) -> list[Speech]:
    """The voice in each emotion, as captions; none where emotions were not learnt."""
    if heard is None or "emotion" not in questions.attributes:
        return []
    known = {name: value for name, value in heard.attributes.items() if value is not None}
    emotions = questions.attributes["emotion"].values
    captions = [questions.caption({**known, "emotion": emotion}) for emotion in emotions]
    return [Speech(caption=caption) for caption in captions if caption]


def _other_words(heard: Description | None) -> list[str]:
    """Sentences that have no word of substance in common with what was said; all of them where each has one."""
    # after "A thief took my bicycle" a reply about the police is as likely as after another theft
    said = set(re.findall(r"\w{4,}", heard.words.lower())) if heard is not None else set()
    others = [words for words in OTHER_WORDS if not said & set(re.findall(r"\w{4,}", words.lower()))]
    return others or list(OTHER_WORDS)


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
