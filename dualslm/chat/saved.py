"""A conversation in a folder, with its audio: saved, and loaded to go on with the same reply (ours).

`talk.json` holds the turns in the shape that manifests have (docs/manifest.md), and a `tone` beside the `audio` of a
recording that was given another's. Recordings are stored as the samples that the encoder gets, 16 kHz in 32-bit
floats, so nothing is lost, and are named by their content. `talk.json` is written last: without it a folder holds no
saved conversation.
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
from dualslm.files import read_json, replacing

FILE_NAME = "talk.json"  # the name that folders saved by earlier versions have
FORMAT = 1


def save(folder: Path, conversation: Conversation, settings: Mapping[str, str | None]) -> Path:
    """Saves a conversation; one that was saved in the folder before is replaced.

    Args:
        folder: folder for the conversation, made where it is missing.
        conversation: conversation with all its turns.
        settings: views, by name, with which it goes on.

    Raises:
        DualSLMError: a folder of something else, or one that cannot be written.
    """
    # an existing folder is only reused if it is ours: a mistyped name must not mix files into somebody's work
    if folder.is_dir() and any(folder.iterdir()) and not (folder / FILE_NAME).is_file():
        raise DualSLMError(f"{folder} holds something else", got="files and no talk.json", do="name a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        turns = [
            {"role": turn.role, "parts": [_part_json(part, folder) for part in turn.parts]}
            for turn in conversation.turns
        ]
        whole = {"format": FORMAT, "system": conversation.system, "turns": turns, "settings": dict(settings)}
        with replacing(folder / FILE_NAME) as partial:
            partial.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    except (OSError, soundfile.LibsndfileError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DualSLMError(f"cannot save the conversation in {folder}", got=reason, do="name another folder") from error
    return folder


def restore(folder: Path) -> tuple[Conversation, dict[str, str | None]]:
    """A saved conversation and its settings; the recordings are read now, so the folder may be deleted.

    Raises:
        DualSLMError: no conversation in the folder, or a recording of it that cannot be used.
    """
    try:
        (folder / FILE_NAME).stat()  # where nothing is there, another error says so
        whole = read_json(folder / FILE_NAME, "the conversation", "name a folder that /save wrote")
        if whole["format"] != FORMAT:
            raise ValueError(f"format {whole['format']!r}, not {FORMAT}")
        conversation = Conversation(whole["system"])
        for turn in whole["turns"]:
            add = {"user": conversation.user, "assistant": conversation.assistant}[turn["role"]]
            add(*(_part(part, folder) for part in turn["parts"]))
        return conversation, dict(whole["settings"])
    except DualSLMError:  # of a recording: it is a ValueError, and says more than the message below
        raise
    except OSError as error:
        do = "name a folder that /save wrote"
        raise DualSLMError(f"there is no conversation in {folder}", got=error.strerror, do=do) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        got = f"{type(error).__name__}: {error}"
        raise DualSLMError(f"{folder / FILE_NAME} is no saved conversation", got=got, do="save it again") from error


def _part_json(part: Part, folder: Path) -> str | dict[str, Any]:
    """A part as it stands in the file; its recording is written to the folder."""
    if isinstance(part, str):
        return part
    fields: dict[str, Any] = {
        "audio": None if part.audio is None else _write_recording(part, folder),
        "transcript": part.transcript,
        "caption": part.caption,
        "labels": dict(part.labels),
        "tone": None if part.tone is None else _part_json(part.tone, folder),
    }
    return {key: value for key, value in fields.items() if value}


def _write_recording(speech: Speech, folder: Path) -> str:
    """Writes the samples of a recording and gives the file's name."""
    assert speech.audio is not None
    samples = load(speech.audio, speech.rate)
    # named by content, so a recording that is said twice, or lends its tone, is stored once
    name = f"{blake2b(samples.tobytes(), digest_size=8).hexdigest()}.wav"
    if not (folder / name).exists():
        with replacing(folder / name) as partial:
            soundfile.write(partial, samples, SAMPLE_RATE, subtype="FLOAT", format="WAV")
    return name


def _part(saved: str | Mapping[str, Any], folder: Path) -> Part:
    """A part from what stands in the file."""
    if isinstance(saved, str):
        return saved
    audio = saved.get("audio")
    tone = None if saved.get("tone") is None else _part(saved["tone"], folder)
    if isinstance(tone, str):
        raise TypeError("a tone that is neither a recording nor a caption")
    return Speech(
        None if audio is None else load(folder / audio),
        transcript=saved.get("transcript"),
        caption=saved.get("caption"),
        labels=saved.get("labels") or {},
        tone=tone,
    )
