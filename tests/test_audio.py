"""Audio: every format becomes 16 kHz mono, every bad recording is refused, frames are counted in one way."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from support.badaudio import BAD, Maker, tone, wav

from dualslm import audio
from dualslm.audio import SAMPLE_RATE, SAMPLES_PER_FRAME, frame_count, load, windows
from dualslm.errors import DualSLMError

RATES = (8_000, 16_000, 22_050, 44_100, 48_000)
EVERY = [
    *((kind, rate, 2e-4) for kind in ("WAV", "FLAC") for rate in (*RATES, 96_000)),
    *((kind, rate, 0.02) for kind in ("OGG", "MP3") for rate in RATES),
]


@pytest.mark.parametrize(("kind", "rate", "tolerance"), EVERY)
def test_every_format_and_rate_sounds_the_same(tmp_path: Path, kind: str, rate: int, tolerance: float) -> None:
    path = tmp_path / "a.audio"
    soundfile.write(path, tone(rate=rate), rate, format=kind)
    samples = load(path)
    assert samples.dtype == np.float32
    assert samples.shape == (SAMPLE_RATE,)
    inner = slice(800, -800)  # filters ring at the ends
    np.testing.assert_allclose(samples[inner], tone()[inner], atol=tolerance)


@pytest.mark.parametrize("channels", range(1, 9))
def test_channels_are_averaged(tmp_path: Path, channels: int) -> None:
    levels = np.linspace(0.2, 1.0, channels)
    path = wav(tmp_path / "a.wav", tone()[:, None] * levels.astype(np.float32))
    np.testing.assert_allclose(load(path), tone() * levels.mean(), atol=1e-6)


@pytest.mark.parametrize("channels", [2, 4])
def test_channels_that_cancel_out_are_heard(tmp_path: Path, channels: int) -> None:
    # One plug of a balanced pair the wrong way round: the mean would be silence.
    signs = np.tile([0.5, -0.5], channels // 2).astype(np.float32)
    path = wav(tmp_path / "a.wav", tone()[:, None] * signs)
    np.testing.assert_allclose(np.abs(load(path)), np.abs(tone()) / 2, atol=1e-6)


def test_one_voice_among_eight_channels_is_averaged(tmp_path: Path) -> None:
    samples = np.zeros((SAMPLE_RATE, 8), np.float32)
    samples[:, 3] = tone()
    np.testing.assert_allclose(load(wav(tmp_path / "a.wav", samples)), tone() / 8, atol=1e-6)


def test_path_bytes_and_array_agree(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", tone(rate=44_100), 44_100)
    samples = load(path)
    np.testing.assert_array_equal(load(str(path)), samples)
    np.testing.assert_array_equal(load(path.read_bytes()), samples)
    np.testing.assert_array_equal(load(tone(rate=44_100), 44_100), samples)


def test_arrays_of_any_float_type_and_layout() -> None:
    wide = np.stack([tone(), -tone()], axis=1).astype(">f8")
    np.testing.assert_array_equal(load(wide[:, 0]), tone())
    assert load(tone().astype(np.float16)).dtype == np.float32


@pytest.mark.parametrize(("make", "word"), BAD.values(), ids=BAD)
def test_bad_recordings_are_refused(tmp_path: Path, make: Maker, word: str) -> None:
    start = time.perf_counter()
    with pytest.raises(DualSLMError, match=word):
        load(make(tmp_path / "a.audio"))
    assert time.perf_counter() - start < 2, "refused before it is decoded"


@pytest.mark.parametrize("name", ["text", "zero bytes", "12 channels", "truncated flac", "pointer"])
def test_bad_bytes_are_refused(tmp_path: Path, name: str) -> None:
    make, word = BAD[name]
    with pytest.raises(DualSLMError, match=word):
        load(make(tmp_path / "a.audio").read_bytes())


@pytest.mark.parametrize(
    ("samples", "rate", "word"),
    [
        (np.zeros(100, np.int16), 16_000, "int16"),
        (np.zeros(100, bool), 16_000, "bool"),
        (np.zeros(100, np.complex64), 16_000, "complex64"),
        (20_000 * tone(), 16_000, "peak of 2000"),
        (np.zeros((2, 100), np.float32), 16_000, "shape"),
        (np.zeros((), np.float32), 16_000, "shape"),
        (np.zeros(0, np.float32), 16_000, "no sound"),
        (np.zeros(1, np.float32), 48_000, "no sound"),
        (np.array([0.0, np.nan]), 16_000, "1 of 2 samples"),
        (np.array([1e300, 0.0]), 16_000, "peak"),
        (tone(), 0, "0 Hz"),
        (np.broadcast_to(np.float32(0), (2 * 3600 * 16_000,)), 16_000, "7200 s"),
    ],
)
def test_bad_arrays_are_refused(samples: np.ndarray, rate: int, word: str) -> None:
    with pytest.raises(DualSLMError, match=word):
        load(samples, rate)


def test_other_things_are_refused() -> None:
    with pytest.raises(DualSLMError, match="a list"):
        load([0.0, 0.1])  # type: ignore[arg-type]


def test_a_raw_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(1000))
    with pytest.raises(DualSLMError, match="headerless"):
        load(tmp_path / "a.raw")


def test_an_mp3_that_states_no_length_is_decoded_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    speech = np.concatenate([np.zeros(16_000), np.random.default_rng(0).uniform(-0.3, 0.3, 32_000)])
    soundfile.write(path, speech, 16_000, format="MP3", bitrate_mode="VARIABLE")
    data = path.read_bytes()
    second_frame = data.index(data[:2], 10)  # the first frame holds nothing but the length
    assert abs(len(load(data[second_frame:])) - len(speech)) < 0.2 * SAMPLE_RATE


def test_frames_for_every_clip_up_to_30_s() -> None:
    samples = np.arange(1, 480_001)
    counted = np.array([frame_count(int(count)) for count in samples])
    assert counted[-1] == 30 * audio.FRAMES_PER_SECOND
    assert ((counted - 1) * SAMPLES_PER_FRAME < samples).all(), "no frame without a sample"
    assert (counted * SAMPLES_PER_FRAME >= samples).all(), "no sample without a frame"


@given(samples=st.integers(1, 5_000), window=st.integers(1, 6_000))
def test_windows_are_a_partition(samples: int, window: int) -> None:
    wave = np.arange(samples, dtype=np.float32)
    pieces = windows(wave, window)
    np.testing.assert_array_equal(np.concatenate(pieces), wave)
    assert all(len(piece) == window for piece in pieces[:-1])
    assert 1 <= len(pieces[-1]) <= window


@given(samples=st.integers(1, 480_000), frames=st.integers(1, 1_500))
def test_windows_of_whole_frames_keep_the_frame_count(samples: int, frames: int) -> None:
    pieces = windows(np.zeros(samples, np.float32), frames * SAMPLES_PER_FRAME)
    assert sum(frame_count(len(piece)) for piece in pieces) == frame_count(samples)


def test_real_recordings(shared: Path) -> None:
    stereo = sorted((shared / "data/odd_audio").glob("*.flac"))[0]
    assert soundfile.info(stereo).channels == 2
    assert abs(len(load(stereo)) / SAMPLE_RATE - soundfile.info(stereo).duration) < 1e-3
    digit = shared / "data/fsdd/recordings/0_george_0.wav"
    assert len(load(digit)) == 2 * soundfile.info(digit).frames
