"""The questions by which the embedded model is asked for what it heard (ours)."""

from __future__ import annotations

import random
from collections.abc import Mapping

from dualslm.inference.describe import Question, Questions
from dualslm.tiny import world
from dualslm.tiny.style import ATTRIBUTES


def _caption(known: Mapping[str, str]) -> str | None:
    """As `world.caption` has it, of those attributes that are known."""
    return ", ".join(world.VALUE_WORDS[name][value][1] for name, value in known.items()) or None


def _asked() -> Questions:
    rng = random.Random(0)
    about = {
        name: Question(world.ASK_PROMPTS[0], values, world.question(name, rng)) for name, values in ATTRIBUTES.items()
    }
    return Questions(world.TRANSCRIBE, about, _caption)


ASKED = _asked()
"""For `Session(questions=...)` with the embedded model."""
