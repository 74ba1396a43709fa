"""A test set of the tiny world on disk, shaped like those of the paper's tables (ours; needs the extra `voices`).

Manifests like anybody's (docs/manifest.md), of sentences and voices that no part of the model was trained on:
`voice` asks for words and five attributes (Tables I and III), `dialogue` for the emotion of lines of dialogues,
with classes as uneven as MELD's (Table II), `talk` for replies to the same words in two tones, as StyleTalk has
them, after some turns of talk (Table IV).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from dualslm.conversation import Conversation, Speech
from dualslm.files import replacing
from dualslm.recipe import TaskKind
from dualslm.tiny import voices, world
from dualslm.tiny.style import ATTRIBUTES, Style, sample_style
from dualslm.tiny.voices import RATE

CORPUS = "tiny"
SETS = ("voice", "dialogue", "talk")
LINES = 4  # of a dialogue
TONES = 2  # of the same words
UNEVEN = {"neutral": 48, "happy": 22, "angry": 15, "sad": 10, "afraid": 5}  # shares in %, after MELD's test set


@dataclass(frozen=True)
class Said:
    """An utterance: what, how, by whom."""

    name: str
    utterance: world.Utterance
    style: Style
    voice: voices.Voice

    @property
    def job(self) -> voices.Job:
        """What renders it."""
        return voices.Job(self.utterance.text, self.style, self.voice, seed=random.Random(self.name).randrange(2**31))


def write(folder: Path, *, count: int = 80, seed: int = 0, processes: int = 1) -> list[Path]:
    """Speaks and writes the manifests; one that is there is kept.

    Args:
        folder: gets the manifests, and the clips in `clips`.
        count: recordings of each set.
        seed: another one gives other sentences, tones and voices.
        processes: that speak side by side.

    Returns:
        The manifests.

    Raises:
        DualSLMError: the extra `voices` is missing.
    """
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    made = {"voice": (_voice, _asked), "dialogue": (_dialogue, _felt), "talk": (_conversation, _answered)}
    paths = []
    for name, (draw, rows) in made.items():
        path = folder / f"{name}.jsonl"
        if not path.exists():
            said = draw(count, f"{seed}/{name}")
            lengths = _speak(folder, said, processes)
            lines = [line for one, seconds in zip(said, lengths, strict=True) for line in rows(one, seconds)]
            with replacing(path) as partial:
                partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
        paths.append(path)
    return paths


# ---------------------------------------------------------------------- what is said


def _voice(count: int, name: str) -> list[Said]:
    return [_one(f"{name}/{place}", sample_style(random.Random(f"{name}/{place}/style"))) for place in range(count)]


def _dialogue(count: int, name: str) -> list[Said]:
    """Lines of dialogues with uneven emotions."""
    found = []
    for place in range(count):
        rng = random.Random(f"{name}/{place}/style")
        emotion = rng.choices(list(UNEVEN), list(UNEVEN.values()))[0]
        found.append(_one(f"{name}/{place // LINES}/{place % LINES}", replace(sample_style(rng), emotion=emotion)))
    return found


def _conversation(count: int, name: str) -> list[Said]:
    """The same words by the same speaker, in several tones."""
    found = []
    for group in range(count // TONES):
        first = _one(f"{name}/{group}/0", sample_style(random.Random(f"{name}/{group}/style")))
        others = [emotion for emotion in ATTRIBUTES["emotion"] if emotion != first.style.emotion]
        tones = [first.style.emotion, *random.Random(f"{name}/{group}/tones").sample(others, TONES - 1)]
        for place, emotion in enumerate(tones):
            found.append(replace(first, name=f"{name}/{group}/{place}", style=replace(first.style, emotion=emotion)))
    return found


def _one(name: str, style: Style) -> Said:
    rng = random.Random(name)
    utterance = world.sample_utterance(rng, held_out=True, kinds=("event",))
    return Said(name, utterance, style, rng.choice(voices.voices(style.gender, held_out=True)))


def _speak(folder: Path, said: Sequence[Said], processes: int) -> list[float]:
    """Renders the recordings; returns their lengths in s."""
    lengths = []
    for one, samples in zip(said, voices.render_many([one.job for one in said], processes), strict=True):
        soundfile.write(folder / _file(one), np.asarray(samples), RATE, format="FLAC", subtype="PCM_16")
        lengths.append(round(len(samples) / RATE, 3))
    return lengths


def _file(said: Said) -> str:
    return f"clips/{said.name.partition('/')[2].replace('/', '-')}.flac"


# ---------------------------------------------------------------------- what is asked


def _asked(said: Said, seconds: float) -> Iterator[dict[str, Any]]:
    """The words, and each attribute."""
    speech, rng = _speech(said), random.Random(f"{said.name}/asked")
    about = {"speaker": said.voice.name, "seconds": seconds}
    yield _row(f"{said.name}/words", "linguistic", world.transcription(speech, rng), about)
    for attribute in ATTRIBUTES:
        conversation = world.questions(speech, rng, (attribute,))
        yield _row(f"{said.name}/{attribute}", "paralinguistic", conversation, about, attribute)


def _felt(said: Said, seconds: float) -> Iterator[dict[str, Any]]:
    conversation = world.questions(_speech(said), random.Random(f"{said.name}/felt"), ("emotion",))
    about = {"speaker": said.voice.name, "dialogue": said.name.rpartition("/")[0], "seconds": seconds}
    yield _row(said.name, "paralinguistic", conversation, about, "emotion")


def _answered(said: Said, seconds: float) -> Iterator[dict[str, Any]]:
    """A talk that ends with it, and what a good listener replies; the turns before are the same in every tone."""
    group = said.name.rpartition("/")[0]
    conversation = world.sample_talk(random.Random(f"{group}/talk"), _speech(said), said.utterance, said.style)
    about = {"speaker": said.voice.name, "group": group, "seconds": seconds}
    yield _row(said.name, "dual", conversation.conversation.copy().assistant(conversation.reply.text), about)


def _speech(said: Said) -> Speech:
    told = world.caption(said.style, random.Random(f"{said.name}/caption"), drop=0.0)
    return Speech(_file(said), transcript=said.utterance.text, caption=told, labels=said.style.labels())


def _row(
    name: str, kind: TaskKind, conversation: Conversation, about: dict[str, Any], attribute: str | None = None
) -> dict[str, Any]:
    """A line of a manifest; the choices of the attribute that is asked for stand in it."""
    turns = [
        {"role": turn.role, "parts": [part if isinstance(part, str) else _part(part, attribute) for part in turn.parts]}
        for turn in conversation.turns
    ]
    return {"id": name, "kind": kind, "corpus": CORPUS, "system": conversation.system, "turns": turns, **about}


def _part(speech: Speech, attribute: str | None) -> dict[str, Any]:
    known = {"audio": speech.audio, "transcript": speech.transcript, "caption": speech.caption}
    choices = {"choices": {attribute: list(ATTRIBUTES[attribute])}} if attribute else {}
    return {**known, "labels": dict(speech.labels), **choices}
