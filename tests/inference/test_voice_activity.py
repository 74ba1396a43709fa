"""No speech is said to be none, and speech is never refused: by level alone, and by the detector."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray
from support.badaudio import tone, wav

from dualslm.audio import load, silence
from dualslm.conversation import Speech
from dualslm.inference import voice_activity
from dualslm.inference.voice_activity import NoSpeechError, has_speech, no_speech, require_speech
from dualslm.tiny import CLIPS

RATE = 16_000
A_CLIP = next(iter(sorted(CLIPS.glob("*.wav"))))
FALSE_REFUSALS = 0  # of the recordings below


def noise(seconds: float = 1.0, level: float = 0.1, power: float = 0.0, seed: int = 0) -> NDArray[np.float32]:
    """White noise, or noise whose power falls with frequency (1 for pink), of a standard deviation."""
    count = round(seconds * RATE)
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(count))
    made = np.fft.irfft(spectrum / np.maximum(1, np.arange(len(spectrum))) ** (power / 2), count)
    return np.asarray(made / made.std() * level, np.float32)


def constant(rate: int = RATE) -> NDArray[np.float32]:
    return np.full(rate, 0.3, np.float32)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros(RATE, np.float32), "silence"),
        (np.zeros(1, np.float32), "silence"),
        (noise(level=1e-4), "silence"),
        (constant(), "constant"),
        (soxr.resample(constant(8_000), 8_000, RATE), "constant"),
        (constant() + noise(level=1e-4), "constant"),
    ],
    ids=["zeros", "one zero", "-80 dB", "constant", "resampled constant", "offset"],
)
def test_the_level_tells(samples: NDArray[np.float32], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voice_activity, "_detector", lambda: None)
    assert silence(samples) == no_speech(samples) == reason


@pytest.mark.parametrize("level", [1e-3, 0.3])
def test_what_can_be_heard_is_no_silence(level: float) -> None:
    assert silence(noise(level=level)) is None
    # a word of 60 ms in a second of zeros
    samples = np.zeros(RATE, np.float32)
    samples[5000:6000] = noise(level=level)[:1000]
    assert silence(samples) is None


def test_without_the_detector_what_makes_a_sound_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    voice_activity._detector.cache_clear()
    try:
        assert no_speech(noise()) is None
    finally:
        voice_activity._detector.cache_clear()


@pytest.mark.parametrize("level", [0.003, 0.03, 0.3])
@pytest.mark.parametrize("power", [0, 1, 2], ids=["white", "pink", "brown"])
def test_noise_is_no_speech(level: float, power: float) -> None:
    pytest.importorskip("silero_vad")
    assert no_speech(noise(2.0, level, power)) == "noise"


def test_hum_and_a_tone_are_no_speech() -> None:
    pytest.importorskip("silero_vad")
    hum = sum(np.sin(2 * np.pi * 50 * k * np.arange(2 * RATE) / RATE) / k for k in range(1, 6)) / 5
    assert no_speech(np.asarray(hum, np.float32)) == "noise"
    assert no_speech(tone(2.0)) == "noise"


@pytest.mark.parametrize("clip", sorted(CLIPS.glob("*.wav")), ids=lambda path: path.stem)
@pytest.mark.parametrize("gain", [1.0, 0.05])
def test_the_shipped_voices_are_speech(clip: Path, gain: float) -> None:
    assert has_speech(load(clip) * np.float32(gain))


@pytest.mark.parametrize("bits", [16, 24])
def test_faint_speech_is_speech_and_faint_noise_is_silence(bits: int) -> None:
    pytest.importorskip("silero_vad")
    steps = 2 ** (bits - 1)
    clip = load(A_CLIP)
    peak = 10 ** (-69 / 20)
    faint = np.round(clip / np.abs(clip).max() * peak * steps).astype(np.float32) / steps
    assert silence(faint) == "silence", "its level alone would refuse it"
    assert no_speech(faint) is None
    for seed in range(3):
        for power in (0, 1):
            quiet = np.round(noise(3, 1e-4, power, seed) * steps).astype(np.float32) / steps
            assert no_speech(quiet) == "silence"


def test_the_company_changes_nothing() -> None:
    """The detector keeps a state, which one recording must not leave to the next."""
    pytest.importorskip("silero_vad")
    for _ in range(2):
        assert no_speech(noise(1.0)) == "noise"
        assert no_speech(load(A_CLIP)) is None


@pytest.mark.parametrize("folder", ["ravdess", "fsdd", "librispeech", "real_speech"])
def test_real_speech_is_not_refused(folder: str, shared: Path) -> None:
    found = [
        path for path in sorted((shared / "data" / folder).rglob("*.*")) if path.suffix in (".flac", ".wav", ".opus")
    ]
    if not found:
        pytest.skip(f"no recordings in {folder}")
    refused = [path.name for path in found[:: max(1, len(found) // 25)] if not has_speech(load(path))]
    assert len(refused) <= FALSE_REFUSALS, refused


def test_the_error_says_which_and_why(tmp_path: Path) -> None:
    silent = Speech(wav(tmp_path / "a.wav", np.zeros(RATE, np.float32)))
    with pytest.raises(NoSpeechError, match=r"no speech in a\.wav: got silence; record it again") as caught:
        require_speech(silent, "a.wav")
    assert caught.value.reason == "silence"
    require_speech(Speech(A_CLIP))
    require_speech(Speech(transcript="Hello."))
    with pytest.raises(NoSpeechError):
        require_speech(Speech(A_CLIP).in_the_tone_of(silent))
