"""Formats of phones and browsers: decoded, cut off, damaged, and without a decoder."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from support.sounds import SECONDS, sound

from dualslm.audio import SAMPLE_RATE, TooLongError, duration, load, read
from dualslm.audio.media import demuxer_of
from dualslm.data.corpora.base import CUT_OFF
from dualslm.data.corpora.clips import probe
from dualslm.errors import DualSLMError

MEDIA = {
    "matroska": ("webm", "libopus", 48_000),
    "mp4": ("m4a", "aac", 16_000),
    "adts": ("aac", "aac", 16_000),
    "asf": ("wma", "wmav2", 16_000),
}


def media(kind: str, seconds: float = SECONDS, options: dict[str, str] | None = None) -> bytes:
    """A file as a phone or a browser records it."""
    av = pytest.importorskip("av")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a"  # not in memory: an index is put in front by a second opening
        _write(av, path, kind, seconds, options)
        return path.read_bytes()


def _write(av: Any, path: Path, kind: str, seconds: float, options: dict[str, str] | None) -> None:
    _, codec, rate = MEDIA[kind]
    with av.open(str(path), "w", format="webm" if kind == "matroska" else kind, options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.bit_rate = 64_000
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(sound(seconds)[None], format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=rate, frame_size=stream.frame_size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))


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
    assert probe(path, 30.0, verify=True).reason is None
    with pytest.raises(TooLongError):
        read(path.read_bytes(), longest=1.0)


CUT = {
    "webm": ("matroska", {}),
    "webm without a length": ("matroska", {"live": "1"}),
    "m4a with its index in front": ("mp4", {"movflags": "faststart"}),
    "m4a in fragments": ("mp4", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    "aac": ("adts", {}),
    "wma": ("asf", {}),
}


@pytest.mark.parametrize("share", [0.7, 0.95])
@pytest.mark.parametrize("name", CUT)
def test_a_recording_that_is_cut_off_is_read_as_far_as_it_goes_and_said(
    tmp_path: Path, name: str, share: float
) -> None:
    kind, options = CUT[name]
    path = tmp_path / "a"
    whole = media(kind, options=options)
    path.write_bytes(whole)
    assert read(path).fault is None
    path.write_bytes(whole[: int(len(whole) * share)])
    samples, fault = read(path)
    assert 0.3 < len(samples) / SAMPLE_RATE < SECONDS
    assert fault is not None
    assert fault.startswith("cut off")
    assert probe(path, 30.0, verify=True).reason == CUT_OFF
    assert duration(path) == pytest.approx(len(samples) / SAMPLE_RATE, abs=0.01)


def test_an_m4a_without_its_index_is_said_to_be_cut_off() -> None:
    with pytest.raises(DualSLMError, match="cut off"):
        load(media("mp4")[:8000])


def test_an_mp2_with_a_hole_is_said() -> None:
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp2") as container:
        stream = container.add_stream("mp2", rate=SAMPLE_RATE)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray((sound()[None] * 32767).astype("<i2"), format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE, frame_size=stream.frame_size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    data = file.getvalue()
    samples, fault = read(data)
    assert fault is None
    assert len(samples) / SAMPLE_RATE == pytest.approx(SECONDS, abs=0.1)
    middle = len(data) // 2
    holed = data[:middle] + bytes(2000) + data[middle + 2000 :]
    try:
        said = str(read(holed).fault)
    except DualSLMError as error:  # some holes are too much for libsndfile
        said = str(error)
    assert "damaged: no frame at byte" in said


@pytest.mark.parametrize(
    ("codec", "demuxer"), [(b"Speex   1.2", "ogg"), (b"\x7fFLAC\1\0", "ogg"), (b"OpusHead\1", None)]
)
def test_ogg_that_libsndfile_does_not_read_is_given_to_another_decoder(codec: bytes, demuxer: str | None) -> None:
    assert demuxer_of((b"OggS\0\2" + bytes(20) + b"\1\x50" + codec).ljust(64, b"\0")) == demuxer


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
