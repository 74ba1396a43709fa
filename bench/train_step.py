"""One optimiser step, ours and others', side by side in one run on the same sizes and lengths.

    python bench/train_step.py [--size cpu|small|full] [--rounds 5] [--out docs/results/train_step.json]

No step has dropout but the one that says so: others train without, and on a CPU it keeps attention from the fused
kernel. `cpu` keeps the shares of work that encoder, LLM body and output head have at Whisper-large-v3 and Qwen2.5-7B
(`full`); `small` only shows that everything runs. Prints seconds, ratios, the FLOPs that PyTorch counts, the
ratio that they predict and the share of it that is reached, and the memory of a step.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
import torch
from factory import tokenizer
from measuring import about, count_flops, keep, memory_of, seconds_of
from rich.console import Console
from rich.table import Table
from rivals import Shape, Step, Work, built, qwen2_audio, slam, ultravox, voxtral
from transformers import AutoModelForCausalLM, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from dualslm.conversation import Speech
from dualslm.encoder import Frames, SpeechEncoder
from dualslm.fill import NO_TARGET, Hear, rows
from dualslm.llm import FrozenLM, pad_left
from dualslm.loss import Loss
from dualslm.model import DualSLM
from dualslm.prompt import Prompt, Slot, Text

SHAPES = {
    "small": Shape(64, 2, 2, 128, 80, 64, 2, 2, 1, 128, 512, 64),
    "cpu": Shape(192, 6, 3, 768, 128, 512, 12, 8, 2, 2688, 9360, 128),
    "full": Shape(1280, 32, 20, 5120, 128, 3584, 28, 28, 4, 18944, 152064, 2048),
}
CALM = 2.0  # a prefix is never worth it
RIVALS: dict[str, Callable[[Shape, Work, str, torch.dtype], Step]] = {
    "Qwen2-Audio (transformers)": qwen2_audio,
    "Voxtral (transformers)": voxtral,
    "SLAM-ASR style": slam,
    "Ultravox style": ultravox,
}


def works(samples: int) -> list[Work]:
    """The two workloads: a spoken turn after three turns of talk, and 12 s of speech to be written down."""
    return [
        Work("dialogue", samples, context=150, seconds=4.0, reply=30, branches=4),
        Work("transcription", samples, context=20, seconds=12.0, reply=36, branches=1),
    ]


def frozen_parts(shape: Shape, device: str, dtype: torch.dtype) -> tuple[SpeechEncoder, FrozenLM]:
    """An encoder and an LLM with random weights."""
    with built(device, dtype):
        whisper, llm = WhisperEncoder(shape.whisper()), AutoModelForCausalLM.from_config(shape.llm())
    ears = SpeechEncoder(whisper, WhisperFeatureExtractor(feature_size=shape.mels))
    return ears, FrozenLM(llm, tokenizer())


def ours(
    shape: Shape,
    work: Work,
    device: str,
    dtype: torch.dtype,
    parts: tuple[SpeechEncoder, FrozenLM] | None = None,
) -> dict[str, Step]:
    """Our step, and the same with each short cut left out."""
    ears, mind = parts or frozen_parts(shape, device, dtype)
    model = DualSLM(ears, mind, paralinguistic={"dropout": 0.0}, linguistic={"hidden": shape.hidden}).train()
    dropping = DualSLM(ears, mind, linguistic={"hidden": shape.hidden}).train()
    adamw = torch.optim.AdamW([*model.adapters.parameters(), *dropping.adapters.parameters()], lr=1e-4)
    frames, live = _frames(shape, work, device), model.hear

    def step(loss: Callable[[list[Prompt]], Loss], branches: int) -> Step:
        prompts = _prompts(shape, work, branches)

        def run() -> torch.Tensor:
            adamw.zero_grad()
            value = loss(prompts).mean
            value.backward()
            adamw.step()
            return value.detach()

        return run

    def cached(clips: Any) -> Frames:
        return frames

    return {
        "ours": step(lambda some: model(some, cached), work.branches),
        "- a prefix shared": step(lambda some: model(some, cached), 1),
        "- the gradient-free prefix": step(lambda some: model(some, cached, worth=CALM), work.branches),
        "- logits at targets alone": step(lambda some: _all_logits(model, some, cached), work.branches),
        "- the cache of frames": step(lambda some: model(some, live), work.branches),
        "+ dropout in P": step(lambda some: dropping(some, cached), work.branches),
    }


def _all_logits(model: DualSLM, prompts: list[Prompt], hear: Hear) -> Loss:
    filled = rows(prompts, model.llm, model.adapt, hear)
    embeds_BTD, mask_BT = pad_left([row.embeds_TD for row in filled])
    targets_BT = pad_left([row.targets_T for row in filled])[0].masked_fill(mask_BT == 0, NO_TARGET)[:, 1:]
    logits_BTV = model.llm(embeds_BTD)[:, :-1].float()
    nll_BT = torch.nn.functional.cross_entropy(
        logits_BTV.transpose(1, 2), targets_BT, ignore_index=NO_TARGET, reduction="none"
    )
    return Loss(nll_BT.sum(1), (targets_BT != NO_TARGET).sum(1))


def _frames(shape: Shape, work: Work, device: str) -> Frames:
    frames = round(50 * work.seconds)
    layers = torch.randn(1, work.samples, frames, shape.d_speech, device=device, dtype=torch.bfloat16)
    return Frames(layers, torch.full((work.samples,), frames, device=device))


def _prompts(shape: Shape, work: Work, branches: int) -> list[Prompt]:
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


def measure(size: str, samples: int, rounds: int, device: str) -> list[dict[str, Any]]:
    """Every step of every workload: seconds (median), FLOPs, memory."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    found = []
    for work in works(samples):
        makers: dict[str, Callable[[], dict[str, Step]]] = {
            "ours": lambda work=work: ours(SHAPES[size], work, device, dtype)
        }
        for name, make in RIVALS.items():
            makers[name] = lambda name=name, make=make, work=work: {name: make(SHAPES[size], work, device, dtype)}
        for make_steps in makers.values():
            steps = make_steps()
            counts = {name: count_flops(step) for name, step in steps.items()}
            times: dict[str, list[float]] = {name: [] for name in steps}
            for _ in range(rounds):
                for name, step in steps.items():
                    times[name].append(seconds_of(step, device))
            for name, step in steps.items():
                with memory_of(device) as memory:
                    step()
                row = {"work": work.name, "step": name, "seconds": statistics.median(times[name])}
                found.append({**row, "tflop": counts[name] / 1e12, "memory_gb": memory[0] / 1e9})
                Console(stderr=True).print(f"{work.name}: {name} {row['seconds']:.3f} s")
            del steps
            gc.collect()
    return found


def tables(result: dict[str, Any]) -> Iterator[Table]:
    """One table a workload: how many times as long as ours each takes, and what the FLOPs predict."""
    for name in dict.fromkeys(row["work"] for row in result["rows"]):
        table = Table("step", "s", "times ours", "TFLOP", "times ours", "reached", "GB", title=name)
        own = [row for row in result["rows"] if row["work"] == name]
        for row in own:
            took, counted = row["seconds"] / own[0]["seconds"], row["tflop"] / own[0]["tflop"]
            cells = (f"{row['seconds']:.3f}", f"{took:.2f}", f"{row['tflop']:.3f}", f"{counted:.2f}")
            table.add_row(row["step"], *cells, f"{took / counted:.0%}", f"{row['memory_gb']:.2f}")
        yield table


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--size", choices=list(SHAPES), default="full" if gpu else "cpu")
    parser.add_argument("--samples", type=int, default=48 if gpu else 8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    device = "cuda" if gpu else "cpu"
    result = {
        **about(),
        "size": args.size,
        "samples": args.samples,
        "rounds": args.rounds,
        "rows": measure(args.size, args.samples, args.rounds, device),
    }
    for table in tables(result):
        Console().print(table)
    keep(result, args.out)


if __name__ == "__main__":
    main()
