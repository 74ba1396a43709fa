"""A few seconds of sound, in the formats of soundfile."""

from __future__ import annotations

import io

import numpy as np
import soundfile

from dualslm.audio import SAMPLE_RATE

SECONDS = 3.2


def sound(seconds: float = SECONDS) -> np.ndarray:
    """Noise without high frequencies, which every codec keeps and no compression empties."""
    steps = np.cumsum(np.random.default_rng(0).normal(size=round(seconds * SAMPLE_RATE)))
    smooth = steps - np.convolve(steps, np.ones(400) / 400, "same")
    samples: np.ndarray = (0.3 * smooth / np.abs(smooth).max()).astype(np.float32)
    return samples


def encoded(kind: str, subtype: str | None = None, seconds: float = SECONDS) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound(seconds), SAMPLE_RATE, format=kind, subtype=subtype)
    return file.getvalue()
