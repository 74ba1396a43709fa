"""A small test set on disk, a system that needs no model, and a small random model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dualslm.conversation import Reply, View
from dualslm.evaluation.systems.item import Item
from dualslm.model.dualslm import DualSLM
from support.badaudio import wav
from support.factory import save_encoder, save_llm

MOODS = ("sad", "happy", "angry")
SETTINGS: dict[str, Any] = {"manifests": [], "views": [], "tasks": [], "limit": None, "seed": 0, "batch": 4}
"""Of a run of `predict`."""


@dataclass
class Parrot:
    """Answers from the item itself; counts how often it is asked.

    Attributes:
        name: name in reports.
        wrong: about one answer in so many is another label, or loses its first word.
        known: views that it knows; (None,) for a system without views.
        asked: ids of the items that were asked, in order.
    """

    name: str = "parrot"
    wrong: int = 3
    known: tuple[View | None, ...] = (None,)
    asked: list[str] = field(default_factory=list)

    @property
    def about(self) -> Mapping[str, Any]:
        return {"kind": "parrot", "wrong": self.wrong}

    def views(self, item: Item) -> Sequence[View | None]:
        return self.known

    def unfit(self, item: Item) -> str | None:
        return None

    def answer(self, items: Sequence[Item], view: View | None) -> list[Reply]:
        self.asked += [item.id for item in items]
        return [self._one(item) for item in items]

    def _one(self, item: Item) -> Reply:
        said = item.target or item.truth or "I see."
        if sum(item.id.encode()) % self.wrong == 0:
            others = [choice for choice in item.choices or () if choice != item.truth]
            said = said.replace(str(item.truth), others[0]) if others else said.partition(" ")[2]
        return Reply(said)


def small_model(folder: Path) -> DualSLM:
    """A random model; its frozen parts are saved as encoder/ and llm/ in the folder."""
    save_encoder(folder / "encoder")
    save_llm(folder / "llm")
    torch.manual_seed(0)
    settings: dict[str, Any] = {"paralinguistic": {"heads": 4, "tokens": 4}, "linguistic": {"hidden": 16}}
    return DualSLM.from_parts(str(folder / "encoder"), str(folder / "llm"), device="cpu", **settings)


def exam(folder: Path, count: int = 12) -> list[Path]:
    """Two manifests: lines with tasks, and finished conversations; every recording has a speaker."""
    (folder / "clips").mkdir(parents=True)
    rng = np.random.default_rng(0)
    asked, finished = [], []
    for number in range(count):
        path = f"clips/{number}.wav"
        wav(folder / path, (0.1 * rng.standard_normal(4000 + 800 * (number % 3))).astype(np.float32))
        mood = MOODS[number % 3]
        labels = {"emotion": mood, "gender": ("male", "female")[number % 2]}
        speech = {
            "audio": path,
            "transcript": f"i lost my umbrella {number}",
            "caption": f"sounding {mood}",
            "labels": labels,
        }
        about = {"corpus": "mine", "speaker": f"s{number % 6}", "seconds": 0.3}
        before = [{"role": "user", "parts": ["Hello."]}, {"role": "assistant", "parts": ["Good morning!"]}]
        turns = [*before, {"role": "user", "parts": [speech]}]
        asked.append({"id": f"t{number}", "tasks": ["asr", "gender", "emotion", "respond"], "turns": turns, **about})
        chosen = {**speech, "choices": {"emotion": list(MOODS)}}
        conversation = [
            {"role": "user", "parts": [chosen, "How does it sound?"]},
            {"role": "assistant", "parts": [f"It sounds {mood}."]},
        ]
        finished.append(
            {"id": f"f{number}", "kind": "paralinguistic", "system": "Listen.", "turns": conversation, **about}
        )
    return [_written(folder / "asked.jsonl", asked), _written(folder / "finished.jsonl", finished)]


def _written(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
