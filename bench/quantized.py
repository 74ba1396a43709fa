"""What an LLM in fewer bits costs: the loss of the same lessons through the tiny LLM, whole and quantized.

    python bench/quantized.py [--count 200] [--device cpu|cuda] [--out docs/results/quantized.json]

Held-out sentences in voices heard in training. Each is written down (through P and L, and from its transcript alone,
which tells what the LLM itself loses) and answered. The adapters are the shipped ones, which learnt with the whole LLM;
differences are paired by sentence, with a 95 % interval from resampling sentences. On a GPU each row also has the
seconds of all sentences and the most memory that they took, and the whole LLM is in bfloat16 as it is run there.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, get_args

import numpy as np
import torch
from measuring import about, forget, keep, memory_of, seconds_of

from dualslm.conversation import Conversation, View
from dualslm.model.dualslm import DualSLM
from dualslm.model.execution import decoder_layers
from dualslm.prompt import render
from dualslm.recipe import Quantize
from dualslm.tiny import ADAPTERS, world
from dualslm.tiny.build.recordings import Recordings, Take
from dualslm.tiny.build.run import _record

Losses: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Nats and target tokens of each sentence."""

AT_ONCE = 50
WAYS: dict[str, tuple[str, View]] = {
    "written down, P and L": ("words", View()),
    "answered, P and L": ("reply", View()),
    "answered, caption and transcript": ("reply", View("text", "text")),
}


def main() -> int:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    recordings = _record(DualSLM.from_pretrained(ADAPTERS, device=args.device), "seen", args.count, 1)
    found: dict[str, Any] = {**about(), "device": args.device, "n": args.count, "seed": 0, "rows": []}
    before: dict[str, Losses] = {}
    for kind in (None, *get_args(Quantize)):
        for row in measure(kind, recordings, args.device, before):
            found["rows"].append(row)
            print(json.dumps(row), flush=True)
            keep(found, args.out)
        forget()
    return 0


def measure(
    kind: Quantize | None, recordings: Recordings, device: str, before: dict[str, Losses]
) -> Iterator[dict[str, Any]]:
    """The rows of one LLM, with the whole one's losses beside them; the whole one comes first and leaves its own."""
    model = DualSLM.from_pretrained(ADAPTERS, device=device, quantize=kind)
    size = sum(w.nbytes for layer in decoder_layers(model.llm.model) for w in layer.parameters())
    name = kind or f"whole, {str(model.llm.dtype).removeprefix('torch.')}"
    for way in WAYS:
        own = losses(model, recordings, way)
        row = {"llm": name, "way": way, "layers_mb": size / 1e6, **compared(own, before.setdefault(way, own))}
        yield row | (_on_gpu(partial(losses, model, recordings, way)) if device == "cuda" else {})


def _on_gpu(again: Callable[[], Any]) -> dict[str, float]:
    with memory_of("cuda") as peak:
        seconds = seconds_of(again, "cuda")
    return {"seconds": seconds, "peak_mb": peak[0] / 1e6}


@torch.no_grad()
def losses(model: DualSLM, recordings: Recordings, way: str) -> Losses:
    """Nats and target tokens of each sentence."""
    kind, view = WAYS[way]
    conversations = [_conversation(take, kind, index) for index, take in enumerate(recordings.takes)]
    words = model.llm.tokenizer
    prompts = [
        render(conversation, words, view, learns=frozenset(("para", "ling")), supervise="last")
        for conversation in conversations
    ]
    parts = [model(prompts[at : at + AT_ONCE], recordings.hear) for at in range(0, len(prompts), AT_ONCE)]
    nats = torch.cat([part.nll_B for part in parts]).double().cpu().numpy()
    return nats, torch.cat([part.tokens_B for part in parts]).double().cpu().numpy()


def _conversation(take: Take, kind: str, index: int) -> Conversation:
    rng = random.Random(f"quantized/{index}")
    if kind == "words":
        return world.transcription(take.speech, rng)
    reply = world.reply_to(take.utterance, take.style.emotion)
    return Conversation(world.LISTEN).user(take.speech).assistant(reply.text)


def compared(own: Losses, before: Losses) -> dict[str, Any]:
    """Nats a token, and how many more than the whole LLM's."""
    rng = np.random.default_rng(0)
    some = rng.integers(len(own[0]), size=(2000, len(own[0])))
    more = (own[0] - before[0])[some].sum(1) / own[1][some].sum(1)
    low, high = np.quantile(more, [0.025, 0.975])
    loss = float(own[0].sum() / own[1].sum())
    difference = loss - float(before[0].sum() / before[1].sum())
    return {"loss": loss, "more": difference, "low": float(low), "high": float(high)}


if __name__ == "__main__":
    sys.exit(main())
