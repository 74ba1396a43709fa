"""dualslm gives a frozen chat LLM ears for what is said and for how it is said.

Names are imported when they are first used, so that `import dualslm` is instant and imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dualslm.conversation import Conversation, Speech, View
    from dualslm.errors import DualSLMError
    from dualslm.inference.session import Session
    from dualslm.model.dualslm import DualSLM
    from dualslm.model.generation import GenerationSettings
    from dualslm.prompt import Prompt, render

__version__ = "0.1.0"
__all__ = [
    "Conversation",
    "DualSLM",
    "DualSLMError",
    "GenerationSettings",
    "Prompt",
    "Session",
    "Speech",
    "View",
    "__version__",
    "render",
]

HOMES = {
    "Conversation": "conversation",
    "DualSLM": "model.dualslm",
    "DualSLMError": "errors",
    "GenerationSettings": "model.generation",
    "Prompt": "prompt",
    "Session": "inference.session",
    "Speech": "conversation",
    "View": "conversation",
    "render": "prompt",
}


def __getattr__(name: str) -> object:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
