"""Recordings in requests: uploaded files, base64 as clients write it, and the limits on them (ours).

A recording comes as bytes in the request and in no other way: no address and no path is opened.
"""

from __future__ import annotations

import base64
import binascii
import re
import string
from typing import Any

from pydantic import Field, field_validator

from dualslm.audio import SAMPLE_RATE, SampleBudget, TooLongError, load
from dualslm.conversation import Speech
from dualslm.inference.voice_activity import require_speech
from dualslm.serve.caller import CALLER
from dualslm.serve.errors import RefusedError
from dualslm.serve.limits import Limits
from dualslm.serve.strict import Name, Strict

DATA_URL = re.compile(r"\s*data:[^,]{0,200},", re.IGNORECASE)  # data:audio/wav;base64, or data:;base64,
PLAIN = str.maketrans("-_", "+/", string.whitespace)
FORMATS = frozenset(
    ("aac", "aiff", "flac", "m4a", "mka", "mp3", "mp4", "mpeg", "mpga", "oga", "ogg", "opus", "wav", "wave", "webm")
)
HEADERLESS = frozenset(("pcm", "pcm16", "pcm_s16le", "s16le", "g711_ulaw", "g711_alaw", "raw", "l16"))


class AudioData(Strict):
    """An audio file in base64, with OpenAI's name of its format; the file's own header decides."""

    data: str = Field(description="the bytes of a file in base64: wav, mp3, flac, ogg, opus; webm, m4a with `media`")
    format: Name = Field("wav", description="the file's own header decides", examples=["wav", "mp3"])
    ignored = frozenset({"id", "uuid"})

    @field_validator("format")
    @classmethod
    def is_a_file(cls, name: str) -> str:
        """The short name of a kind of file, whose header says the rest."""
        short = name.strip().lower().removeprefix("audio/").removeprefix("x-").lstrip(".").split(";")[0]
        if short in HEADERLESS:
            raise ValueError(f"{name!r} has no header that states its rate; send the samples as wav.")
        if short not in FORMATS:
            raise ValueError(f"{name!r} is not a format that is read here; send wav, mp3, flac, ogg, webm or m4a.")
        return short


class ToneCaption(Strict):
    """A tone in words."""

    caption: str = Field(min_length=1)


def check_speech(speech: Speech, limits: Limits) -> None:
    """Refuses a recording in which nobody speaks, unless the limits let any sound pass.

    Raises:
        NoSpeechError: it holds no speech.
    """
    if not limits.any_sound:
        require_speech(speech)


def load_speech(data: bytes, limits: Limits, budget: SampleBudget | None = None, **known: Any) -> Speech:
    """A recording from the bytes of a file.

    Args:
        data: the file.
        limits: limits of its seconds and of what decoding it costs.
        budget: what is left for the recordings of the request; for this one alone when None.
        **known: further fields of `Speech`.

    Raises:
        RefusedError: a recording that is too long, or no room for it, or a request that has ended.
        DualSLMError: no audio.
    """
    caller = CALLER.get()
    caller.check_wanted()
    budget = budget or SampleBudget(limits.decoded, limits.decoded)
    try:
        # decoding stops at the limit: a small file of compressed silence would otherwise fill the memory
        samples = load(data, longest=limits.audio, budget=budget)
    except TooLongError as error:
        raise RefusedError(413, str(error), "audio_too_long") from error
    caller.take(samples.nbytes)
    return Speech(samples, **known)


def load_base64_speech(audio: AudioData, limits: Limits, budget: SampleBudget | None = None, **known: Any) -> Speech:
    """`load_speech` for a recording in base64."""
    return load_speech(from_base64(audio.data), limits, budget, **known)


def from_base64(text: str) -> bytes:
    """The bytes of base64 in any of its spellings: wrapped, URL-safe, without padding, behind a `data:` prefix.

    Raises:
        RefusedError: no base64, or an address.
    """
    if (prefix := DATA_URL.match(text)) is not None:
        text = text[prefix.end() :]
    elif text.lstrip()[:8].lower().startswith(("http://", "https://", "file://")):
        message = "Audio is taken as bytes in base64 and not from an address: send the file itself."
        raise RefusedError(400, message, "invalid_audio")
    try:
        text = text.encode("ascii").decode().translate(PLAIN).rstrip("=")
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        message = "The audio is not base64: send the bytes of a file, encoded in base64."
        raise RefusedError(400, message, "invalid_audio") from error


class Recordings:
    """Decodes the recordings of one request, up to a limit of seconds and of samples for all of them.

    Args:
        limits: limits of recordings.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.seconds = 0.0
        self.budget = SampleBudget(limits.decoded, limits.decoded_together)

    def load(self, audio: AudioData, **known: Any) -> Speech:
        """One recording.

        Raises:
            RefusedError: no base64, or longer than a limit, alone or with those before.
            DualSLMError: no audio.
        """
        speech = load_base64_speech(audio, self.limits, self.budget, **known)
        self.seconds += len(speech.audio) / SAMPLE_RATE  # type: ignore[arg-type]
        if self.seconds > self.limits.speech:
            message = f"The recordings are longer than {self.limits.speech:g} s together."
            raise RefusedError(413, message, "audio_too_long")
        return speech
