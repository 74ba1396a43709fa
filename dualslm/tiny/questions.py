"""The questions that the embedded model is asked about a recording, in the wording of its training (ours)."""

from __future__ import annotations

import random
from collections.abc import Mapping

from dualslm.inference.describe import Question, Questions
from dualslm.tiny import world
from dualslm.tiny.style import ATTRIBUTES


def caption(values: Mapping[str, str]) -> str | None:
    """The caption of `world.caption`, of those attributes that have a value; None where none has."""
    return ", ".join(world.VALUE_WORDS[name][value][1] for name, value in values.items()) or None


def questions() -> Questions:
    """One question for each attribute; the same wording and order of choices in every process."""
    rng = random.Random(0)
    # The tiny LLM knows only the wordings of `world`: asked in those of `dualslm.data.tasks`, it does not answer.
    system = world.ASK_PROMPTS[0]
    attributes = {name: Question(system, values, world.question(name, rng)) for name, values in ATTRIBUTES.items()}
    return Questions(world.TRANSCRIBE, attributes, caption)


ASKED = questions()
"""For `Session(questions=...)` with the embedded model."""
