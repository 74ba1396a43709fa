"""Spoken utterances of the tiny world with their frames: what the three stages learn from and are tested on.

Every recording is rendered once, encoded once, and only its frames are kept; `hear` stands in for the model's
own ears, so that training never touches audio again (cached frames equal live ones: tested).

Dimensions: N encoder layers, B clips, T frames, D encoder width.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualslm.conversation import Speech
from dualslm.model.encoder import Frames, SpeechEncoder
from dualslm.tiny import voices, world
from dualslm.tiny.style import Style, sample_style

ENCODED_AT_ONCE = 64
Samples: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class Take:
    """One utterance as one speaker says it in one style.

    Attributes:
        speech: its transcript, caption and labels; `audio` is the key of its frames.
        utterance: what is said.
        style: how.
    """

    speech: Speech
    utterance: world.Utterance
    style: Style


@dataclass
class Recordings:
    """Takes and their frames.

    Attributes:
        takes: in the order in which they were recorded.
        frames: each (N, T, D), by key.
        told: facts for the beginning of talks that end with a take; their frames stand among the others.
    """

    takes: list[Take]
    frames: dict[str, Tensor]
    told: Sequence[Take] = ()

    def hear(self, clips: Sequence[Speech]) -> Frames:
        """The frames of takes, in place of `DualSLM.hear`."""
        return Frames.stack([self.frames[str(clip.audio)] for clip in clips])

    def after(self, facts: Recordings) -> Recordings:
        """The same takes, with recordings of facts for what was said before them."""
        return Recordings(self.takes, self.frames | facts.frames, facts.takes)


def record(
    encoder: SpeechEncoder,
    name: str,
    count: int,
    draw: Callable[[random.Random], world.Utterance],
    *,
    held_out_voices: bool,
    processes: int,
    every_layer: bool = False,
) -> Recordings:
    """Renders and encodes `count` utterances, each in a style and voice of its own.

    Args:
        encoder: whose frames are kept, in bfloat16.
        name: of the set; it seeds everything.
        count: how many.
        draw: gives an utterance.
        held_out_voices: speak in voices that no training hears.
        processes: that render side by side.
        every_layer: keep all layers for a learned mix.
    """
    takes, jobs = plan(name, count, draw, held_out_voices=held_out_voices)
    frames: dict[str, Tensor] = {}
    batch: list[Samples] = []
    for index, wave in enumerate(waves(jobs, name, 0.0, processes)):
        batch.append(wave)
        if len(batch) == ENCODED_AT_ONCE or index + 1 == count:
            heard = encoder.encode(batch, every_layer=every_layer)
            for row, length in enumerate(heard.lengths_B.tolist()):
                key = f"{name}/{index + 1 - len(batch) + row}"
                frames[key] = heard.layers_NBTD[:, row, :length].to(torch.bfloat16)
            batch = []
    return Recordings(takes, frames)


def plan(
    name: str, count: int, draw: Callable[[random.Random], world.Utterance], *, held_out_voices: bool
) -> tuple[list[Take], list[voices.Job]]:
    """What is said, by whom and how: take i, whose audio is named "name/i", and the job that renders it."""
    takes, jobs = [], []
    for index in range(count):
        rng = random.Random(f"{name}/{index}")
        utterance, style = draw(rng), sample_style(rng)
        voice = rng.choice(voices.voices(style.gender, held_out=held_out_voices))
        speech = Speech(
            f"{name}/{index}",
            transcript=utterance.text,
            caption=world.caption(style, rng, drop=0.0),
            labels=style.labels(),
        )
        takes.append(Take(speech, utterance, style))
        jobs.append(voices.Job(utterance.text, style, voice, seed=rng.randrange(2**31)))
    return takes, jobs


def waves(jobs: Sequence[voices.Job], name: str, augmented: float, processes: int) -> Iterator[Samples]:
    """The rendered jobs in their order; a share of them in a room or in noise."""
    for index, wave in enumerate(voices.render_many(jobs, processes)):
        yield _in_the_world((wave / 32767).astype(np.float32), index, name, augmented)


def _in_the_world(wave: Samples, index: int, name: str, augment: float) -> Samples:
    rng = random.Random(f"{name}/{index}/augment")
    if rng.random() < augment:
        wave = voices.room(wave, index) if rng.random() < 0.5 else wave
        wave = voices.noise(wave, index) if rng.random() < 0.5 else wave
    return wave
