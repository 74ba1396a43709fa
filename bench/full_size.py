"""Whisper-large-v3 with Qwen2.5-7B and with Llama-3.1-8B, as they will be run: each time beside its floor.

    python bench/full_size.py [--size full|cpu|small] [--llm Qwen2.5-7B] [--out docs/results/full_size.json]

Weights are random and made on the device, so nothing is downloaded or read. The floor of a step is what its
necessary FLOPs (`dualslm.training.estimate`, `dualslm.training.shapes`) take at the rate of a large matrix product, or
its bytes at the rate of a copy, both measured here. Beside each stands transformers' Qwen2-Audio class with an LLM of
the same sizes: it is given finished mels, and at turn 10 it reads everything again, because it keeps nothing of a talk.
What does not fit the
card says so; a batch that does not goes through the model in parts (`train_step.py`), and its row says how many samples
at once. `cpu` keeps the shares of work of `full` (`train_step.py`); `small` only shows that everything runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from measuring import NO_ROOM, about, as_trained, attempt, fitting, forget, keep, memory_of, seconds_of, wait
from rivals import AUDIO_TOKEN, Shape, Step, Work, qwen2_audio, qwen2_audio_model
from train_step import OURS, SHAPES, frozen_parts, ours

from dualslm.conversation import Speech
from dualslm.model.dualslm import DualSLM
from dualslm.model.generation import GenerationSettings
from dualslm.model.llm import Prefilled
from dualslm.prompt import Prompt, Slot, Text
from dualslm.recipe import Kind, Linguistic, ModelRecipe, Paralinguistic, Recipe, Stage
from dualslm.training import estimate
from dualslm.training.shapes import EncoderShape, LLMShape

ROOT = Path(__file__).parents[1]
SIZES = {
    "small": {"Qwen2.5-7B": SHAPES["small"], "Llama-3.1-8B": replace(SHAPES["small"], family="llama")},
    "cpu": {
        "Qwen2.5-7B": SHAPES["cpu"],
        "Llama-3.1-8B": replace(SHAPES["cpu"], family="llama", d_llm=576, layers=14, heads=8, kv_heads=2, ffn=2016),
    },
    "full": {
        "Qwen2.5-7B": SHAPES["full"],
        "Llama-3.1-8B": Shape(1280, 32, 20, 5120, 128, 4096, 32, 32, 8, 14336, 128256, 2048, family="llama"),
    },
}
SYSTEM, CLOSE, REPLY, SPOKEN_S = 20, 4, 30, 5.0  # tokens, tokens, tokens, s: of a turn of the talks below
TOKENS = 32  # decoded after the first one
CLIPS = 16  # encoded at once
Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Machine:
    """What is run on, and the two rates that floors follow from.

    Attributes:
        device, dtype: of the frozen parts.
        rounds: measurements, of which the quickest counts.
        flops: a second, of a large matrix product.
        bytes: a second, of a copy, read and written.
    """

    device: str
    dtype: torch.dtype
    rounds: int
    flops: float = 0.0
    bytes: float = 0.0

    def quickest(self, step: Callable[[], Any]) -> float:
        """Seconds of a step that has been warmed up: what other programs add is left out as far as can be."""
        step()
        return min(seconds_of(step, self.device) for _ in range(self.rounds))


def rates(here: Machine, shape: Shape) -> Machine:
    """The machine with its rates measured: the best of some rounds."""
    rows, big = (8192, 1 << 30) if here.device == "cuda" else (1024, 1 << 27)
    left = torch.randn(rows, shape.d_llm, device=here.device, dtype=here.dtype)
    right = torch.randn(shape.d_llm, shape.ffn, device=here.device, dtype=here.dtype)
    source = torch.empty(big, dtype=torch.uint8, device=here.device)
    goal = torch.empty_like(source)
    product = min(seconds_of(lambda: left @ right, here.device) for _ in range(10))
    copy = min(seconds_of(lambda: goal.copy_(source), here.device) for _ in range(10))
    return replace(here, flops=2 * rows * shape.d_llm * shape.ffn / product, bytes=2 * big / copy)


def measure(name: str, shape: Shape, here: Machine, samples: int) -> Iterator[Row]:
    """The rows of one LLM: ours first, then again with the class of transformers beside them, never both in memory."""
    ears = EncoderShape(shape.d_speech, shape.speech_layers, shape.speech_ffn, shape.mels)
    width = shape.d_llm // shape.heads
    mind = LLMShape(shape.d_llm, shape.layers, shape.heads, shape.kv_heads, width, shape.ffn, shape.vocabulary)
    own = {}
    for what, row in _ours(shape, ears, mind, here, samples):
        own[what] = {"llm": name, "what": what, **row, "rival": None}
        yield own[what]
    forget()
    for what, rival in _theirs(shape, here, samples):
        yield own[what] | rival
    forget()


def _ours(shape: Shape, ears: EncoderShape, mind: LLMShape, here: Machine, samples: int) -> Iterator[tuple[str, Row]]:
    """Each measure with the floor of its FLOPs or bytes."""
    parts = frozen_parts(shape, here.device, here.dtype)
    for work in _works(samples):
        floor = samples * _needed(shape, ears, mind, work) / here.flops
        took = _trained(ours(shape, work, here.device, here.dtype, parts)[OURS], work, here)
        yield f"training step, {work.name}", {**took, "floor": floor, "bound": "FLOPs"}
    model = DualSLM(*parts, linguistic={"hidden": shape.hidden}).eval()
    model.llm.stops = frozenset()  # replies go on to the end
    clips = [_clip(number) for number in range(CLIPS)]
    caching = _or_fault(lambda: _timed(lambda: model.hear(clips), here))
    yield f"encoding {CLIPS} clips", {**caching, "floor": CLIPS * ears.flops() / here.flops, "bound": "FLOPs"}
    new = round(SPOKEN_S * 10) + 16 + CLOSE
    for turn, before in ((1, SYSTEM), (10, SYSTEM + 9 * (new + REPLY))):
        floor = (ears.flops() + mind.forward(new, before + new) + 2 * mind.head) / here.flops
        least = (here.dtype.itemsize * (ears.weights + mind.body + mind.head)) / here.bytes
        timed = _or_fault(partial(_first_of, model, turn, here))
        bound = "FLOPs" if floor > least else "bytes"
        yield f"first token, turn {turn}", {**timed, "floor": max(floor, least), "bound": bound}
    floor = here.dtype.itemsize * (mind.body + mind.head) / here.bytes
    yield "a token", {**_or_fault(lambda: _token(model, here)), "floor": floor, "bound": "bytes"}
    if here.device == "cuda":
        model.llm.enable_cuda_graphs()
        yield "a token, captured", {**_or_fault(lambda: _token(model, here)), "floor": floor, "bound": "bytes"}


def _theirs(shape: Shape, here: Machine, samples: int) -> Iterator[tuple[str, Row]]:
    """Seconds of the same by the class of transformers."""
    model = qwen2_audio_model(shape, here.device, here.dtype)
    for work in _works(samples):
        step = qwen2_audio(shape, work, here.device, here.dtype, model)
        fits = fitting(partial(_quickest, step, here), samples)
        yield f"training step, {work.name}", _rival(fits[1], fits[0]) if fits else _rival(None)
    first = {turn: attempt(partial(_asked_first, model, shape, turn, here)) for turn in (1, 10)}
    for turn, seconds in first.items():
        yield f"first token, turn {turn}", _rival(seconds)
    more = {"max_new_tokens": TOKENS + 1, "min_new_tokens": TOKENS + 1, "do_sample": False}
    whole = attempt(lambda: here.quickest(lambda: model.generate(**_asked(shape, 1, here), **more)))
    yield "a token", _rival((whole - first[1]) / TOKENS if whole and first[1] else None)


def _rival(seconds: float | None, at_once: int | None = None) -> Row:
    """What is told of the other class beside our row."""
    if seconds is None:
        return {"rival_fault": NO_ROOM}
    return {"rival": seconds, **({"rival_at_once": at_once} if at_once else {})}


def _or_fault(measured: Callable[[], Row]) -> Row:
    found = attempt(measured)
    return {"fault": NO_ROOM} if found is None else found


# ---------------------------------------------------------------------- what is run


def _works(samples: int) -> list[Work]:
    return [Work("dialogue", samples, context=150, seconds=4.0, reply=30, branches=4 if samples % 4 == 0 else 1)]


def _needed(shape: Shape, ears: EncoderShape, mind: LLMShape, work: Work) -> float:
    """FLOPs that one lesson cannot do without."""
    stage = Stage(name="one", lr=1.0, batch=1, steps=1, dual=Kind(learns=("para", "ling")))
    model = ModelRecipe(encoder="", llm="", paralinguistic=Paralinguistic(), linguistic=Linguistic(hidden=shape.hidden))
    lengths = estimate.Lengths(work.context, work.seconds, CLOSE, work.reply, shared=work.branches)
    return estimate.lesson_cost(Recipe(model=model, stages=(stage,)), ears, mind, lengths).total


def _trained(step: Step, work: Work, here: Machine) -> Row:
    fits = fitting(lambda at_once: _timed(partial(step, at_once), here), work.samples, work.branches)
    return {"fault": NO_ROOM} if fits is None else {**fits[1], "at_once": fits[0]}


def _quickest(step: Step, here: Machine, at_once: int) -> float:
    return here.quickest(partial(step, at_once))


def _timed(step: Callable[[], Any], here: Machine) -> Row:
    seconds = here.quickest(step)
    with memory_of(here.device) as found:
        step()
    return {"seconds": seconds, "memory_gb": found[0] / 1e9}


def _clip(seed: int) -> Speech:
    wave = 0.1 * np.random.default_rng(seed).standard_normal(round(16_000 * SPOKEN_S))
    return Speech(wave.astype(np.float32))


def _ids(length: int, seed: int) -> Text:
    return Text(tuple(np.random.default_rng(seed).integers(10, 300, length).tolist()))


def _turn(seed: int) -> tuple[Slot | Text, ...]:
    return (Slot("para", 0), Slot("ling", 0), _ids(CLOSE, seed))


@torch.no_grad()
def _before(model: DualSLM, turn: int) -> Prefilled:
    """The talk so far, as a session keeps it."""
    read = model.llm.prefill(model.embed([Prompt((_ids(SYSTEM, 0),), ())]))
    for number in range(1, turn):
        said = Prompt((*_turn(number), _ids(REPLY, number)), (_clip(number),))
        read = model.llm.prefill(model.embed([said]), read)
    return read


@torch.no_grad()
def _first(model: DualSLM, turn: int, here: Machine) -> float:
    """Seconds from samples to the first token, what was said before being read already."""
    read, said = _before(model, turn), Prompt(_turn(turn), (_clip(turn),))
    return seconds_of(lambda: model.llm.prefill(model.embed([said]), read).logits_BV.argmax(-1).tolist(), here.device)


def _first_of(model: DualSLM, turn: int, here: Machine) -> Row:
    return {"seconds": min(_first(model, turn, here) for _ in range(here.rounds + 1))}


def _token(model: DualSLM, here: Machine) -> Row:
    """Seconds of a token after the first ones, at batch 1."""
    found = []
    for _ in range(here.rounds + 2):  # the first ones capture
        tokens = model.llm.decode(_before(model, 2), GenerationSettings(max_new_tokens=TOKENS + 3))
        for _ in range(3):
            next(tokens)
        wait(here.device)
        began = time.perf_counter()
        for _ in tokens:
            pass
        wait(here.device)
        found.append((time.perf_counter() - began) / TOKENS)
    return {"seconds": min(found[2:])}


def _asked(shape: Shape, turn: int, here: Machine) -> dict[str, torch.Tensor]:
    """A whole talk as the class of transformers reads it: 25 audio tokens a second in every spoken turn."""
    spoken = [AUDIO_TOKEN] * round(25 * SPOKEN_S)
    ids = list(_ids(SYSTEM, 0).ids)
    for number in range(1, turn + 1):
        ids += [*spoken, *_ids(CLOSE, number).ids] + (list(_ids(REPLY, number).ids) if number < turn else [])
    mels = torch.randn(turn, shape.mels, 3000, device=here.device, dtype=here.dtype)
    mask = (torch.arange(3000, device=here.device) < round(100 * SPOKEN_S)).long().expand(turn, -1)
    whole = torch.tensor([ids], device=here.device)
    return {
        "input_ids": whole,
        "attention_mask": torch.ones_like(whole),
        "input_features": mels,
        "feature_attention_mask": mask,
    }


@torch.no_grad()
def _asked_first(model: Any, shape: Shape, turn: int, here: Machine) -> float:
    """Seconds to the first token of the class of transformers."""
    asked = _asked(shape, turn, here)
    return here.quickest(lambda: model(**asked).logits[:, -1].argmax(-1).tolist())


def main() -> int:
    """Measures, writes the rows as they come and prints them."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="full" if gpu else "cpu")
    parser.add_argument("--llm", choices=list(SIZES["full"]), action="append", help="all unless given")
    parser.add_argument("--samples", type=int, default=48 if gpu else 4)
    parser.add_argument("--rounds", type=int, default=5 if gpu else 3)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    device = "cuda" if gpu else "cpu"
    as_trained(device)
    here = Machine(device, torch.bfloat16 if gpu else torch.float32, args.rounds)
    shapes = {name: SIZES[args.size][name] for name in args.llm or SIZES[args.size]}
    here = rates(here, next(iter(shapes.values())))
    result = {
        **about(),
        "size": args.size,
        "samples": args.samples,
        "rounds": args.rounds,
        "matrix_tflops": here.flops / 1e12,
        "copy_gb_s": here.bytes / 1e9,
        "rows": [],
    }
    found: dict[tuple[str, str], Row] = {}
    for name, shape in shapes.items():
        for row in measure(name, shape, here, args.samples):
            found[name, row["what"]] = row  # a row comes again when there is a rival's time for it
            result["rows"] = list(found.values())
            print(json.dumps(row), flush=True)
            keep(result, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
