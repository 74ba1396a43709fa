"""What an LLM in fewer bits costs: the loss of the same lessons through the tiny LLM, whole and quantised.

    python bench/quantised.py [--count 200] [--out docs/results/quantised.json]

Held-out sentences in voices heard in training. Each is written down (through P and L, and from its transcript alone,
which tells what the LLM itself loses) and answered. The adapters are the shipped ones, which learnt with the whole LLM;
differences are paired by sentence, with a 95 % interval from resampling sentences.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from dualslm.conversation import Conversation, View
from dualslm.layers import decoder_layers
from dualslm.model import DualSLM
from dualslm.prompt import render
from dualslm.recipe import Quantise
from dualslm.tiny import ADAPTERS, world
from dualslm.tiny.build import _record
from dualslm.tiny.recordings import Recordings, Take

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
    args = parser.parse_args()
    whole = DualSLM.from_pretrained(ADAPTERS, device="cpu")
    recordings = _record(whole, "seen", args.count, 1)
    found: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "n": args.count, "seed": 0, "rows": []}
    before = {way: losses(whole, recordings, way) for way in WAYS}
    for kind in (None, *get_args(Quantise)):
        model = DualSLM.from_pretrained(ADAPTERS, device="cpu", quantise=kind) if kind else whole
        size = sum(w.nbytes for layer in decoder_layers(model.llm.model) for w in layer.parameters())
        for way in WAYS:
            own = losses(model, recordings, way) if kind else before[way]
            row = {"llm": kind or "whole, float32", "way": way, "layers_mb": size / 1e6, **compared(own, before[way])}
            found["rows"].append(row)
            print(json.dumps(row), flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


@torch.no_grad()
def losses(model: DualSLM, recordings: Recordings, way: str) -> tuple[np.ndarray, np.ndarray]:
    """Nats and target tokens of each sentence."""
    kind, view = WAYS[way]
    talks = [_talk(take, kind, index) for index, take in enumerate(recordings.takes)]
    words = model.llm.tokenizer
    prompts = [render(talk, words, view, learns=frozenset(("para", "ling")), supervise="last") for talk in talks]
    parts = [model(prompts[at : at + AT_ONCE], recordings.hear) for at in range(0, len(prompts), AT_ONCE)]
    nats = torch.cat([part.nll_B for part in parts]).double().numpy()
    return nats, torch.cat([part.tokens_B for part in parts]).double().numpy()


def _talk(take: Take, kind: str, index: int) -> Conversation:
    rng = random.Random(f"quantised/{index}")
    if kind == "words":
        return world.transcription(take.speech, rng)
    reply = world.reply_to(take.utterance, take.style.emotion)
    return Conversation(world.LISTEN).user(take.speech).assistant(reply.text)


def compared(own: tuple[np.ndarray, np.ndarray], before: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
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
