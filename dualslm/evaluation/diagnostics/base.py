"""What every diagnostic is built from: a model that is examined through any view, and figures with their intervals.

The model is asked for answers, likelihoods, distributions and embeddings, on recordings or on cached frames.

Dimensions: N layers, B recordings, K label tokens of a conversation, V vocabulary, T positions, D width of the LLM or
of the encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dualslm.conversation import Channel, Conversation, Speech, View
from dualslm.evaluation.metrics.bootstrap import figure
from dualslm.model.dualslm import DualSLM
from dualslm.model.encoder import Frames
from dualslm.model.generation import GenerationSettings
from dualslm.model.inputs import Hear, fill
from dualslm.model.loss import label_log_probs
from dualslm.prompt import render


@dataclass(frozen=True)
class Line:
    """One figure of a diagnostic.

    Attributes:
        label: what was measured, with its unit.
        value: measured value.
        low: lower end of its 95 % interval.
        high: upper end of its 95 % interval.
        n: number of items.
        zero: value of the figure if there were nothing to find; None where that is 0.
    """

    label: str
    value: float
    low: float
    high: float
    n: int
    zero: float | None = None

    def as_json(self) -> dict[str, Any]:
        """For the report; what could not be measured is null."""
        # NaN is no JSON: a browser's parser refuses the whole report.
        ends = {key: None if np.isnan(getattr(self, key)) else getattr(self, key) for key in ("value", "low", "high")}
        found = {"label": self.label, **ends, "n": self.n}
        return found if self.zero is None else {**found, "zero": self.zero}


@dataclass(frozen=True)
class Result:
    """What a diagnostic shows.

    Attributes:
        title: what it measures.
        lines: its figures; those of no item are left out of the report.
        explanation: what they mean, in plain words.
    """

    title: str
    lines: list[Line]
    explanation: str

    def as_json(self) -> dict[str, Any]:
        """For the report, whose key for the explanation is older than its name here."""
        rows = [line.as_json() for line in self.lines if line.n]
        return {"title": self.title, "rows": rows, "reading": self.explanation}


def line(
    label: str,
    parts: Sequence[float],
    groups: Sequence[str],
    *,
    wholes: Sequence[float] | None = None,
    percent: bool = True,
    zero: float | None = None,
) -> Line:
    """A share in percent, or a mean, with an interval over groups.

    Args:
        label: what is measured, with its unit.
        parts: count of each item: right or not, errors, nats.
        groups: name of each item's group, which is resampled whole.
        wholes: what each item's count is divided by, for example its tokens; 1 unless given.
        percent: whether the figure is a share in percent, not a mean.
        zero: value of the figure if there were nothing to find.
    """
    if not parts:
        return Line(label, np.nan, np.nan, np.nan, 0)
    counts = np.stack([np.asarray(parts, float), np.asarray(wholes or np.ones(len(parts)), float)], 1)
    share = figure(counts, groups)
    scale = 1 if percent else 100  # `figure` gives percent
    return Line(label, share.value / scale, share.low / scale, share.high / scale, share.n, zero)


@dataclass
class Examiner:
    """A model that is examined.

    Attributes:
        model: model with trained adapters.
        hear: gives the frames of recordings, for example from a cache; the model's own encoder when None.
        batch: number of conversations in a forward pass.
        max_new_tokens: greatest length of an answer in tokens.
        seed: seed of every draw.
    """

    model: DualSLM
    hear: Hear | None = None
    batch: int = 32
    max_new_tokens: int = 48
    seed: int = 0

    def answers(
        self, conversations: Sequence[Conversation], view: View, *, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """The model's answers to conversations that end with the user; greedy at temperature 0, else drawn."""
        generation = GenerationSettings(
            max_new_tokens=self.max_new_tokens, temperature=temperature, seed=seed if temperature else None
        )
        prompts = [render(conversation, self.model.llm.tokenizer, view) for conversation in conversations]
        return [
            answer
            for batch in batches(prompts, self.batch)
            for answer in self.model.generate(batch, hear=self.hear, generation=generation)
        ]

    @torch.no_grad()
    def distributions(
        self, conversations: Sequence[Conversation], view: View, *, history: View | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each answered conversation the log-probabilities before each token of the answer, and the tokens.

        Args:
            conversations: conversations that end with the assistant's answer.
            view: view of the last user turn, and of all turns where `history` is None.
            history: view of the turns before.

        Yields:
            Log-probabilities (K, V) in nats, and token ids (K).
        """
        # A generator: a row is a whole vocabulary, and those of all conversations together may not fit into memory.
        for batch in batches(conversations, self.batch):
            prompts = [
                render(conversation, self.model.llm.tokenizer, view, history=history, supervise="last")
                for conversation in batch
            ]
            filled = fill(prompts, self.model.llm, self.model.adapt, self.hear or self.model.hear)
            yield from label_log_probs(self.model.llm, filled)

    def nats(
        self, conversations: Sequence[Conversation], view: View, *, history: View | None = None
    ) -> list[tuple[float, int]]:
        """The negative log-likelihood of each conversation's answer, in nats, and its number of tokens."""
        return [
            (float(-log_KV.gather(1, tokens_K[:, None]).sum()), len(tokens_K))
            for log_KV, tokens_K in self.distributions(conversations, view, history=history)
        ]

    def likeliest(self, choices: Sequence[Sequence[Conversation]], view: View) -> list[int]:
        """For each item the index of its likeliest conversation, by the mean over the answer's tokens."""
        # Nothing is parsed: P alone and L alone often break the form of an answer, which would look like ignorance.
        flat = self.nats([conversation for options in choices for conversation in options], view)
        means = iter([nats / tokens for nats, tokens in flat])
        return [int(np.argmin([next(means) for _ in options])) for options in choices]

    def embeddings(self, speech: Speech, channel: Channel | None) -> Tensor:
        """One recording's embeddings (T, D) by one adapter, or the encoder's last layer where `channel` is None."""
        return embeddings(self.model, self.frames(speech), channel)

    def frames(self, speech: Speech) -> Frames:
        """One recording's frames."""
        return (self.hear or self.model.hear)([speech])


@torch.no_grad()
def embeddings(model: DualSLM, frames: Frames, channel: Channel | None) -> Tensor:
    """One adapter's embeddings (T, D) of one recording's frames, or the frames themselves where `channel` is None."""
    if channel is None:
        return frames.last_BTD[0, : int(frames.lengths_B[0])].float()
    return model.adapt(channel, frames)[0].float()


def cached_encoder(model: DualSLM) -> Hear:
    """The model's own encoder with a cache without a limit: diagnostics ask about each recording many times."""
    # By identity: recordings may be arrays, which have no hash. The entry holds the recording itself, since Python
    # gives the id of an object that is gone to a new one.
    cache: dict[int, tuple[Speech, Tensor]] = {}

    def hear(clips: Sequence[Speech]) -> Frames:
        for clip in clips:
            if id(clip) not in cache:
                cache[id(clip)] = (clip, model.hear([clip]).layers_NBTD[:, 0])
        return Frames.stack([cache[id(clip)][1] for clip in clips])

    return hear


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Items in runs of at most so many."""
    return (items[start : start + size] for start in range(0, len(items), size))
