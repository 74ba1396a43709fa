"""A speech recogniser of the hub through transformers' pipeline, for cascades."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dualslm.audio import SAMPLE_RATE, load
from dualslm.errors import DualSLMError
from dualslm.model.execution import resolve_device


def recogniser(source: str, device: str | None) -> Callable[[Sequence[Any]], list[str]]:
    """Recordings → their words, by an ASR model such as openai/whisper-large-v3.

    Args:
        source: hub id or folder.
        device: "cpu" or "cuda"; the GPU where there is one when None.

    Raises:
        DualSLMError: no such model there.
    """
    from transformers import pipeline

    where, dtype = resolve_device(device)
    try:
        pipe = pipeline(
            "automatic-speech-recognition", model=source, device=where, dtype=dtype, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        got = str(error).strip().splitlines()[0]
        raise DualSLMError(
            f"cannot load the recogniser {source!r}", got=got, do="give an ASR model's hub id or folder"
        ) from error

    def transcribe(clips: Sequence[Any]) -> list[str]:
        # One by one: in a padded batch the words of a recording could depend on what it is batched with.
        inputs = ({"raw": load(clip), "sampling_rate": SAMPLE_RATE} for clip in clips)
        return [str(pipe(one)["text"]).strip() for one in inputs]

    return transcribe
