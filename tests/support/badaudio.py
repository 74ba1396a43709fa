"""Recordings that must be refused, each with a word of the expected error."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from dualslm.audio import MAX_SECONDS

Maker = Callable[[Path], Path]


def tone(seconds: float = 1.0, rate: int = 16_000) -> np.ndarray:
    """A quiet 440 Hz tone."""
    return (0.1 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def wav(path: Path, samples: np.ndarray, rate: int = 16_000, subtype: str = "FLOAT") -> Path:
    """Writes a wav file of exactly these samples."""
    soundfile.write(path, samples, rate, format="WAV", subtype=subtype)
    return path


def _bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _truncated_flac(path: Path) -> Path:
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 48_000), 16_000, format="FLAC")
    return _bytes(path, path.read_bytes()[:40_000])


def _two_hours(path: Path) -> Path:
    """A wav header before a sparse file of two hours: it must be refused without reading the samples."""
    data = 2 * 3600 * 16_000
    fmt = struct.pack("<HHIIHH", 1, 1, 16_000, 16_000, 1, 8)
    header = b"RIFF" + struct.pack("<I", 36 + data) + b"WAVEfmt " + struct.pack("<I", 16) + fmt
    with path.open("wb") as file:
        file.write(header + b"data" + struct.pack("<I", data))
        file.truncate(44 + data)
    return path


def _flac_that_lies(path: Path) -> Path:
    """A flac whose header states an hour and whose body holds a second."""
    soundfile.write(path, tone(), 16_000, format="FLAC")
    data = bytearray(path.read_bytes())
    data[22:26] = struct.pack(">I", 2 * MAX_SECONDS * 16_000)
    return _bytes(path, bytes(data))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"

BAD: dict[str, tuple[Maker, str]] = {
    "missing": (lambda path: path, "No such file"),
    "folder": (_folder, "a folder"),
    "text": (lambda path: _bytes(path, b"hello, this is no sound\n" * 40), "Format not recognised"),
    "noise": (lambda path: _bytes(path, bytes(range(256)) * 4), "cannot decode"),
    "zero bytes": (lambda path: _bytes(path, b""), "zero bytes"),
    "zero samples": (lambda path: wav(path, np.zeros(0, np.float32)), "no sound"),
    "NaN": (lambda path: wav(path, np.full(100, np.nan, np.float32)), "NaN or infinite"),
    "infinite": (lambda path: wav(path, np.array([0, np.inf], np.float32)), "NaN or infinite"),
    "integers as floats": (lambda path: wav(path, 20_000 * tone()), "a peak of 2000"),
    "12 channels": (lambda path: wav(path, np.zeros((100, 12), np.float32)), "12 channels"),
    "truncated flac": (_truncated_flac, "lost sync"),
    "two hours": (_two_hours, "7200 s"),
    "lying header": (_flac_that_lies, "3600 s"),
    "pointer": (lambda path: _bytes(path, POINTER), "git lfs pull"),
    "rate": (lambda path: wav(path, tone(), 400), "400 Hz"),
    "nul": (lambda path: path.with_name("a\0b.wav"), "null byte"),
    "device": (lambda _: Path("/dev/null"), "a device"),
}
