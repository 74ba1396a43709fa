"""What turns a plain synthetic voice into a tone of voice, and a clean clip into a lived-in one (ours).

Emotions are voice quality: brightness, darkness, tremor, roughness, breath. They leave alone what the other
attributes are about: mean pitch, tempo, and level, which is set last. Reverberation and noise are augmentations and
keep the level too.

Dimensions: N samples of 16 kHz mono. Everything random comes from the generator that is passed in.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import signal

RATE = 16_000  # Hz
FULL_SCALE = 0.98  # the soft limiter's ceiling
SILENCE = 0.01  # of the clip's peak: quieter edges are silence

Wave = NDArray[np.float32]
Random = np.random.Generator


def tilt(wave_N: Wave, corner_hz: float, gain_db: float) -> Wave:
    """A first-order shelf: raises or lowers everything above the corner by `gain_db`."""
    sos = signal.butter(1, corner_hz, "highpass", fs=RATE, output="sos")
    return np.asarray(wave_N + (10 ** (gain_db / 20) - 1) * signal.sosfilt(sos, wave_N), np.float32)


def tremor(wave_N: Wave, rate_hz: float, depth: float, bend: float, rng: Random) -> Wave:
    """Trembles in level (by ± `depth`) and in pitch (by ± `bend`, both as fractions) at `rate_hz`."""
    time_N = np.arange(len(wave_N)) / RATE
    phase_N = 2 * np.pi * rate_hz * time_N + rng.uniform(0, 2 * np.pi)
    delay = bend / (2 * np.pi * rate_hz)  # seconds: its derivative is the bend
    bent_N = np.interp(time_N + delay * np.sin(phase_N), time_N, wave_N)
    return np.asarray(bent_N * (1 + depth * np.cos(phase_N)), np.float32)


def rough(wave_N: Wave, rate_hz: float, depth: float, drive: float, rng: Random) -> Wave:
    """A pressed, rasping voice: fast amplitude modulation, then saturation by `drive` times full scale."""
    phase_N = 2 * np.pi * rate_hz * np.arange(len(wave_N)) / RATE + rng.uniform(0, 2 * np.pi)
    scaled_N = wave_N / _peak(wave_N) * (1 + depth * np.sin(phase_N))
    return np.asarray(np.tanh(drive * scaled_N), np.float32)


def breathy(wave_N: Wave, level: float, rng: Random) -> Wave:
    """Adds breath: noise above 1.5 kHz that follows the voice's loudness, `level` times as strong."""
    high = signal.butter(2, 1500, "highpass", fs=RATE, output="sos")
    slow = signal.butter(1, 12, "lowpass", fs=RATE, output="sos")
    loudness_N = np.maximum(signal.sosfilt(slow, np.abs(wave_N)), 0)
    breath_N = signal.sosfilt(high, rng.standard_normal(len(wave_N))) * loudness_N
    return np.asarray(wave_N + level * breath_N, np.float32)


def color(wave_N: Wave, emotion: str, rng: Random) -> Wave:
    """Gives a clip the voice quality of an emotion."""
    # Each emotion has an effect of its own, whose strength varies from clip to clip as it does among speakers.
    if emotion == "happy":
        return tilt(wave_N, 1800, rng.uniform(8, 11))
    if emotion == "sad":
        dark_N = tilt(tilt(wave_N, 900, rng.uniform(-9, -7)), 3000, -6)
        # A slow tremor, about the rate of a vibrato; that of fear is twice as fast.
        return tremor(dark_N, rng.uniform(4.8, 6.0), rng.uniform(0.35, 0.45), 0.012, rng)
    if emotion == "angry":
        pressed_N = tilt(wave_N, 1000, rng.uniform(3, 5))
        return rough(pressed_N, rng.uniform(38, 55), rng.uniform(0.5, 0.65), rng.uniform(4, 6), rng)
    if emotion == "afraid":
        shaking_N = tremor(wave_N, rng.uniform(9, 11), rng.uniform(0.45, 0.55), 0.03, rng)
        return breathy(shaking_N, rng.uniform(0.7, 0.95), rng)
    return wave_N


def trim(wave_N: Wave, keep_s: float = 0.08) -> Wave:
    """Cuts the silence from both ends, except the last `keep_s` seconds of it."""
    loud = np.flatnonzero(np.abs(wave_N) > SILENCE * _peak(wave_N))
    keep = round(keep_s * RATE)
    return wave_N[max(0, loud[0] - keep) : loud[-1] + 1 + keep]


def level(wave_N: Wave, rms: float) -> Wave:
    """Scales to a root-mean-square of about `rms` of full scale; peaks are limited softly, never clipped."""
    # Hard clipping would make loud clips rough, and roughness is what tells an angry voice from others.
    scaled_N = wave_N * (rms / _rms(wave_N))
    return np.asarray(FULL_SCALE * np.tanh(scaled_N / FULL_SCALE), np.float32)


def reverberate(wave_N: Wave, seed: int) -> Wave:
    """The clip with exponentially decaying echoes, T60 of 0.1-0.4 s; the same length and level."""
    rng = np.random.default_rng([seed, 1])
    t60 = rng.uniform(0.1, 0.4)
    decay_N = 10 ** (-3 * np.arange(round(t60 * RATE)) / (t60 * RATE))
    echoes_N = rng.standard_normal(len(decay_N)) * decay_N
    echoes_N *= rng.uniform(0.2, 0.6) / np.linalg.norm(echoes_N)
    echoes_N[0] = 1.0  # the direct sound
    reverberant_N = signal.fftconvolve(wave_N, echoes_N)[: len(wave_N)]
    return level(reverberant_N.astype(np.float32), _rms(wave_N))


def add_noise(wave_N: Wave, seed: int) -> Wave:
    """The clip with background noise, 15-35 dB below it, anything from white to brownish."""
    rng = np.random.default_rng([seed, 2])
    hiss_N = rng.standard_normal(len(wave_N))
    pole = rng.uniform(0.0, 0.97)
    hiss_N = signal.lfilter([1.0], [1.0, -pole], hiss_N)
    hiss_N *= _rms(wave_N) * 10 ** (-rng.uniform(15, 35) / 20) / _rms(hiss_N)
    return np.asarray(wave_N + hiss_N, np.float32)


def _rms(wave_N: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(wave_N, dtype=np.float64)))) + 1e-9


def _peak(wave_N: Wave) -> float:
    return float(np.max(np.abs(wave_N))) + 1e-9
