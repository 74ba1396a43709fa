"""Spoken utterances of the tiny world with their frames: what the three stages learn from and are tested on.

Every recording is rendered once, encoded once, and only its frames are kept; `hear` stands in for the model's
own ears, so that training never touches audio again (cached frames equal live ones: tested).

Dimensions: N encoder layers, B clips, T frames, D encoder width.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dualslm.checkpoint import replacing
from dualslm.conversation import Part, Speech
from dualslm.encoder import Frames, SpeechEncoder
from dualslm.tiny import voices, world
from dualslm.tiny.style import Style, sample_style

ENCODED_AT_ONCE = 64


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
    """

    takes: list[Take]
    frames: dict[str, Tensor]

    def earlier(self, rng: random.Random, kind: world.Kind) -> tuple[world.Utterance, Part]:
        """A fact or small talk for the history of a talk: half of them recorded, half typed."""
        recorded = self.by_kind.get(kind, [])
        if not recorded or rng.random() < 0.5:
            return world.typed(rng, kind)
        take = rng.choice(recorded)
        return take.utterance, take.speech

    @cached_property
    def by_kind(self) -> dict[world.Kind, list[Take]]:
        """The takes by what they are: events, facts, small talk, soups."""
        found: dict[world.Kind, list[Take]] = {}
        for take in self.takes:
            found.setdefault(take.utterance.kind, []).append(take)
        return found

    def hear(self, clips: Sequence[Speech]) -> Frames:
        """The frames of takes, in place of `DualSLM.hear`."""
        return Frames.stack([self.frames[str(clip.audio)] for clip in clips])


def record(
    encoder: SpeechEncoder,
    name: str,
    count: int,
    draw: Callable[[random.Random], world.Utterance],
    *,
    held_out_voices: bool,
    augment: float,
    processes: int,
    every_layer: bool = False,
    keep: Path | None = None,
) -> Recordings:
    """Renders and encodes `count` utterances, each in a style and voice of its own.

    Args:
        encoder: whose frames are kept, in bfloat16.
        name: of the set; it seeds everything.
        count: how many.
        draw: gives an utterance.
        held_out_voices: speak in voices that no training hears.
        augment: the share that is heard in a room or in noise.
        processes: that render side by side.
        every_layer: keep all layers for a learned mix.
        keep: a file that keeps the frames; where it is there, nothing is rendered.
    """
    takes, jobs = _plan(name, count, draw, held_out_voices)
    if keep is not None and keep.exists():
        return Recordings(takes, load_file(keep))
    frames: dict[str, Tensor] = {}
    batch: list[np.ndarray] = []
    for index, wave in enumerate(voices.render_many(jobs, processes)):
        batch.append(_in_the_world(wave.astype(np.float32) / 32767, index, name, augment))
        if len(batch) == ENCODED_AT_ONCE or index + 1 == count:
            heard = encoder.encode(batch, every_layer=every_layer)
            for row, length in enumerate(heard.lengths_B.tolist()):
                key = f"{name}/{index + 1 - len(batch) + row}"
                frames[key] = heard.layers_NBTD[:, row, :length].to(torch.bfloat16)
            batch = []
    if keep is not None:
        with replacing(keep) as partial:
            save_file({key: value.contiguous().cpu() for key, value in frames.items()}, partial)
    return Recordings(takes, frames)


def _plan(
    name: str, count: int, draw: Callable[[random.Random], world.Utterance], held_out_voices: bool
) -> tuple[list[Take], list[voices.Job]]:
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


def _in_the_world(wave: np.ndarray, index: int, name: str, augment: float) -> np.ndarray:
    rng = random.Random(f"{name}/{index}/augment")
    if rng.random() < augment:
        wave = voices.room(wave, index) if rng.random() < 0.5 else wave
        wave = voices.noise(wave, index) if rng.random() < 0.5 else wave
    return wave
