"""Tokens a second of one reply: ours, and llama.cpp's on the same weights.

    python bench/decoding.py --llm MODEL.gguf [--llama PYTHON] [--rounds 7] [--quick] [--out RESULT.json]

Ours reads the GGUF file's weights as numbers of 32 bits and decodes by PyTorch, through the `Session` that `ask`,
`chat` and `serve` use; llama.cpp computes with the file's few bits. Both write the same long reply, one after the other
in each round, the first one changing, with as many threads. `--llama` names the Python of an environment that has
llama.cpp (bench/llama_decoder.py). `--quick` measures ours alone on the embedded LLM and only shows that it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "docs/build"))

import tables
import torch
from measuring import about, write_result
from worker import Worker

from dualslm import pocket, tiny
from dualslm.conversation import Conversation
from dualslm.inference.session import Session
from dualslm.model.dualslm import DualSLM
from dualslm.model.generation import GenerationSettings

ASKED = "Write a long story about a fox who learns to read, with many details."
OURS = "ours"
LLAMA = "llama.cpp"


def ours(model: DualSLM, tokens: int) -> dict[str, float]:
    """A reply through a new session: tokens, seconds to the first, seconds from there to the last."""
    session = Session(model, Conversation(), generation=GenerationSettings(max_new_tokens=tokens))
    session.reply(ASKED)
    times = session.times
    assert times is not None
    return {"tokens": times.tokens, "first": times.first_token, "rest": times.decode}


def llama(worker: Worker, tokens: int) -> dict[str, Any]:
    """The same by llama.cpp."""
    return worker.ask(json.dumps({"messages": [{"role": "user", "content": ASKED}], "tokens": tokens}))


def measure(ways: dict[str, Callable[[], dict[str, float]]], rounds: int) -> list[dict[str, dict[str, float]]]:
    """What each way took in each round, after one that warms up."""
    names = list(ways)
    found = []
    for number in range(rounds + 1):
        order = names if number % 2 else names[::-1]
        found.append({name: ways[name]() for name in order})
    return found[1:]


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", default=pocket.LLM)
    parser.add_argument("--llama", type=Path, metavar="PYTHON")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    if args.quick:
        args.llm, args.tokens, args.rounds = str(tiny.WEIGHTS / "llm"), 8, 2
    # The encoder is there because a model has one; nothing is spoken here.
    model = DualSLM.from_parts(str(tiny.WEIGHTS / "encoder"), args.llm).eval()
    ways: dict[str, Callable[[], dict[str, float]]] = {OURS: partial(ours, model, args.tokens)}
    with ExitStack() as stack:
        if args.llama is not None:
            script = Path(__file__).with_name("llama_decoder.py")
            command = [str(args.llama), str(script), args.llm, str(torch.get_num_threads())]
            ways[LLAMA] = partial(llama, stack.enter_context(Worker(command)), args.tokens)
        rounds = measure(ways, args.rounds)
    result: dict[str, Any] = {**about(), "llm": args.llm, "tokens": args.tokens, "rounds": rounds}
    write_result(result, args.out)
    print(tables.decoding(result))


if __name__ == "__main__":
    main()
