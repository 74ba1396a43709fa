"""What short windows and skipping cost in words, each beside the same L without it (docs/benchmarks.md).

Short windows: two L are trained from nothing on the same recordings, one on frames of short windows and one on those of
windows of 30 s, and read people that neither has heard. Skipping: one aligned L is read before its silent groups are
left out and its repeats merged, and after. Both figures of a pair are of the same recordings, and so is the interval of
their difference.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dualslm.audio import FRAMES_PER_SECOND, Window
from dualslm.conversation import Speech
from dualslm.evaluation.metrics.bootstrap import difference, figure
from dualslm.evaluation.metrics.wer import require_whisper
from dualslm.files import replacing
from dualslm.model.nearest import all_groups, nearest_tokens
from dualslm.recipe import Recipe, load
from dualslm.training.train import train
from studies.pocket.measure import Exam, Row, clip, rows_of, word_counts

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
    model = replace(made.model, window=window, adapters=None)
    loop = replace(made.loop, bf16_alignment=False)
    return replace(made, seed=seed, model=model, data=data, loop=loop, stages=(stage,))


def train_one(work: Path, window: Window, seed: int) -> Path:
    """Trains the L of one rule, or goes on with it."""
    out = work / f"windows-{window}"
    return train(recipe_of(work, window, write_manifest(work, seed), seed), out, resume=out.exists())


def measure_skipping(work: Path, aligned: Path, most: int, out: Path) -> None:
    """Reads one L before its silence is left out and after, and writes that to the result file.

    Args:
        work: folder of the study.
        aligned: checkpoint whose L skips.
        most: number of recordings of a set at most.
        out: result file.
    """
    exam = Exam(str(aligned), None, None, work / "manifests", most, "")
    kept, skipped, rate = _read(exam, exam.tokens_V)
    _write(out, {"skipping": _compared(exam, skipped, kept), "embeddings a second": rate})


def measure_windows(work: Path, trained: Mapping[Window, Path], most: int, out: Path) -> None:
    """Reads the L of each rule of windows and writes that to the result file, beside what stands there.

    Args:
        work: folder of the study.
        trained: checkpoint of each rule.
        most: number of recordings of a set at most.
        out: result file.
    """
    manifests = work / "manifests"
    exams = {
        window: Exam(str(path), None, None, manifests, most, "", MIN_TOKEN_COUNT) for window, path in trained.items()
    }
    learnt = [clip(row)["transcript"] for row in rows_of(manifests / "windows-train.jsonl")]
    read = {window: _read(exam, exam.tokens_of(learnt))[0] for window, exam in exams.items()}
    compared = _compared(exams["clip"], read["clip"], read["full"])
    _write(out, {"short windows": compared, "clips": CLIPS, "steps": STEPS})


def _write(out: Path, found: Mapping[str, Any]) -> None:
    before = json.loads(out.read_text()) if out.exists() else {}
    with replacing(out) as partial:
        result = {**before, "command": "python -m studies.pocket words-lost", **found}
        partial.write_text(json.dumps(result, indent=1) + "\n")


def _read(exam: Exam, tokens_V: torch.Tensor) -> tuple[dict[str, list[str]], dict[str, list[str]], float]:
    """What L says of every recording, by set, before silence is left out and after, and how many embeddings are left.

    The last is a number a second, the mean over all recordings.
    """
    require_whisper()
    model = exam.model
    kept: dict[str, list[str]] = {}
    skipped: dict[str, list[str]] = {}
    embeddings, groups = 0, 0
    with torch.no_grad():
        for name in SETS:
            for row in exam.sets(name)[name]:
                groups_LD = all_groups(model, model.hear([Speech(clip(row)["audio"])]))
                spoken_RD = model.ling.spoken(groups_LD) if model.ling.skip else groups_LD
                # Each by itself: it stands for a run of one token, and no silence parts two runs any longer.
                ids = [token for one_D in spoken_RD for token in nearest_tokens(model, one_D[None], tokens_V)]
                skipped.setdefault(name, []).append(model.llm.tokenizer.decode(ids))
                ids = nearest_tokens(model, groups_LD, tokens_V)
                kept.setdefault(name, []).append(model.llm.tokenizer.decode(ids))
                embeddings, groups = embeddings + len(spoken_RD), groups + len(groups_LD)
    return kept, skipped, embeddings / groups * FRAMES_PER_SECOND / model.ling.stack


def _compared(exam: Exam, with_it: Mapping[str, list[str]], without: Mapping[str, list[str]]) -> dict[str, Any]:
    """The word error rates with and without, of all sets together and of each."""
    counts: dict[str, list[tuple[list[Row], NDArray[Any], NDArray[Any]]]] = {}
    for name in SETS:
        rows = exam.sets(name)[name]
        both = [word_counts([clip(row)["transcript"] for row in rows], said[name]) for said in (with_it, without)]
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
