"""The interface of a task: system texts, the answer to learn, and the random numbers of both (paper §III-B).

Nothing here reads audio or imports torch. A recording is a `Clip`, the mapping that a manifest holds.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from dualslm.recipe import TaskKind

NO_AUDIO = "missing audio"  # the reason where a manifest has null for a recording
Clip: TypeAlias = Mapping[str, Any]
"""A recording as a manifest has it: `audio`, `transcript`, `caption`, `labels`."""


class Task(Protocol):
    """One task."""

    # Properties, so that frozen dataclasses fit as well.
    @property
    def name(self) -> str:
        """Name of the task in manifests."""

    @property
    def kind(self) -> TaskKind:
        """Kind of the task, the table of a stage that it belongs to."""

    @property
    def metric(self) -> str:
        """Metric of the answers: "wer", "wa" (accuracy) or "judge"."""

    @property
    def prompts(self) -> tuple[str, ...]:
        """System texts, of which one is drawn for each conversation."""

    @property
    def unseen_prompts(self) -> tuple[str, ...]:
        """System texts that no training draws, for a second figure: what is left when the wording is new."""

    def lacks(self, clip: Clip) -> str | None:
        """Why a recording does not fit the task; None where it does."""

    def ask(self, clip: Clip, rng: random.Random, prompts: Sequence[str]) -> str:
        """A system text, drawn by `rng` from some of its own; it may depend on the choices, but never on the answer."""

    def answer(self, clip: Clip) -> str | None:
        """The text to learn; None where the frozen LLM has to write it."""


Seed: TypeAlias = int | str
"""Seed of what is drawn for an example. Training gives each sample its own, so that no epoch repeats another's."""


def draw(seed: Seed, conversation: str, task: str) -> random.Random:
    """The random numbers of one example.

    Args:
        seed: seed of all draws.
        conversation: id of the line, or path of the recording for captions.
        task: name of the task.
    """
    # A generator of its own for each example, so that results do not depend on the order or number of workers.
    return random.Random(f"{seed}/{conversation}/{task}")
