"""Stated lengths against the bytes: placeholders, files that are cut off, and mp3 in wav."""

from __future__ import annotations

import logging
import os
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from support.sounds import SECONDS, encoded, sound

from dualslm.audio import SAMPLE_RATE, duration, load, read
from dualslm.audio.contents import MAX_PADDING
from dualslm.data.corpora.base import CUT_OFF, UNREADABLE
from dualslm.data.corpora.clips import probe
from dualslm.errors import DualSLMError


def sized(data: bytes, size: int) -> bytes:
    """A wav whose data chunk states another size."""
    at = data.index(b"data") + 4
    return data[:at] + struct.pack("<I", size) + data[at + 4 :]


def chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def riff(*chunks: bytes, head: bytes = b"RIFF") -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return head + struct.pack("<I", len(body) if head == b"RIFF" else 0xFFFFFFFF) + body


PCM = np.round(sound() * 32767).astype("<i2").tobytes()
FORMAT = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16))


def rf64(data_bytes: int) -> bytes:
    ds64 = chunk(b"ds64", struct.pack("<QQQI", 0, data_bytes, 0, 0))
    return riff(ds64, FORMAT, b"data\xff\xff\xff\xff" + PCM, head=b"RF64")


def rifx(data_bytes: int) -> bytes:
    """A wav whose numbers are big-endian."""
    about = struct.pack(">HHIIHH", 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16)
    body = b"WAVEfmt " + struct.pack(">I", len(about)) + about
    body += b"data" + struct.pack(">I", data_bytes) + np.frombuffer(PCM, "<i2").byteswap().tobytes()
    return b"RIFX" + struct.pack(">I", len(body)) + body


def mp3_in_wav(mp3: bytes) -> bytes:
    about = struct.pack("<HHIIHHHIHHH", 0x55, 1, SAMPLE_RATE, 4000, 1, 0, 12, 1, 2, 288, 1)
    return riff(chunk(b"fmt ", about), chunk(b"fact", struct.pack("<I", 100)), chunk(b"data", mp3))


def headless_mp3() -> bytes:
    """An mp3 without the first frame, which alone states the length."""
    data = encoded("MP3")
    return data[data.index(data[:2], 10) :]


def flac_stating(total: int) -> bytes:
    data = bytearray(encoded("FLAC"))
    data[22:26] = struct.pack(">I", total)
    return bytes(data)


def stating(data: bytes, name: bytes, after: int, size: bytes) -> bytes:
    """A file with another size, so many bytes after the beginning of a name."""
    at = data.index(name) + after
    return data[:at] + size + data[at + len(size) :]


WAV = encoded("WAV", "PCM_16")
AU, W64, CAF = encoded("AU"), encoded("W64"), encoded("CAF")
TAIL = chunk(b"LIST", b"INFOISFT" + struct.pack("<I", 4) + b"Lavf")
WHOLE = {
    "flac without a total": flac_stating(0),
    "flac that states less": flac_stating(16_000),
    **{
        f"wav of {size:#x} bytes": sized(WAV, size)
        for size in (0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 2**31, 2**32 - 37)
    },
    "wav that states less": sized(WAV, 32_000),
    "wav with a chunk in front": riff(chunk(b"LIST", b"INFO odd"), FORMAT, b"data\0\0\0\0" + PCM),
    "mu-law": sized(encoded("WAV", "ULAW"), 0),
    "big-endian": rifx(len(PCM)),
    "big-endian of 0 bytes": rifx(0),
    "big-endian of -1 bytes": rifx(0xFFFFFFFF),
    "big-endian that states less": rifx(32_000),
    "rf64": rf64(len(PCM)),
    "rf64 of 0 bytes": rf64(0),
    "rf64 of -1 bytes": rf64(2**64 - 1),
    "rf64 of 32-bit -1 bytes": rf64(2**32 - 1),
    "mp3 in wav": mp3_in_wav(encoded("MP3")),
    "mp3 without a length in wav": mp3_in_wav(headless_mp3()),
    "mp3 without a length": headless_mp3(),
    "two mp3 in one": encoded("MP3", seconds=SECONDS / 2) * 2,
    "mp3 with tags": b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + encoded("MP3") + b"TAG" + bytes(125),
    "vorbis": encoded("OGG", "VORBIS"),
    "opus": encoded("OGG", "OPUS"),
    "wav of 0 bytes with tags behind": sized(WAV, 0) + TAIL,
    "wav of -1 bytes with tags behind": sized(WAV, 0xFFFFFFFF) + TAIL,
    "aiff": encoded("AIFF"),
    "aiff of 0 bytes": stating(encoded("AIFF"), b"SSND", 4, bytes(4)),
    "au of -1 bytes": stating(AU, b".snd", 8, b"\xff" * 4),
    "au of 0 bytes": stating(AU, b".snd", 8, bytes(4)),
    "au that states less": stating(AU, b".snd", 8, struct.pack(">I", 32_000)),
    "w64 as a pipe writes it": stating(
        stating(W64, b"riff", 16, b"\xff" * 8), b"data", 16, struct.pack("<q", 2**63 - 1)
    ),
    "caf of -1 bytes": stating(CAF, b"data", 4, b"\xff" * 8),
    "caf of 0 bytes": stating(CAF, b"data", 4, bytes(8)),
    "caf that states less": stating(CAF, b"data", 4, struct.pack(">q", 32_004)),
    "mp3 with a tag longer than the file": b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + bytes(100) + encoded("MP3"),
    "mp3 with zeros behind its tag": b"ID3\x04\0\0\0\0\0\x05" + bytes(4000) + encoded("MP3"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_length_that_the_bytes_do_not_bear_out_is_corrected(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(WHOLE[name])
    samples, fault = read(path)
    assert fault is None
    assert abs(len(samples) / SAMPLE_RATE - SECONDS) < 0.2  # an mp3 without a length keeps the encoder's padding
    assert np.array_equal(load(WHOLE[name]), samples)
    found = probe(path, 30.0, verify=True)
    assert found.reason is None
    assert found.seconds == pytest.approx(len(samples) / SAMPLE_RATE, abs=0.01)
    by_header = probe(path, 30.0).seconds
    assert by_header is not None, "nothing is left out for a placeholder"


@pytest.mark.parametrize("name", ["flac without a total", "wav of 0x0 bytes", "rf64 of 0 bytes"])
def test_the_length_of_a_placeholder_is_found_without_verify(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").write_bytes(WHOLE[name])
    assert duration(tmp_path / "a") == pytest.approx(SECONDS, abs=0.01)


def test_what_follows_the_sound_is_not_read_as_sound() -> None:
    before = load(WAV)
    for rest in (chunk(b"LIST", b"INFOISFT" + bytes(9000)), b"TAG" + bytes(125), bytes(MAX_PADDING)):
        assert np.array_equal(load(WAV + rest), before)


def test_an_empty_wav_holds_no_sound() -> None:
    for rest in (b"", chunk(b"LIST", b"INFOISFT" + bytes(9000))):
        with pytest.raises(DualSLMError, match="no sound"):
            load(riff(FORMAT, b"data\0\0\0\0" + rest))


def damaged(data: bytes, hole: bytes = b"\x55") -> bytes:
    """A file with a hole in the middle."""
    middle = len(data) // 2
    return data[:middle] + hole * 700 + data[middle + 700 :]


CUT = {
    "wav": WAV[: len(WAV) * 6 // 10],
    "rf64": rf64(len(PCM))[: len(PCM) * 6 // 10],
    "mp3": encoded("MP3")[: len(encoded("MP3")) * 6 // 10],
    "mp3 without a length": headless_mp3()[: len(headless_mp3()) * 6 // 10],
    "mp3 in wav": mp3_in_wav(encoded("MP3"))[: len(encoded("MP3")) * 6 // 10],
    "opus": encoded("OGG", "OPUS")[: len(encoded("OGG", "OPUS")) * 6 // 10],
    "vorbis": encoded("OGG", "VORBIS")[: len(encoded("OGG", "VORBIS")) * 6 // 10],
    **{kind: encoded(kind)[: len(encoded(kind)) * 6 // 10] for kind in ("AIFF", "AU", "W64", "CAF")},
    "mp3 with zeros in its middle": damaged(encoded("MP3"), b"\0"),
    "mp3 with a hole": damaged(encoded("MP3")),
    "opus with a hole": damaged(encoded("OGG", "OPUS")),
}


@pytest.mark.parametrize("name", CUT)
def test_a_file_that_is_cut_off_is_read_as_far_as_it_goes_and_said(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a"
    path.write_bytes(CUT[name])
    with caplog.at_level(logging.WARNING, "dualslm"):
        samples = load(path)
    assert len(samples) > (0.5 if "hole" not in name else 0.2) * SAMPLE_RATE
    (line,) = [record.getMessage() for record in caplog.records]
    assert "as far as it goes" in line
    assert probe(path, 30.0).reason is None
    assert probe(path, 30.0, verify=True).reason == CUT_OFF


@pytest.mark.parametrize("name", ["mp3", "mp3 that states more", "wav", "AIFF"])
def test_the_length_of_a_file_that_is_cut_off_is_what_it_holds(tmp_path: Path, name: str) -> None:
    mp3 = encoded("MP3")
    more = stating(mp3, b"Info" if b"Info" in mp3 else b"Xing", 8, struct.pack(">I", 10_000))
    (tmp_path / "a").write_bytes({**CUT, "mp3 that states more": more}[name])
    samples, fault = read(tmp_path / "a")
    assert fault is not None
    assert duration(tmp_path / "a") == pytest.approx(len(samples) / SAMPLE_RATE, abs=0.01)


@pytest.mark.parametrize("codec", ["VORBIS", "OPUS"])
def test_a_second_recording_in_an_ogg_file_is_said(codec: str) -> None:
    one = encoded("OGG", codec)
    samples, fault = read(one + one)
    assert len(samples) == len(read(one).samples)
    assert fault == f"two recordings in one: the second begins at byte {len(one):,}"


@pytest.mark.parametrize(
    ("data", "second"),
    [
        (riff(FORMAT, chunk(b"data", PCM), chunk(b"data", PCM)), 44 + len(PCM)),
        (riff(FORMAT, chunk(b"data", PCM), chunk(b"LIST", b"INFO"), chunk(b"data", PCM)), 56 + len(PCM)),
        (WAV + WAV, len(WAV)),
        (rifx(len(PCM)) + rifx(len(PCM)), len(rifx(0))),
    ],
)
def test_a_second_recording_in_a_wav_file_is_said(data: bytes, second: int) -> None:
    samples, fault = read(data)
    assert len(samples) == len(PCM) // 2
    assert fault == f"two recordings in one: the second begins at byte {second:,}"


def test_a_file_that_breaks_off_in_front_of_its_sound_is_said_to_be_cut_off() -> None:
    with pytest.raises(DualSLMError, match="cut off in its last page"):
        load(encoded("OGG", "VORBIS")[:1000])


@pytest.mark.parametrize("kind", ["AIFF", "AU", "W64", "CAF", "WAV", "MP3", "OGG", "FLAC"])
def test_damaged_bytes_are_one_line_or_what_there_is(tmp_path: Path, kind: str) -> None:
    whole = encoded(kind)
    drawn = np.random.default_rng(0)
    path = tmp_path / "a"  # a file: one in memory may be sought anywhere
    for _ in range(40):
        data = bytearray(whole)
        for at in drawn.integers(0, 200, 6):
            data[at] = drawn.integers(256)
        path.write_bytes(data)
        for function in (read, duration):
            with suppress(DualSLMError):  # and no other error
                function(path)


def test_a_chunk_that_reaches_beyond_every_disk_is_one_line(tmp_path: Path) -> None:
    for name, data in (("caf", CAF), ("w64", W64)):
        huge = struct.pack(">Q" if name == "caf" else "<Q", 2**61)
        at = 12 if name == "caf" else 56  # the size of the first chunk
        (tmp_path / name).write_bytes(data[:at] + huge + data[at + 8 :])
        for function in (read, duration):
            with pytest.raises(DualSLMError, match="cannot decode"):
                function(tmp_path / name)


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    for verify in (False, True):
        assert probe(tmp_path / "a.wav", 30.0, verify=verify).reason == UNREADABLE
    for function in (load, duration):
        with pytest.raises(DualSLMError, match="a pipe or a device"):
            function(tmp_path / "a.wav")


@pytest.mark.parametrize("head", [b"RIFF\0\0\0\0WAVE", b"OggS", b"ID3\x04\0\0\0\0\0\0", b"\xff\xf3\x14\xc4"])
def test_a_file_made_to_keep_the_reader_busy_does_not(head: bytes) -> None:
    # 8 MB of empty chunks, pages and frames: each is walked through a bounded number of times.
    for body in (bytes(1 << 23), (b"OggS" + bytes(23)) * 300_000, (b"\xff\xe3\x18\xc4" + bytes(68)) * 100_000):
        with suppress(DualSLMError):
            read(head + body, longest=5)
