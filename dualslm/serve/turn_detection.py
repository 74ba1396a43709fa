"""Where somebody speaks in sound that arrives bit by bit: the turns of a client that sends its microphone (ours).

Dimensions: N samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import soxr

from dualslm.audio import SAMPLE_RATE, Samples
from dualslm.errors import DualSLMError
from dualslm.inference.voice_activity import BLOCK


@dataclass(frozen=True)
class TurnSettings:
    """When a turn begins and ends.

    Attributes:
        threshold: probability of speech in a block from which on somebody speaks.
        prefix_s: s before the first speech that belong to the turn: quiet consonants are detected late.
        silence_s: s without speech that end the turn.
        longest_s: s after which a turn ends, whoever still speaks.
    """

    threshold: float = 0.5
    prefix_s: float = 0.3
    silence_s: float = 0.5
    longest_s: float = 30.0


class Edge(NamedTuple):
    """Where a turn begins or ends.

    Attributes:
        kind: which of both.
        ms: since the beginning of the sound.
        samples: of the turn (N,) that has ended, at 16 kHz; empty where one begins.
    """

    kind: Literal["start", "end"]
    ms: int
    samples: Samples


class TurnDetector:
    """Finds turns by Silero's voice activity detector.

    Args:
        settings: when a turn begins and ends.

    Raises:
        DualSLMError: the detector is not installed.
    """

    def __init__(self, settings: TurnSettings) -> None:
        try:
            from silero_vad import VADIterator, load_silero_vad
        except ImportError as error:
            do = "pip install 'dualslm[chat]' where the server runs, or send turn_detection: null and commit turns"
            raise DualSLMError("turns cannot be detected here", got=f"no package {error.name}", do=do) from error
        self.settings = settings
        # a model of its own, because it keeps a state from block to block
        self._detector: Any = VADIterator(
            load_silero_vad(),
            threshold=settings.threshold,
            sampling_rate=SAMPLE_RATE,
            min_silence_duration_ms=round(settings.silence_s * 1000),
            speech_pad_ms=0,
        )
        self._heard = np.empty(0, np.float32)  # from `_first` on
        self._first = 0  # sample since the beginning of the sound
        self._seen = 0  # samples that the detector was given
        self.speaking = False

    def add(self, samples: Samples) -> Iterator[Edge]:
        """Yields the turns that begin and end in some more sound.

        Args:
            samples: (N,) at 16 kHz.
        """
        self._heard = np.concatenate([self._heard, samples])
        longest = self.settings.longest_s * SAMPLE_RATE
        while self._first + len(self._heard) - self._seen >= BLOCK:
            start = self._seen - self._first
            event = self._detector(self._heard[start : start + BLOCK]) or {}
            self._seen += BLOCK
            if "start" in event and not self.speaking:
                self.speaking = True
                self._drop_before(event["start"] - round(self.settings.prefix_s * SAMPLE_RATE))
                yield Edge("start", _ms(self._first), np.empty(0, np.float32))
            elif self.speaking and ("end" in event or self._seen - self._first >= longest):
                self.speaking = False
                turn = self._heard[: self._seen - self._first]
                self._drop_before(self._seen)
                yield Edge("end", _ms(self._seen), turn)
            elif not self.speaking:
                # what may still be in front of a turn, which is detected a few blocks late
                self._drop_before(self._seen - round(self.settings.prefix_s * SAMPLE_RATE) - 10 * BLOCK)

    def _drop_before(self, sample: int) -> None:
        cut = min(max(0, sample - self._first), len(self._heard))
        self._heard = self._heard[cut:].copy()
        self._first += cut


class PCMDecoder:
    """16-bit samples as they arrive, cut anywhere, at 16 kHz.

    Args:
        rate: Hz.
    """

    def __init__(self, rate: int) -> None:
        self._resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        self._odd = b""  # half a sample

    def add(self, data: bytes) -> Samples:
        """The samples (N,) that are ready."""
        data = self._odd + data
        whole = len(data) // 2 * 2
        self._odd = data[whole:]
        samples = np.frombuffer(data[:whole], "<i2").astype(np.float32) / 2**15
        return np.asarray(self._resampler.resample_chunk(samples), np.float32)


def _ms(sample: int) -> int:
    return sample * 1000 // SAMPLE_RATE
