"""A miniature of what training needs: recordings, manifests, a frozen encoder and LLM, a recipe of two stages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from dualslm.recipe import Recipe, parse
from support.badaudio import wav
from support.factory import save_encoder, save_llm

RECIPE = """
seed = 1
[model]
encoder = "{folder}/encoder"
llm = "{folder}/llm"
[model.paralinguistic]
heads = 4
tokens = 4
dropout = 0.1
[model.linguistic]
hidden = 32
[data]
train = ["{folder}/train.jsonl"]
validation = ["{folder}/validation.jsonl"]
features = "{folder}/features"
[loop]
max_tokens = 200
save_every = 3
validate_every = 4
validation_batches = 2
[[stage]]
name = "joint"
lr = 1e-3
warmup = 2
batch = 6
steps = 7
[stage.linguistic]
learns = ["para", "ling"]
[stage.paralinguistic]
learns = ["para", "ling"]
[[stage]]
name = "disentangle"
lr = 1e-3
batch = 6
steps = 7
[stage.linguistic]
learns = ["ling"]
view = {{ para = ["text", "speech", "none"], ling = ["speech"] }}
[stage.paralinguistic]
learns = ["para"]
view = {{ para = ["speech"], ling = ["text", "speech", "none"] }}
"""
WORDS = ["I", "lost", "my", "umbrella", "at", "the", "station", "and", "now", "it", "rains", "hello", "good", "morning"]


def make(folder: Path, clips: int = 12) -> Recipe:
    """Writes everything into a folder.

    Returns:
        The recipe that trains on it.
    """
    save_encoder(folder / "encoder")
    save_llm(folder / "llm")
    (folder / "clips").mkdir()
    rng = np.random.default_rng(0)
    for name, count in (("train", clips), ("validation", 4)):
        rows = []
        for number in range(count):
            path = f"clips/{name}{number}.wav"
            seconds = 0.3 + 0.15 * (number % 5)
            wav(folder / path, (0.1 * rng.standard_normal(round(16_000 * seconds))).astype(np.float32))
            rows += conversations(f"{name}{number}", path, number)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return parse(RECIPE.format(folder=folder))


def conversations(name: str, path: str, number: int) -> list[dict[str, object]]:
    """A transcription and a question about one recording, whose captions are drawn from its labels."""
    transcript = " ".join(WORDS[(number + index) % len(WORDS)] for index in range(3 + number % 4))
    mood = ("sad", "happy")[number % 2]
    speech = {"audio": path, "transcript": transcript, "labels": {"emotion": mood}}
    answers = {"linguistic": [transcript], "paralinguistic": [f"It sounds {mood}."]}
    return [
        {
            "id": f"{name}-{kind}",
            "kind": kind,
            "system": "Answer in one sentence.",
            "turns": [{"role": "user", "parts": [speech]}, {"role": "assistant", "parts": answer}],
        }
        for kind, answer in answers.items()
    ]
