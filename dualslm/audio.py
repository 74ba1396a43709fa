"""Audio in: decode, downmix, resample to 16 kHz mono, count frames, split in windows (paper §IV-C).

Every audio constant of the project is defined here, with its unit. `frame_count` alone converts samples to frames.
Nothing here imports torch.

Dimensions: N samples, C channels.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from dualslm.errors import DualSLMError

Audio: TypeAlias = str | os.PathLike[str] | bytes | NDArray[np.floating[Any]]
Samples: TypeAlias = NDArray[np.float32]

SAMPLE_RATE = 16_000  # Hz, the only rate that Whisper encoders are trained on
HOP = 160  # samples from one mel column to the next: 10 ms
SAMPLES_PER_FRAME = 2 * HOP  # 320: the encoder's second convolution halves the mel rate
FRAMES_PER_SECOND = SAMPLE_RATE // SAMPLES_PER_FRAME  # 50 Hz

MAX_SECONDS = 1800  # s; half an hour is far beyond a spoken turn and bounds the memory of one clip
BLOCK_SECONDS = 10  # s decoded in one read
MAX_CHANNELS = 8  # 7.1 surround; more is a multitrack session or a damaged header
MIN_RATE = 4_000  # Hz; below it lie damaged headers, not recordings
MAX_RATE = 384_000  # Hz, the highest rate that recorders write
MAX_PEAK = 32.0  # full scale is 1; far above it lie integers that were cast to floats

LEVEL_FRAME = 30 * SAMPLE_RATE // 1000  # samples in 30 ms, over which a level is measured
SILENT_DB = -70.0  # dB below full scale; the quietest speech of our corpora reaches -60 in its loudest frame

LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class TooLongError(DualSLMError):
    """A recording that is longer than the limit."""


def load(audio: Audio, rate: int = SAMPLE_RATE, *, longest: float = MAX_SECONDS) -> Samples:
    """Gives any recording as 16 kHz mono samples.

    Args:
        audio: path or bytes of a file that libsndfile reads (wav, flac, mp3, ogg and more), or floating-point
            samples (N,) in [-1, 1].
        rate: sampling rate of `audio` in Hz; read only where `audio` is an array.
        longest: greatest length in s of a file given as bytes; decoding stops there.

    Returns:
        Samples (N,), float32, at least one, all finite. An array that already is of that form is not copied.

    Raises:
        DualSLMError: a file that is missing, empty, damaged or not audio, samples that are not finite, or one of the
            limits above exceeded.
    """
    if isinstance(audio, np.ndarray):
        return _resample(_from_array(audio, rate), rate, "the array")
    if isinstance(audio, bytes):
        name = f"the {len(audio)} bytes given"
        _check_head(audio[: len(LFS_POINTER)], name)
        return _decode(io.BytesIO(audio), name, longest)
    if isinstance(audio, (str, os.PathLike)):
        return _from_path(Path(audio))
    raise DualSLMError(
        "this is not audio",
        got=f"a {type(audio).__name__}",
        do="give a path, the bytes of a file or a NumPy array",
    )


def frame_count(samples: int) -> int:
    """The number of 50 Hz encoder frames of a number of 16 kHz samples; the last frame may be partly filled."""
    assert samples >= 0, samples
    return -(-samples // SAMPLES_PER_FRAME)


def silence(samples: Samples) -> Literal["silence", "constant"] | None:
    """Why samples (N,) hold no sound at all, by their level alone; None where there is something to hear.

    This is the first half of `dualslm.inference.voice_activity`, which all verbs ask.
    """
    padded = np.pad(samples, (0, -len(samples) % LEVEL_FRAME), mode="edge")
    # by frame, because a microphone's offset drifts
    levels = padded.reshape(-1, LEVEL_FRAME).astype(np.float64).std(axis=1)
    if len(levels) > 4:
        levels = levels[1:-1]  # resampling makes a sound of its own where a constant begins and ends
    if levels.max() >= 10 ** (SILENT_DB / 20):
        return None
    return "silence" if abs(float(samples.mean())) < 10 ** (SILENT_DB / 20) else "constant"


def windows(samples: Samples, window_samples: int) -> list[Samples]:
    """Splits samples (N,) into consecutive views of `window_samples` samples; the last may be shorter."""
    assert window_samples >= 1, window_samples
    return [samples[start : start + window_samples] for start in range(0, len(samples), window_samples)]


def _from_path(path: Path) -> Samples:
    name = str(path)
    # os.path.exists, because Path.exists raises for a name that is too long. Only regular files are opened: reading
    # from a pipe would wait for ever.
    if os.path.exists(path) and not path.is_file():
        got = "a folder" if path.is_dir() else "a pipe or a device"
        raise DualSLMError(f"{name} is not an audio file", got=got, do="give one file, or its bytes")
    try:
        with path.open("rb") as file:
            head = file.read(len(LFS_POINTER))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DualSLMError(f"cannot open {name}", got=reason, do="check the path and the permissions") from error
    _check_head(head, name)
    return _decode(name, name)


def _check_head(head: bytes, name: str) -> None:
    if not head:
        raise DualSLMError(f"{name} is empty", got="zero bytes", do="record or copy it again")
    if head == LFS_POINTER:
        raise DualSLMError(
            f"{name} is not audio",
            got="a Git LFS pointer that stands in for it",
            do="run `git lfs pull` to fetch the recording",
        )


def _decode(source: str | io.BytesIO, name: str, longest: float = MAX_SECONDS) -> Samples:
    try:
        with soundfile.SoundFile(source) as file:
            return _resample(_read(file, name, longest), file.samplerate, name)
    except soundfile.LibsndfileError as error:
        raise DualSLMError(
            f"cannot decode {name}",
            got=error.error_string.removeprefix("Error : ").rstrip("."),
            do="give an undamaged wav, flac, mp3 or ogg file",
        ) from error
    except TypeError as error:  # soundfile raises it for a file named .raw, whose format it cannot know
        raise DualSLMError(f"cannot decode {name}", got="headerless samples", do="convert it to wav or flac") from error


def _read(file: soundfile.SoundFile, name: str, longest: float) -> Samples:
    """All samples of a file, mixed to one channel; a header over the limits is refused before anything is decoded."""
    _check_rate(file.samplerate, name)
    if file.channels > MAX_CHANNELS:
        raise DualSLMError(
            f"{name} has too many channels",
            got=f"{file.channels} channels",
            do=f"mix it down to at most {MAX_CHANNELS}",
        )
    header_is_exact = file.format != "MP3"  # libsndfile only estimates the length of an mp3
    limit = int(longest * file.samplerate)
    if header_is_exact:
        _check_length(file.frames, file.samplerate, name, longest)
    # One sample beyond the limit is enough to tell that a file is too long. The empty array keeps the dtype where
    # the file holds no sample at all.
    samples = np.concatenate([np.empty(0, np.float32), *_blocks(file, limit + 1)])
    _check_length(len(samples), file.samplerate, name, longest)
    if header_is_exact and len(samples) < file.frames:
        raise DualSLMError(
            f"{name} is truncated",
            got=f"{len(samples)} of {file.frames} samples",
            do="copy or record it again",
        )
    return samples


def _blocks(file: soundfile.SoundFile, most: int) -> Iterator[Samples]:
    """At most `most` samples of a file, mixed to one channel, in blocks."""
    # Not in one read: eight channels at 384 kHz take 12 MB a second before they are mixed.
    size = BLOCK_SECONDS * file.samplerate
    remaining = most
    while remaining and len(block_NC := file.read(min(size, remaining), dtype="float32", always_2d=True)):
        remaining -= len(block_NC)
        yield block_NC.mean(axis=1, dtype=np.float32)


def _from_array(array: NDArray[Any], rate: int) -> Samples:
    if array.ndim != 1:
        raise DualSLMError(
            "samples must have one dimension", got=f"the shape {array.shape}", do="mix down to one channel"
        )
    if not np.issubdtype(array.dtype, np.floating):
        raise DualSLMError(
            "samples must be floating-point numbers in [-1, 1]",
            got=f"an array of {array.dtype}",
            do="divide by the largest value of the type, 32768 for int16",
        )
    _check_rate(rate, "the array")
    _check_length(len(array), rate, "the array")
    if len(array) and MAX_PEAK < (peak := float(np.abs(array).max())) < np.inf:
        raise DualSLMError(
            "samples must lie in [-1, 1]",
            got=f"a peak of {peak:g}",
            do="divide by the full scale, 32768 for 16-bit samples",
        )
    return array.astype(np.float32, copy=False)


def _check_rate(rate: int, name: str) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise DualSLMError(
            f"{name} has an unlikely sampling rate",
            got=f"{rate} Hz",
            do=f"give audio of {MIN_RATE} to {MAX_RATE} Hz",
        )


def _check_length(samples: int, rate: int, name: str, longest: float = MAX_SECONDS) -> None:
    if samples > longest * rate:
        unknown = samples >= np.iinfo(np.int64).max  # what libsndfile gives for a stream without a length
        raise TooLongError(
            f"{name} is longer than {longest:g} s",
            got="a header that states no length" if unknown else f"at least {samples // rate} s",
            do="save it as wav" if unknown else "cut it in shorter turns",
        )


def _resample(samples: Samples, rate: int, name: str) -> Samples:
    """Mono samples at any rate → the same at 16 kHz; refuses NaN, infinities and a result of no samples."""
    bad = len(samples) - int(np.isfinite(samples).sum())
    if bad:
        raise DualSLMError(
            f"{name} has samples that are not finite numbers",
            got=f"{bad} of {len(samples)} samples NaN or infinite",
            do="repair or export the recording again",
        )
    out = samples if rate == SAMPLE_RATE else soxr.resample(samples, rate, SAMPLE_RATE)
    if not len(out):
        raise DualSLMError(f"{name} holds no sound", got=f"{len(samples)} samples", do="record it again")
    return out
