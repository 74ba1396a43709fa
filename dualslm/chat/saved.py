"""A talk in a folder, with its audio: saved, and loaded to go on with the same reply (ours).

`talk.json` holds the turns in the shape that manifests have (docs/manifest.md), and a `tone` beside the `audio` of a
recording that was given another's. Recordings are kept as the samples that were heard, 16 kHz in 32-bit floats, so
nothing is lost, and are named by their content. The talk is written last: a folder without it is none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import soundfile

from dualslm.audio import SAMPLE_RATE, load
from dualslm.conversation import Conversation, Part, Speech
from dualslm.errors import DualSLMError
from dualslm.files import replacing

TALK, FORMAT = "talk.json", 1


def save(folder: Path, conversation: Conversation, settings: Mapping[str, str | None]) -> Path:
    """Saves a talk; one that was saved in the folder before is replaced.

    Args:
        folder: made where it is missing.
        conversation: with all its turns.
        settings: how it is heard, for whoever goes on with it.

    Raises:
        DualSLMError: a folder of something else, or one that cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / TALK).is_file():
        raise DualSLMError(f"{folder} holds something else", got="files and no talk.json", do="name a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        turns = [
            {"role": turn.role, "parts": [_written(part, folder) for part in turn.parts]} for turn in conversation.turns
        ]
        whole = {"format": FORMAT, "system": conversation.system, "turns": turns, "settings": dict(settings)}
        with replacing(folder / TALK) as partial:
            partial.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    except (OSError, soundfile.LibsndfileError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DualSLMError(f"cannot save the talk in {folder}", got=reason, do="name another folder") from error
    return folder


def restore(folder: Path) -> tuple[Conversation, dict[str, str | None]]:
    """A saved talk and its settings; the recordings are read, so that the folder may go.

    Raises:
        DualSLMError: no talk there, or a recording of it that cannot be used.
    """
    try:
        whole = json.loads((folder / TALK).read_text())
        if whole["format"] != FORMAT:
            raise ValueError(f"format {whole['format']!r}, not {FORMAT}")
        conversation = Conversation(whole["system"])
        for turn in whole["turns"]:
            add = {"user": conversation.user, "assistant": conversation.assistant}[turn["role"]]
            add(*(_read(part, folder) for part in turn["parts"]))
        return conversation, dict(whole["settings"])
    except DualSLMError:
        raise
    except OSError as error:
        do = "name a folder that /save wrote"
        raise DualSLMError(f"there is no talk in {folder}", got=error.strerror, do=do) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        got = f"{type(error).__name__}: {error}"
        raise DualSLMError(f"{folder / TALK} is no saved talk", got=got, do="save it again") from error


def _written(part: Part, folder: Path) -> str | dict[str, Any]:
    """A part as it stands in talk.json, its recording written."""
    if isinstance(part, str):
        return part
    row: dict[str, Any] = {"audio": None if part.audio is None else _keep(part, folder)}
    row |= {"transcript": part.transcript, "caption": part.caption, "labels": dict(part.labels)}
    row["tone"] = None if part.tone is None else _written(part.tone, folder)
    return {key: value for key, value in row.items() if value}


def _keep(speech: Speech, folder: Path) -> str:
    assert speech.audio is not None
    samples = load(speech.audio, speech.rate)
    name = f"{blake2b(samples.tobytes(), digest_size=8).hexdigest()}.wav"
    if not (folder / name).exists():
        with replacing(folder / name) as partial:
            soundfile.write(partial, samples, SAMPLE_RATE, subtype="FLOAT", format="WAV")
    return name


def _read(part: str | Mapping[str, Any], folder: Path) -> Part:
    if isinstance(part, str):
        return part
    audio, tone = part.get("audio"), part.get("tone")
    toned = None if tone is None else _read(tone, folder)
    assert not isinstance(toned, str), "a tone is a recording or a caption"
    return Speech(
        None if audio is None else load(folder / audio),
        transcript=part.get("transcript"),
        caption=part.get("caption"),
        labels=part.get("labels") or {},
        tone=toned,
    )
