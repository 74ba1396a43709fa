"""Whether anybody speaks in a recording: the one rule that `ask`, `chat`, `serve` and `prepare --verify` follow (ours).

First the level: digital silence, a constant, noise far below speech. Then Silero's voice activity detector, where it is
installed (`pip install 'dualslm[chat]'`), which also hears speech that is fainter than the level allows; without it,
noise and music pass. An LLM that is given embeddings of silence
answers as if something had been said, so this is asked before.

Dimensions: N samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from threading import Lock
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from dualslm.audio import SAMPLE_RATE, Samples, load, silence
from dualslm.conversation import Speech
from dualslm.errors import DualSLMError

NoSpeech: TypeAlias = Literal["silence", "constant", "noise"]
"""Why a recording holds no speech."""

BLOCK = 512  # samples, the only size that Silero's model takes at 16 kHz
VOICED = 0.25  # probability of speech in a block from which on somebody speaks, at the recording's own level
VOICED_LOUD = 0.2  # the same, brought to the level below
LOUD = 0.5  # peak that a recording is brought to before it is judged: the detector misses what is very quiet
FAINT = 10 ** (
    -70 / 20
)  # peak from which on the detector is asked although the level says silence: 10 steps of 16 bits
MAX_GAIN = 100.0  # 40 dB; more would make speech-like patterns of a microphone's own noise
WORDS: Mapping[NoSpeech, str] = MappingProxyType(
    {
        "silence": "silence",
        "constant": "a constant, as from a microphone that is switched off",
        "noise": "sounds without a voice",
    }
)
_LOCK = Lock()  # the detector keeps a state from block to block, and a server asks from several threads


class NoSpeechError(DualSLMError):
    """A recording in which nobody speaks.

    Attributes:
        reason: what it holds instead.
    """

    reason: NoSpeech


def no_speech(samples: Samples) -> NoSpeech | None:
    """Why a recording holds no speech; None where somebody speaks, or where nothing can tell.

    Args:
        samples: at 16 kHz (N,).
    """
    reason = silence(samples)
    if reason == "constant" or (reason == "silence" and float(np.abs(samples).max()) < FAINT):
        return reason
    detector = _detector()
    if detector is None:
        return reason
    return None if _voiced(samples, detector) else reason or "noise"


def has_speech(samples: Samples) -> bool:
    """Whether somebody speaks in a recording (N,) at 16 kHz."""
    return no_speech(samples) is None


def require_speech(speech: Speech, name: str = "the recording") -> None:
    """Refuses a recording without speech, or one that takes its tone from such a recording.

    Args:
        speech: the recording; one without audio passes.
        name: what the message calls it.

    Raises:
        NoSpeechError: nobody speaks in it.
        DualSLMError: a recording that cannot be used.
    """
    for clip in (speech, speech.tone):
        if clip is None or clip.audio is None:
            continue
        if (reason := no_speech(load(clip.audio, clip.rate))) is not None:
            do = "record it again closer to the microphone, or let it pass with --any-sound"
            error = NoSpeechError(f"no speech in {name}", got=WORDS[reason], do=do)
            error.reason = reason
            raise error


@cache
def _detector() -> Any | None:
    """Silero's model; None where it is not installed."""
    try:
        import silero_vad
    except ImportError:
        return None
    return silero_vad.load_silero_vad()


def _voiced(samples: Samples, detector: Any) -> bool:
    centred = samples - samples.mean()
    gain = np.float32(min(MAX_GAIN, LOUD / float(np.abs(centred).max())))
    # Both, because a click can hide the voice at one level, and the detector misses at the other what is very quiet.
    # Both ask for little: at 0.5, shouted fear and digits on a bad line were refused.
    return _reaches(VOICED_LOUD, centred * gain, detector) or _reaches(VOICED, samples, detector)


def _reaches(probability: float, samples: Samples, detector: Any) -> bool:
    """Whether the detector finds speech in any block with at least this probability."""
    padded = np.pad(samples, (0, -len(samples) % BLOCK)).astype(np.float32)
    with _LOCK, torch.no_grad():
        detector.reset_states()
        # the first block of a voice is enough, so speech costs little however long it is
        return any(
            float(detector(block, SAMPLE_RATE)) >= probability for block in torch.from_numpy(padded).split(BLOCK)
        )
