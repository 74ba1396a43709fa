"""The tiny world's synthesizer: text and a style in, speech out (ours; needs the extra `voices`).

espeak-ng renders the text with voice files of our own. Gender is the length of the vocal tract (formants), pitch the
absolute fundamental frequency whatever the gender, tempo espeak's rate. `effects` adds the emotion's voice quality,
and energy is the level, set last. The classes of an attribute do not overlap; everything else varies with the seed.
A job always gives the same bytes, in any process and any order.

Dimensions: N samples of 16 kHz mono.
"""

from __future__ import annotations

import _ctypes
import ctypes
import functools
import importlib
import multiprocessing
import os
import random
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualslm.data.progress import Progress
from dualslm.errors import DualSLMError
from dualslm.tiny.style import Style, parse_style

RATE = 16_000  # Hz
ESPEAK_RATE = 22_050  # Hz, espeak-ng's own
MAX_SECONDS = 8.0  # s, the window of the tiny world's encoder
FOLDER_PREFIX = "dualslm-voices-"
JOBS_PER_CHUNK = 16  # jobs sent to a process together

PITCH_HZ = {"low": 93.0, "middle": 160.0, "high": 275.0}  # mean fundamental: 80-110, 140-185, 235-320 Hz
TEMPO_WPM = {"slow": 122.0, "steady": 178.0, "fast": 262.0}  # words a minute, as espeak counts them
ENERGY_RMS = {"quiet": 0.018, "moderate": 0.06, "loud": 0.2}  # of full scale: 10 dB apart
# How far the voice rises and falls, ± as a fraction of the pitch. The pitch classes stay apart at the widest swing.
INTONATION = {"neutral": 0.12, "happy": 0.30, "sad": 0.04, "angry": 0.15, "afraid": 0.17}
TRACT = {"male": (0.85, 1.0), "female": (1.16, 1.32)}  # formant scale

TRAINING_VOICES = {
    "male": "adam alan boris carl diego edgar felix gavin harold ivan jonas karim "
    "leon marco nolan oscar pablo quentin ralph simon tariq ulrich victor walter",
    "female": "alice beth clara diana elena fiona grace hanna irene julia kate laura "
    "maria nadia olga paula quinn rosa sofia tessa uma vera wendy zoe",
}
HELD_OUT_VOICES = {
    "male": "yusuf bruno dmitri henri kenji tomas",
    "female": "yara brenda dora helga kiko tamara",
}
TONE = ((600, 170), (1200, 135), (2000, 110))  # espeak's own equaliser: Hz, height
ACCENTS = ("en-us", "en-us-nyc", "gmw/en", "gmw/en-GB-x-rp", "en-gb-scotland", "gmw/en-GB-x-gbclan")


@dataclass(frozen=True)
class Voice:
    """A speaker, whose sound follows from the name and the length of the vocal tract.

    Attributes:
        name: name of the speaker, which also seeds the voice.
        gender: "male" or "female".
        tract: formant scale; 1 is espeak's own male voice, larger is a shorter vocal tract.
        held_out: whether the voice belongs to the test set.
    """

    name: str
    gender: str
    tract: float
    held_out: bool = False

    @property
    def rng(self) -> random.Random:
        """A generator that always starts the same for this voice."""
        return random.Random(f"voice {self.name}")


@dataclass(frozen=True)
class Job:
    """One utterance to render; `render(**vars(job))` gives its samples."""

    text: str
    style: Style
    voice: Voice
    seed: int


def _cast(names: dict[str, str], held_out: bool) -> tuple[Voice, ...]:
    """Spreads the voices of each gender evenly over its range of vocal tracts."""
    return tuple(
        Voice(name, gender, low + (high - low) * (index + 0.5) / len(names[gender].split()), held_out)
        for gender, (low, high) in TRACT.items()
        for index, name in enumerate(names[gender].split())
    )


VOICES = _cast(TRAINING_VOICES, False) + _cast(HELD_OUT_VOICES, True)


def voices(gender: str | None = None, *, held_out: bool = False) -> tuple[Voice, ...]:
    """The training voices, or the held-out ones, of one gender or of both."""
    return tuple(v for v in VOICES if v.held_out == held_out and gender in (None, v.gender))


def say(text: str, style_words: Sequence[str] = (), seed: int = 0) -> NDArray[np.float32]:
    """Speaks a sentence, e.g. `say("i lost my key", ["sad", "fast"])`.

    Args:
        text: English text of at most 8 s of speech.
        style_words: attribute values of `style.ATTRIBUTES`; attributes without one keep their defaults.
        seed: seed of the speaker and of the rendition.

    Returns:
        (N,) samples, 16 kHz mono.

    Raises:
        DualSLMError: unknown style words, nothing to speak, too long, or the extra `voices` is missing.
    """
    style = parse_style(style_words)
    return render(text, style, random.Random(f"say {seed}").choice(voices(style.gender)), seed)


def render(text: str, style: Style, voice: Voice, seed: int) -> NDArray[np.float32]:
    """Speaks a sentence in a style and a voice; the same arguments always give the same samples.

    Returns:
        (N,) samples, 16 kHz mono, silence trimmed.

    Raises:
        DualSLMError: nothing to speak, longer than 8 s, or the extra `voices` is missing.
    """
    assert voice.gender == style.gender, f"{voice.name} cannot speak as {style.gender}"
    effects = _extra("dualslm.tiny.effects")
    soxr = _extra("soxr")
    rng = np.random.default_rng(seed)
    pcm_N = _engine(os.getpid()).speak(
        re.sub(r"\s+([,.!?;:])", r"\1", text),  # a lone "." would be read out
        variant=_variant(voice, style, rng),
        accent=voice.rng.choice(ACCENTS),
        words_per_minute=round(TEMPO_WPM[style.tempo] * rng.uniform(0.95, 1.05)),
        seed=seed,
    )
    if not pcm_N.any():
        raise DualSLMError("nothing to speak", got=repr(text), do="give at least one English word")
    wave_N = effects.trim(soxr.resample(pcm_N.astype(np.float32) / 32768, ESPEAK_RATE, RATE))
    if len(wave_N) > MAX_SECONDS * RATE:
        raise DualSLMError(
            "the sentence is too long to speak",
            got=f"{len(wave_N) / RATE:.1f} s",
            do=f"shorten it to {MAX_SECONDS:.0f} s, about 14 words",
        )
    wave_N = effects.color(wave_N, style.emotion, rng)
    loudness = ENERGY_RMS[style.energy] * 10 ** rng.uniform(-0.075, 0.075)  # ± 1.5 dB
    spoken_N: NDArray[np.float32] = effects.level(wave_N, loudness)
    return spoken_N


def reverberate(wave_N: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """The clip with the echoes of a small space, see `effects.reverberate`."""
    augmented_N: NDArray[np.float32] = _extra("dualslm.tiny.effects").reverberate(wave_N, seed)
    return augmented_N


def add_noise(wave_N: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """The clip with background noise, see `effects.add_noise`."""
    augmented_N: NDArray[np.float32] = _extra("dualslm.tiny.effects").add_noise(wave_N, seed)
    return augmented_N


def render_many(jobs: Sequence[Job], processes: int, *, progress: bool = True) -> Iterator[NDArray[np.int16]]:
    """Renders jobs in several processes, in their order.

    Args:
        jobs: the jobs to render; the result of each does not depend on the others.
        processes: number of processes; 1 renders in this process.
        progress: whether to show a progress bar on standard error.

    Yields:
        (N,) 16-bit samples of each job, 16 kHz mono, in which the shipped clips are stored too.
    """

    def tracked(results: Iterator[NDArray[np.int16]]) -> Iterator[NDArray[np.int16]]:
        with Progress("speaking", len(jobs), active=progress) as shown:
            for result in results:
                shown.advance()
                yield result

    if jobs:
        _extra("espeakng_loader")  # a missing package is reported here, once, and not by every process of a pool
    if processes <= 1:
        yield from tracked(map(_render_job, jobs))
        return
    with (
        # A pool's processes are terminated without clean-up: their temporary files go with this folder.
        tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as folder,
        multiprocessing.get_context("spawn").Pool(processes, _set_temporary_folder, (folder,)) as pool,
    ):
        yield from tracked(pool.imap(_render_job, jobs, chunksize=JOBS_PER_CHUNK))


def _set_temporary_folder(folder: str) -> None:
    tempfile.tempdir = folder


def _render_job(job: Job) -> NDArray[np.int16]:
    wave_N = render(job.text, job.style, job.voice, job.seed)
    return np.round(wave_N * 32767).astype(np.int16)


def _variant(voice: Voice, style: Style, rng: np.random.Generator) -> str:
    """An espeak-ng voice variant file: the speaker, the pitch class and the emotion's intonation."""
    own = voice.rng
    own.choice(ACCENTS)  # the first draw of a voice is its accent (`render`); the rest of its sound follows
    centre = PITCH_HZ[style.pitch] * own.uniform(0.95, 1.05) * rng.uniform(0.96, 1.04)
    swing = INTONATION[style.emotion] * rng.uniform(0.9, 1.1)
    lines = [
        "language variant",
        "name v",
        f"pitch {centre * (1 - swing):.0f} {centre * (1 + swing):.0f}",
        f"flutter {own.randint(1, 3)}",
        f"breath {own.randint(0, 2)}",
        "tone " + " ".join(f"{hz} {amp + own.randint(-12, 12)}" for hz, amp in TONE),
        "stressAdd " + " ".join(str(own.randint(-8, 8)) for _ in range(8)),
        f"consonants {own.randint(85, 115)} {own.randint(85, 115)}",
    ]
    for formant in range(1, 9):
        scale = voice.tract * own.uniform(0.97, 1.03) * rng.uniform(0.99, 1.01)
        lines.append(f"formant {formant} {100 * scale:.0f} {own.randint(85, 110)} {own.randint(85, 120)}")
    return "\n".join(lines) + "\n"


class _Espeak:
    """espeak-ng through its C interface, with a private copy of the few data files that English needs."""

    # Numbers of espeak-ng's speak_lib.h.
    SYNCHRONOUS = 2
    UTF8 = 1
    RATE_PARAMETER = 1
    VOLUME_PARAMETER = 2
    VOLUME = 60  # of 200: no voice clips at it

    def __init__(self) -> None:
        loader = _extra("espeakng_loader")
        self.library = loader.get_library_path()
        self.folder = tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, ignore_cleanup_errors=True)
        self.data = Path(self.folder.name) / "espeak-ng-data"

        def not_english(_folder: str, names: list[str]) -> list[str]:
            return [name for name in names if name == "!v" or (name.endswith("_dict") and name != "en_dict")]

        shutil.copytree(loader.get_data_path(), self.data, ignore=not_english)
        self.variant = self.data / "voices" / "!v" / "v"
        self.variant.parent.mkdir(parents=True)
        self.lock = threading.Lock()

    def speak(self, text: str, *, variant: str, accent: str, words_per_minute: int, seed: int) -> NDArray[np.int16]:
        """16-bit samples (N,) at 22.05 kHz.

        The library is loaded anew for each utterance (0.2 ms): its static buffers outlive `espeak_Terminate`,
        so that otherwise an utterance would depend on those before it.
        """
        pieces: list[NDArray[np.int16]] = [np.zeros(0, np.int16)]

        def collect(samples: Any, count: int, _events: Any) -> int:
            if samples and count > 0:
                pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
            return 0

        with self.lock:
            self.variant.write_text(variant)
            espeak = ctypes.CDLL(self.library)
            try:
                self._speak(espeak, _CALLBACK(collect), text.encode(), accent, words_per_minute, seed)
            finally:
                espeak.espeak_Terminate()
                # ctypes has no public way to unload a library; `_ctypes` names it differently on Windows.
                unload = getattr(_ctypes, "FreeLibrary", None) or _ctypes.dlclose
                unload(espeak._handle)
        return np.concatenate(pieces)

    def _speak(self, espeak: Any, collect: Any, text: bytes, accent: str, words_per_minute: int, seed: int) -> None:
        rate = espeak.espeak_Initialize(self.SYNCHRONOUS, 0, self.folder.name.encode(), 0)
        assert rate == ESPEAK_RATE, rate
        espeak.espeak_SetSynthCallback(collect)
        espeak.espeak_ng_SetRandSeed(ctypes.c_long(seed % 2**31))  # flutter and breath are random
        status = espeak.espeak_SetVoiceByName(f"{accent}+v".encode())
        assert status == 0, (accent, status)
        espeak.espeak_SetParameter(self.RATE_PARAMETER, words_per_minute, 0)
        espeak.espeak_SetParameter(self.VOLUME_PARAMETER, self.VOLUME, 0)
        espeak.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 0, 0, self.UTF8, None, None)


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@functools.cache
def _engine(process: int) -> _Espeak:
    """The engine of a process; forked ones have their own, because they must not share a variant file."""
    return _Espeak()


def _extra(module: str) -> ModuleType:
    """A module of the extra `voices`, imported when it is needed: the package works without it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DualSLMError(
            "speaking needs the extra packages of `voices`",
            got=str(error),
            do="pip install 'dualslm[voices]'",
        ) from error
