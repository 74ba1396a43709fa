"""The tiny world's synthesiser: text and a style in, speech out (ours; needs the extra `voices`).

espeak-ng speaks, in voices of our own: gender is the length of the vocal tract (formants), pitch is the
absolute fundamental frequency whatever the gender, tempo is espeak's rate; `effects` adds the emotion's voice
quality, and energy is the level, set last. Each class stands clear of the next one, and everything else
jitters with the seed. A job always gives the same bytes, in any process and any order.

Dimensions: N samples of 16 kHz mono.
"""

from __future__ import annotations

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

from dualslm.errors import DualSLMError
from dualslm.tiny.style import Style, parse_style

RATE = 16_000  # Hz
ESPEAK_RATE = 22_050  # Hz, espeak-ng's own
MAX_SECONDS = 8.0  # the window of the tiny world's encoder
FOLDER = "dualslm-voices-"
JOBS_AT_ONCE = 16  # jobs sent to a process together

PITCH_HZ = {"low": 93.0, "middle": 160.0, "high": 275.0}  # mean fundamental: 80-110, 140-185, 235-320 Hz
TEMPO_WPM = {"slow": 122.0, "steady": 178.0, "fast": 262.0}  # words a minute, as espeak counts them
ENERGY_RMS = {"quiet": 0.018, "moderate": 0.06, "loud": 0.2}  # of full scale: 10 dB apart
# How far the voice rises and falls, ± as a fraction of the pitch.
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
        name: what the speaker is called.
        gender: "male" or "female".
        tract: formant scale; 1 is espeak's own male voice, larger is a shorter vocal tract.
        held_out: kept for tests, never heard in training.
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
        Voice(name, gender, low + (high - low) * (place + 0.5) / len(names[gender].split()), held_out)
        for gender, (low, high) in TRACT.items()
        for place, name in enumerate(names[gender].split())
    )


VOICES = _cast(TRAINING_VOICES, False) + _cast(HELD_OUT_VOICES, True)


def voices(gender: str | None = None, *, held_out: bool = False) -> tuple[Voice, ...]:
    """The training voices, or the held-out ones, of one gender or of both."""
    return tuple(v for v in VOICES if v.held_out == held_out and gender in (None, v.gender))


def say(text: str, style_words: Sequence[str] = (), seed: int = 0) -> NDArray[np.float32]:
    """Speaks a sentence, e.g. `say("i lost my key", ["sad", "fast"])`.

    Args:
        text: English, at most 8 seconds of it.
        style_words: attribute values, see `style.ATTRIBUTES`; the others keep their defaults.
        seed: another seed is another speaker and another rendition.

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
    effects, soxr = _extra("dualslm.tiny.effects"), _extra("soxr")
    rng = np.random.default_rng(seed)
    pcm_N = _engine(os.getpid()).speak(
        re.sub(r"\s+([,.!?;:])", r"\1", text),  # a lone "." would be read out
        variant=_variant(voice, style, rng),
        accent=_accent(voice),
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
    wave_N = effects.colour(wave_N, style.emotion, rng)
    loudness = ENERGY_RMS[style.energy] * 10 ** rng.uniform(-0.075, 0.075)  # ± 1.5 dB
    spoken_N: NDArray[np.float32] = effects.level(wave_N, loudness)
    return spoken_N


def room(wave_N: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """The clip heard in a room, see `effects.room`."""
    heard_N: NDArray[np.float32] = _extra("dualslm.tiny.effects").room(wave_N, seed)
    return heard_N


def noise(wave_N: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """The clip in background noise, see `effects.noise`."""
    heard_N: NDArray[np.float32] = _extra("dualslm.tiny.effects").noise(wave_N, seed)
    return heard_N


def render_many(jobs: Sequence[Job], processes: int, *, progress: bool = True) -> Iterator[NDArray[np.int16]]:
    """Renders jobs in several processes, in their order.

    Args:
        jobs: what to render; the result of each does not depend on the others.
        processes: how many at once; 1 renders in this process.
        progress: show a bar on standard error.

    Yields:
        (N,) 16-bit samples of each job, 16 kHz mono: 16 bits are all that the shipped clips keep.
    """
    if jobs:
        _extra("espeakng_loader")  # missing, it is missed here and not in a process of a pool
    track = functools.partial(_track, total=len(jobs)) if progress else iter
    if processes <= 1:
        yield from track(map(_render_job, jobs))
        return
    with (
        tempfile.TemporaryDirectory(prefix=FOLDER) as folder,  # the pool's processes end without tidying up
        multiprocessing.get_context("spawn").Pool(processes, _keeps_files_in, (folder,)) as pool,
    ):
        yield from track(pool.imap(_render_job, jobs, chunksize=JOBS_AT_ONCE))


def _keeps_files_in(folder: str) -> None:
    tempfile.tempdir = folder


def _track(results: Iterator[NDArray[np.int16]], total: int) -> Iterator[NDArray[np.int16]]:
    from rich.console import Console
    from rich.progress import track

    yield from track(results, "speaking", total=total, console=Console(stderr=True))


def _render_job(job: Job) -> NDArray[np.int16]:
    wave_N = render(job.text, job.style, job.voice, job.seed)
    return np.round(wave_N * 32767).astype(np.int16)


def _accent(voice: Voice) -> str:
    return voice.rng.choice(ACCENTS)


def _variant(voice: Voice, style: Style, rng: np.random.Generator) -> str:
    """An espeak-ng voice variant file: the speaker, the pitch class and the emotion's intonation."""
    own = voice.rng
    own.choice(ACCENTS)
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

    RATE_PARAMETER, VOLUME_PARAMETER = 1, 2
    VOLUME = 60  # of 200: leaves room for every voice's peaks

    def __init__(self) -> None:
        loader = _extra("espeakng_loader")
        self.library = loader.get_library_path()
        self.folder = tempfile.TemporaryDirectory(prefix=FOLDER, ignore_cleanup_errors=True)
        self.data = Path(self.folder.name) / "espeak-ng-data"
        shutil.copytree(loader.get_data_path(), self.data, ignore=_not_english)
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
                _unload(espeak)
        return np.concatenate(pieces)

    def _speak(self, espeak: Any, collect: Any, text: bytes, accent: str, words_per_minute: int, seed: int) -> None:
        synchronous, utf8 = 2, 1
        rate = espeak.espeak_Initialize(synchronous, 0, self.folder.name.encode(), 0)
        assert rate == ESPEAK_RATE, rate
        espeak.espeak_SetSynthCallback(collect)
        espeak.espeak_ng_SetRandSeed(ctypes.c_long(seed % 2**31))
        status = espeak.espeak_SetVoiceByName(f"{accent}+v".encode())
        assert status == 0, (accent, status)
        espeak.espeak_SetParameter(self.RATE_PARAMETER, words_per_minute, 0)
        espeak.espeak_SetParameter(self.VOLUME_PARAMETER, self.VOLUME, 0)
        espeak.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 0, 0, utf8, None, None)


def _not_english(_folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "!v" or (name.endswith("_dict") and name != "en_dict")]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@functools.cache
def _engine(process: int) -> _Espeak:
    """One engine for each process, forked ones included: they must not share a variant file."""
    return _Espeak()


def _unload(library: ctypes.CDLL) -> None:
    import _ctypes

    unload = getattr(_ctypes, "FreeLibrary", None) or _ctypes.dlclose
    unload(library._handle)


def _extra(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DualSLMError(
            "speaking needs the extra packages of `voices`",
            got=str(error),
            do="pip install 'dualslm[voices]'",
        ) from error
