"""A test set of the tiny world on disk, shaped like those of the paper's tables (ours; needs the extra `voices`).

Ordinary manifests (docs/manifest.md) of sentences and voices that no part of the model was trained on. `voice` asks
for the words and five attributes (Tables I and III). `dialogue` asks for the emotion of each line of a dialogue, with
classes as uneven as MELD's (Table II). `talk` asks for replies to the same words in two tones, as StyleTalk does, after
some earlier turns (Table IV).
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
LINES_PER_DIALOGUE = 4
TONES_PER_SENTENCE = 2
UNEVEN = {"neutral": 48, "happy": 22, "angry": 15, "sad": 10, "afraid": 5}  # shares in %, after MELD's test set


@dataclass(frozen=True)
class Recording:
    """One recording of the test set.

    Attributes:
        name: the example's id, such as "0/talk/3/1": seed, set and position.
        utterance: what is said.
        style: how it is said.
        voice: who says it.
    """

    name: str
    utterance: world.Utterance
    style: Style
    voice: voices.Voice

    @property
    def job(self) -> voices.Job:
        """The job that renders it; its seed follows from the name alone."""
        return voices.Job(self.utterance.text, self.style, self.voice, seed=random.Random(self.name).randrange(2**31))


def write(folder: Path, *, count: int = 80, seed: int = 0, processes: int = 1) -> list[Path]:
    """Renders the recordings and writes the manifests; a manifest that exists is left as it is.

    Args:
        folder: folder of the manifests, and of the clips in `clips`.
        count: number of recordings of each set.
        seed: seed of the sentences, tones and voices.
        processes: number of processes that render side by side.

    Returns:
        The manifests.

    Raises:
        DualSLMError: the extra `voices` is missing.
    """
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    makers = {
        "voice": (_draw_voices, _voice_rows),
        "dialogue": (_draw_dialogues, _dialogue_rows),
        "talk": (_draw_conversations, _conversation_rows),
    }
    paths = []
    for name, (draw, rows) in makers.items():
        path = folder / f"{name}.jsonl"
        if not path.exists():
            recordings = draw(count, f"{seed}/{name}")
            lengths = _render(folder, recordings, processes)
            lines = [line for one, seconds in zip(recordings, lengths, strict=True) for line in rows(one, seconds)]
            with replacing(path) as partial:
                partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
        paths.append(path)
    return paths


# ---------------------------------------------------------------------- what is said


# Every draw is seeded by the recording's own name: a larger `count` adds recordings and changes none.


def _draw_voices(count: int, name: str) -> list[Recording]:
    return [_draw(f"{name}/{index}", sample_style(random.Random(f"{name}/{index}/style"))) for index in range(count)]


def _draw_dialogues(count: int, name: str) -> list[Recording]:
    """Lines of dialogues with uneven emotions."""
    drawn = []
    for index in range(count):
        rng = random.Random(f"{name}/{index}/style")
        emotion = rng.choices(list(UNEVEN), list(UNEVEN.values()))[0]
        dialogue, line = divmod(index, LINES_PER_DIALOGUE)
        drawn.append(_draw(f"{name}/{dialogue}/{line}", replace(sample_style(rng), emotion=emotion)))
    return drawn


def _draw_conversations(count: int, name: str) -> list[Recording]:
    """The same words by the same speaker, in several tones."""
    drawn = []
    for group in range(count // TONES_PER_SENTENCE):
        first = _draw(f"{name}/{group}/0", sample_style(random.Random(f"{name}/{group}/style")))
        others = [emotion for emotion in ATTRIBUTES["emotion"] if emotion != first.style.emotion]
        tones = [first.style.emotion, *random.Random(f"{name}/{group}/tones").sample(others, TONES_PER_SENTENCE - 1)]
        for index, emotion in enumerate(tones):
            drawn.append(replace(first, name=f"{name}/{group}/{index}", style=replace(first.style, emotion=emotion)))
    return drawn


def _draw(name: str, style: Style) -> Recording:
    """A recording of a held-out sentence in a held-out voice."""
    rng = random.Random(name)
    utterance = world.sample_utterance(rng, held_out=True, kinds=("event",))
    return Recording(name, utterance, style, rng.choice(voices.voices(style.gender, held_out=True)))


def _render(folder: Path, recordings: Sequence[Recording], processes: int) -> list[float]:
    """Renders the recordings to files; returns their lengths in s."""
    lengths = []
    rendered = voices.render_many([recording.job for recording in recordings], processes)
    for recording, samples in zip(recordings, rendered, strict=True):
        soundfile.write(folder / _file(recording), np.asarray(samples), RATE, format="FLAC", subtype="PCM_16")
        lengths.append(round(len(samples) / RATE, 3))
    return lengths


def _file(recording: Recording) -> str:
    # Without the seed in front: a manifest and its clips always belong to one seed.
    return f"clips/{recording.name.partition('/')[2].replace('/', '-')}.flac"


# ---------------------------------------------------------------------- what is asked


def _voice_rows(recording: Recording, seconds: float) -> Iterator[dict[str, Any]]:
    """One row asks for the words, and one for each attribute."""
    speech = _speech(recording)
    rng = random.Random(f"{recording.name}/asked")
    about = {"speaker": recording.voice.name, "seconds": seconds}
    yield _row(f"{recording.name}/words", "linguistic", world.transcription(speech, rng), about)
    for attribute in ATTRIBUTES:
        conversation = world.questions(speech, rng, (attribute,))
        yield _row(f"{recording.name}/{attribute}", "paralinguistic", conversation, about, attribute)


def _dialogue_rows(recording: Recording, seconds: float) -> Iterator[dict[str, Any]]:
    """One row asks for the emotion; its dialogue is the cluster of the bootstrap."""
    conversation = world.questions(_speech(recording), random.Random(f"{recording.name}/felt"), ("emotion",))
    dialogue = recording.name.rpartition("/")[0]
    about = {"speaker": recording.voice.name, "dialogue": dialogue, "seconds": seconds}
    yield _row(recording.name, "paralinguistic", conversation, about, "emotion")


def _conversation_rows(recording: Recording, seconds: float) -> Iterator[dict[str, Any]]:
    """One conversation that ends with the recording, and the right reply to it."""
    # Seeded by the group: the earlier turns are the same in every tone, so that the tone alone can change the reply.
    group = recording.name.rpartition("/")[0]
    sample = world.sample_talk(random.Random(f"{group}/talk"), _speech(recording), recording.utterance, recording.style)
    about = {"speaker": recording.voice.name, "group": group, "seconds": seconds}
    yield _row(recording.name, "dual", sample.conversation.copy().assistant(sample.reply.text), about)


def _speech(recording: Recording) -> Speech:
    caption = world.caption(recording.style, random.Random(f"{recording.name}/caption"), drop=0.0)
    labels = recording.style.labels()
    return Speech(_file(recording), transcript=recording.utterance.text, caption=caption, labels=labels)


def _row(
    name: str, kind: TaskKind, conversation: Conversation, about: dict[str, Any], attribute: str | None = None
) -> dict[str, Any]:
    """A row of a manifest; its recording lists the choices of the attribute that is asked for."""
    turns = [
        {"role": turn.role, "parts": [part if isinstance(part, str) else _part(part, attribute) for part in turn.parts]}
        for turn in conversation.turns
    ]
    return {"id": name, "kind": kind, "corpus": CORPUS, "system": conversation.system, "turns": turns, **about}


def _part(speech: Speech, attribute: str | None) -> dict[str, Any]:
    known = {"audio": speech.audio, "transcript": speech.transcript, "caption": speech.caption}
    choices = {"choices": {attribute: list(ATTRIBUTES[attribute])}} if attribute else {}
    return {**known, "labels": dict(speech.labels), **choices}
