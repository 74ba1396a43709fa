"""Audio in: decode, downmix, resample to 16 kHz mono, count frames, split in windows (paper §IV-C).

Every audio constant of the project is defined here, with its unit. `frame_count` alone converts samples to frames.
Nothing here imports torch.

Dimensions: N samples, C channels.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from dualslm.audio import containers, media
from dualslm.audio.contents import HEAD, Contents, Patched
from dualslm.errors import DualSLMError
from dualslm.files import open_regular

log = logging.getLogger("dualslm")

Audio: TypeAlias = str | os.PathLike[str] | bytes | NDArray[np.floating[Any]]
Samples: TypeAlias = NDArray[np.float32]

SAMPLE_RATE = 16_000  # Hz, the only rate that Whisper encoders are trained on
HOP = 160  # samples from one mel column to the next: 10 ms
SAMPLES_PER_FRAME = 2 * HOP  # 320: the encoder's second convolution halves the mel rate
FRAMES_PER_SECOND = SAMPLE_RATE // SAMPLES_PER_FRAME  # 50 Hz

CLIP_WINDOW_S = (2, 3, 5, 8, 12, 20, 30)  # windows of the rule "clip", as far as the encoder has positions for them

Window: TypeAlias = Literal["full", "clip"]
"""What a clip is padded to: the encoder's whole window, or the smallest of `CLIP_WINDOW_S` that holds it."""

MAX_SECONDS = 1800  # s; half an hour is far beyond a spoken turn and bounds the memory of one clip
BLOCK_SECONDS = 10  # s decoded in one read
MAX_CHANNELS = 8  # 7.1 surround; more is a multitrack session or a damaged header
MIN_RATE = 4_000  # Hz; below it lie damaged headers, not recordings
MAX_RATE = 384_000  # Hz, the highest rate that recorders write
MEDIA_SLACK_S = 0.5  # s by which webm and m4a may be shorter than they state: video and padding count in them
MAX_PEAK = 32.0  # full scale is 1; far above it lie integers that were cast to floats

CANCELLED = 1e-3  # of the loudest channel's energy; the mean of eight channels of which one speaks has 16 times as much

LEVEL_FRAME = 30 * SAMPLE_RATE // 1000  # samples in 30 ms, over which a level is measured
SILENT_DB = -70.0  # dB below full scale; the quietest speech of our corpora reaches -60 in its loudest frame

LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class TooLongError(DualSLMError):
    """A recording that is longer than the limit."""


@dataclass
class SampleBudget:
    """What decoding may cost, in samples of all channels: a second of eight channels at 192 kHz costs as 96 of speech.

    Attributes:
        one: most of one recording.
        left: what is left for this recording and those that follow.
    """

    one: int
    left: int


class Recording(NamedTuple):
    """A decoded recording.

    Attributes:
        samples: (N,), float32, 16 kHz mono, at least one, all finite.
        fault: how the file is cut off or damaged, so that this is not all of it; None where nothing shows it.
    """

    samples: Samples
    fault: str | None = None


class _Stream(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is read from the front to the end."""

    def seekable(self) -> bool:
        """Never: soundfile would seek after each read, which libsndfile refuses in a FLAC without a length."""
        return False


def load(
    audio: Audio, rate: int = SAMPLE_RATE, *, longest: float = MAX_SECONDS, budget: SampleBudget | None = None
) -> Samples:
    """Gives any recording as 16 kHz mono samples; one that is cut off is read as far as it goes, with a warning.

    Args:
        audio: path or bytes of a file that libsndfile reads (wav, flac, mp3, ogg and more) or, with the extra
            `media`, of webm or m4a; or floating-point samples (N,) in [-1, 1].
        rate: sampling rate of `audio` in Hz; read only where `audio` is an array.
        longest: greatest length in s of a file given as bytes; decoding stops there.
        budget: what decoding a file given as bytes may cost; decoding stops there too, and what it cost is taken off.

    Returns:
        Samples (N,), float32, at least one, all finite. An array that already is of that form is not copied.

    Raises:
        DualSLMError: a file that is missing, empty, damaged or not audio, samples that are not finite, or one of the
            limits above exceeded.
    """
    if isinstance(audio, np.ndarray):
        return _resample(_from_array(audio, rate), rate, "the array")
    samples, fault = read(audio, longest=longest, budget=budget)
    if fault is not None:
        log.warning("%s is read as far as it goes, %.1f s: %s", _name(audio), len(samples) / SAMPLE_RATE, fault)
    return samples


def read(
    audio: str | os.PathLike[str] | bytes, *, longest: float = MAX_SECONDS, budget: SampleBudget | None = None
) -> Recording:
    """The samples of a file, and how it is cut off or damaged; see `load`."""
    if isinstance(audio, bytes):
        return _decode(io.BytesIO(audio), _name(audio), longest, budget)
    if not isinstance(audio, (str, os.PathLike)):
        raise DualSLMError(
            "this is not audio",
            got=f"a {type(audio).__name__}",
            do="give a path, the bytes of a file or a NumPy array",
        )
    with open_regular(Path(audio), "the recording") as file:
        return _decode(file, _name(audio), MAX_SECONDS)


def duration(path: Path) -> float:
    """The length of a file in s: by its header as far as the bytes bear it out, else by decoding it.

    Raises:
        DualSLMError: a file that is missing, empty or not audio.
    """
    with open_regular(path, "the recording") as file:
        name = str(path)
        head = _check_head(file, name)
        if (demuxer := media.demuxer_of(head)) is not None:
            opened = media.open_media(file, demuxer, name, MAX_SECONDS)
            if opened.seconds and opened.fault is None:
                return opened.seconds
            return len(_decode(file, name, MAX_SECONDS).samples) / SAMPLE_RATE
        contents = containers.look(file)
        with _opened(file, contents, name) as sound:
            frames = contents.stated or sound.frames
            if contents.fault is None and frames < np.iinfo(np.int64).max and sound.samplerate:
                return float(frames / sound.samplerate)
        return len(_decode(file, name, MAX_SECONDS).samples) / SAMPLE_RATE


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


def window_for(samples: int, whole: int, rule: Window) -> int:
    """The samples of the window that a clip is encoded in.

    Args:
        samples: samples of the clip, at most `whole`.
        whole: samples of the encoder's whole window.
        rule: see `Window`.
    """
    if rule == "full":
        return whole
    sizes = (seconds * SAMPLE_RATE for seconds in CLIP_WINDOW_S)
    return next((size for size in sizes if samples <= size < whole), whole)


def layers_kept(depth: int, *, every_layer: bool = False, layer: int | None = None) -> tuple[int, ...]:
    """The indices of the encoder layers that frames hold, the last one last: all, one beside the last, or it alone."""
    last = depth - 1
    if every_layer:
        return tuple(range(depth))
    return (last,) if layer is None else (layer, last)


def windows(samples: Samples, window_samples: int) -> list[Samples]:
    """Splits samples (N,) into consecutive views of `window_samples` samples; the last may be shorter."""
    assert window_samples >= 1, window_samples
    return [samples[start : start + window_samples] for start in range(0, len(samples), window_samples)]


def _name(audio: object) -> str:
    return f"the {len(audio)} bytes given" if isinstance(audio, bytes) else str(audio)


def _check_head(file: BinaryIO, name: str) -> bytes:
    """The first bytes of a file, which must not be empty nor stand in for another."""
    file.seek(0)
    head = file.read(HEAD)
    if not head:
        raise DualSLMError(f"{name} is empty", got="zero bytes", do="record or copy it again")
    if head.startswith(LFS_POINTER):
        raise DualSLMError(
            f"{name} is not audio",
            got="a Git LFS pointer that stands in for it",
            do="run `git lfs pull` to fetch the recording",
        )
    return head


def _decode(file: BinaryIO, name: str, longest: float, budget: SampleBudget | None = None) -> Recording:
    head = _check_head(file, name)
    if (demuxer := media.demuxer_of(head)) is not None:
        return _read_media(media.open_media(file, demuxer, name, longest), name, longest, budget)
    contents = containers.look(file)
    with _opened(file, contents, name) as sound:
        try:
            samples, fault = _read(sound, contents, name, longest, budget)
        except soundfile.LibsndfileError as error:
            raise _undecoded(error, name, contents.fault) from error
        return Recording(_resample(samples, sound.samplerate, name), fault)


def _opened(file: BinaryIO, contents: Contents, name: str) -> _Stream:
    try:
        return _Stream(Patched(file, contents))
    except soundfile.LibsndfileError as error:
        raise _undecoded(error, name, contents.fault) from error


def _undecoded(error: soundfile.LibsndfileError, name: str, fault: str | None) -> DualSLMError:
    if name.lower().endswith(".raw"):
        return DualSLMError(f"cannot decode {name}", got="headerless samples", do="convert it to wav or flac")
    got = fault or error.error_string.removeprefix("Error : ").rstrip(".")
    return DualSLMError(f"cannot decode {name}", got=got, do="give an undamaged wav, flac, mp3 or ogg file")


def _read(file: _Stream, contents: Contents, name: str, longest: float, budget: SampleBudget | None) -> Recording:
    """All samples of a file, mixed to one channel; a header over the limits is refused before anything is decoded."""
    _check_format(file.samplerate, file.channels, name)
    longest, name = _affordable(longest, file.samplerate, file.channels, name, budget)
    limit = int(longest * file.samplerate)
    unknown = file.frames == np.iinfo(np.int64).max  # what libsndfile gives for a stream without a length
    # libsndfile only estimates the length of an mp3.
    stated = contents.stated if unknown else None if file.format == "MP3" else file.frames
    if stated is not None:
        _check_length(stated, file.samplerate, name, longest)
    # One sample beyond the limit is enough to tell that a file is too long. The empty array keeps the dtype where
    # the file holds no sample at all.
    samples = np.concatenate([np.empty(0, np.float32), *_blocks(file, limit + 1)])
    _spend(len(samples) * file.channels, budget)
    _check_length(len(samples), file.samplerate, name, longest)
    fault = contents.fault
    if stated is not None and len(samples) < stated:
        fault = fault or f"cut off: {len(samples):,} of {stated:,} samples"
        if file.format == "FLAC":
            do = "copy or record it again"
            raise DualSLMError(f"{name} is truncated", got=f"{len(samples)} of {stated} samples", do=do)
    return Recording(samples, fault)


def _read_media(opened: media.Media, name: str, longest: float, budget: SampleBudget | None) -> Recording:
    """All samples of a file that PyAV or ffmpeg decodes, mixed to one channel."""
    _check_rate(opened.rate, name)
    blocks = [np.empty(0, np.float32)]
    count = 0
    for block_CN in opened.blocks:
        _check_format(opened.rate, len(block_CN), name)
        if not count:
            longest, name = _affordable(longest, opened.rate, len(block_CN), name, budget)
        blocks.append(_mono(block_CN))
        count += len(blocks[-1])
        _spend(block_CN.size, budget)
        _check_length(count, opened.rate, name, longest)  # at each block, so that decoding stops there
    samples = np.concatenate(blocks)
    fault = opened.fault
    if opened.seconds is not None and count < (opened.seconds - MEDIA_SLACK_S) * opened.rate:
        fault = fault or f"cut off: {count / opened.rate:.1f} of {opened.seconds:.1f} s"
    return Recording(_resample(samples, opened.rate, name), fault)


def _affordable(longest: float, rate: int, channels: int, name: str, budget: SampleBudget | None) -> tuple[float, str]:
    """The greatest length in s that limit and budget allow, and a name that says why it is less than the limit."""
    seconds = longest if budget is None else min(budget.one, budget.left) / (rate * channels)
    return (longest, name) if seconds >= longest else (seconds, f"{name}, of {channels} channels at {rate} Hz,")


def _spend(samples: int, budget: SampleBudget | None) -> None:
    if budget is not None:
        budget.left = max(0, budget.left - samples)


def _blocks(file: _Stream, most: int) -> Iterator[Samples]:
    """At most `most` samples of a file, mixed to one channel, in blocks."""
    # Not in one read: eight channels at 384 kHz take 12 MB a second before they are mixed.
    size = BLOCK_SECONDS * file.samplerate
    remaining = most
    while remaining and len(block_NC := file.read(min(size, remaining), dtype="float32", always_2d=True)):
        remaining -= len(block_NC)
        yield _mono(block_NC.T)


def _mono(block_CN: Samples) -> Samples:
    """The mean of the channels (C, N), or the loudest one where they cancel out, as with a plug of wrong polarity."""
    mean_N: Samples = block_CN.mean(axis=0, dtype=np.float32)
    if len(block_CN) > 1:
        energy_C = np.square(block_CN, dtype=np.float64).sum(axis=1)
        if np.square(mean_N, dtype=np.float64).sum() < CANCELLED * energy_C.max():
            mean_N = block_CN[energy_C.argmax()]
    return mean_N


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
    _check_peak(array, "the array")  # here, because float32 holds no 1e300
    return array.astype(np.float32, copy=False)


def _check_format(rate: int, channels: int, name: str) -> None:
    _check_rate(rate, name)
    if channels > MAX_CHANNELS:
        raise DualSLMError(
            f"{name} has too many channels", got=f"{channels} channels", do=f"mix it down to at most {MAX_CHANNELS}"
        )


def _check_rate(rate: int, name: str) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise DualSLMError(
            f"{name} has an unlikely sampling rate",
            got=f"{rate} Hz",
            do=f"give audio of {MIN_RATE} to {MAX_RATE} Hz",
        )


def _check_length(samples: int, rate: int, name: str, longest: float = MAX_SECONDS) -> None:
    if samples > longest * rate:
        raise TooLongError(
            f"{name} is longer than {longest:.4g} s", got=f"at least {samples // rate} s", do="cut it in shorter turns"
        )


def _check_peak(samples: NDArray[Any], name: str) -> None:
    if len(samples) and MAX_PEAK < (peak := float(np.abs(samples).max())) < np.inf:
        raise DualSLMError(
            f"the samples of {name} do not lie in [-1, 1]",
            got=f"a peak of {peak:g}",
            do="divide by the full scale, 32768 for 16-bit samples",
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
    _check_peak(samples, name)
    out = samples if rate == SAMPLE_RATE else soxr.resample(samples, rate, SAMPLE_RATE)
    if not len(out):
        raise DualSLMError(f"{name} holds no sound", got=f"{len(samples)} samples", do="record it again")
    return out
