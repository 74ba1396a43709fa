"""Spoken utterances of the tiny world with their frames, for the manifests and the test sets (ours).

Every recording is rendered and encoded once, and only its frames stay in memory. `Recordings.hear` takes the place of
the model's encoder, so that no test encodes audio again (cached frames equal fresh ones: a test says so).

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

ENCODE_BATCH = 64  # clips
Samples: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class Take:
    """One utterance as one speaker says it in one style.

    Attributes:
        speech: the recording with its transcript, caption and labels; its `audio` is the key of its frames.
        utterance: what is said.
        style: how it is said.
    """

    speech: Speech
    utterance: world.Utterance
    style: Style


@dataclass
class Recordings:
    """Takes and their frames.

    Attributes:
        takes: the takes, in order of their numbers.
        frames: frames (N, T, D) of each take and fact, by key.
        facts: recorded facts that a conversation may state before it ends with a take.
    """

    takes: list[Take]
    frames: dict[str, Tensor]
    facts: Sequence[Take] = ()

    def hear(self, clips: Sequence[Speech]) -> Frames:
        """The frames of some takes, in place of `DualSLM.hear`."""
        return Frames.stack([self.frames[str(clip.audio)] for clip in clips])

    def after(self, facts: Recordings) -> Recordings:
        """The same takes, with recorded facts to be stated before them."""
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
        encoder: the frozen encoder; its frames are stored in bfloat16.
        name: name of the set, which also seeds every draw.
        count: number of utterances.
        draw: function that draws an utterance.
        held_out_voices: whether to use the voices of the test set.
        processes: number of processes that render side by side.
        every_layer: whether to store all layers, for a learned mix.
    """
    takes, jobs = plan(name, count, draw, held_out_voices=held_out_voices)
    frames: dict[str, Tensor] = {}
    batch: list[Samples] = []
    for index, wave in enumerate(waves(jobs, name, 0.0, processes)):
        batch.append(wave)
        if len(batch) == ENCODE_BATCH or index + 1 == count:
            encoded = encoder.encode(batch, every_layer=every_layer)
            for row, length in enumerate(encoded.lengths_B.tolist()):
                key = f"{name}/{index + 1 - len(batch) + row}"
                frames[key] = encoded.layers_NBTD[:, row, :length].to(torch.bfloat16)
            batch = []
    return Recordings(takes, frames)


def plan(
    name: str, count: int, draw: Callable[[random.Random], world.Utterance], *, held_out_voices: bool
) -> tuple[list[Take], list[voices.Job]]:
    """Draws the takes of a set; the audio of take i is named "name/i".

    Args:
        name: name of the set, which also seeds every draw.
        count: number of takes.
        draw: function that draws an utterance.
        held_out_voices: whether to use the voices of the test set.

    Returns:
        The takes, and the job that renders each.
    """
    takes: list[Take] = []
    jobs: list[voices.Job] = []
    for index in range(count):
        rng = random.Random(f"{name}/{index}")
        utterance = draw(rng)
        style = sample_style(rng)
        voice = rng.choice(voices.voices(style.gender, held_out=held_out_voices))
        speech = Speech(
            f"{name}/{index}",
            transcript=utterance.text,
            caption=world.caption(style, rng, drop=0.0),  # complete: it stands in for P, which has every attribute
            labels=style.labels(),
        )
        takes.append(Take(speech, utterance, style))
        jobs.append(voices.Job(utterance.text, style, voice, seed=rng.randrange(2**31)))
    return takes, jobs


def waves(jobs: Sequence[voices.Job], name: str, augmented: float, processes: int) -> Iterator[Samples]:
    """Renders the jobs, in their order.

    Args:
        jobs: the jobs to render.
        name: name of the set, which seeds the augmentation.
        augmented: share of the clips that may get reverberation, noise or both.
        processes: number of processes that render side by side.
    """
    for index, pcm in enumerate(voices.render_many(jobs, processes)):
        wave = (pcm / 32767).astype(np.float32)
        rng = random.Random(f"{name}/{index}/augment")
        if rng.random() < augmented:
            wave = voices.reverberate(wave, index) if rng.random() < 0.5 else wave
            wave = voices.add_noise(wave, index) if rng.random() < 0.5 else wave
        yield wave
