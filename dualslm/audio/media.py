"""Formats of phones and browsers, such as webm and m4a: decoded by PyAV or ffmpeg, where one of them is installed.

Nothing here imports torch.

Dimensions: N samples, C channels.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dualslm.audio.contents import at, cut_off
from dualslm.audio.frames import adts_fault, ogg_fault
from dualslm.errors import DualSLMError

FFMPEG_RATE = 48_000  # Hz that ffmpeg is asked for
FFMPEG_TIMEOUT_S = 120
# FFmpeg's own names of the demuxers. One is always named: a demuxer of playlists would open other files and addresses.
DEMUXERS = {"matroska": "webm", "mov": "m4a", "asf": "wma", "aac": "aac", "amr": "amr", "ogg": "ogg"}
MAX_ELEMENTS = 200_000  # of webm or m4a: half an hour has 90,000 of 20 ms
SEGMENT = b"\x18\x53\x80\x67"  # the element of webm that holds all that follows its header
ASF_HEAD = 8192  # bytes in which a wma says what it is
ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
OTHER_OGG = (b"Speex   ", b"\x7fFLAC")  # what libsndfile does not read in ogg


@dataclass
class Media:
    """Sound decoded by PyAV or ffmpeg.

    Attributes:
        rate: sampling rate in Hz.
        blocks: blocks of samples, each (C, N).
        seconds: length that the container states; None where it states none.
        fault: how the file is cut off or damaged, where its bytes show it.
    """

    rate: int
    blocks: Iterator[NDArray[np.float32]]
    seconds: float | None = None
    fault: str | None = None


def demuxer_of(head: bytes) -> str | None:
    """FFmpeg's demuxer for a file that libsndfile does not know, by its first bytes; None for any other file."""
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide") and head[:4] != b"RIFF":
        return "mov"
    if head[:4] == b"\x30\x26\xb2\x75":
        return "asf"
    if head[:4] == b"OggS" and any(mark in head for mark in OTHER_OGG):
        return "ogg"
    if head[:5] == b"#!AMR":
        return "amr"
    # ADTS: a sync of twelve bits, and the two bits of the layer 0, where an mp3 has a layer.
    return "aac" if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0 else None


def open_media(file: BinaryIO, demuxer: str, name: str, seconds: float) -> Media:
    """Opens a file in a format of phones and browsers.

    Args:
        file: the file.
        demuxer: FFmpeg's name of its demuxer.
        name: name of the file for errors.
        seconds: greatest length in s that is decoded, at least.

    Raises:
        DualSLMError: neither decoder is installed, or the file cannot be decoded.
    """
    fault = _fault(file, demuxer)
    file.seek(0)
    try:
        import av
    except ImportError:
        return _by_ffmpeg(file, demuxer, name, seconds, fault)
    try:
        container: Any = av.open(file, mode="r", format=demuxer)
        stream = container.streams.audio[0]
    except (av.error.FFmpegError, IndexError, ValueError, OSError) as error:  # OSError from a seek that makes no sense
        got = "no sound in it" if isinstance(error, IndexError) else getattr(error, "strerror", None) or str(error)
        raise _undecoded(name, demuxer, fault or got) from error

    def blocks() -> Iterator[NDArray[np.float32]]:
        resampler: Any = av.AudioResampler(format="fltp", rate=stream.rate)
        try:
            for frame in container.decode(stream):
                yield from (part.to_ndarray() for part in resampler.resample(frame))
            yield from (part.to_ndarray() for part in resampler.resample(None))
        except (av.error.FFmpegError, ValueError, OSError):
            return  # what was decoded before the damage counts; the caller compares it with the stated length
        finally:
            container.close()

    return Media(stream.rate, blocks(), container.duration / av.time_base if container.duration else None, fault)


def _by_ffmpeg(file: BinaryIO, demuxer: str, name: str, seconds: float, fault: str | None) -> Media:
    """The same by the program ffmpeg, mixed to one channel."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise DualSLMError(
            f"cannot decode {name}",
            got=f"{DEMUXERS[demuxer]}, and neither PyAV nor ffmpeg to decode it",
            do="pip install 'dualslm[media]'",
        )
    with tempfile.NamedTemporaryFile() as copy:  # m4a has its index at the end, which a pipe does not reach
        shutil.copyfileobj(file, copy)
        copy.flush()
        ends = ["-map", "0:a:0", "-t", f"{seconds + 1:.3f}", "-ac", "1", "-ar", str(FFMPEG_RATE), "-f", "f32le", "-"]
        source = ["-protocol_whitelist", "file", "-f", demuxer, "-i", f"file:{copy.name}"]
        command = [program, "-nostdin", "-v", "error", *source, *ends]
        try:
            done = subprocess.run(command, capture_output=True, timeout=FFMPEG_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _undecoded(name, demuxer, f"ffmpeg: {error.__class__.__name__}") from error
    if not done.stdout:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no sound in it"]
        raise _undecoded(name, demuxer, fault or lines[-1])
    samples_CN = np.frombuffer(done.stdout[: len(done.stdout) // 4 * 4], "<f4")[None]
    return Media(FFMPEG_RATE, iter([samples_CN]), fault=fault)


def _undecoded(name: str, demuxer: str, got: str) -> DualSLMError:
    return DualSLMError(f"cannot decode {name}", got=got, do=f"give an undamaged {DEMUXERS[demuxer]}, wav or flac file")


# ---------------------------------------------------------------------- what their bytes show


def _fault(file: BinaryIO, demuxer: str) -> str | None:
    """How the bytes of a file show that it is cut off; None where nothing does."""
    size = file.seek(0, io.SEEK_END)
    known = {"matroska": _matroska_fault, "mov": _mov_fault, "asf": _asf_fault, "aac": adts_fault, "ogg": ogg_fault}
    return known[demuxer](file, size) if demuxer in known else None


def _matroska_fault(file: BinaryIO, size: int) -> str | None:
    """The same of webm, whose elements are a name, a length and as many bytes."""
    position = 0
    for _ in range(MAX_ELEMENTS):
        head = at(file, position, 16)
        if not head:
            break
        name_bytes = 9 - head[0].bit_length()  # as many leading zeros as further bytes
        if name_bytes > 4:
            break  # damaged: the decoder says so
        rest = head[name_bytes:]
        length_bytes = 9 - rest[0].bit_length() if rest else 9
        if len(rest) < length_bytes or length_bytes > 8:
            return "cut off in its last block" if len(head) < 16 else None
        length = int.from_bytes(rest[:length_bytes], "big") & (1 << 7 * length_bytes) - 1
        start = position + name_bytes + length_bytes
        unknown = length == (1 << 7 * length_bytes) - 1  # as MediaRecorder leaves it
        if not unknown and start + length > size:
            return cut_off(size - start, length)
        if not unknown and head[:name_bytes] == SEGMENT:
            break
        position = start if unknown else start + length
    return None


def _mov_fault(file: BinaryIO, size: int) -> str | None:
    """The same of m4a and mp4, whose atoms are a length, a name and the rest of as many bytes."""
    position = 0
    for _ in range(MAX_ELEMENTS):
        head = at(file, position, 16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if len(head) < 8 or length < 8:
            break  # the end, or an atom that reaches to it
        if position + length > size:
            return cut_off(size - position, length)
        position += length
    return None


def _asf_fault(file: BinaryIO, size: int) -> str | None:
    """The same of wma, whose header states the size of the file, unless it is a broadcast."""
    head = at(file, 0, ASF_HEAD)
    found = head.find(ASF_PROPERTIES)
    about = head[found : found + 92]
    if found < 0 or len(about) < 92 or about[88] & 1:
        return None
    stated = int.from_bytes(about[40:48], "little")
    return cut_off(size, stated) if stated > size else None
