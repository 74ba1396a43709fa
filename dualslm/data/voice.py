"""Measurements of a voice: pitch, level and tempo (beyond the paper; for speech without labels).

Pitch is Praat's, by way of parselmouth (`pip install 'dualslm[label]'`): the autocorrelation method of Boersma
(1993) in two passes, whose range in the second follows from the first (De Looze and Hirst 2008), against octave
errors. Level and tempo leave silence out, so that padding changes nothing. No torch.

Dimensions: N samples at 16 kHz, F frames of 25 ms.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualslm.audio import SAMPLE_RATE, Samples, load
from dualslm.errors import DualSLMError

# The range of the first pass lies beyond both ends of speaking voices.
FLOOR = 60.0  # Hz
CEILING = 700.0  # Hz
# The second pass searches from LOW times the first quartile of the first pass to HIGH times the third.
LOW = 0.75
HIGH = 1.5
PITCH_STEP = 0.01  # s
FRAME = SAMPLE_RATE * 25 // 1000  # samples
SPEECH = 30.0  # dB; a frame that is this far below the loudest is silence
SILENT = -90.0  # dB of full scale; a recording below it holds no sound
VOICED = 5  # frames; fewer voiced frames may be a click


@dataclass(frozen=True, slots=True)
class Voice:
    """Measurements of one recording; None where there is nothing to measure.

    Attributes:
        pitch: median fundamental frequency of voiced frames, Hz.
        energy: root mean square of the frames with speech, dB of full scale.
        tempo: syllables of the transcript per second between the first frame with speech and the last.
    """

    pitch: float | None
    energy: float | None
    tempo: float | None


def measure(path: str, transcript: str | None = None) -> Voice:
    """Measures a recording.

    Args:
        path: path of an audio file.
        transcript: words of the recording, for the tempo.

    Raises:
        DualSLMError: the recording cannot be read, or parselmouth is not installed.
    """
    require()
    samples = load(path)
    levels_F = _levels(samples)
    loud = np.flatnonzero(levels_F > max(float(levels_F.max()) - SPEECH, SILENT))
    if not len(loud):
        return Voice(None, None, None)
    energy = float(10 * np.log10(np.mean(10 ** (levels_F[loud] / 10))))  # the mean of powers, not of decibels
    seconds = (loud[-1] + 1 - loud[0]) * FRAME / SAMPLE_RATE
    count = syllables(transcript or "")
    return Voice(_rounded(pitch(samples)), _rounded(energy), _rounded(count / seconds) if count else None)


def require() -> None:
    """Raises DualSLMError where parselmouth is not installed; asked before hours of work begin."""
    if find_spec("parselmouth") is None:
        raise DualSLMError("measuring pitch needs parselmouth", got="none", do="pip install 'dualslm[label]'")


def pitch(samples: Samples) -> float | None:
    """The median fundamental frequency in Hz; None without a voice."""
    first = _pitches(samples, FLOOR, CEILING)
    if len(first) < VOICED:
        return None
    low, high = np.quantile(first, [0.25, 0.75])
    # The narrower range excludes the octaves above and below the speaker's pitch, the errors of the first pass.
    second = _pitches(samples, max(FLOOR, LOW * low), min(CEILING, HIGH * high))
    return float(np.median(second if len(second) >= VOICED else first))


def syllables(text: str) -> int:
    """The approximate number of syllables of an English text: groups of vowels, without a silent e at a word's end."""
    count = 0
    for word in re.findall(r"[^\W\d_]+", text.lower()):
        groups = len(re.findall(r"[aeiouyà-öø-ÿ]+", word))
        silent = groups > 1 and re.search(r"[^aeiouyl]e$", word) is not None  # after l the e is voiced: little
        count += max(1, groups - silent)
    return count


def _pitches(samples: Samples, floor: float, ceiling: float) -> NDArray[np.float64]:
    """The fundamental frequency of every voiced frame in Hz."""
    import parselmouth

    if len(samples) < 3.1 * SAMPLE_RATE / floor:  # Praat's window is three periods long, and it raises below that
        return np.empty(0)
    sound: Any = parselmouth.Sound(samples.astype(np.float64), sampling_frequency=SAMPLE_RATE)
    found = sound.to_pitch_ac(time_step=PITCH_STEP, pitch_floor=floor, pitch_ceiling=ceiling)
    hertz = np.asarray(found.selected_array["frequency"], np.float64)
    return hertz[hertz > 0]  # Praat gives 0 for a frame without a voice


def _levels(samples: Samples) -> NDArray[np.float64]:
    """The level of each frame in dB of full scale (F); the last frame is padded with silence."""
    padded = np.zeros(-(-len(samples) // FRAME) * FRAME)
    padded[: len(samples)] = samples
    power_F = np.square(padded).reshape(-1, FRAME).mean(1)
    levels_F: NDArray[np.float64] = 10 * np.log10(power_F + 1e-12)  # a floor of -120 dB, for digital silence
    return levels_F


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
