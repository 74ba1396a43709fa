"""Decoding by llama.cpp, in a process of its own, for bench/decoding.py.

    python -m venv .llama && .llama/bin/pip install llama-cpp-python
    .llama/bin/python bench/llama_decoder.py MODEL.gguf THREADS

Reads a line of JSON with chat messages and a number of tokens; writes the number that was drawn, the seconds to the
first and those from the first to the last. Nothing here imports dualslm, which that environment does not have. It is
not named after the library, since Python looks into a script's own folder first.
"""

from __future__ import annotations

import json
import sys
import time


def serve(model: str, threads: int) -> None:
    """Answers every line."""
    from llama_cpp import Llama

    llm = Llama(model, n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        llm.reset()
        began = time.perf_counter()
        stream = llm.create_chat_completion(
            asked["messages"], max_tokens=asked["tokens"], temperature=0.0, repeat_penalty=1.0, stream=True
        )
        times = [time.perf_counter() for part in stream if part["choices"][0]["delta"].get("content")]
        answer = {"tokens": len(times), "first": times[0] - began, "rest": times[-1] - times[0]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
