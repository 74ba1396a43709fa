"""Stated lengths against the bytes: placeholders, files that are cut off, mp3 in wav, and formats of phones."""

from __future__ import annotations

import io
import logging
import os
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dualslm.audio import SAMPLE_RATE, TooLongError, duration, load, read
from dualslm.audio.containers import MAX_PADDING
from dualslm.data.corpora.base import CUT_OFF, UNREADABLE
from dualslm.data.corpora.clips import probe
from dualslm.errors import DualSLMError

SECONDS = 3.2


def sound(seconds: float = SECONDS) -> np.ndarray:
    """Noise without high frequencies, which every codec keeps and no compression empties."""
    steps = np.cumsum(np.random.default_rng(0).normal(size=round(seconds * SAMPLE_RATE)))
    smooth = steps - np.convolve(steps, np.ones(400) / 400, "same")
    samples: np.ndarray = (0.3 * smooth / np.abs(smooth).max()).astype(np.float32)
    return samples


def encoded(kind: str, subtype: str | None = None, seconds: float = SECONDS) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound(seconds), SAMPLE_RATE, format=kind, subtype=subtype)
    return file.getvalue()


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


WAV = encoded("WAV", "PCM_16")
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
    "aiff": encoded("AIFF"),
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


def damaged(data: bytes) -> bytes:
    """A file with a hole in the middle."""
    middle = len(data) // 2
    return data[:middle] + b"\x55" * 700 + data[middle + 700 :]


CUT = {
    "wav": WAV[: len(WAV) * 6 // 10],
    "rf64": rf64(len(PCM))[: len(PCM) * 6 // 10],
    "mp3": encoded("MP3")[: len(encoded("MP3")) * 6 // 10],
    "mp3 without a length": headless_mp3()[: len(headless_mp3()) * 6 // 10],
    "mp3 in wav": mp3_in_wav(encoded("MP3"))[: len(encoded("MP3")) * 6 // 10],
    "opus": encoded("OGG", "OPUS")[: len(encoded("OGG", "OPUS")) * 6 // 10],
    "vorbis": encoded("OGG", "VORBIS")[: len(encoded("OGG", "VORBIS")) * 6 // 10],
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


# ---------------------------------------------------------------------- phones and browsers

MEDIA = {"matroska": ("webm", "libopus", 48_000), "mp4": ("m4a", "aac", 16_000), "adts": ("aac", "aac", 16_000)}


def media(kind: str, seconds: float = SECONDS, options: dict[str, str] | None = None) -> bytes:
    """A file as a phone or a browser records it."""
    av = pytest.importorskip("av")
    _, codec, rate = MEDIA[kind]
    file = io.BytesIO()
    with av.open(file, "w", format="webm" if kind == "matroska" else kind, options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(sound(seconds)[None], format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=rate, frame_size=stream.frame_size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("kind", MEDIA)
def test_recordings_of_phones_and_browsers_are_decoded(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(media(kind))
    samples, fault = read(path)
    assert fault is None
    assert abs(len(samples) / SAMPLE_RATE - SECONDS) < 0.15
    assert np.abs(samples).max() > 0.1
    found = probe(path, 30.0)
    assert found.seconds == pytest.approx(SECONDS, abs=0.5), "an aac stream states no length of its own"
    with pytest.raises(TooLongError):
        read(path.read_bytes(), longest=1.0)


def test_a_webm_that_states_no_length_is_decoded_for_it(tmp_path: Path) -> None:
    path = tmp_path / "a.webm"
    path.write_bytes(media("matroska", options={"live": "1"}))  # as MediaRecorder writes it
    assert duration(path) == pytest.approx(SECONDS, abs=0.1)


@pytest.mark.parametrize("kind", ["matroska", "mp4"])
def test_a_damaged_recording_of_a_phone_is_one_line_or_what_there_is(kind: str) -> None:
    whole = media(kind)
    for count in (8, 40, 200, len(whole) // 2, len(whole) - 10):
        with suppress(DualSLMError):  # and no other error
            assert len(read(whole[:count]).samples) <= (SECONDS + 0.1) * SAMPLE_RATE


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "secret.aac").write_bytes(bytes(1000))
    with pytest.raises(DualSLMError, match="cannot decode"):
        load(f"#EXTM3U\n#EXTINF:1,\nfile://{tmp_path}/secret.aac\n".encode())


WEBM_HEAD = b"\x1a\x45\xdf\xa3" + bytes(60)
M4A_HEAD = b"\0\0\0\x1cftypM4A " + bytes(52)


def without_av(code: str, path: str) -> str:
    script = f"import sys\nsys.modules['av'] = None\nfrom dualslm.audio import load\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PATH": path}, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(("data", "name"), [(WEBM_HEAD, "webm"), (M4A_HEAD, "m4a")])
def test_without_a_decoder_one_line_says_what_to_install(tmp_path: Path, data: bytes, name: str) -> None:
    said = without_av(f"try: load({data!r})\nexcept ValueError as error: print(error)", str(tmp_path)).strip()
    assert said.count("\n") == 0
    assert name in said
    assert "pip install 'dualslm[media]'" in said


def test_ffmpeg_is_used_where_it_is_installed(tmp_path: Path) -> None:
    program = tmp_path / "ffmpeg"  # stands in for the real one: writes half a second of samples
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.stdout.buffer.write(bytes(4 * 24000))\n")
    program.chmod(0o755)
    assert without_av(f"print(len(load({WEBM_HEAD!r})))", str(tmp_path)).strip() == str(SAMPLE_RATE // 2)
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('Invalid data found')\n")
    said = without_av(f"try: load({WEBM_HEAD!r})\nexcept ValueError as error: print(error)", str(tmp_path))
    assert "got Invalid data found" in said
