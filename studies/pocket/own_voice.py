"""Does the shipped L get to know one person from fifteen of their sentences? (docs/pocket.md)

Each learner of a set of tests has twenty recordings. L goes on with its alignment on fifteen of them, a minute of
speech, and reads the other five before and after, but for sentences that are among the fifteen.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dualslm.conversation import Speech
from dualslm.evaluation.metrics.bootstrap import difference, figure
from dualslm.evaluation.metrics.wer import require_whisper, whisper, word_errors
from dualslm.files import replacing
from dualslm.model.dualslm import DualSLM
from dualslm.model.nearest import read_words
from dualslm.recipe import load
from dualslm.training.train import train
from studies.pocket.measure import Row, clip, rows_of

RECIPE = Path(__file__).parent / "recipes/words.toml"
SET = "words-test-speechocean762"
LEARNT = 15  # of a speaker's twenty recordings
STEPS, BATCH, LR = 40, 8, 3e-4
SPEAKERS = 12


def run(work: Path, checkpoint: str, out: Path, seed: int) -> None:
    """Trains on each speaker and writes the word error rates before and after.

    Args:
        work: folder of the study.
        checkpoint: adapters that L begins from.
        out: result file.
        seed: of the draw of speakers and of their recordings.
    """
    require_whisper()
    rows = rows_of(work / "manifests" / f"{SET}.jsonl")
    rng = random.Random(f"own voice/{seed}")
    speakers = rng.sample(sorted({row["speaker"] for row in rows}), SPEAKERS)
    before = DualSLM.from_pretrained(checkpoint).eval()
    counts: list[tuple[tuple[int, int], tuple[int, int]]] = []
    clusters: list[str] = []
    for speaker in speakers:
        own = [row for row in rows if row["speaker"] == speaker]
        rng.shuffle(own)
        folder = work / "own-voice" / speaker.replace("/", "-")
        after = DualSLM.from_pretrained(_trained(folder, own[:LEARNT], checkpoint, seed)).eval()
        learnt = {clip(row)["transcript"] for row in own[:LEARNT]}
        for row in own[LEARNT:]:
            if clip(row)["transcript"] in learnt:
                continue
            counts.append((_errors(before, row), _errors(after, row)))
            clusters.append(speaker)
        print(speaker, len(counts), "recordings", flush=True)
    first, second = (np.array([pair[index] for pair in counts]) for index in (0, 1))
    gap = difference(second, first, clusters)
    result: dict[str, Any] = {
        "command": "python -m studies.pocket own-voice",
        "speakers": SPEAKERS,
        "learnt": LEARNT,
        "steps": STEPS,
        "batch": BATCH,
        "lr": LR,
        "before": figure(first, clusters).as_json(),
        "after": figure(second, clusters).as_json(),
        "more": {"value": gap.value, "low": gap.low, "high": gap.high, "p": gap.p},
    }
    with replacing(out) as partial:
        partial.write_text(json.dumps(result, indent=1) + "\n")


def _trained(folder: Path, rows: list[Row], checkpoint: str, seed: int) -> Path:
    """L that has heard one speaker."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "train.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = load(RECIPE)
    stage = replace(made.stages[0], steps=STEPS, batch=BATCH, lr=LR, warmup=5, min_token_count=0)
    data = replace(made.data, train=(str(manifest),), weights=(1.0,), validation=(), features=str(folder / "frames"))
    loop = replace(made.loop, bf16_alignment=False)  # some sentences: quick on every machine
    model = replace(made.model, adapters=checkpoint)
    recipe = replace(made, seed=seed, model=model, data=data, loop=loop, stages=(stage,))
    run_folder = folder / "run"
    return train(recipe, run_folder, resume=run_folder.exists())


def _errors(model: DualSLM, row: Row) -> tuple[int, int]:
    with torch.no_grad():
        heard = read_words(model, model.hear([Speech(clip(row)["audio"])]))
    said = whisper(clip(row)["transcript"])
    return word_errors(said, whisper(heard)), len(said)
