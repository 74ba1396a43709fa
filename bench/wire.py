"""What a spoken turn takes on the way to vLLM: prompt positions and bytes, with all of L and with L skipped.

    python bench/wire.py [--llm LLM] [--width 3584] [--dtype bfloat16] [--per-second 4] [--out RESULT.json]

The front end is stateless, so that each request brings the whole conversation: the first turn and the tenth are given,
with replies of 24 tokens between. Text stands in the prompt as its embeddings, as P and L do. Positions are counted by
the LLM's own chat template, bytes are those of the request's `prompt_embeds`. A paper-size LLM is 3,584 wide. Nothing
is encoded or read for it; it takes seconds, so that it has no `--quick`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "docs/build"))

import numpy as np
import tables
import torch
from measuring import HERTZ, about, write_result
from transformers import AutoTokenizer

from dualslm import tiny
from dualslm.conversation import Conversation, Speech
from dualslm.inference.vllm import packed
from dualslm.model.gguf import source_of
from dualslm.prompt import Slot, render

SYSTEM = "You are a good listener. Answer in one sentence."
REPLY_TOKENS = 24
PARA = 16  # embeddings of P
ALL, SKIPPED = "all of L", "L skipped"


def positions(tokenizer: Any, seconds: float, turns: int, per_second: float) -> int:
    """Positions of the prompt of the last of some spoken turns, all of one length."""
    conversation = Conversation(SYSTEM)
    reply = tokenizer.decode(tokenizer.encode(" well" * REPLY_TOKENS, add_special_tokens=False)[:REPLY_TOKENS])
    for turn in range(turns):
        if turn:
            conversation.assistant(reply)
        conversation.user(Speech(np.zeros(1, np.float32)))
    lengths = {"para": PARA, "ling": max(1, round(seconds * per_second))}
    prompt = render(conversation, tokenizer)
    return sum(lengths[one.channel] if isinstance(one, Slot) else len(one.ids) for one in prompt.segments)


def measure(tokenizer: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each length of a turn, with all of L and without what is skipped."""
    rows = []
    for seconds in args.seconds:
        for way, rate in ((ALL, HERTZ), (SKIPPED, args.per_second)):
            row: dict[str, Any] = {"seconds": seconds, "way": way}
            for turn in (1, args.turns):
                count = positions(tokenizer, seconds, turn, rate)
                embeds_TD = torch.zeros(count, args.width, dtype=getattr(torch, args.dtype))
                row[f"positions, turn {turn}"] = count
                row[f"bytes, turn {turn}"] = len(packed(embeds_TD))
            rows.append(row)
    return rows


def main() -> None:
    """Counts, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", default=str(tiny.WEIGHTS / "llm"), help="whose chat template counts")
    parser.add_argument("--width", type=int, default=3584)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 4.0, 8.0, 20.0])
    parser.add_argument("--per-second", type=float, default=4.0, help="embeddings of L that skipping leaves")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    source = source_of(args.llm)
    tokenizer = AutoTokenizer.from_pretrained(source.name, **source.options)
    rows = measure(tokenizer, args)
    settings = {key: getattr(args, key) for key in ("llm", "width", "dtype", "per_second", "turns")}
    settings["llm"] = args.llm.removeprefix(f"{Path(__file__).resolve().parents[1]}/")  # no path of one machine
    result = {**about(), **settings, "rows": rows}
    write_result(result, args.out)
    print(tables.wire(result))


if __name__ == "__main__":
    main()
