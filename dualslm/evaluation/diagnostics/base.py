"""Asks a model the same things through any sources: answers, likelihoods, distributions, embeddings.

Every instrument sits at this desk, on live audio or on cached frames.

Dimensions: B talks, K target tokens of a talk, V vocabulary, D width of the LLM.
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
    """One figure of an instrument.

    Attributes:
        label: what was measured, with its unit.
        value: of it.
        low: lower end of its 95 % interval.
        high: upper end.
        n: items.
        zero: what it would be if there were nothing to find; None where that is 0.
    """

    label: str
    value: float
    low: float
    high: float
    n: int
    zero: float | None = None

    def as_json(self) -> dict[str, Any]:
        """For the report; what could not be measured is null."""
        ends = {key: None if np.isnan(getattr(self, key)) else getattr(self, key) for key in ("value", "low", "high")}
        found = {"label": self.label, **ends, "n": self.n}
        return found if self.zero is None else {**found, "zero": self.zero}


@dataclass(frozen=True)
class Result:
    """What an instrument shows.

    Attributes:
        title: what it measures.
        lines: its figures; those of no item are left out of the report.
        reading: what they mean, in plain words.
    """

    title: str
    lines: list[Line]
    reading: str

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        return {"title": self.title, "rows": [line.as_json() for line in self.lines if line.n], "reading": self.reading}


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
        label: of the figure.
        parts: of each item: right or not, errors, nats.
        groups: of each item.
        wholes: what the parts are counted by; 1 each unless given.
        percent: times a hundred.
        zero: see `Line`.
    """
    if not parts:
        return Line(label, np.nan, np.nan, np.nan, 0)
    counts = np.stack([np.asarray(parts, float), np.asarray(wholes or np.ones(len(parts)), float)], 1)
    made = figure(counts, groups)
    by = 1 if percent else 100
    return Line(label, made.value / by, made.low / by, made.high / by, made.n, zero)


@dataclass
class Examiner:
    """A model to be asked.

    Attributes:
        model: with trained adapters.
        hear: gives frames, for example from a cache; the model's own ears when None.
        batch: talks that are read side by side.
        longest: tokens of an answer.
        seed: of everything that is drawn.
    """

    model: DualSLM
    hear: Hear | None = None
    batch: int = 32
    longest: int = 48
    seed: int = 0

    def answers(
        self, conversations: Sequence[Conversation], view: View, *, heat: float = 0.0, seed: int = 0
    ) -> list[str]:
        """What the model answers to unanswered talks; drawn at a temperature where `heat` is above 0."""
        generation = GenerationSettings(max_new_tokens=self.longest, temperature=heat, seed=seed if heat else None)
        prompts = [render(conversation, self.model.llm.tokenizer, view) for conversation in conversations]
        return [
            answer
            for some in _some(prompts, self.batch)
            for answer in self.model.generate(some, hear=self.hear, generation=generation)
        ]

    @torch.no_grad()
    def distributions(
        self, conversations: Sequence[Conversation], view: View, *, history: View | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each answered talk the log-chances before each token of the answer (K, V), and the tokens (K)."""
        for some in _some(conversations, self.batch):
            prompts = [
                render(conversation, self.model.llm.tokenizer, view, history=history, supervise="last")
                for conversation in some
            ]
            filled = fill(prompts, self.model.llm, self.model.adapt, self.hear or self.model.hear)
            yield from label_log_probs(self.model.llm, filled)

    def nats(
        self, conversations: Sequence[Conversation], view: View, *, history: View | None = None
    ) -> list[tuple[float, int]]:
        """How unlikely each talk's answer is, in nats, and its tokens."""
        return [
            (float(-log_KV.gather(1, tokens_K[:, None]).sum()), len(tokens_K))
            for log_KV, tokens_K in self.distributions(conversations, view, history=history)
        ]

    def likeliest(self, choices: Sequence[Sequence[Conversation]], view: View) -> list[int]:
        """For each item the answered talk that is likeliest by token: no answer has to be parsed."""
        flat = self.nats([conversation for some in choices for conversation in some], view)
        means = iter([nats / tokens for nats, tokens in flat])
        return [int(np.argmin([next(means) for _ in some])) for some in choices]

    def embeddings(self, speech: Speech, channel: Channel | None) -> Tensor:
        """One recording's embeddings by one adapter, or the encoder's last layer where `channel` is None (T, D)."""
        return embeddings(self.model, self.frames(speech), channel)

    def frames(self, speech: Speech) -> Frames:
        """One recording's frames."""
        return (self.hear or self.model.hear)([speech])


@torch.no_grad()
def embeddings(model: DualSLM, frames: Frames, channel: Channel | None) -> Tensor:
    """What one adapter makes of one recording's frames, or the frames themselves (T, D)."""
    if channel is None:
        return frames.last_BTD[0, : int(frames.lengths_B[0])].float()
    return model.adapt(channel, frames)[0].float()


def remembered(model: DualSLM) -> Hear:
    """The model's own ears, which hear every recording once: an instrument asks about it many times."""
    kept: dict[int, tuple[Speech, Tensor]] = {}  # with the clip itself, so that its number stays its own

    def hear(clips: Sequence[Speech]) -> Frames:
        for clip in clips:
            if id(clip) not in kept:
                kept[id(clip)] = (clip, model.hear([clip]).layers_NBTD[:, 0])
        return Frames.stack([kept[id(clip)][1] for clip in clips])

    return hear


def _some(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
