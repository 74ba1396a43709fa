"""A recipe, and lines of manifests whose targets are still to be written."""

from __future__ import annotations

from typing import Any

EMOTIONS = ["sad", "happy", "angry", "fearful", "neutral"]
TRANSCRIPTS = ["I lost my keys.", "I won a prize.", "My brother is ill.", "We missed the train."]

RECIPE = """
[model]
encoder = "none"
llm = "{llm}"
[data]
train = ["{folder}/a.jsonl", "{folder}/a.targets.jsonl"]
validation = ["{folder}/b.jsonl"]
[[stage]]
name = "respond"
lr = 1e-3
batch = 2
steps = 1
[stage.dual]
learns = ["para", "ling"]
"""


def lines(count: int) -> list[dict[str, Any]]:
    rows = []
    for number in range(count):
        labels = {"emotion": EMOTIONS[number % 5], "gender": "female", "tempo": "slow"}
        clip = {"audio": f"clips/{number}.wav", "transcript": TRANSCRIPTS[number % 4], "labels": labels}
        turns: list[dict[str, Any]] = [{"role": "user", "parts": [clip]}]
        if number % 2:
            turns = [{"role": "user", "parts": ["Hello."]}, {"role": "assistant", "parts": ["Hello!"]}, *turns]
        rows.append({"id": f"t{number}", "tasks": ["emotion", "respond"], "turns": turns})
    return rows
