"""Tokens a second of one reply: ours by PyTorch and by llama.cpp, and llama.cpp's own on the same file.

    python bench/decoding.py --llm MODEL.gguf [--rounds 7] [--quick] [--out RESULT.json]

By PyTorch the file's weights are numbers of 32 bits, and replies go through the `Session` that `ask` and `chat` use.
With `pip install 'dualslm[llama-cpp]'` two more ways are measured: our `LlamaCppBatch`, as `serve --llama-cpp` uses it,
and llama.cpp's own chat, which reads no embeddings and draws by itself. All write the same long reply, one after the
other in each round, the first one changing, with as many threads. `--quick` measures PyTorch alone on the embedded LLM
and only shows that it runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "docs/build"))

import tables
import torch
from measuring import about, write_result

from dualslm import pocket, tiny
from dualslm.conversation import Conversation
from dualslm.inference.continuous_batch import RequestBatch
from dualslm.inference.session import Session
from dualslm.model.dualslm import DualSLM
from dualslm.model.generation import GenerationSettings
from dualslm.model.gguf import local_file

ASKED = "Write a long story about a fox who learns to read, with many details."
OURS = "ours"
OURS_BY_LLAMA = "ours, --llama-cpp"
LLAMA = "llama.cpp, its own chat"


def ours(model: DualSLM, tokens: int, batch: RequestBatch | None = None) -> dict[str, float]:
    """A reply through a new session: tokens, seconds to the first, seconds from there to the last."""
    session = Session(model, Conversation(), generation=GenerationSettings(max_new_tokens=tokens), batch=batch)
    session.reply(ASKED)
    times = session.times
    assert times is not None
    return {"tokens": times.tokens, "first": times.first_token, "rest": times.decode}


def own(llama: Any, tokens: int) -> dict[str, float]:
    """The same by llama.cpp's own chat."""
    llama.reset()
    began = time.perf_counter()
    asked = [{"role": "user", "content": ASKED}]
    stream = llama.create_chat_completion(asked, max_tokens=tokens, temperature=0.0, repeat_penalty=1.0, stream=True)
    times = [time.perf_counter() for part in stream if part["choices"][0]["delta"].get("content")]
    return {"tokens": len(times), "first": times[0] - began, "rest": times[-1] - times[0]}


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
    if not args.quick and find_spec("llama_cpp") is not None:
        from dualslm.inference.llama_cpp import LlamaCppBatch

        batch = LlamaCppBatch.of(model.llm, context=1024, size=1)
        ways[OURS_BY_LLAMA] = partial(ours, model, args.tokens, batch)
        from llama_cpp import Llama

        threads = torch.get_num_threads()
        llama = Llama(str(local_file(args.llm)), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)
        ways[LLAMA] = partial(own, llama, args.tokens)
    rounds = measure(ways, args.rounds)
    result: dict[str, Any] = {**about(), "llm": args.llm, "tokens": args.tokens, "rounds": rounds}
    write_result(result, args.out)
    print(tables.decoding(result))


if __name__ == "__main__":
    main()
