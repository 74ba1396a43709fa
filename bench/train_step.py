"""One optimizer step, ours and others', in one run on the same sizes and lengths.

    python bench/train_step.py [--size cpu|small|full] [--rounds 5] [--quick] [--out docs/results/train_step.json]

A round goes through all steps once, and each ratio is that of two times of one round: a machine whose load changes
changes it for both. The median of the rounds' ratios is given, with the lowest and the highest. On a card, which cannot
hold everybody's models, the steps of one maker go round together.

"ours" has the paper's settings. "+ L skipped" leaves `--per-second` embeddings of L a second, as an aligned adapter
with `linguistic.skip` does; "+ short windows" encodes live with `window = "clip"`, so compare it with "- the cache of
frames". Only the step named "+ dropout in P" has dropout: others train without, and on a CPU it prevents the fused
attention kernel. `cpu` has the shares of work that encoder, LLM body and output head have at Whisper-large-v3 and
Qwen2.5-7B (`full`); `small` only shows that everything runs. Prints seconds, ratios, the FLOPs that PyTorch counts, the
ratio that they predict and the share of it that is reached, and the memory of a step. A batch that does not fit the
memory goes through the model in halves, quarters and so on, whose gradients are summed; its row has the number of
samples at once.
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
    skipping,
    write_result,
)
from rich.console import Console
from rich.table import Table
from rivals import Shape, Step, Work, accumulated, built, qwen2_audio, slam, ultravox, voxtral
from support.factory import tokenizer
from tables import STEP_HEADINGS, step_rows
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
PER_SECOND = 4.0  # embeddings of L with skip, unless given
NEVER_SHARE = 2.0  # a share of saved work above 1: no prefix is read by itself
COUNTED = 4  # samples at once while FLOPs are counted: attention as plain products needs much memory
OURS = "ours"
SKIPPED = "+ L skipped"
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
    per_second: float = PER_SECOND,
) -> dict[str, Step]:
    """Our step by the paper's settings, with less work, and with each optimization left out."""
    encoder, llm = parts or frozen_parts(shape, device, dtype)
    short = SpeechEncoder(encoder.whisper, encoder.features, window="clip")
    model = DualSLM(encoder, llm, paralinguistic={"dropout": 0.0}, linguistic={"hidden": shape.hidden}).train()
    dropping = DualSLM(encoder, llm, linguistic={"hidden": shape.hidden}).train()
    less = {"hidden": shape.hidden, "skip": True}
    skipped = skipping(DualSLM(short, llm, paralinguistic={"dropout": 0.0}, linguistic=less).train(), per_second)
    trained = [weight for each in (model, dropping, skipped) for weight in each.adapters.parameters()]
    adamw = torch.optim.AdamW(trained, lr=1e-4)
    count = round(50 * work.seconds)  # encoder frames of a recording
    layers = torch.randn(1, work.samples, count, shape.d_speech, device=device, dtype=torch.bfloat16)
    frames = Frames(layers, torch.full((work.samples,), count, device=device))
    prompts_that_share = _prompts(shape, work, work.branches)

    def step(
        loss: Callable[[list[Prompt], Hear], Loss],
        prompts: list[Prompt] = prompts_that_share,
        *,
        live: Hear | None = None,
    ) -> Step:
        def mean(part: slice) -> torch.Tensor:
            cached = Frames(frames.layers_NBTD[:, part], frames.lengths_B[part])
            return loss(prompts[part], live or (lambda _: cached)).mean

        return accumulated(mean, adamw, work.samples)

    return {
        OURS: step(model),
        SKIPPED: step(skipped),
        "+ L skipped, short windows, no cache": step(skipped, live=skipped.hear),
        "- a prefix shared": step(model, _prompts(shape, work, 1)),
        "- the gradient-free prefix": step(partial(model, min_saved_share=NEVER_SHARE)),
        "- logits at targets alone": step(partial(_all_logits, model)),
        "- the cache of frames": step(model, live=model.hear),
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


def measure(size: str, samples: int, rounds: int, device: str, per_second: float = PER_SECOND) -> Iterator[Row]:
    """Every step of every workload: seconds (of each round, and their median), FLOPs, memory."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    everybody = (OURS, *RIVALS)
    for work in works(samples):
        sizes = (SHAPES[size], work, device, dtype)
        for makers in [(maker,) for maker in everybody] if device == "cuda" else [everybody]:
            steps: dict[str, Step] = {}
            rows: dict[str, Row] = {}
            for maker in makers:
                own = attempt(partial(_steps, maker, sizes, per_second))
                steps |= own or {}
                together = work.branches if maker == OURS else 1
                found = {name: _row(step, work.samples, together, device) for name, step in (own or {}).items()}
                rows |= found or {maker: {"fault": DOES_NOT_FIT}}
            _go_round(steps, rows, rounds, device)
            for name, row in rows.items():
                yield {"work": work.name, "step": name, **row}
            del steps, own
            free_memory()  # before the next models: together they do not fit a card


def _steps(maker: str, sizes: tuple[Shape, Work, str, torch.dtype], per_second: float) -> dict[str, Step]:
    return ours(*sizes, per_second=per_second) if maker == OURS else {maker: RIVALS[maker](*sizes)}


def _go_round(steps: dict[str, Step], rows: dict[str, Row], rounds: int, device: str) -> None:
    """Does every step that fits once a round, beginning with another each time, and writes the times into its row."""
    names = [name for name, row in rows.items() if "fault" not in row]
    times: dict[str, list[float | None]] = {name: [None] * rounds for name in names}
    for turn in range(rounds):
        first = turn % len(names) if names else 0
        for name in names[first:] + names[:first]:
            times[name][turn] = attempt(partial(seconds_of, partial(steps[name], rows[name]["at_once"]), device))
    for name in names:
        # A step that just fitted may fail later, when memory is in smaller pieces: it needs one time at least.
        measured = [one for one in times[name] if one is not None]
        if measured:
            rows[name] = {"seconds": statistics.median(measured), "rounds_s": times[name], **rows[name]}
        else:
            rows[name] = {"fault": DOES_NOT_FIT}


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
        table = Table(*STEP_HEADINGS, title=name)
        for cells in step_rows([row for row in result["rows"] if row["work"] == name], result["samples"]):
            table.add_row(*cells)
        yield table


def main() -> None:
    """Measures, writes the rows as they come and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--size", choices=list(SHAPES), default="full" if gpu else "cpu")
    parser.add_argument("--samples", type=int, default=48 if gpu else 8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--per-second", type=float, default=PER_SECOND, help="embeddings of L that skipping leaves")
    parser.add_argument("--quick", action="store_true", help="the smallest size, two rounds: only that it runs")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    if args.quick:
        args.size, args.samples, args.rounds = "small", 4, 2
    device = "cuda" if gpu else "cpu"
    as_trained(device)
    settings = {"size": args.size, "samples": args.samples, "rounds": args.rounds, "per_second": args.per_second}
    result: dict[str, Any] = {**about(), **settings, "rows": []}
    for row in measure(args.size, args.samples, args.rounds, device, args.per_second):
        result["rows"].append(row)
        write_result(result, args.out)
        Console(stderr=True).print(f"{row['work']}: {row['step']} {row.get('seconds', row.get('fault'))}")
    for table in tables(result):
        Console().print(table)


if __name__ == "__main__":
    main()
