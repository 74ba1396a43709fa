"""The training examples of the tiny world's LLM, in text (ours).

They have what a real chat LLM can do before any adapter exists: to write down the words of its prompt, to answer
questions from a caption, and to hold a conversation and remember its facts. Prompts are those of `prompt.render` with
text sources, channel by channel: caption or nothing, transcript or nothing.

In the second part of the training the transcripts are stretched to the pace of speech: a word fills several positions,
with dots or noise between them. A large LLM reads such a text at once. A small one that has seen fluent text alone does
not (measured: 47 % word errors on random words said three times each, 88 % with noise between them), and an adapter
could not teach it.
"""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from dualslm.conversation import Conversation, Part, Speech, Turn, View
from dualslm.files import replacing
from dualslm.prompt import Text, render
from dualslm.tiny import world
from dualslm.tiny.build import tokenizer as world_tokenizer
from dualslm.tiny.style import sample_style

TASK_SHARES = {"transcribe": 0.35, "ask": 0.3, "listen": 0.35}
DISFLUENT_SHARE = 0.4  # transcripts with repeated words or dots, in the first part
FLUENT_SHARE = 0.3  # transcripts that are not stretched, in the second part
DOT_SHARES = (0.5, 0.3, 0.2)  # dots that become a blank, a space, or stay
BLANK_ID = 0  # <|endoftext|>, which stands in no conversation
Disfluency: TypeAlias = Callable[[str, random.Random], str]
"""Changes a fluent transcript: `stumble` in the first part of the training, `stretch` in the second."""


@dataclass(frozen=True)
class Pool:
    """Tokenized training examples, end to end.

    Attributes:
        ids: token ids of all examples.
        loss: whether each token carries loss.
        starts: position of the first token of each example, and the end of the last.
    """

    ids: np.ndarray
    loss: np.ndarray
    starts: np.ndarray


def stumble(text: str, rng: random.Random) -> str:
    """The words as a poor recognizer writes them: some repeated, some followed by dots."""
    if rng.random() > DISFLUENT_SHARE:
        return text
    out: list[str] = []
    for word in text.split():
        out += [word] * (2 if rng.random() < 0.12 else 1)
        out += [".."] * (rng.random() < 0.08)
    return " ".join(out)


def stretch(text: str, rng: random.Random) -> str:
    """The words at the pace of speech, as L gives them with 10 embeddings a second: repeated, with dots between."""
    if rng.random() < FLUENT_SHARE:
        return text
    repeat_chance = rng.uniform(0.0, 0.7)
    pause_chance = rng.uniform(0.0, 0.6)
    out: list[str] = [".."] * rng.randint(0, 3)
    for word in text.split():
        out += [word] * (1 + _run_length(rng, repeat_chance))
        out += [".."] * _run_length(rng, pause_chance)
    return " ".join(out)


def _run_length(rng: random.Random, chance: float) -> int:
    """How often in a row a draw of this chance succeeds, at most three times."""
    return next((count for count in range(3) if rng.random() >= chance), 3)


def example(rng: random.Random, disfluency: Disfluency = stumble) -> tuple[Conversation, View]:
    """One training example: a conversation and its view, with text or nothing in each channel.

    Args:
        rng: source of every draw.
        disfluency: function that changes every transcript.
    """
    task = rng.choices(list(TASK_SHARES), list(TASK_SHARES.values()))[0]
    if task == "transcribe":
        return _transcribe(rng, disfluency)
    if task == "ask":
        return _ask(rng, disfluency)
    return _listen(rng, disfluency)


def _speech(rng: random.Random, utterance: world.Utterance) -> Speech:
    style = sample_style(rng)
    return Speech(transcript=utterance.text, caption=world.caption(style, rng), labels=style.labels())


def _transcribe(rng: random.Random, disfluency: Disfluency) -> tuple[Conversation, View]:
    """A transcription task; the prompt may be disfluent, the label never is."""
    # Soups cannot be guessed from their context: without them the LLM would complete sentences instead of reading.
    kinds: Sequence[world.Kind] = ("soup",) if rng.random() < 0.35 else ("event", "fact", "small")
    utterance = world.sample_utterance(rng, held_out=False, kinds=kinds)
    conversation = world.transcription(_speech(rng, utterance), rng)
    speech = Speech(transcript=disfluency(utterance.text, rng), caption=conversation.turns[0].speeches[0].caption)
    conversation.turns[0] = Turn("user", (speech,))
    return conversation, View(rng.choice(("text", "none")), "text")


def _ask(rng: random.Random, disfluency: Disfluency) -> tuple[Conversation, View]:
    """Questions that the caption answers, with the words or without them."""
    utterance = world.sample_utterance(rng, held_out=False)
    speech = _speech(rng, utterance)
    # Only attributes that the caption names: an LLM that has to guess learns to guess.
    named = [name for name in world.QUESTIONS if world.mentions(speech.caption or "", name)]
    asked = rng.sample(named, rng.randint(1, len(named)))
    speech = replace(speech, transcript=disfluency(utterance.text, rng))
    return world.questions(speech, rng, asked), View("text", rng.choice(("text", "text", "none")))


def _listen(rng: random.Random, disfluency: Disfluency) -> tuple[Conversation, View]:
    """A conversation with its reply; without the tone or the words, the reply does without them too."""
    utterance = world.sample_utterance(rng, held_out=False, kinds=("event",))
    style = sample_style(rng)
    view = View(rng.choice(("text",) * 4 + ("none",)), rng.choice(("text",) * 7 + ("none",)))
    transcript = disfluency(utterance.text, rng)
    caption = world.caption(style, rng)
    while not world.mentions(caption, "emotion"):  # the reply depends on it
        caption = world.caption(style, rng)

    def typed_or_spoken(rng: random.Random, kind: world.Kind) -> tuple[world.Utterance, Part]:
        stated, text = world.typed(rng, kind)
        spoken = Speech(transcript=disfluency(stated.text, rng), caption=world.caption(sample_style(rng), rng))
        return stated, rng.choice((text, spoken))

    # A view holds for all recordings of a prompt: where it has no words, facts must be typed to be remembered.
    earlier = typed_or_spoken if view.ling == "text" else world.typed
    speech = Speech(transcript=transcript, caption=caption)
    sample = world.sample_talk(rng, speech, utterance, style, earlier)
    emotion = style.emotion if view.para == "text" else None
    reply = world.reply_to(utterance if view.ling == "text" else None, emotion, sample.memory)
    return sample.conversation.assistant(reply.text), view


def blank_dots(ids: Sequence[int], dots: Sequence[int], rng: random.Random) -> list[int]:
    """Replaces some of the dots by a blank and some by the space that they begin with.

    Args:
        ids: token ids of a text.
        dots: token ids of " ..".
        rng: source of every draw.
    """
    out: list[int] = []
    for token in ids:
        out.append(token)
        if out[-len(dots) :] == list(dots):
            out[-len(dots) :] = rng.choices(([BLANK_ID], dots[:1], dots), DOT_SHARES)[0]
    return out


def write_pool(out: Path, count: int, seed: int, processes: int, disfluency: Disfluency) -> Pool:
    """The pool of a part of the training, read from its file where that exists."""
    file = out / f"pool-{disfluency.__name__}.npz"
    if not file.exists():
        chunk = min(1000, -(-count // processes))
        work = partial(_chunk, folder=out, seed=seed, size=chunk, disfluency=disfluency)
        chunks = range(-(-count // chunk))
        if processes > 1:
            with multiprocessing.get_context("spawn").Pool(processes) as workers:
                parts = list(workers.imap(work, chunks))
        else:
            parts = [work(index) for index in chunks]
        ids, loss, lengths = (np.concatenate(part) for part in zip(*parts, strict=True))
        starts = np.concatenate([[0], np.cumsum(lengths)])
        with replacing(file) as partial_file, partial_file.open("wb") as handle:
            np.savez(handle, ids=ids, loss=loss, starts=starts)
    return Pool(**np.load(file))


def _chunk(
    index: int, *, folder: Path, seed: int, size: int, disfluency: Disfluency
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids, loss flags and lengths of a run of examples; each is seeded by its own number."""
    tokenizer = world_tokenizer.load_or_train(folder)
    dots = tokenizer.encode(" ..")
    ids: list[int] = []
    loss: list[bool] = []
    lengths = []
    for number in range(index * size, (index + 1) * size):
        rng = random.Random(f"llm/{seed}/{number}")
        conversation, view = example(rng, disfluency)
        prompt = render(conversation, tokenizer, view, supervise="all")
        before = len(ids)
        for segment in prompt.segments:
            assert isinstance(segment, Text)
            text_ids = blank_dots(segment.ids, dots, rng)
            ids += text_ids
            loss += [segment.loss] * len(text_ids)
        lengths.append(len(ids) - before)
    return np.array(ids, np.int32), np.array(loss), np.array(lengths)
