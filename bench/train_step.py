"""One optimizer step, ours and others', in one run on the same sizes and lengths.

    python bench/train_step.py [--size cpu|small|full] [--rounds 5] [--out docs/results/train_step.json]

Only the step named "+ dropout in P" has dropout: others train without, and on a CPU it prevents the fused attention
kernel. `cpu` has the shares of work that encoder, LLM body and output head have at Whisper-large-v3 and Qwen2.5-7B
(`full`); `small` only shows that everything runs. Prints seconds, ratios, the FLOPs that PyTorch counts, the ratio that
they predict and the share of it that is reached, and the memory of a step. A batch that does not fit the memory goes
through the model in halves, quarters and so on, whose gradients are summed; its row has the number of samples at once.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

sys.path.insert(0, str(Path(__file__).parents[1] / "docs/build"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
import torch
from measuring import (
    DOES_NOT_FIT,
    about,
    as_trained,
    attempt,
    count_flops,
    fitting,
    free_memory,
    memory_of,
    seconds_of,
    write_result,
)
from rich.console import Console
from rich.table import Table
from rivals import Shape, Step, Work, accumulated, built, qwen2_audio, slam, ultravox, voxtral
from support.factory import tokenizer
from tables import step_cells
from transformers import AutoModelForCausalLM, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from dualslm.conversation import Speech
from dualslm.model.dualslm import DualSLM
from dualslm.model.encoder import Frames, SpeechEncoder
from dualslm.model.inputs import IGNORE_INDEX, Hear, fill
from dualslm.model.llm import FrozenLM, pad_left
from dualslm.model.loss import Loss
from dualslm.prompt import Prompt, Slot, Text

SHAPES = {
    "small": Shape(64, 2, 2, 128, 80, 64, 2, 2, 1, 128, 512, 64),
    "cpu": Shape(192, 6, 3, 768, 128, 512, 12, 8, 2, 2688, 9360, 128),
    "full": Shape(1280, 32, 20, 5120, 128, 3584, 28, 28, 4, 18944, 152064, 2048),
}
NEVER_SHARE = 2.0  # a share of saved work above 1: no prefix is read by itself
COUNTED = 4  # samples at once while FLOPs are counted: attention as plain products needs much memory
OURS = "ours"
Row: TypeAlias = dict[str, Any]
RIVALS: dict[str, Callable[[Shape, Work, str, torch.dtype], Step]] = {
    "Qwen2-Audio (transformers)": qwen2_audio,
    "Voxtral (transformers)": voxtral,
    "SLAM-ASR style": slam,
    "Ultravox style": ultravox,
}


def works(samples: int) -> list[Work]:
    """The two workloads: a spoken turn after three turns of text, and the transcription of 12 s of speech."""
    return [
        Work("dialogue", samples, context=150, seconds=4.0, reply=30, branches=4),
        Work("transcription", samples, context=20, seconds=12.0, reply=36, branches=1),
    ]


def frozen_parts(shape: Shape, device: str, dtype: torch.dtype) -> tuple[SpeechEncoder, FrozenLM]:
    """An encoder and an LLM with random weights."""
    with built(device, dtype):
        whisper = WhisperEncoder(shape.whisper())
        llm = AutoModelForCausalLM.from_config(shape.llm())
    encoder = SpeechEncoder(whisper, WhisperFeatureExtractor(feature_size=shape.mels))
    return encoder, FrozenLM(llm, tokenizer())


def ours(
    shape: Shape,
    work: Work,
    device: str,
    dtype: torch.dtype,
    parts: tuple[SpeechEncoder, FrozenLM] | None = None,
) -> dict[str, Step]:
    """Our step, and the same with each optimization left out."""
    encoder, llm = parts or frozen_parts(shape, device, dtype)
    model = DualSLM(encoder, llm, paralinguistic={"dropout": 0.0}, linguistic={"hidden": shape.hidden}).train()
    dropping = DualSLM(encoder, llm, linguistic={"hidden": shape.hidden}).train()
    adamw = torch.optim.AdamW([*model.adapters.parameters(), *dropping.adapters.parameters()], lr=1e-4)
    count = round(50 * work.seconds)  # encoder frames of a recording
    layers = torch.randn(1, work.samples, count, shape.d_speech, device=device, dtype=torch.bfloat16)
    frames = Frames(layers, torch.full((work.samples,), count, device=device))
    prompts_that_share = _prompts(shape, work, work.branches)

    def step(
        loss: Callable[[list[Prompt], Hear], Loss], prompts: list[Prompt] = prompts_that_share, *, live: bool = False
    ) -> Step:
        def mean(part: slice) -> torch.Tensor:
            cached = Frames(frames.layers_NBTD[:, part], frames.lengths_B[part])
            return loss(prompts[part], model.hear if live else lambda _: cached).mean

        return accumulated(mean, adamw, work.samples)

    return {
        OURS: step(model),
        "- a prefix shared": step(model, _prompts(shape, work, 1)),
        "- the gradient-free prefix": step(partial(model, min_saved_share=NEVER_SHARE)),
        "- logits at targets alone": step(partial(_all_logits, model)),
        "- the cache of frames": step(model, live=True),
        "+ dropout in P": step(dropping),
    }


def _all_logits(model: DualSLM, prompts: list[Prompt], hear: Hear) -> Loss:
    """The model's loss with the output head at every position, as transformers' classes compute it."""
    filled = fill(prompts, model.llm, model.adapt, hear)
    embeds_BTD, mask_BT = pad_left([row.embeds_TD for row in filled])
    labels_BT = pad_left([row.labels_T for row in filled])[0].masked_fill(mask_BT == 0, IGNORE_INDEX)[:, 1:]
    logits_BTV = model.llm(embeds_BTD)[:, :-1].float()
    nll_BT = torch.nn.functional.cross_entropy(
        logits_BTV.transpose(1, 2), labels_BT, ignore_index=IGNORE_INDEX, reduction="none"
    )
    return Loss(nll_BT.sum(1), (labels_BT != IGNORE_INDEX).sum(1))


def _prompts(shape: Shape, work: Work, branches: int) -> list[Prompt]:
    """Prompts of random tokens and recordings, of which each group of `branches` has one context."""
    rng = np.random.default_rng(0)
    known = min(shape.vocabulary, 400)
    prompts = []
    for number in range(work.samples):
        if number % branches == 0:
            context = tuple(rng.integers(10, known, work.context).tolist())
        wave = 0.1 * rng.standard_normal(round(16_000 * work.seconds))
        reply = Text(tuple(rng.integers(10, known, work.reply).tolist()), loss=True)
        close = Text(tuple(rng.integers(10, known, 4).tolist()))
        speech = Speech(wave.astype(np.float32))
        prompts.append(Prompt((Text(context), Slot("para", 0), Slot("ling", 0), close, reply), (speech,)))
    return prompts


# ---------------------------------------------------------------------- measuring


def measure(size: str, samples: int, rounds: int, device: str) -> Iterator[Row]:
    """Every step of every workload: seconds (median), FLOPs, memory."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    for work in works(samples):
        sizes = (SHAPES[size], work, device, dtype)
        for maker in (OURS, *RIVALS):
            make = partial(ours, *sizes) if maker == OURS else partial(_rival, maker, *sizes)
            together = work.branches if maker == OURS else 1
            for name, row in _rows(maker, make, work.samples, together, rounds, device):
                yield {"work": work.name, "step": name, **row}
            free_memory()  # before the next maker's models: together they do not fit a card


def _rival(name: str, shape: Shape, work: Work, device: str, dtype: torch.dtype) -> dict[str, Step]:
    return {name: RIVALS[name](shape, work, device, dtype)}


def _rows(
    maker: str, make: Callable[[], dict[str, Step]], samples: int, together: int, rounds: int, device: str
) -> Iterator[tuple[str, Row]]:
    """A row for each step of one maker."""
    steps = attempt(make)
    if steps is None:
        yield maker, {"fault": DOES_NOT_FIT}
        return
    rows = {name: _row(step, samples, together, device) for name, step in steps.items()}
    times: dict[str, list[float | None]] = {name: [] for name, row in rows.items() if "fault" not in row}
    for _ in range(rounds):  # in turns, so that all steps meet the same state of the machine
        for name, seconds in times.items():
            run = partial(steps[name], rows[name]["at_once"])
            seconds.append(attempt(partial(seconds_of, run, device)))
    for name, row in rows.items():
        # A step that just fitted may fail later, when memory is in smaller pieces: it needs one time at least.
        measured = [one for one in times.get(name, []) if one is not None]
        yield name, {"seconds": statistics.median(measured), **row} if measured else {"fault": DOES_NOT_FIT}


def _row(step: Step, samples: int, together: int, device: str) -> Row:
    """The number of samples at once that fit, and the FLOPs and memory of such a step."""
    fits = fitting(partial(_peak, step, device), samples, together)
    if fits is None:
        return {"fault": DOES_NOT_FIT}
    at_once, peak = fits
    flops = attempt(lambda: count_flops(lambda: step(min(at_once, COUNTED))))
    return {"tflop": None if flops is None else flops / 1e12, "memory_gb": peak / 1e9, "at_once": at_once}


def _peak(step: Step, device: str, at_once: int) -> int:
    """Bytes of a step, with the optimizer's state."""
    step(at_once)  # the first step makes that state
    with memory_of(device) as found:
        step(at_once)
    return found[0]


def tables(result: dict[str, Any]) -> Iterator[Table]:
    """One table for each workload: the times, their ratio to ours, and the ratio that the FLOPs predict."""
    for name in dict.fromkeys(row["work"] for row in result["rows"]):
        table = Table("step", "s", "times ours", "TFLOP", "times ours", "reached", "GB", title=name)
        own = [row for row in result["rows"] if row["work"] == name]
        for row in own:
            table.add_row(*step_cells(row, own[0], result["samples"]))
        yield table


def main() -> None:
    """Measures, writes the rows as they come and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--size", choices=list(SHAPES), default="full" if gpu else "cpu")
    parser.add_argument("--samples", type=int, default=48 if gpu else 8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    device = "cuda" if gpu else "cpu"
    as_trained(device)
    settings = {"size": args.size, "samples": args.samples, "rounds": args.rounds}
    result: dict[str, Any] = {**about(), **settings, "rows": []}
    for row in measure(args.size, args.samples, args.rounds, device):
        result["rows"].append(row)
        write_result(result, args.out)
        Console(stderr=True).print(f"{row['work']}: {row['step']} {row.get('seconds', row.get('fault'))}")
    for table in tables(result):
        Console().print(table)


if __name__ == "__main__":
    main()
