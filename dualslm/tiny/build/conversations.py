"""Recordings and conversations of the tiny world on disk: the data of `dualslm train recipes/tiny.toml` (ours).

A folder of FLAC clips and manifests (docs/manifest.md). Each recording has a conversation of questions and a
transcription. Where it says something that can be answered, it also ends a conversation whose label is the frozen
LLM's own reply to the styled transcript (paper §III-B). Transcriptions of random words have a manifest of their own,
`train-soups.jsonl`: they make every word as frequent as any other, but a small LLM that cannot guess the next word
gives L poor guidance.
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
from rich.progress import track

from dualslm.conversation import ORACLE, Conversation, Part, Speech
from dualslm.errors import new_console
from dualslm.files import replacing
from dualslm.model.dualslm import DualSLM
from dualslm.recipe import TaskKind
from dualslm.tiny import world
from dualslm.tiny.build.recordings import Take, plan, waves
from dualslm.tiny.voices import RATE

AUGMENTED_SHARE = 0.3  # share of the recordings with reverberation or noise
REPLY_BATCH = 256  # conversations
Row = tuple[str, TaskKind, Conversation]


def write(model: DualSLM, folder: Path, sizes: dict[str, int], processes: int) -> None:
    """Renders the recordings and writes the manifests; a manifest that exists is left as it is.

    Args:
        model: model whose LLM replies; its adapters are not used.
        folder: folder of the manifests, and of the clips in `clips`.
        sizes: number of recordings of each manifest, by name, such as "train" and "validation".
        processes: number of processes that render side by side.
    """
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    for name, count in sizes.items():
        manifest = folder / f"{name}.jsonl"
        if not manifest.exists():
            takes = _render(folder, name, count, processes)
            sentences = [take for take in takes if take.utterance.kind != "soup"]
            soups = [take for take in takes if take.utterance.kind == "soup"]
            questions: list[Row] = [
                (f"{take.speech.audio!s}/voice", "paralinguistic", world.questions(take.speech, _rng("voice", take)))
                for take in takes
            ]
            conversations = _with_replies(model, _conversations(takes))
            _write(folder / f"{name}-soups.jsonl", _transcriptions(soups))
            # Written last: where this manifest exists, the one of the soups is complete as well.
            _write(manifest, [*_transcriptions(sentences), *questions, *conversations])


def _render(folder: Path, name: str, count: int, processes: int) -> list[Take]:
    """Renders the recordings to files; returns their takes."""
    draw = partial(world.sample_utterance, held_out=False)
    takes, jobs = plan(name, count, draw, held_out_voices=False)
    for index, wave in enumerate(waves(jobs, name, AUGMENTED_SHARE, processes)):
        samples = np.clip(wave * 32767, -32768, 32767).astype(np.int16)
        soundfile.write(folder / _file(takes[index].speech), samples, RATE, format="FLAC")
    return takes


def _file(speech: Speech) -> str:
    """The path of a recording, relative to the manifest's folder."""
    assert isinstance(speech.audio, str)
    return f"clips/{speech.audio.replace('/', '-')}.flac"


def _transcriptions(takes: Sequence[Take]) -> list[Row]:
    return [
        (f"{take.speech.audio!s}/words", "linguistic", world.transcription(take.speech, _rng("words", take)))
        for take in takes
    ]


def _rng(task: str, take: Take) -> random.Random:
    # Each recording and task has a seed of its own: no example depends on how many others there are.
    return random.Random(f"{task}/{take.speech.audio!s}")


def _conversations(takes: Sequence[Take]) -> list[Row]:
    """A conversation without its reply for each recording that can be answered; earlier turns are typed or spoken."""

    def earlier(rng: random.Random, kind: world.Kind) -> tuple[world.Utterance, Part]:
        if rng.random() < 0.5:
            # Among 50 recordings there is nearly always a fact and mostly small talk; else the turn is typed.
            for take in rng.sample(takes, min(len(takes), 50)):
                if take.utterance.kind == kind:
                    return take.utterance, take.speech
        return world.typed(rng, kind)

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


def _with_replies(model: DualSLM, rows: Sequence[Row]) -> list[Row]:
    """The rows with the LLM's own replies to the styled transcripts."""
    complete: list[Row] = []
    starts = range(0, len(rows), REPLY_BATCH)
    for start in track(starts, "answering", console=new_console(stderr=True)):
        batch = rows[start : start + REPLY_BATCH]
        replies = model.reply([conversation for _, _, conversation in batch], view=ORACLE)
        for (name, kind, conversation), reply in zip(batch, replies, strict=True):
            # `assistant` appends in place; the caller's rows stay without a reply.
            complete.append((name, kind, conversation.copy().assistant(reply)))
    return complete


def _write(manifest: Path, rows: Sequence[Row]) -> None:
    lines = []
    for name, kind, conversation in rows:
        turns = [{"role": turn.role, "parts": [_part(part) for part in turn.parts]} for turn in conversation.turns]
        lines.append(json.dumps({"id": name, "kind": kind, "system": conversation.system, "turns": turns}) + "\n")
    with replacing(manifest) as partial_file:
        partial_file.write_text("".join(lines))


def _part(part: Part) -> str | dict[str, Any]:
    if not isinstance(part, Speech):
        return part
    known = {"transcript": part.transcript, "caption": part.caption, "labels": dict(part.labels)}
    return {"audio": _file(part), **known}
