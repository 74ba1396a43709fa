"""The microphone, and where in its sound somebody speaks (ours; needs `pip install 'dualslm[chat]'`).

sounddevice gives blocks of samples, Silero's voice activity detector says which of them are speech; its weights lie
in its package. An utterance begins a moment before the first speech and ends after a pause.

Dimensions: N samples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualslm.audio import SAMPLE_RATE
from dualslm.errors import DualSLMError

BLOCK = 512  # samples: 32 ms, the only size that Silero's model takes at 16 kHz
LEAD_IN_S = 0.3  # kept in front of the first speech: quiet consonants are detected late
PAUSE_MS = 800  # without speech, ends an utterance; people pause for less within a sentence
MAX_UTTERANCE_S = 30.0  # Whisper's window
INSTALL = "pip install 'dualslm[chat]', or type and name recordings"


class Microphone:
    """The default input device.

    Raises:
        DualSLMError: no microphone, or nothing to use it with; the message says which.
    """

    def __init__(self) -> None:
        try:
            import silero_vad
            import sounddevice
        except ImportError as error:
            raise DualSLMError("no microphone", got=f"no package {error.name}", do=INSTALL) from error
        except OSError as error:  # sounddevice without its library
            do = "install PortAudio (libportaudio2 on Debian), or type and name recordings"
            raise DualSLMError("no microphone", got=str(error), do=do) from error
        try:
            self.name = str(sounddevice.query_devices(kind="input")["name"])
        except (ValueError, sounddevice.PortAudioError) as error:
            do = "plug one in, or type and name recordings"
            raise DualSLMError("no microphone", got="no input device", do=do) from error
        # the packages are an extra, so they are imported here and not with this module
        self._devices = sounddevice
        self._model = silero_vad.load_silero_vad()

    def listen(self) -> NDArray[np.float32] | None:
        """Waits for an utterance and gives its 16 kHz samples (N,); None where the sound ends without one.

        Raises:
            DualSLMError: the device cannot be opened.
        """
        with self._blocks() as blocks:
            return utterance(blocks, self._model)

    @contextmanager
    def _blocks(self) -> Iterator[Iterator[NDArray[np.float32]]]:
        try:
            with self._devices.InputStream(SAMPLE_RATE, BLOCK, channels=1, dtype="float32") as stream:
                # endless: int() is 0 and never the 1 that would end it
                yield (stream.read(BLOCK)[0][:, 0].copy() for _ in iter(int, 1))
        except self._devices.PortAudioError as error:
            do = "check the device, or type and name recordings"
            raise DualSLMError("the microphone does not open", got=str(error), do=do) from error


def utterance(blocks: Iterable[NDArray[np.float32]], model: Any) -> NDArray[np.float32] | None:
    """The first utterance in a stream of sound.

    Args:
        blocks: blocks of `BLOCK` samples each, 16 kHz.
        model: Silero's detector.

    Returns:
        Samples of the utterance (N,), with a moment before and after; None where nobody speaks.
    """
    from silero_vad import VADIterator

    detector = VADIterator(model, sampling_rate=SAMPLE_RATE, min_silence_duration_ms=PAUSE_MS)
    lead_in: deque[NDArray[np.float32]] = deque(maxlen=round(LEAD_IN_S * SAMPLE_RATE / BLOCK))
    speech: list[NDArray[np.float32]] = []
    for block in blocks:
        event = detector(block) or {}
        if speech or "start" in event:
            speech.append(block)
        else:
            lead_in.append(block)
        if speech and ("end" in event or len(speech) * BLOCK >= MAX_UTTERANCE_S * SAMPLE_RATE):
            break
    return np.concatenate([*lead_in, *speech]) if speech else None
