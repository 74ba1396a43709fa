"""What the LLM replies to the words alone: the conversations that the stages through the LLM learn from.

`dualslm targets` has the LLM reply to the styled transcript, words and how they are said, as the paper does. For that
SmolLM2-135M is too small: of 24 talks whose caption told pitch, pace and energy it wrote the caption down in three and
was "sorry for your loss" in three more. To the bare transcript, with a penalty on what it has said already, it replies
to the point. So these talks teach P nothing, and L to bring about what the words would.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dualslm.conversation import Conversation
from dualslm.model.generation import GenerationSettings
from dualslm.model.llm import FrozenLM
from dualslm.training.teacher import LocalTeacher
from studies.pocket.measure import clip, rows_of

SYSTEMS = (
    "You are a warm friend. Answer in one or two short sentences.",
    "You are a friendly voice assistant. Keep your replies short and natural.",
    "You are talking with a friend. Answer kindly in one short sentence.",
)
REPLY = GenerationSettings(max_new_tokens=40, repetition_penalty=1.15)  # 1.0 repeats half of the replies for ever
AT_ONCE = 48


def write(llm: str, manifests: Path, names: Sequence[str] = ("talk-train", "talk-validation")) -> None:
    """Adds the replies to `NAME-labelled.jsonl` to `NAME-replies.jsonl`; what it holds already is not done again."""
    teacher = LocalTeacher(FrozenLM.from_pretrained(llm), REPLY)
    for name in names:
        rows = list(enumerate(rows_of(manifests / f"{name}-labelled.jsonl")))
        out = manifests / f"{name}-replies.jsonl"
        tried = manifests / f".{name}-replies.tried"  # also those whose reply is no target
        done = len(tried.read_text().splitlines()) if tried.exists() else 0
        for start in range(done, len(rows), AT_ONCE):
            batch = rows[start : start + AT_ONCE]
            with out.open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in _finished(teacher, batch))
            with tried.open("a") as file:
                file.writelines(f"{row['id']}\n" for _, row in batch)
        kept = len(out.read_text().splitlines())
        print(f"{name}: {kept} replies to {len(rows)} recordings; the others were cut off or say one sentence twice")


def _finished(teacher: LocalTeacher, batch: Sequence[tuple[int, Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """The rows with their replies."""
    talks = []
    for number, row in batch:
        talk = Conversation(SYSTEMS[number % len(SYSTEMS)])
        talk.user(clip(row)["transcript"])
        talks.append(talk)
    for talk, (_, row), reply in zip(talks, batch, teacher.write(talks, 0), strict=True):
        said = [sentence.strip().lower() for sentence in reply.text.replace("!", ".").split(".") if sentence.strip()]
        if reply.finished and said and len(said) == len(set(said)):
            turns = [*row["turns"], {"role": "assistant", "parts": [reply.text.strip()]}]
            finished = {"kind": "dual", "early_stop": True, "system": talk.system, "turns": turns}
            given = {key: value for key, value in row.items() if key not in ("tasks", "turns")}
            yield {**given, "id": f"{row['id']}/reply", **finished}
