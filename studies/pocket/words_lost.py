"""What short windows and skipping cost in words, each beside the same L without it (docs/benchmarks.md).

Short windows: two L are trained from nothing on the same recordings, one on frames of short windows and one on those of
windows of 30 s, and read people that neither has heard. Skipping: one aligned L is read before its silent groups are
left out and its repeats merged, and after. Both figures of a pair are of the same recordings, and so is the interval of
their difference.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dualslm.audio import Window
from dualslm.conversation import Speech
from dualslm.evaluation.metrics.bootstrap import difference, figure
from dualslm.evaluation.metrics.wer import require_whisper, whisper, word_errors
from dualslm.files import replacing
from dualslm.model.nearest import all_groups, nearest_tokens
from dualslm.recipe import Recipe, load
from dualslm.training.train import train
from studies.pocket.measure import Exam, Row, clip, rows_of

RECIPE = Path(__file__).parent / "recipes/words.toml"
WINDOWS: tuple[Window, Window] = ("clip", "full")
CORPORA = ("speechocean762", "wuw2_phone")  # whose recordings the two L learn from: real people, mostly sentences
CLIPS = 800  # of these: 30 s of encoding for each
SECONDS = (1.5, 8.0)
STEPS = 250
MIN_TOKEN_COUNT = 10  # of few transcripts: at 20 hardly a word would be a token of its own
SETS = ("words-test-librispeech", "words-test-speechocean762", "words-test-wuw2_phone")


def write_manifest(work: Path, seed: int) -> Path:
    """Draws the recordings that both L learn from."""
    rows = rows_of(work / "manifests/words-train.jsonl")
    usable = [row for row in rows if row["corpus"] in CORPORA and SECONDS[0] < row["seconds"] < SECONDS[1]]
    file = work / "manifests/windows-train.jsonl"
    with replacing(file) as partial:
        drawn = random.Random(f"windows/{seed}").sample(usable, CLIPS)
        partial.write_text("".join(json.dumps(row) + "\n" for row in drawn))
    return file


def recipe_of(work: Path, window: Window, manifest: Path, seed: int) -> Recipe:
    """The recipe of words.toml, shorter, on frames of one rule."""
    made = load(RECIPE)
    stage = replace(made.stages[0], steps=STEPS, min_token_count=MIN_TOKEN_COUNT)
    data = replace(
        made.data, train=(str(manifest),), weights=(1.0,), validation=(), features=str(work / f"frames-{window}")
    )
    model = replace(made.model, window=window)
    return replace(made, seed=seed, model=model, data=data, stages=(stage,))


def train_one(work: Path, window: Window, seed: int) -> Path:
    """Trains the L of one rule, or goes on with it."""
    out = work / f"windows-{window}"
    return train(recipe_of(work, window, write_manifest(work, seed), seed), out, resume=out.exists())


def measure(work: Path, trained: Mapping[Window, Path], aligned: Path, most: int, out: Path) -> None:
    """Reads both pairs on all sets and writes the result file.

    Args:
        work: folder of the study.
        trained: checkpoint of each rule of windows.
        aligned: checkpoint whose L skips.
        most: number of recordings of a set at most.
        out: result file.
    """
    require_whisper()
    result: dict[str, Any] = {"command": "python -m studies.pocket words-lost", "clips": CLIPS, "steps": STEPS}
    manifests = work / "manifests"
    exams = {
        window: Exam(str(path), None, None, manifests, most, "", MIN_TOKEN_COUNT) for window, path in trained.items()
    }
    learnt = [clip(row)["transcript"] for row in rows_of(manifests / "windows-train.jsonl")]
    read = {window: _read(exam, exam.tokens_of(learnt), skipped=False) for window, exam in exams.items()}
    result["short windows"] = _compared(exams["clip"], read["clip"], read["full"])
    exam = Exam(str(aligned), None, None, manifests, most, "")
    kept, skipped = (_read(exam, exam.tokens_V, skipped=skipped) for skipped in (False, True))
    result["skipping"] = _compared(exam, skipped, kept)
    with replacing(out) as partial:
        partial.write_text(json.dumps(result, indent=1) + "\n")


def _read(exam: Exam, tokens_V: torch.Tensor, *, skipped: bool) -> dict[str, list[str]]:
    """What L says of every recording, by set; after silence was left out, or before."""
    model = exam.model
    found: dict[str, list[str]] = {}
    with torch.no_grad():
        for name in SETS:
            for row in exam.sets(name)[name]:
                groups_LD = all_groups(model, Speech(clip(row)["audio"]))
                parts: Iterable[torch.Tensor] = [groups_LD]
                if (
                    skipped
                ):  # each embedding by itself: it stands for a run of one token, and silence no longer parts two
                    parts = model.ling.spoken(groups_LD)[:, None]
                ids = [token for part_LD in parts for token in nearest_tokens(model, part_LD, tokens_V)]
                found.setdefault(name, []).append(model.llm.tokenizer.decode(ids))
    return found


def _compared(exam: Exam, with_it: Mapping[str, list[str]], without: Mapping[str, list[str]]) -> dict[str, Any]:
    """The word error rates with and without, of all sets together and of each."""
    counts: dict[str, list[tuple[list[Row], NDArray[Any], NDArray[Any]]]] = {}
    for name in SETS:
        rows = exam.sets(name)[name]
        both = [_counts(rows, said[name]) for said in (with_it, without)]
        keep = both[0][:, 1] > 0  # a transcript of hesitations alone could not be wrong
        spoken = [row for row, kept in zip(rows, keep, strict=True) if kept]
        for group in ("all", name):
            counts.setdefault(group, []).append((spoken, both[0][keep], both[1][keep]))
    out = {}
    for group, parts in counts.items():
        speakers = [row["speaker"] for rows, _, _ in parts for row in rows]
        first, second = (np.concatenate([part[index] for part in parts]) for index in (1, 2))
        gap = difference(first, second, speakers)
        out[group] = {
            "with": figure(first, speakers).as_json(),
            "without": figure(second, speakers).as_json(),
            "more": {"value": gap.value, "low": gap.low, "high": gap.high, "p": gap.p},
        }
    return out


def _counts(rows: Sequence[Row], heard: Sequence[str]) -> NDArray[Any]:
    pairs = [(whisper(clip(row)["transcript"]), whisper(said)) for row, said in zip(rows, heard, strict=True)]
    return np.array([(word_errors(said, found), len(said)) for said, found in pairs])
