"""Short recordings under the names of real ones, for corpora whose recordings are not at hand.

Metadata are real where the tests have them, or a few rows made up here. Every recording is a hard link to one of
four short tones, so that tens of thousands take a moment and no disk space.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile

LENGTHS_S = (0.2, 0.3, 0.4, 0.5)


class Voice:
    """Makes recordings at any path.

    Args:
        folder: folder for the tones, on the same disk as the recordings, which are hard links.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tones"
        self.folder.mkdir(parents=True, exist_ok=True)

    def tone(self, seconds: float, suffix: str) -> Path:
        """A quiet tone as 16 kHz mono wav or flac; `seconds` is its length in s."""
        path = self.folder / f"{seconds}{suffix}"
        if not path.exists():
            samples = 0.1 * np.sin(np.arange(round(seconds * 16_000)) / 5)
            soundfile.write(path, samples.astype(np.float32), 16_000, subtype="PCM_16", format=suffix[1:].upper())
        return path

    def say(self, path: Path, seconds: float | None = None) -> Path:
        """Makes a recording; its length in s follows from its name, unless given."""
        path.parent.mkdir(parents=True, exist_ok=True)
        length = seconds or LENGTHS_S[zlib.crc32(path.name.encode()) % len(LENGTHS_S)]
        os.link(self.tone(length, path.suffix), path)
        return path


MELD_FOLDERS = {
    "release": ("train_splits", "dev_splits_complete", "output_repeated_splits_test"),
    "nested": ("train/train_splits", "dev/dev_splits_complete", "test/output_repeated_splits_test"),
    "extracted": ("train_splits_wav", "dev_splits_complete_wav", "output_repeated_splits_test_wav"),
    "plain": ("train", "dev", "test"),
}


def meld(root: Path, csvs: Path, layout: str = "release", suffix: str = ".wav") -> Path:
    """MELD from its three CSV files: a clip for every row but one, and clips without a row, as in the release."""
    voice = Voice(root)
    for part, folder in zip(("train", "dev", "test"), MELD_FOLDERS[layout], strict=True):
        name = f"{part}_sent_emo.csv"
        shutil.copy(csvs / name, root / name)
        for row in read(root / name):
            stem = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
            if (part, stem) != ("dev", "dia110_utt7"):
                voice.say(root / folder / f"{stem}{suffix}")
        voice.say(root / folder / f"final_videos_testdia9999_utt0{suffix}")
        (root / folder / f"._dia0_utt0{suffix}").write_bytes(b"Mac OS X")
    return root


def styletalk(root: Path, csvs: Path) -> Path:
    """StyleTalk from its two CSV files."""
    voice = Voice(root)
    for name in ("train.csv", "eval.csv"):
        shutil.copy(csvs / name, root / name)
        for row in read(root / name):
            for column in ("curr_audio_id", "res_audio_id"):
                voice.say(root / "audio" / row[column])
    return root


def dailytalk(root: Path, metadata: Path) -> Path:
    """DailyTalk from a file in the form of its metadata.json."""
    voice = Voice(root)
    shutil.copy(metadata, root / "metadata.json")
    for name, rows in json.loads(metadata.read_text(encoding="utf-8")).items():
        for key, row in rows.items():
            voice.say(root / "data" / name / f"{key}_{row['speaker']}_d{name}.wav")
    return root


def librispeech(root: Path, parts: Mapping[str, Sequence[str]], utterances: int = 3) -> Path:
    """LibriSpeech with some speakers in each part and one chapter for each speaker."""
    voice = Voice(root)
    lines = ["; a comment", "60   | M | train-clean-100  | 20.18 | |CBW|Simon"]
    for part, speakers in parts.items():
        for number, speaker in enumerate(speakers):
            lines.append(f"{speaker:5}| {'FM'[number % 2]} | {part:16} | 8.02  | Somebody")
            folder = root / part / speaker / "100"
            names = [f"{speaker}-100-{i:04}" for i in range(utterances)]
            for name in names:
                voice.say(folder / f"{name}.flac")
            text = "".join(f"{name} HE SAID IT'S {name[-1]}\n" for name in names)
            (folder / f"{speaker}-100.trans.txt").write_text(text)
    (root / "SPEAKERS.TXT").write_text("\n".join(lines) + "\n")
    return root


def textrolspeech(
    root: Path, rows: Iterable[Mapping[str, str]], files: Iterable[str], name: str = "random_train"
) -> Path:
    """TextrolSpeech: a caption file, and recordings at paths that need not be those in the file."""
    voice = Voice(root)
    found = list(rows)
    (root / "caption").mkdir(exist_ok=True)
    write(root / "caption" / f"{name}.csv", found)
    for file in files:
        voice.say(root / file)
    return root


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    """Writes rows to a CSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def textrol_path(item: str) -> str:
    """The path of a recording on a disk: LibriTTS by speaker and chapter, others in a tree of their own."""
    if item.count("_") == 3 and "-" not in item:
        speaker, chapter, *_ = item.split("_")
        return f"libritts/train-clean-360/{speaker}/{chapter}/{item}.wav"
    if item.startswith("RAVDESS-"):
        actor, rest = item.removeprefix("RAVDESS-").split("-", 1)
        return f"emotion_dataset/RAVDESS/{actor}/{rest}.wav"
    plain = item.replace("CREMA-D", "CREMA_D").replace("MESS compressed", "MESScompressed")
    return f"emotion_dataset/{plain.replace('-', '/').replace('CREMA_D', 'CREMA-D')}.wav"
