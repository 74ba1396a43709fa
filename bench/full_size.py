"""Whisper-large-v3 with Qwen2.5-7B and with Llama-3.1-8B, as they will be run: each time with its lower bound.

    python bench/full_size.py [--size full|cpu|small] [--llm Qwen2.5-7B] [--out docs/results/full_size.json]

Weights are random and made on the device, so nothing is downloaded or read. The floor of a step is what its
necessary FLOPs (`dualslm.training.estimate`, `dualslm.training.shapes`) take at the rate of a large matrix product, or
its bytes at the rate of a copy, both measured here. The rival is transformers' Qwen2-Audio class with an LLM of the
same sizes: it gets finished mels, and at turn 10 it reads everything again, because it has no cache between turns. What
does not fit the card's memory has no time; a batch that does not goes through the model in parts (`train_step.py`), and
its row has the number of samples at once. `cpu` has the shares of work of `full` (`train_step.py`); `small` only shows
that everything runs.
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
from measuring import (
    DOES_NOT_FIT,
    about,
    as_trained,
    attempt,
    fitting,
    free_memory,
    memory_of,
    seconds_of,
    synchronize,
    write_result,
)
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
SYSTEM_TOKENS = 20  # of the conversations below
CLOSE_TOKENS = 4  # end of a user turn
REPLY_TOKENS = 30
SPOKEN_S = 5.0  # of a user turn
DECODED_TOKENS = 32  # after the first one
CLIPS = 16  # of a batch of the encoder
Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Machine:
    """The device, and the two rates that the lower bounds follow from.

    Attributes:
        device, dtype: device and dtype of the frozen parts.
        rounds: number of measurements, of which the quickest counts.
        flops: FLOP/s of a large matrix product.
        bytes: bytes/s of a copy, read and written.
    """

    device: str
    dtype: torch.dtype
    rounds: int
    flops: float = 0.0
    bytes: float = 0.0

    def quickest(self, step: Callable[[], Any]) -> float:
        """The shortest time of a step, in s: whatever else runs on a machine only ever adds time."""
        step()  # the first call allocates, and on a GPU chooses kernels
        return min(seconds_of(step, self.device) for _ in range(self.rounds))


def rates(here: Machine, shape: Shape) -> Machine:
    """The machine with its two rates, the best of ten measurements each."""
    # Large enough that launching is nothing beside them.
    rows, big = (8192, 1 << 30) if here.device == "cuda" else (1024, 1 << 27)
    left = torch.randn(rows, shape.d_llm, device=here.device, dtype=here.dtype)
    right = torch.randn(shape.d_llm, shape.ffn, device=here.device, dtype=here.dtype)
    source = torch.empty(big, dtype=torch.uint8, device=here.device)
    goal = torch.empty_like(source)
    product = min(seconds_of(lambda: left @ right, here.device) for _ in range(10))
    copy = min(seconds_of(lambda: goal.copy_(source), here.device) for _ in range(10))
    return replace(here, flops=2 * rows * shape.d_llm * shape.ffn / product, bytes=2 * big / copy)


def measure(name: str, shape: Shape, here: Machine, samples: int) -> Iterator[Row]:
    """The rows of one LLM: first ours, then the same rows with the rival's times."""
    encoder = EncoderShape(shape.d_speech, shape.speech_layers, shape.speech_ffn, shape.mels)
    width = shape.d_llm // shape.heads
    llm = LLMShape(shape.d_llm, shape.layers, shape.heads, shape.kv_heads, width, shape.ffn, shape.vocabulary)
    own = {}
    # One after the other, because both models together do not fit one card.
    for what, row in _ours(shape, encoder, llm, here, samples):
        own[what] = {"llm": name, "what": what, **row, "rival": None}
        yield own[what]
    free_memory()
    for what, rival in _theirs(shape, here, samples):
        yield own[what] | rival
    free_memory()


def _ours(shape: Shape, encoder: EncoderShape, llm: LLMShape, here: Machine, samples: int) -> Iterator[tuple[str, Row]]:
    """Each time with the lower bound by its FLOPs or bytes."""
    parts = frozen_parts(shape, here.device, here.dtype)
    for work in _works(samples):
        floor = samples * _needed_flops(shape, encoder, llm, work) / here.flops
        took = _training_row(ours(shape, work, here.device, here.dtype, parts)[OURS], work, here)
        yield f"training step, {work.name}", {**took, "floor": floor, "bound": "FLOPs"}
    model = DualSLM(*parts, linguistic={"hidden": shape.hidden}).eval()
    model.llm.stops = frozenset()  # random weights stop anywhere: replies must have their full length
    clips = [_clip(number) for number in range(CLIPS)]
    encoding = _or_fault(lambda: _timed(lambda: model.hear(clips), here))
    yield f"encoding {CLIPS} clips", {**encoding, "floor": CLIPS * encoder.flops() / here.flops, "bound": "FLOPs"}
    new = round(SPOKEN_S * 10) + 16 + CLOSE_TOKENS  # L at 10 Hz, 16 embeddings of P, the end of the turn
    for turn, before in ((1, SYSTEM_TOKENS), (10, SYSTEM_TOKENS + 9 * (new + REPLY_TOKENS))):
        by_flops = (encoder.flops() + llm.forward(new, before + new) + 2 * llm.head) / here.flops
        by_bytes = (here.dtype.itemsize * (encoder.weights + llm.body + llm.head)) / here.bytes
        timed = _or_fault(partial(_first_token_row, model, turn, here))
        bound = "FLOPs" if by_flops > by_bytes else "bytes"
        yield f"first token, turn {turn}", {**timed, "floor": max(by_flops, by_bytes), "bound": bound}
    # A single token needs every weight once and computes little with it: its bound is the memory's.
    floor = here.dtype.itemsize * (llm.body + llm.head) / here.bytes
    yield "a token", {**_or_fault(lambda: _token_row(model, here)), "floor": floor, "bound": "bytes"}
    if here.device == "cuda":
        model.llm.enable_cuda_graphs()
        yield "a token, captured", {**_or_fault(lambda: _token_row(model, here)), "floor": floor, "bound": "bytes"}


def _theirs(shape: Shape, here: Machine, samples: int) -> Iterator[tuple[str, Row]]:
    """Seconds of the same by the class of transformers."""
    model = qwen2_audio_model(shape, here.device, here.dtype)
    for work in _works(samples):
        step = qwen2_audio(shape, work, here.device, here.dtype, model)

        def quickest(at_once: int, step: Step = step) -> float:
            return here.quickest(partial(step, at_once))

        fits = fitting(quickest, samples)
        yield f"training step, {work.name}", _rival(fits[1], fits[0]) if fits else _rival(None)

    @torch.no_grad()
    def first_token(turn: int) -> float:
        inputs = _rival_inputs(shape, turn, here)
        return here.quickest(lambda: model(**inputs).logits[:, -1].argmax(-1).tolist())

    first = {turn: attempt(partial(first_token, turn)) for turn in (1, 10)}
    for turn, seconds in first.items():
        yield f"first token, turn {turn}", _rival(seconds)
    count = DECODED_TOKENS + 1
    settings = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
    whole = attempt(lambda: here.quickest(lambda: model.generate(**_rival_inputs(shape, 1, here), **settings)))
    # transformers gives no time of a single token: the whole reply without its first one, by their number.
    yield "a token", _rival((whole - first[1]) / DECODED_TOKENS if whole and first[1] else None)


def _rival(seconds: float | None, at_once: int | None = None) -> Row:
    """What the rival adds to our row."""
    if seconds is None:
        return {"rival_fault": DOES_NOT_FIT}
    return {"rival": seconds, **({"rival_at_once": at_once} if at_once else {})}


def _or_fault(measured: Callable[[], Row]) -> Row:
    found = attempt(measured)
    return {"fault": DOES_NOT_FIT} if found is None else found


# ---------------------------------------------------------------------- what is run


def _works(samples: int) -> list[Work]:
    return [Work("dialogue", samples, context=150, seconds=4.0, reply=30, branches=4 if samples % 4 == 0 else 1)]


def _needed_flops(shape: Shape, encoder: EncoderShape, llm: LLMShape, work: Work) -> float:
    """FLOPs that a training sample cannot do without."""
    stage = Stage(name="one", lr=1.0, batch=1, steps=1, dual=Kind(learns=("para", "ling")))
    model = ModelRecipe(encoder="", llm="", paralinguistic=Paralinguistic(), linguistic=Linguistic(hidden=shape.hidden))
    lengths = estimate.Lengths(work.context, work.seconds, CLOSE_TOKENS, work.reply, shared=work.branches)
    return estimate.sample_cost(Recipe(model=model, stages=(stage,)), encoder, llm, lengths).total


def _training_row(step: Step, work: Work, here: Machine) -> Row:
    """Seconds and memory of an optimizer step, with as many samples at once as fit."""
    fits = fitting(lambda at_once: _timed(partial(step, at_once), here), work.samples, work.branches)
    return {"fault": DOES_NOT_FIT} if fits is None else {**fits[1], "at_once": fits[0]}


def _timed(step: Callable[[], Any], here: Machine) -> Row:
    """Seconds and memory of a step."""
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
    return (Slot("para", 0), Slot("ling", 0), _ids(CLOSE_TOKENS, seed))


@torch.no_grad()
def _history(model: DualSLM, turn: int) -> Prefilled:
    """The conversation before a turn, as a session has it in its cache."""
    prefix = model.llm.prefill(model.embed([Prompt((_ids(SYSTEM_TOKENS, 0),), ())]))
    for number in range(1, turn):
        exchange = Prompt((*_turn(number), _ids(REPLY_TOKENS, number)), (_clip(number),))
        prefix = model.llm.prefill(model.embed([exchange]), prefix)
    return prefix


@torch.no_grad()
def _first_token_row(model: DualSLM, turn: int, here: Machine) -> Row:
    """Seconds from the samples of a turn to the first token of its reply, with the earlier turns in the cache."""
    times = []
    for _ in range(here.rounds + 1):
        prefix = _history(model, turn)  # anew each time, because its cache grows with the turn
        prompt = Prompt(_turn(turn), (_clip(turn),))

        def first_token(prompt: Prompt = prompt, prefix: Prefilled = prefix) -> Any:
            return model.llm.prefill(model.embed([prompt]), prefix).logits_BV.argmax(-1).tolist()

        times.append(seconds_of(first_token, here.device))
    return {"seconds": min(times)}


def _token_row(model: DualSLM, here: Machine) -> Row:
    """Seconds of a token after the first ones, at batch 1."""
    found = []
    for _ in range(here.rounds + 2):  # the first two capture the graph, and do not count
        tokens = model.llm.decode(_history(model, 2), GenerationSettings(max_new_tokens=DECODED_TOKENS + 3))
        for _ in range(3):
            next(tokens)
        synchronize(here.device)
        began = time.perf_counter()
        for _ in tokens:
            pass
        synchronize(here.device)
        found.append((time.perf_counter() - began) / DECODED_TOKENS)
    return {"seconds": min(found[2:])}


def _rival_inputs(shape: Shape, turn: int, here: Machine) -> dict[str, torch.Tensor]:
    """A whole conversation for the class of transformers: 25 audio tokens a second in every spoken turn."""
    spoken = [AUDIO_TOKEN] * round(25 * SPOKEN_S)
    ids = list(_ids(SYSTEM_TOKENS, 0).ids)
    for number in range(1, turn + 1):
        ids += [*spoken, *_ids(CLOSE_TOKENS, number).ids]
        if number < turn:
            ids += _ids(REPLY_TOKENS, number).ids
    mels = torch.randn(turn, shape.mels, 3000, device=here.device, dtype=here.dtype)
    mask = (torch.arange(3000, device=here.device) < round(100 * SPOKEN_S)).long().expand(turn, -1)
    whole = torch.tensor([ids], device=here.device)
    return {
        "input_ids": whole,
        "attention_mask": torch.ones_like(whole),
        "input_features": mels,
        "feature_attention_mask": mask,
    }


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
            write_result(result, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
