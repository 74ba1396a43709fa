"""What a quantized LLM costs: the loss of the same conversations through the tiny LLM, whole and in fewer bits.

    python bench/quantized.py [--count 200] [--device cpu|cuda] [--out docs/results/quantized.json]

Held-out sentences in voices of the training data. Each is written down and answered through P and L, and answered from
caption and transcript, which shows what the LLM itself loses. The adapters are the shipped ones, trained with the whole
LLM. Differences are paired by sentence, with a 95 % interval from a bootstrap over sentences. On a GPU each row also
has the seconds and the peak memory of all sentences, and the whole LLM is in bfloat16, as it is used there.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, get_args

import numpy as np
import torch
from measuring import about, free_memory, memory_of, seconds_of, write_result

from dualslm.conversation import Conversation, View
from dualslm.model.dualslm import DualSLM
from dualslm.model.execution import decoder_layers
from dualslm.prompt import render
from dualslm.recipe import Quantize
from dualslm.tiny import ADAPTERS, world
from dualslm.tiny.build.recordings import Recordings, Take
from dualslm.tiny.build.run import record_test_set

Losses: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Nats and number of labels of each sentence."""

BATCH = 50  # sentences
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
    recordings = record_test_set(DualSLM.from_pretrained(ADAPTERS, device=args.device), "seen", args.count, 1)
    found: dict[str, Any] = {**about(), "device": args.device, "n": args.count, "seed": 0, "rows": []}
    before: dict[str, Losses] = {}
    for kind in (None, *get_args(Quantize)):
        for row in measure(kind, recordings, args.device, before):
            found["rows"].append(row)
            print(json.dumps(row), flush=True)
            write_result(found, args.out)
        free_memory()
    return 0


def measure(
    kind: Quantize | None, recordings: Recordings, device: str, before: dict[str, Losses]
) -> Iterator[dict[str, Any]]:
    """The rows of one LLM.

    Args:
        kind: how its weights are quantized; None for the whole LLM, which must come first.
        recordings: test set.
        device: "cpu" or "cuda".
        before: losses of the whole LLM by way, filled by its own rows.
    """
    model = DualSLM.from_pretrained(ADAPTERS, device=device, quantize=kind)
    size = sum(w.nbytes for layer in decoder_layers(model.llm.model) for w in layer.parameters())
    name = kind or f"whole, {str(model.llm.dtype).removeprefix('torch.')}"
    for way in WAYS:
        own = losses(model, recordings, way)
        row = {"llm": name, "way": way, "layers_mb": size / 1e6, **compared(own, before.setdefault(way, own))}
        if device == "cuda":
            # A second time: the first one chose kernels and allocated.
            with memory_of("cuda") as peak:
                seconds = seconds_of(partial(losses, model, recordings, way), "cuda")
            row |= {"seconds": seconds, "peak_mb": peak[0] / 1e6}
        yield row


@torch.no_grad()
def losses(model: DualSLM, recordings: Recordings, way: str) -> Losses:
    """Nats and number of labels of each sentence."""
    kind, view = WAYS[way]
    conversations = [_conversation(take, kind, index) for index, take in enumerate(recordings.takes)]
    tokenizer = model.llm.tokenizer
    prompts = [
        render(conversation, tokenizer, view, learns=frozenset(("para", "ling")), supervise="last")
        for conversation in conversations
    ]
    parts = [model(prompts[at : at + BATCH], recordings.hear) for at in range(0, len(prompts), BATCH)]
    nats = torch.cat([part.nll_B for part in parts]).double().cpu().numpy()
    return nats, torch.cat([part.tokens_B for part in parts]).double().cpu().numpy()


def _conversation(take: Take, kind: str, index: int) -> Conversation:
    rng = random.Random(f"quantized/{index}")
    if kind == "words":
        return world.transcription(take.speech, rng)
    reply = world.reply_to(take.utterance, take.style.emotion)
    return Conversation(world.LISTEN).user(take.speech).assistant(reply.text)


def compared(own: Losses, before: Losses) -> dict[str, Any]:
    """Nats a token, and the difference to the whole LLM with its interval."""
    # Sentences are drawn, not tokens: the tokens of a sentence are right or wrong together.
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(own[0]), size=(2000, len(own[0])))
    more = (own[0] - before[0])[drawn].sum(1) / own[1][drawn].sum(1)
    low, high = np.quantile(more, [0.025, 0.975])
    loss = float(own[0].sum() / own[1].sum())
    difference = loss - float(before[0].sum() / before[1].sum())
    return {"loss": loss, "more": difference, "low": float(low), "high": float(high)}


if __name__ == "__main__":
    sys.exit(main())
