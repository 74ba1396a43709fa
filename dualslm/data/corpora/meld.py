"""MELD: lines of a television series with an emotion each, by official splits (paper §IV-A: emotion).

The metadata is walked, not the folder: archives hold clips without a row, and there are rows without a clip. Dialogue
ids begin again in every split, and utterance ids have gaps. Video is converted to wav once, beside the manifests.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from dualslm.data.corpora.base import (
    KNOWN_BAD,
    LABEL_UNKNOWN,
    NO_TRANSCRIPT,
    UNREADABLE,
    Corpus,
    Entry,
    Raw,
    first_folder,
    table,
    translate,
    walk,
)
from dualslm.errors import DualSLMError
from dualslm.files import replacing

CSVS = {"train": "train_sent_emo.csv", "validation": "dev_sent_emo.csv", "test": "test_sent_emo.csv"}
# The split of each folder that clips are known to lie in; the innermost one counts.
FOLDERS = {
    **dict.fromkeys(("train_splits", "train_splits_wav", "train"), "train"),
    **dict.fromkeys(("dev_splits_complete", "dev_splits_complete_wav", "dev"), "validation"),
    **dict.fromkeys(("output_repeated_splits_test", "output_repeated_splits_test_wav", "test"), "test"),
}
CSV_FOLDERS = ("", "MELD.Raw", "MELD", "data/MELD", "MELD.Raw/train", "train")
COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
SUFFIXES = (".wav", ".flac", ".mp4")  # in order of preference

# The emotions of the release, github.com/declare-lab/MELD, README "Labels"; they keep their names.
EMOTIONS = ("neutral", "joy", "sadness", "anger", "surprise", "fear", "disgust")
LABELS = {"emotion": {name: name for name in EMOTIONS}}

# Source: issues 39 and 52 (damaged file), 22 and 27 (no such file) of github.com/declare-lab/MELD.
BAD = {
    ("train", "dia125_utt3"): "the video has no index (issues 39 and 52)",
    ("validation", "dia110_utt7"): "there is no such clip (issues 22 and 27)",
}


def rows(raw: Raw) -> Iterator[Entry]:
    """One entry for each row of the three metadata files."""
    root = first_folder(raw.root, CSV_FOLDERS, CSVS["train"], "MELD")
    metadata = {split: list(table(_csv(raw.root, root, name), COLUMNS)) for split, name in CSVS.items()}
    raw.total = sum(map(len, metadata.values()))
    clips = clips_of(raw.root)
    for split, lines in metadata.items():
        for line in lines:
            yield _entry(raw, split, line, clips)


def _csv(top: Path, root: Path, name: str) -> Path:
    """A metadata file: beside the others, or in its split's own folder."""
    side = name.split("_")[0]
    folders = (root, root / side, root.parent / side, root.parent, top, top / side)
    # Where there is none, the path beside the others is the one that the error names.
    return next((folder / name for folder in folders if (folder / name).is_file()), root / name)


def clips_of(root: Path) -> dict[tuple[str, str], Path]:
    """The clips below a folder by split and name; of several files of one clip, the first of `SUFFIXES` counts."""
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(walk(root, SUFFIXES), key=lambda path: (SUFFIXES.index(path.suffix.lower()), str(path))):
        splits = [FOLDERS[part] for part in path.relative_to(root).parts[:-1] if part in FOLDERS]
        if splits:
            found.setdefault((splits[-1], path.stem), path)
    return found


def _entry(raw: Raw, split: str, line: Mapping[str, str], clips: Mapping[tuple[str, str], Path]) -> Entry:
    stem = f"dia{line['Dialogue_ID']}_utt{line['Utterance_ID']}"
    name = f"{split}/{stem}"
    if (split, stem) in BAD:
        return Entry(split, name, KNOWN_BAD, BAD[split, stem])
    labels, unknown = translate({"emotion": line["Emotion"].strip()}, LABELS)
    if unknown:
        return Entry(split, name, LABEL_UNKNOWN, unknown)
    words = " ".join(line["Utterance"].split())
    if not words:
        return Entry(split, name, NO_TRANSCRIPT)
    path = clips.get((split, stem))
    if path is not None and path.suffix.lower() == ".mp4":
        sound = raw.out / "audio" / split / f"{stem}.wav"
        if fault := _extract(path, sound):
            return Entry(split, name, UNREADABLE, fault)
        path = sound
    dialogue = f"{split}/{line['Dialogue_ID']}"
    part = {"transcript": words, "labels": labels}
    row = {"dialogue": dialogue, "speaker": line["Speaker"], "source": CSVS[split]}
    return raw.spoken(split, name, path, part=part, row=row)


def _extract(video: Path, sound: Path) -> str:
    """Converts a video to 16 kHz mono wav unless that is done already; returns ffmpeg's error, or ""."""
    if sound.is_file():
        return ""
    program = shutil.which("ffmpeg")
    if program is None:
        raise DualSLMError(
            "these clips are video and ffmpeg is not installed",
            got=f"{video.name}",
            do="install ffmpeg, or extract the wavs",
        )
    sound.parent.mkdir(parents=True, exist_ok=True)
    # Without metadata and in bit-exact mode, so that ffmpeg does not write its version into the file.
    form = ["-vn", "-ac", "1", "-ar", "16000", "-c:a", "pcm_s16le", "-map_metadata", "-1", "-bitexact", "-f", "wav"]
    try:
        with replacing(sound) as partial:
            command = [program, "-nostdin", "-v", "error", "-y", "-i", str(video), *form, str(partial)]
            subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        return str((error.stderr.strip().splitlines() or ["ffmpeg failed"])[-1])
    return ""


CORPUS = Corpus(
    name="meld",
    about="lines of a television series (declare-lab/MELD), for emotion",
    rows=rows,
    tasks=("emotion",),
    labels=LABELS,
    apart=lambda _: ("clip", "dialogue"),  # the same six actors speak in every split
)
