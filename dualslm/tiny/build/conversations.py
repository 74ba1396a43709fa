"""Recordings and talks of the tiny world on disk: what `dualslm train recipes/tiny.toml` learns from (ours).

A folder of FLAC clips and manifests (docs/manifest.md). Of each recording there is a round of questions and a
transcription, and, where it is something that one answers, a talk whose last turn it is, with the frozen LLM's
own reply to the styled transcript (paper §III-B). Transcriptions of random words have a manifest of their own,
`train-soups.jsonl`: they make every word as frequent as any other, but a small LLM that cannot guess the next
word gives L poor guidance.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from rich.console import Console
from rich.progress import track

from dualslm.conversation import ORACLE, Conversation, Part, Speech
from dualslm.files import replacing
from dualslm.model.dualslm import DualSLM
from dualslm.recipe import TaskKind
from dualslm.tiny import world
from dualslm.tiny.build.recordings import Take, plan, waves
from dualslm.tiny.voices import RATE

AUGMENTED = 0.3  # share that is heard in a room or in noise
ANSWERED_AT_ONCE = 256
Row = tuple[str, TaskKind, Conversation]


def write(model: DualSLM, folder: Path, sizes: dict[str, int], processes: int) -> None:
    """Speaks and writes the manifests, for example of "train" and "validation"; one that is there is kept.

    Args:
        model: whose LLM answers; its adapters are not used.
        folder: gets the manifests, and the clips in `clips`.
        sizes: how many recordings each manifest has, by name.
        processes: that speak side by side.
    """
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    for name, count in sizes.items():
        manifest = folder / f"{name}.jsonl"
        if not manifest.exists():
            takes = _speak(folder, name, count, processes)
            sentences = [take for take in takes if take.utterance.kind != "soup"]
            soups = [take for take in takes if take.utterance.kind == "soup"]
            _write(folder / f"{name}-soups.jsonl", _transcriptions(soups))
            conversations = _answered(model, _conversations(takes))
            _write(manifest, [*_transcriptions(sentences), *_questions(takes), *conversations])


def _speak(folder: Path, name: str, count: int, processes: int) -> list[Take]:
    """Renders the recordings; returns takes whose audio is a file."""
    draw = partial(world.sample_utterance, held_out=False)
    takes, jobs = plan(name, count, draw, held_out_voices=False)
    for index, wave in enumerate(waves(jobs, name, AUGMENTED, processes)):
        samples = np.clip(wave * 32767, -32768, 32767).astype(np.int16)
        soundfile.write(folder / _file(takes[index].speech), samples, RATE, format="FLAC")
    return takes


def _file(speech: Speech) -> str:
    """Where a recording lies, from the manifest's folder."""
    assert isinstance(speech.audio, str)
    return f"clips/{speech.audio.replace('/', '-')}.flac"


def _transcriptions(takes: Sequence[Take]) -> list[Row]:
    return [
        (f"{take.speech.audio!s}/words", "linguistic", world.transcription(take.speech, _rng("words", take)))
        for take in takes
    ]


def _questions(takes: Sequence[Take]) -> list[Row]:
    return [
        (f"{take.speech.audio!s}/voice", "paralinguistic", world.questions(take.speech, _rng("voice", take)))
        for take in takes
    ]


def _rng(task: str, take: Take) -> random.Random:
    return random.Random(f"{task}/{take.speech.audio!s}")


def _conversations(takes: Sequence[Take]) -> list[Row]:
    """A talk that ends with each recording that can be answered, earlier turns typed or spoken."""
    earlier = partial(_earlier, takes)
    rows: list[Row] = []
    for take in takes:
        rng = _rng("talk", take)
        if take.utterance.kind == "event":
            conversation = world.sample_talk(rng, take.speech, take.utterance, take.style, earlier).conversation
        elif take.utterance.kind != "soup":
            conversation = Conversation(rng.choice(world.LISTEN_PROMPTS)).user(take.speech)
        else:
            continue
        rows.append((f"{take.speech.audio!s}/talk", "dual", conversation))
    return rows


def _earlier(takes: Sequence[Take], rng: random.Random, kind: world.Kind) -> tuple[world.Utterance, Part]:
    """A fact or small talk for the history of a talk: half of them recorded, half typed."""
    for take in rng.sample(takes, min(len(takes), 50)) if rng.random() < 0.5 else ():
        if take.utterance.kind == kind:
            return take.utterance, take.speech
    return world.typed(rng, kind)


def _answered(model: DualSLM, rows: Sequence[Row]) -> list[Row]:
    """The rows with the LLM's own replies to the styled transcripts."""
    answered: list[Row] = []
    starts = range(0, len(rows), ANSWERED_AT_ONCE)
    for start in track(starts, "answering", console=Console(stderr=True)):
        some = rows[start : start + ANSWERED_AT_ONCE]
        replies = model.reply([conversation for _, _, conversation in some], view=ORACLE)
        answered += [
            (name, kind, conversation.copy().assistant(reply))
            for (name, kind, conversation), reply in zip(some, replies, strict=True)
        ]
    return answered


def _write(manifest: Path, rows: Sequence[Row]) -> None:
    with replacing(manifest) as partial_file:
        partial_file.write_text("".join(map(_line, rows)))


def _line(row: Row) -> str:
    name, kind, conversation = row
    turns = [{"role": turn.role, "parts": [_part(part) for part in turn.parts]} for turn in conversation.turns]
    return json.dumps({"id": name, "kind": kind, "system": conversation.system, "turns": turns}) + "\n"


def _part(part: Part) -> str | dict[str, Any]:
    if not isinstance(part, Speech):
        return part
    known = {"transcript": part.transcript, "caption": part.caption, "labels": dict(part.labels)}
    return {"audio": _file(part), **known}
