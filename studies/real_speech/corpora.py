"""Recordings → manifests by `dualslm prepare jsonl`: RAVDESS by actor, FSDD by speaker, LibriSpeech for the record.

A manifest holds one speaker, so that the manifests of a recipe say which speakers are in its training data. Beside the
recordings there are altered copies of them (`alter`) and strings of an FSDD speaker's digits, for training alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from dualslm.audio import SAMPLE_RATE, load
from dualslm.data.corpora.jsonl import CORPUS
from dualslm.data.corpora.prepare import prepare
from dualslm.errors import DualSLMError
from dualslm.files import replacing
from studies.real_speech.wording import SPEAKERS, conversation, digit, ravdess

SOUNDS = (".flac", ".wav")
TASKS = ("asr", "gender", "emotion", "respond")  # of a RAVDESS clip
COPY_TASKS = ("emotion",)  # words and gender need no more examples, and would outnumber the digits
TEST_TAKES = range(0, 20)  # of FSDD, clean single digits
TRAINING_TAKES = range(20, 50)
MAX_STRING_DIGITS = 6
MAX_GAP_S = 0.25  # between two digits


def actors(folder: Path, out: Path, copies: int = 0) -> list[str]:
    """Writes RAVDESS' spoken clips as manifests `out/actorNN.jsonl`, and their copies as `out/copyN/actorNN-N.jsonl`.

    Args:
        folder: folder of the recordings, at any depth.
        out: folder of the manifests.
        copies: number of altered copies of each clip.

    Returns:
        The names of the actors, sorted.

    Raises:
        DualSLMError: no file there is named as RAVDESS names spoken clips.
    """
    found = [(path, fields) for path in _sounds(folder) if (fields := ravdess(path))]
    if not found:
        do = "give a folder with files such as Actor_19/03-01-05-01-01-01-19.wav"
        raise DualSLMError(f"no spoken clip of RAVDESS in {folder}", got="none", do=do)
    rows = [(fields["speaker"], conversation(fields, str(path.resolve()), TASKS)) for path, fields in found]
    _prepare(rows, out)
    for copy in range(1, copies + 1):
        altered = []
        for path, fields in found:
            name = f"{fields['id']}-{copy}"
            target = out / "altered" / f"{name}.flac"
            if not target.exists():
                _write(target, alter(load(path), name))
            row = conversation(fields, str(target.resolve()), COPY_TASKS, name)
            altered.append((f"{fields['speaker']}-{copy}", row))
        _prepare(altered, out / f"copy{copy}")
    return sorted({fields["speaker"] for _, fields in found})


def digits(folder: Path, out: Path, strings: int, singles: int) -> None:
    """Writes FSDD as manifests `out/SPEAKER.jsonl` for training and `out/SPEAKER-test.jsonl` of clean single digits.

    Args:
        folder: folder of the recordings, at any depth.
        out: folder of the manifests.
        strings: number of strings of digits of each speaker.
        singles: number of altered single digits of each speaker.
    """
    clips: dict[str, list[tuple[str, int, Path]]] = {name: [] for name in SPEAKERS}
    for path in _sounds(folder):
        if (known := digit(path)) and known[1] in clips:
            clips[known[1]].append((known[0], known[2], path))
    rows: list[tuple[str, dict[str, Any]]] = []
    for speaker, own in clips.items():
        for word, take, path in own:
            if take in TEST_TAKES:
                fields = {"id": path.stem, "speaker": speaker, "transcript": word, "labels": {"gender": "male"}}
                rows.append((f"{speaker}-test", conversation(fields, str(path.resolve()), ("asr",))))
        training = [(word, path) for word, take, path in own if take in TRAINING_TAKES]
        for number in range(strings + singles):
            most = MAX_STRING_DIGITS if number < strings else 1
            rows.append((speaker, _string(speaker, number, training, out, most)))
    _prepare(rows, out)


def _string(speaker: str, number: int, clips: Sequence[tuple[str, Path]], out: Path, most: int) -> dict[str, Any]:
    """One row of up to `most` digits of one speaker in sequence; renders the recording where it is missing."""
    name = f"{speaker}-{number}"
    rng = random.Random(name)
    chosen = rng.choices(clips, k=rng.randint(min(2, most), most))
    target = out / "strings" / f"{name}.flac"
    if not target.exists():
        gaps = [np.zeros(int(rng.uniform(0, MAX_GAP_S) * SAMPLE_RATE), np.float32) for _ in range(len(chosen) + 1)]
        # FSDD's clips are trimmed: without pauses of drawn length, all strings would have the rhythm of the cuts.
        parts = [part for (_, path), gap in zip(chosen, gaps[1:], strict=True) for part in (load(path), gap)]
        _write(target, alter(np.concatenate([gaps[0], *parts]), name))
    words = " ".join(word for word, _ in chosen)
    fields = {"id": name, "speaker": speaker, "transcript": words, "labels": {"gender": "male"}}
    return conversation(fields, str(target.resolve()), ("asr",))


def librispeech(folder: Path, out: Path) -> None:
    """Writes all clips of LibriSpeech that are there to one manifest `out/librispeech.jsonl`, for tests alone."""
    rows = []
    for listing in sorted(folder.rglob("*.trans.txt")):
        for line in listing.read_text().splitlines():
            name, _, text = line.partition(" ")
            path = listing.parent / f"{name}.flac"
            if path.exists():
                fields = {"id": name, "speaker": name.split("-")[0], "transcript": text.lower()}
                rows.append(("librispeech", conversation(fields, str(path.resolve()), ("asr",))))
    if rows:
        _prepare(rows, out)


# ---------------------------------------------------------------------- altered copies


def alter(samples: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """The recording at another speed, with echoes, through another microphone, with noise, at another level.

    Args:
        samples: recording at 16 kHz.
        name: name of the copy, from which every draw follows.
    """
    rng = np.random.default_rng(list(name.encode()))
    # Resampling also moves pitch and formants, as another speaker's body would.
    out = soxr.resample(samples.astype(np.float64), SAMPLE_RATE * rng.uniform(0.88, 1.14), SAMPLE_RATE)
    if rng.random() < 0.5:
        out = _reverberate(out, rng)
    level = float(np.sqrt(np.mean(out**2))) + 1e-9
    if rng.random() < 0.6:  # up to 3 dB an octave, around 1 kHz
        out = _filtered(out, 3.0 / 20 * rng.uniform(-1, 1) / np.log10(2))
    if rng.random() < 0.7:
        noise = _filtered(rng.standard_normal(len(out)), -rng.uniform(0, 0.6))
        out = out + noise * level / np.sqrt(np.mean(noise**2)) * 10 ** (-rng.uniform(15, 40) / 20)  # dB
    out = out * 10 ** (rng.uniform(-8, 8) / 20)  # dB
    quiet: NDArray[np.float32] = (out / max(1.0, float(np.abs(out).max()) / 0.99)).astype(np.float32)
    return quiet


def _reverberate(samples: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Reverberation of 0.08 to 0.4 s: the sound itself, then noise that dies away by 60 dB."""
    seconds = rng.uniform(0.08, 0.4)
    times = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(times)) * 10 ** (-3 * times / seconds)
    tail *= rng.uniform(0.1, 0.5) / np.sqrt(np.sum(tail**2))
    tail[0] += 1.0
    reverberant: NDArray[Any] = fftconvolve(samples, tail)[: len(samples)]
    return reverberant


def _filtered(samples: NDArray[Any], power: float) -> NDArray[Any]:
    """The samples with their spectrum multiplied by a power of the frequency, which is 1 at 1 kHz."""
    # Below 60 Hz the factor stays: a negative power would blow up whatever hum a recording has.
    hertz = np.maximum(np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE), 60.0)
    return np.fft.irfft(np.fft.rfft(samples) * (hertz / 1000.0) ** power, len(samples))


# ---------------------------------------------------------------------- files


def _sounds(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DualSLMError(f"{folder} is not a folder", got="nothing there", do="give the folder of the recordings")
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SOUNDS)


def _write(target: Path, samples: NDArray[np.float32]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial:
        soundfile.write(partial, samples, SAMPLE_RATE, format="FLAC")


def _prepare(rows: Iterable[tuple[str, dict[str, Any]]], out: Path) -> None:
    """Writes rows to manifests by `dualslm prepare jsonl`.

    Args:
        rows: name of the manifest and row.
        out: folder of the manifests.
    """
    files: dict[str, list[dict[str, Any]]] = {}
    for name, row in rows:
        files.setdefault(name, []).append(row)
    raw = out.with_name(f"{out.name}-raw")
    raw.mkdir(parents=True, exist_ok=True)
    changed = False  # prepared anew only where a row differs: a second start of the study takes no time
    for name, lines in files.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        file = raw / f"{name}.jsonl"
        if not file.exists() or file.read_text() != text:
            changed = True
            with replacing(file) as partial:
                partial.write_text(text)
    prepare(CORPUS, raw, out, options={"split-by": "clip"}, tasks=TASKS, again=changed)
