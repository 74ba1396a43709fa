"""What the three corpora say and how they name it: RAVDESS' file names, sentences and emotions, FSDD's digits.

No torch here. Sources: Livingstone and Russo (2018) for RAVDESS' file names; the README of FSDD.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgusted", "surprised")
"""In the order of RAVDESS' third field, which counts from 01."""
SENTENCES = ("Kids are talking by the door.", "Dogs are sitting by the door.")
"""In the order of RAVDESS' fifth field."""
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
SPEECH = ("03", "01")  # modality audio only, vocal channel speech


def ravdess(path: Path) -> dict[str, Any] | None:
    """The fields of a RAVDESS file name such as `03-01-05-01-02-01-16.wav`; None for any other file, and for songs."""
    fields = path.stem.split("-")
    if len(fields) != 7 or not all(field.isdecimal() and len(field) == 2 for field in fields):
        return None
    emotion = int(fields[2])
    sentence = int(fields[4])
    actor = int(fields[6])
    if tuple(fields[:2]) != SPEECH or not (1 <= emotion <= len(EMOTIONS) and 1 <= sentence <= len(SENTENCES)):
        return None
    # Odd numbers are male actors, by the corpus's own convention.
    labels = {"gender": "male" if actor % 2 else "female", "emotion": EMOTIONS[emotion - 1]}
    return {"id": path.stem, "speaker": f"actor{actor:02d}", "labels": labels, "transcript": SENTENCES[sentence - 1]}


def digit(path: Path) -> tuple[str, str, int] | None:
    """Word, speaker and take of an FSDD file such as `7_jackson_32.wav`; None where it is none."""
    number, _, rest = path.stem.partition("_")
    speaker, _, take = rest.rpartition("_")
    if not (number.isdecimal() and take.isdecimal() and speaker) or int(number) >= len(DIGITS):
        return None
    return DIGITS[int(number)], speaker, int(take)


def conversation(fields: Mapping[str, Any], audio: str, tasks: tuple[str, ...], name: str = "") -> dict[str, Any]:
    """A recording as a row for `dualslm prepare jsonl`.

    Args:
        fields: id, speaker, and where they are known transcript and labels.
        audio: path of the recording.
        tasks: tasks of the recording.
        name: id of the row; that of `fields` unless given.
    """
    known = {key: fields[key] for key in ("transcript", "labels") if fields.get(key)}
    # The choices stand in the row, because our own emotion task lists other emotions than RAVDESS has.
    choices = {"choices": {"emotion": list(EMOTIONS)}} if "emotion" in fields.get("labels", {}) else {}
    part = {"audio": audio, **known, **choices}
    turns = [{"role": "user", "parts": [part]}]
    return {"id": name or fields["id"], "speaker": fields["speaker"], "tasks": list(tasks), "turns": turns}
