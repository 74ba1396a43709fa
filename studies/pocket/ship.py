"""The checkpoint that goes into the package: 16-bit weights, and a card that says what it hears and learnt from.

What learnt from MELD's texts or from RAVDESS is refused: neither may be shipped under the licence of the rest.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from dualslm import pocket
from dualslm.errors import DualSLMError
from dualslm.files import replacing
from dualslm.model import checkpoint
from dualslm.model.dualslm import DualSLM

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
    loaded = DualSLM.from_pretrained(model, load_llm=False)
    learnt = json.dumps(loaded.recipe).lower()
    if found := [name for name in UNSHIPPABLE if name in learnt]:
        raise DualSLMError(f"{model} may not be shipped", got=f"it learnt from {', '.join(found)}", do="leave it out")
    named = {"encoder": pocket.ENCODER, "llm": pocket.LLM}
    loaded.save_pretrained(out, license=LICENCE, limits=LIMITS, **named)
    weights = {name: tensor.to(torch.float16) for name, tensor in load_file(out / checkpoint.WEIGHTS).items()}
    with replacing(out / checkpoint.WEIGHTS) as partial:
        save_file(weights, partial, metadata={"format": "pt"})
    size = (out / checkpoint.WEIGHTS).stat().st_size / 1e6
    print(f"{out}: {size:.0f} MB")
