"""What the bytes of a sound file bear out: its true length, where it was cut off, and formats of phones and browsers.

Writers that cannot go back, such as pipes, leave a placeholder where the length belongs, and a copy that broke off
states more than it holds. So a stated length is believed as far as the bytes bear it out, in both directions. Webm and
m4a are decoded by PyAV or ffmpeg, where one of them is installed. Nothing here imports torch.

Dimensions: N samples, C channels.
"""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dualslm.errors import DualSLMError

HEAD = 64  # bytes by which a container is recognized
PLACEHOLDER = 0x7FFF0000  # bytes; from here on a stated size is one of sox's, ffmpeg's or a browser's placeholders
RF64_PLACEHOLDER = 1 << 62  # bytes; the same of the 64-bit sizes of RF64
MAX_PADDING = 4096  # bytes behind the stated end that may be padding or a tag of an unknown kind, and not sound
MPEG_IN_WAV = (0x50, 0x55)  # format tags of wav files that hold mp3
# No recording within our limits has more; a file made to keep a reader busy is given to the decoder as it is.
MAX_CHUNKS = 1000  # of a wav file
MAX_FRAMES = 100_000  # of an mp3: half an hour has 75,000
MAX_PAGES = 200_000  # of an ogg file: half an hour has 90,000 of 20 ms
RESYNC_BYTES = 1 << 16  # in which the first frame of an mp3 must begin
KBIT_PER_S = {  # of an mp3 frame by its index, for MPEG 1, and for MPEG 2 and 2.5
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
TAGS = (b"TAG", b"APETAGEX", b"ID3", b"LYRICSBEGIN", b"3DI")  # what may follow the last frame of an mp3
FFMPEG_RATE = 48_000  # Hz that ffmpeg is asked for
FFMPEG_TIMEOUT_S = 120
# FFmpeg's own names of the demuxers. One is always named: a demuxer of playlists would open other files and addresses.
DEMUXERS = {"matroska": "webm", "mov": "m4a", "asf": "wma", "aac": "aac", "amr": "amr"}


@dataclass(frozen=True)
class Contents:
    """What is in a file.

    Attributes:
        start: first byte of what a decoder should read.
        stop: byte after the last one.
        patches: bytes to be read in place of a header's, by position.
        prefix: bytes to be read in front of the first one.
        fault: how the file is cut off or damaged, where its bytes show it.
        stated: samples that a header states which is patched away; None where there is none.
    """

    start: int
    stop: int
    patches: Mapping[int, bytes] = field(default_factory=dict)
    fault: str | None = None
    stated: int | None = None
    prefix: bytes = b""


class Patched(io.RawIOBase):
    """A part of a file, with other bytes in some places and in front.

    Args:
        file: the file.
        contents: the part, and the other bytes.
    """

    def __init__(self, file: BinaryIO, contents: Contents) -> None:
        self.file = file
        self.contents = contents
        self.first = contents.start - len(contents.prefix)  # position that stands for the first byte
        self.position = self.first

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position in the part."""
        return self.position - self.first

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves in the part."""
        base = {io.SEEK_SET: self.first, io.SEEK_CUR: self.position, io.SEEK_END: self.contents.stop}[whence]
        self.position = min(max(base + offset, self.first), self.contents.stop)
        return self.tell()

    def readinto(self, buffer: Any) -> int:
        """Reads the next bytes."""
        start = self.contents.start
        if self.position < start:
            data = bytearray(self.contents.prefix[self.position - start :][: len(buffer)])
        else:
            self.file.seek(self.position)
            data = bytearray(self.file.read(min(len(buffer), self.contents.stop - self.position)))
        for offset, wanted in self.contents.patches.items():
            first = max(offset, self.position)
            last = min(offset + len(wanted), self.position + len(data))
            if first < last:
                data[first - self.position : last - self.position] = wanted[first - offset : last - offset]
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def look(file: BinaryIO) -> Contents:
    """What a file holds, by its bytes; any file that is not known here is taken as it is."""
    size = file.seek(0, io.SEEK_END)
    head = _at(file, 0, HEAD)
    whole = Contents(0, size)
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return _wav(file, size, rf64=head[:4] == b"RF64")
    if head[:4] == b"fLaC" and len(head) > 26:
        # The lower 36 of 40 bits are the number of samples, 0 where the writer did not know it. Always patched to 0:
        # libsndfile reads no further than a header says, even where more follows.
        stated = int.from_bytes(head[21:26], "big") & (1 << 36) - 1
        return Contents(0, size, {21: bytes([head[21] & 0xF0, 0, 0, 0, 0])}, stated=stated or None)
    if head[:4] == b"OggS":
        return Contents(0, size, fault=_ogg_fault(file, size))
    if head[:3] == b"ID3" or (head[:1] == b"\xff" and len(head) > 4 and _mp3_frame_bytes(head[:4])):
        return _mp3(file, 0, size)
    return whole


def _at(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(count)


# ---------------------------------------------------------------------- wav


def _wav(file: BinaryIO, size: int, *, rf64: bool) -> Contents:
    """A wav file with the size of its sound corrected; of one that holds mp3, the mp3."""
    position = 12
    tag = 0
    ds64 = None
    for _ in range(MAX_CHUNKS):
        head = _at(file, position, 8)
        if len(head) < 8 or head[:4] == b"data":
            break
        if head[:4] == b"fmt ":
            tag = int.from_bytes(file.read(2), "little")
        elif head[:4] == b"ds64":
            ds64 = position
        length = int.from_bytes(head[4:], "little")
        position += 8 + length + length % 2  # chunks begin at even positions
    if len(head) < 8 or head[:4] != b"data":
        return Contents(0, size)
    start = position + 8
    stated = int.from_bytes(head[4:], "little")
    limit = PLACEHOLDER
    if rf64 and ds64 is not None:
        stated = int.from_bytes(_at(file, ds64 + 16, 8), "little")
        limit = RF64_PLACEHOLDER if stated != 0xFFFFFFFF else PLACEHOLDER
    available = size - start
    fault = f"cut off: {available:,} of {stated:,} bytes" if available < stated < limit else None
    more = stated < available and _is_sound(file, start + stated, size, any_length=stated == 0)
    stop = size if more or stated > available else start + stated
    if tag in MPEG_IN_WAV:
        inner = _mp3(file, start, stop)
        return replace(inner, fault=fault or inner.fault)
    if stop == start + stated or stop >= 1 << 32:
        return Contents(0, size, fault=fault)
    # As plain RIFF, whose sizes libsndfile reads alike everywhere.
    patches = {0: b"RIFF" + struct.pack("<I", stop - 8), position + 4: struct.pack("<I", stop - start)}
    if ds64 is not None:
        patches[ds64] = b"JUNK"
    return Contents(0, size, patches, fault)


def _is_sound(file: BinaryIO, position: int, size: int, *, any_length: bool) -> bool:
    """Whether sound goes on behind its stated end, where other chunks, tags or padding may follow."""
    # A writer that forgot the padding byte begins its next chunk one byte early.
    for first in (position, position + position % 2):
        head = _at(file, first, 8)
        is_name = len(head) == 8 and head[:4].strip() and all(32 <= letter < 127 for letter in head[:4])
        if is_name and int.from_bytes(head[4:], "little") <= size - first - 8:
            return False
    return size - position > (0 if any_length else MAX_PADDING)


# ---------------------------------------------------------------------- mp3 and ogg


def _mp3(file: BinaryIO, start: int, stop: int) -> Contents:
    """An mp3, with a fault where its frames end early or do not follow one another."""
    position = start
    head = _at(file, start, 10)
    if head[:3] == b"ID3" and len(head) == 10:
        length = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
        position += 10 + length + (10 if head[5] & 0x10 else 0)  # a footer is as long as the header
    whole = Contents(start, stop)
    first = _first_frame(file, position, stop)
    if first is None:
        return whole
    length = _mp3_frame_bytes(_at(file, first, 4))
    frame = _at(file, first, min(length, 256))
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    stated = int.from_bytes(frame[at + 8 : at + 12], "big") if at > 0 and frame[at + 7] & 1 else None
    count, fault = _mp3_frames(file, first + (length if at > 0 else 0), stop)
    if stated is None:
        # libsndfile guesses the length from the first frame, and reads no further than that.
        return Contents(first, stop, {first + at: b"\0\0\0\0"} if at > 0 else {}, fault, prefix=_xing(frame, count))
    # One frame less is no fault: some encoders count the frame that states the number.
    if fault is None and count < stated - 1:
        fault = f"cut off: {count:,} of {stated:,} frames"
    if count > stated + 1:
        # Two files in one, of which a decoder would give the first: the number is corrected.
        return Contents(start, stop, {first + at + 8: struct.pack(">I", count)}, fault)
    return Contents(start, stop, fault=fault)


def _xing(frame: bytes, count: int) -> bytes:
    """A frame in the format of another that holds no sound but states the number of frames."""
    mpeg1 = frame[1] & 0x08 != 0
    mono = frame[3] & 0xC0 == 0xC0
    head = bytes([frame[0], frame[1] | 1, 0xA0 | frame[2] & 0x0C, frame[3]])  # no checksum, and a high bit rate
    side = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    return (head + bytes(side) + b"Xing" + struct.pack(">II", 1, count)).ljust(_mp3_frame_bytes(head), b"\0")


def _mp3_frame_bytes(head: bytes) -> int:
    """The length of an mp3 frame by its first four bytes; 0 where they begin none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2 or head[1] & 0x18 == 0x08:
        return 0
    index = head[2] >> 4
    rate_index = head[2] >> 2 & 3
    if index in (0, 15) or rate_index == 3:
        return 0
    mpeg1 = head[1] & 0x18 == 0x18
    rate = (44_100, 48_000, 32_000)[rate_index] // (1 if mpeg1 else 2 if head[1] & 0x10 else 4)
    return (144_000 if mpeg1 else 72_000) * KBIT_PER_S[mpeg1][index] // rate + (head[2] >> 1 & 1)


def _first_frame(file: BinaryIO, position: int, stop: int) -> int | None:
    """The position of the first mp3 frame that another one follows."""
    data = _at(file, position, min(RESYNC_BYTES, stop - position))
    at = data.find(b"\xff")
    while at >= 0:
        length = _mp3_frame_bytes(data[at : at + 4])
        if length and _mp3_frame_bytes(_at(file, position + at + length, 4)):
            return position + at
        at = data.find(b"\xff", at + 1)
    return None


def _mp3_frames(file: BinaryIO, position: int, stop: int) -> tuple[int, str | None]:
    """The number of mp3 frames, and the first fault in their sequence."""
    count = 0
    fault = None
    while position < stop and count < MAX_FRAMES:
        length = _mp3_frame_bytes(_at(file, position, min(4, stop - position)))
        if not length:
            rest = _at(file, position, min(HEAD, stop - position))
            if rest.startswith(TAGS) or not any(rest):  # an encoder may fill the file with zeros
                break
            fault = fault or f"damaged: no frame at byte {position:,}"
            following = _first_frame(file, position, stop)
            if following is None:
                break
            position = following
            continue
        if position + length > stop:
            return count, fault or "cut off in its last frame"
        count += 1
        position += length
    return count, fault


def _ogg_fault(file: BinaryIO, size: int) -> str | None:
    """How the pages of an ogg file show that it is cut off or damaged."""
    position = 0
    last_flags = 0
    for _ in range(MAX_PAGES):
        if position >= size:
            break
        head = _at(file, position, 27)
        if len(head) < 27:
            return "cut off in its last page"
        if head[:4] != b"OggS":
            return f"damaged: no page at byte {position:,}"
        last_flags = head[5]
        position += 27 + head[26] + sum(file.read(head[26]))
    if position > size:
        return "cut off in its last page"
    return None if position < size or last_flags & 4 else "cut off: the page that ends it is missing"


# ---------------------------------------------------------------------- formats of phones and browsers


@dataclass
class Media:
    """Sound decoded by PyAV or ffmpeg.

    Attributes:
        rate: sampling rate in Hz.
        blocks: blocks of samples, each (C, N).
        seconds: length that the container states; None where it states none.
    """

    rate: int
    blocks: Iterator[NDArray[np.float32]]
    seconds: float | None = None


def demuxer_of(head: bytes) -> str | None:
    """FFmpeg's demuxer for a file that libsndfile does not know, by its first bytes; None for any other file."""
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide") and head[:4] != b"RIFF":
        return "mov"
    if head[:4] == b"\x30\x26\xb2\x75":
        return "asf"
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
    file.seek(0)
    try:
        import av
    except ImportError:
        return _by_ffmpeg(file, demuxer, name, seconds)
    try:
        container: Any = av.open(file, mode="r", format=demuxer)
        stream = container.streams.audio[0]
    except (av.error.FFmpegError, IndexError, ValueError) as error:
        got = "no sound in it" if isinstance(error, IndexError) else getattr(error, "strerror", None) or str(error)
        raise _undecoded(name, demuxer, got) from error

    def blocks() -> Iterator[NDArray[np.float32]]:
        resampler: Any = av.AudioResampler(format="fltp", rate=stream.rate)
        try:
            for frame in container.decode(stream):
                yield from (part.to_ndarray() for part in resampler.resample(frame))
            yield from (part.to_ndarray() for part in resampler.resample(None))
        except (av.error.FFmpegError, ValueError):
            return  # what was decoded before the damage counts; the caller compares it with the stated length
        finally:
            container.close()

    return Media(stream.rate, blocks(), container.duration / av.time_base if container.duration else None)


def _by_ffmpeg(file: BinaryIO, demuxer: str, name: str, seconds: float) -> Media:
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
        raise _undecoded(name, demuxer, lines[-1])
    samples_CN = np.frombuffer(done.stdout[: len(done.stdout) // 4 * 4], "<f4")[None]
    return Media(FFMPEG_RATE, iter([samples_CN]))


def _undecoded(name: str, demuxer: str, got: str) -> DualSLMError:
    return DualSLMError(f"cannot decode {name}", got=got, do=f"give an undamaged {DEMUXERS[demuxer]}, wav or flac file")
