"""The checkpoint that goes into the package: 16-bit weights, and a card that says what it hears and learnt from.

What learnt from MELD's texts or from RAVDESS is refused: neither may be shipped under the licence of the rest.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from dualslm import pocket
from dualslm.errors import DualSLMError
from dualslm.model import checkpoint
from dualslm.model.dualslm import DualSLM
from studies.pocket.replies import REPLY

ADAPTERS = pocket.ADAPTERS
LICENCE = "cc-by-sa-4.0"  # that of the telephone calls and of DailyTalk's texts, which asks for the same
LIMITS = (
    "understands short English sentences in a clear voice, with some words wrong, and does not recognize emotions; its "
    "LLM is very small and often misses the point"
)
UNSHIPPABLE = ("ravdess", "meld", "tess")


def write(model: str, out: Path) -> None:
    """Writes a checkpoint of the study as the package has it.

    Args:
        model: folder of the checkpoint.
        out: folder of the adapters in the package.

    Raises:
        DualSLMError: it learnt from what may not be shipped.
    """
    loaded = DualSLM.from_pretrained(model, encoder=pocket.ENCODER, llm=pocket.LLM)
    learnt = json.dumps(loaded.recipe).lower()
    if found := [name for name in UNSHIPPABLE if name in learnt]:
        raise DualSLMError(f"{model} may not be shipped", got=f"it learnt from {', '.join(found)}", do="leave it out")
    loaded.generation = replace(loaded.generation, repetition_penalty=REPLY.repetition_penalty)
    loaded.adapters.half()
    loaded.save_pretrained(out, license=LICENCE, limits=LIMITS)
    size = (out / checkpoint.WEIGHTS).stat().st_size / 1e6
    print(f"{out}: {size:.0f} MB")
