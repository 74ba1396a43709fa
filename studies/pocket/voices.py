"""Speaks the texts in many synthetic voices: hibari's, made into other people's, and espeak-ng's for a tenth of them.

hibari (Apache-2.0; its voices are distilled from Kokoro-82M, Apache-2.0) gives what its network says of a text, a
spectrum with and without voice, pitch and noise, before it renders them. Between the two lies a source and a filter, so
that another speaker is another pitch, another length of vocal tract and another tilt. espeak-ng (GPL-3.0; its output is
not covered by that licence) speaks in the tiny world's voices, which are formants of another kind altogether.

Every draw follows from a text's id, so that a clip is the same in whichever process it is made.
"""

from __future__ import annotations

import gzip
import importlib
import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from dualslm.audio import SAMPLE_RATE
from dualslm.errors import DualSLMError
from dualslm.files import replacing

Samples: TypeAlias = NDArray[np.float32]
Speak: TypeAlias = Callable[[str, "Speaker", random.Random], Samples]
ESPEAK_SHARE = 0.1  # of the texts: a second kind of voice, and one that sounds like nobody
ESPEAK_WORDS = 12  # the tiny world's voices speak for 8 s at most
SECONDS = (0.4, 12.0)  # of a clip, s; the encoder's widest window for clips is 12 s
BINS = 601  # of hibari's spectra, up to 12 kHz
VOICED_HZ = 40.0  # hibari writes a lower pitch where there is no voice


@dataclass(frozen=True)
class Speaker:
    """Who speaks: what is changed of hibari's own voice.

    Attributes:
        tract: length of the vocal tract, of hibari's own.
        pitch: mean fundamental frequency, Hz.
        swing: how far the pitch moves about its mean, of hibari's own.
        speed: of hibari's own.
        tilt: of the spectrum, nepers from the lowest to the highest frequency, times four.
        breath: level of the noise in voiced sounds, nepers.
        creak: level of the noise elsewhere, nepers.
    """

    tract: float
    pitch: float
    swing: float
    speed: float
    tilt: float
    breath: float
    creak: float


def draw_speaker(rng: random.Random) -> Speaker:
    """A speaker, with a tract and a pitch that go together: long and low, or short and high.

    The ranges are those of adults, and a little of children; they were chosen by ear (assumed).
    """
    is_male = rng.random() < 0.55  # hibari's own voice is a woman's, so men are the ones that are invented
    low, high = (80.0, 150.0) if is_male else (155.0, 280.0)
    return Speaker(
        tract=rng.uniform(1.06, 1.24) if is_male else rng.uniform(0.90, 1.06),
        pitch=math.exp(rng.uniform(math.log(low), math.log(high))),
        swing=rng.uniform(0.6, 1.5),
        speed=min(1.5, max(0.65, rng.gauss(1.0, 0.17))),
        tilt=rng.uniform(-6.0, 6.0),
        breath=rng.uniform(-0.5, 0.7),
        creak=rng.uniform(-0.3, 0.3),
    )


class Hibari:
    """hibari's network and vocoder, with the speaker changed in between.

    Raises:
        DualSLMError: hibari-tts is not installed.
    """

    RATE = 24_000  # Hz

    def __init__(self) -> None:
        self.package = _package("hibari", "hibari-tts")
        self.dsp = _package("hibari.dsp", "hibari-tts")
        self.voice: Any = self.package.Hibari()

    def speak(self, text: str, speaker: Speaker, rng: random.Random) -> Samples:
        """The samples (N,) of a text at 24 kHz."""
        pieces = [np.zeros(0, np.float32)]
        for phonemes in self.voice.phonemize(text):
            ids = self.voice.ids(phonemes)
            if len(ids) > 2:  # more than the marks of its beginning and its end
                pieces.append(self._sentence(ids, speaker, rng))
        return np.concatenate(pieces)

    def _sentence(self, ids: list[int], speaker: Speaker, rng: random.Random) -> Samples:
        asked = {"ids": np.asarray([ids], np.int64), "speed": np.asarray([speaker.speed], np.float32)}
        # Harmonic spectrum, threshold, noise in voiced and in other sounds, phases, pitch; each for its one sentence.
        harmonic, threshold, voiced, unvoiced, phases, pitch = (one[0] for one in self.voice.sess.run(None, asked))
        pitch = other_pitch(pitch, speaker, rng)
        slope = (np.linspace(0, 1, BINS, dtype=np.float32)[:, None] - 0.2) * speaker.tilt / 4
        harmonic = longer_tract(harmonic, speaker.tract) + slope
        voiced = longer_tract(voiced, speaker.tract) + slope + speaker.breath
        unvoiced = longer_tract(unvoiced, speaker.tract) + slope + speaker.creak
        noise = np.random.default_rng(rng.getrandbits(32))
        samples: Samples = self.dsp.synth(harmonic, threshold, voiced, unvoiced, phases, pitch, noise)
        return samples


def other_pitch(pitch: Samples, speaker: Speaker, rng: random.Random) -> Samples:
    """The pitch of each frame at the speaker's own mean and swing, within what a larynx does."""
    out = pitch.copy()
    voiced = pitch > VOICED_HZ
    if voiced.any():
        logs = np.log(pitch[voiced])
        mean = math.log(speaker.pitch) + rng.uniform(-0.05, 0.05)  # nobody speaks two sentences at one pitch
        out[voiced] = np.clip(np.exp(mean + speaker.swing * (logs - logs.mean())), 50.0, 500.0)
    return out


def longer_tract(spectrum: Samples, tract: float) -> Samples:
    """A spectrum (bins, frames) whose resonances lie lower by so much, as those of a longer tract do."""
    last = len(spectrum) - 1
    position = np.arange(len(spectrum), dtype=np.float32) * tract
    below = np.minimum(position.astype(int), last - 1)
    weight = np.clip(position - below, 0, 1)[:, None].astype(np.float32)
    out: Samples = spectrum[below] * (1 - weight) + spectrum[below + 1] * weight
    return out


def lexicon() -> set[str]:
    """The words, in lower case, that hibari knows how to pronounce without guessing.

    Raises:
        DualSLMError: hibari-tts is not installed.
    """
    folder = Path(str(_package("hibari", "hibari-tts").__file__)).parent
    words: dict[str, Any] = json.loads(gzip.decompress((folder / "assets" / "lexicon_us_gold.json.gz").read_bytes()))
    return {word for word in words if word.isalpha() and word.islower()}


def espeak(text: str, rng: random.Random) -> Samples:
    """The samples (N,) of a text at 16 kHz in one of the tiny world's voices."""
    from dualslm.tiny.style import ATTRIBUTES
    from dualslm.tiny.voices import say

    # Without emotion, whose voices are caricatures that only the tiny world needs.
    style = [rng.choice(ATTRIBUTES[name]) for name in ("gender", "pitch", "tempo")]
    return say(text, style, rng.getrandbits(31))


# ---------------------------------------------------------------------- microphones and rooms


def telephone(samples: Samples, rng: random.Random) -> Samples:
    """The recording through a telephone: its band, and in half of the cases its eight bits."""
    signal = _package("scipy.signal", "scipy")
    band = [rng.uniform(150, 400), rng.uniform(3000, 3800)]  # Hz
    out = signal.sosfilt(signal.butter(4, band, "band", fs=SAMPLE_RATE, output="sos"), samples)
    if rng.random() < 0.5:
        mu = 255  # G.711
        peak = float(np.abs(out).max()) + 1e-6
        pressed = np.sign(out) * np.log1p(mu * np.abs(out / peak)) / np.log1p(mu)
        pressed = np.round(pressed * 127) / 127
        out = peak * np.sign(pressed) * ((1 + mu) ** np.abs(pressed) - 1) / mu
    heard: Samples = out.astype(np.float32)
    return heard


def recorded(samples: Samples, rng: random.Random) -> Samples:
    """The voice as a microphone somewhere would record it: room, telephone, noise, level (shares are assumed)."""
    out = np.asarray(samples, np.float32)
    noise = np.random.default_rng(rng.getrandbits(32))
    if rng.random() < 0.25:
        out = _room(out, rng, noise)
    if rng.random() < 0.28:
        out = telephone(out, rng)
    level = float(np.sqrt(np.mean(out**2))) + 1e-9
    if rng.random() < 0.5:
        # White or, more often, falling by 6 dB an octave, as noises of streets and machines do.
        hiss = noise.standard_normal(len(out))
        if rng.random() < 0.7:
            hiss = np.cumsum(hiss)
            hiss -= np.convolve(hiss, np.ones(161) / 161, "same")  # without what lies below 100 Hz
        hiss /= float(np.sqrt(np.mean(hiss**2))) + 1e-9
        out = out + hiss * level * 10 ** (-rng.uniform(8, 38) / 20)  # dB
    out = out / level * 10 ** (-rng.uniform(16, 36) / 20)  # dB of full scale
    heard: Samples = (out / max(1.0, float(np.abs(out).max()) / 0.98)).astype(np.float32)
    return heard


def _room(samples: Samples, rng: random.Random, noise: np.random.Generator) -> Samples:
    signal = _package("scipy.signal", "scipy")
    length = int(rng.uniform(0.1, 0.5) * SAMPLE_RATE)
    echo = noise.standard_normal(length) * np.exp(-6 * np.arange(length) / length) * rng.uniform(0.02, 0.12)
    echo[0] = 1.0
    out: Samples = signal.fftconvolve(samples, echo)[: len(samples) + length // 3]
    return out


def other_speed(samples: Samples, rng: random.Random) -> Samples:
    """A recording played 4 to 18 % faster or 3 to 15 % slower; pitch and tract move with it, as of another body."""
    factor = rng.choice((rng.uniform(0.85, 0.97), rng.uniform(1.04, 1.18)))
    out: Samples = soxr.resample(samples, SAMPLE_RATE * factor, SAMPLE_RATE)
    return out


# ---------------------------------------------------------------------- files


def speak(texts: Path, out: Path, part: int = 1, parts: int = 1) -> int:
    """Speaks a part of the texts; those that have a clip already are passed over.

    Args:
        texts: `texts.jsonl`.
        out: folder of the clips and of `part-I.jsonl`, which lists them.
        part: number of this part, from 1.
        parts: number of parts.

    Returns:
        The number of new clips.
    """
    if not texts.exists():
        raise DualSLMError(f"there is no {texts}", got="no texts", do="run the step texts first")
    out.mkdir(parents=True, exist_ok=True)
    listing = out / f"part-{part}.jsonl"
    done = {json.loads(line)["id"] for file in out.glob("part-*.jsonl") for line in file.read_text().splitlines()}
    hibari = Hibari()
    count = 0
    rows = [json.loads(line) for line in texts.read_text().splitlines()][part - 1 :: parts]
    with listing.open("a") as file:
        for row in rows:
            if row["id"] in done:
                continue
            clip = _clip(row, hibari.speak)
            if clip is None:
                continue
            voice, samples = clip
            # Folders of a few hundred files each: file systems and people are slow with more.
            path = out / row["id"][-6:-3] / f"{row['id']}.flac"
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as partial:
                soundfile.write(partial, samples, SAMPLE_RATE, format="FLAC")
            seconds = round(len(samples) / SAMPLE_RATE, 2)
            listed = {**row, "audio": path.relative_to(out).as_posix(), "seconds": seconds, "voice": voice}
            file.write(json.dumps(listed) + "\n")
            file.flush()  # a run that is killed keeps what it has spoken
            count += 1
    print(f"{count} clips of {len(rows)} texts")
    return count


def _clip(
    row: Mapping[str, str], hibari: Callable[[str, Speaker, random.Random], Samples]
) -> tuple[str, Samples] | None:
    """The kind of voice and the samples of a text; None where it comes out too short or too long."""
    rng = random.Random(row["id"])
    if rng.random() < ESPEAK_SHARE and len(row["text"].split()) <= ESPEAK_WORDS:
        voice, samples = "espeak", espeak(row["text"], rng)
    else:
        spoken = hibari(row["text"], draw_speaker(rng), rng)
        voice, samples = "hibari", soxr.resample(spoken.astype(np.float32), Hibari.RATE, SAMPLE_RATE)
    if len(samples) < SECONDS[0] * SAMPLE_RATE:
        return None
    # Silence of a drawn length: at clips that begin at once, L would learn that speech does.
    before, after = (np.zeros(int(SAMPLE_RATE * max(0.0, rng.gauss(0.12, 0.12))), np.float32) for _ in range(2))
    samples = recorded(np.concatenate([before, samples, after]), rng)
    return (voice, samples) if len(samples) <= SECONDS[1] * SAMPLE_RATE else None


def _package(module: str, package: str) -> ModuleType:
    """A module of a package that only this study needs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DualSLMError(f"this step needs {package}", got=str(error), do=f"pip install {package}") from error
