"""Recordings → manifests by `dualslm prepare jsonl`: RAVDESS by actor, FSDD by speaker, LibriSpeech for the record.

A manifest holds one speaker, so that which speakers are trained on is which manifests a recipe names. Beside the
recordings stand altered copies of them (`alter`), and strings of an FSDD speaker's digits, which are learnt from and
never tested on.
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
SPOKEN = ("asr", "gender", "emotion", "respond")
COPIED = ("emotion",)  # words and gender need no more examples, and digits would drown
TESTED_TAKES = range(0, 20)  # of FSDD, clean and one digit each; all others are for learning
LEARNT_TAKES = range(20, 50)
LONGEST_STRING = 6  # digits
GAP = 0.25  # s between two digits at most


def actors(folder: Path, out: Path, copies: int = 0) -> list[str]:
    """RAVDESS' spoken clips below a folder as manifests `out/actorNN.jsonl`, and altered copies beside them.

    Returns:
        The names of the actors.

    Raises:
        DualSLMError: no file there is named as RAVDESS names spoken clips.
    """
    found = [(path, fields) for path in _sounds(folder) if (fields := ravdess(path))]
    if not found:
        got, do = "none", "give a folder with files such as Actor_19/03-01-05-01-01-01-19.wav"
        raise DualSLMError(f"no spoken clip of RAVDESS in {folder}", got=got, do=do)
    rows = [(fields["speaker"], conversation(fields, str(path.resolve()), SPOKEN)) for path, fields in found]
    _prepare(rows, out)
    for copy in range(1, copies + 1):
        altered = []
        for path, fields in found:
            name = f"{fields['id']}-{copy}"
            target = out / "altered" / f"{name}.flac"
            if not target.exists():
                _write(target, alter(load(path), name))
            altered.append((f"{fields['speaker']}-{copy}", conversation(fields, str(target.resolve()), COPIED, name)))
        _prepare(altered, out / f"copy{copy}")
    return sorted({fields["speaker"] for _, fields in found})


def digits(folder: Path, out: Path, strings: int, singles: int) -> None:
    """FSDD as manifests `out/SPEAKER-test.jsonl`, clean single digits, and `out/SPEAKER.jsonl` to learn from."""
    clips: dict[str, list[tuple[str, int, Path]]] = {name: [] for name in SPEAKERS}
    for path in _sounds(folder):
        if (known := digit(path)) and known[1] in clips:
            clips[known[1]].append((known[0], known[2], path))
    rows: list[tuple[str, dict[str, Any]]] = []
    for speaker, own in clips.items():
        for word, take, path in own:
            if take in TESTED_TAKES:
                fields = {"id": path.stem, "speaker": speaker, "transcript": word, "labels": {"gender": "male"}}
                rows.append((f"{speaker}-test", conversation(fields, str(path.resolve()), ("asr",))))
        learnt = [(word, path) for word, take, path in own if take in LEARNT_TAKES]
        for number in range(strings + singles):
            rows.append(
                (speaker, _string(speaker, number, learnt, out, most=LONGEST_STRING if number < strings else 1))
            )
    _prepare(rows, out)


def _string(speaker: str, number: int, clips: Sequence[tuple[str, Path]], out: Path, most: int) -> dict[str, Any]:
    """Some digits of one speaker, one after the other."""
    name = f"{speaker}-{number}"
    rng = random.Random(name)
    chosen = rng.choices(clips, k=rng.randint(min(2, most), most))
    target = out / "strings" / f"{name}.flac"
    if not target.exists():
        gaps = [np.zeros(int(rng.uniform(0, GAP) * SAMPLE_RATE), np.float32) for _ in range(len(chosen) + 1)]
        parts = [part for (_, path), gap in zip(chosen, gaps[1:], strict=True) for part in (load(path), gap)]
        _write(target, alter(np.concatenate([gaps[0], *parts]), name))
    words = " ".join(word for word, _ in chosen)
    fields = {"id": name, "speaker": speaker, "transcript": words, "labels": {"gender": "male"}}
    return conversation(fields, str(target.resolve()), ("asr",))


def librispeech(folder: Path, out: Path) -> None:
    """The clips of LibriSpeech that are there, as one manifest `out/librispeech.jsonl`; nothing learns from it."""
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
    """The recording at another speed, in a room, through another microphone, in noise, at another level.

    Every draw follows from the name. Speed also moves pitch and formants, as another speaker's body would.
    """
    rng = np.random.default_rng(list(name.encode()))
    out = soxr.resample(samples.astype(np.float64), SAMPLE_RATE * rng.uniform(0.88, 1.14), SAMPLE_RATE)
    if rng.random() < 0.5:
        out = _room(out, rng)
    level = float(np.sqrt(np.mean(out**2))) + 1e-9
    if rng.random() < 0.6:  # up to 3 dB an octave, around 1 kHz
        out = _filtered(out, 3.0 / 20 * rng.uniform(-1, 1) / np.log10(2))
    if rng.random() < 0.7:
        noise = _filtered(rng.standard_normal(len(out)), -rng.uniform(0, 0.6))
        out = out + noise * level / np.sqrt(np.mean(noise**2)) * 10 ** (-rng.uniform(15, 40) / 20)  # dB
    out = out * 10 ** (rng.uniform(-8, 8) / 20)  # dB
    quiet: NDArray[np.float32] = (out / max(1.0, float(np.abs(out).max()) / 0.99)).astype(np.float32)
    return quiet


def _room(samples: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Reverberation of 0.08 to 0.4 s: the sound itself, then noise that dies away by 60 dB."""
    seconds = rng.uniform(0.08, 0.4)
    times = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(times)) * 10 ** (-3 * times / seconds)
    tail *= rng.uniform(0.1, 0.5) / np.sqrt(np.sum(tail**2))
    tail[0] += 1.0
    heard: NDArray[Any] = fftconvolve(samples, tail)[: len(samples)]
    return heard


def _filtered(samples: NDArray[Any], power: float) -> NDArray[Any]:
    """The samples with their spectrum times a power of frequency, 1 at 1 kHz."""
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
    """Lines by manifest, through `dualslm prepare jsonl`."""
    files: dict[str, list[dict[str, Any]]] = {}
    for name, row in rows:
        files.setdefault(name, []).append(row)
    raw = out.with_name(f"{out.name}-raw")
    raw.mkdir(parents=True, exist_ok=True)
    changed = False
    for name, lines in files.items():
        text, file = "".join(json.dumps(line) + "\n" for line in lines), raw / f"{name}.jsonl"
        if not file.exists() or file.read_text() != text:
            changed = True
            with replacing(file) as partial:
                partial.write_text(text)
    prepare(CORPUS, raw, out, options={"split-by": "clip"}, tasks=SPOKEN, again=changed)
