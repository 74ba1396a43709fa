"""What a task is: a system text to ask by, an answer to learn, and the draw of both (paper §III-B).

Nothing here reads audio or imports torch. A recording is a `Clip`, the mapping that stands in a manifest.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from dualslm.recipe import TaskKind

Clip: TypeAlias = Mapping[str, Any]
"""A recording as a manifest has it: `audio`, `transcript`, `caption`, `labels`."""


class Task(Protocol):
    """One task; an object of any class with these serves."""

    @property
    def name(self) -> str:
        """As manifests call it."""

    @property
    def kind(self) -> TaskKind:
        """The table of a stage that it belongs to."""

    @property
    def metric(self) -> str:
        """What its answers are measured by: "wer", "wa" (accuracy) or "judge"."""

    @property
    def prompts(self) -> tuple[str, ...]:
        """The system texts, of which one is drawn for each talk."""

    def lacks(self, clip: Clip) -> str | None:
        """Why it cannot be asked of a recording; None where it can."""

    def ask(self, clip: Clip, rng: random.Random) -> str:
        """A system text; what is asked follows from `rng` and from the choices, never from the answer."""

    def answer(self, clip: Clip) -> str | None:
        """What is to be learnt; None where the frozen LLM has to write it."""


def draw(seed: int, conversation: str, task: str) -> random.Random:
    """The random numbers of one talk's task: any number of workers draws the same."""
    return random.Random(f"{seed}/{conversation}/{task}")
