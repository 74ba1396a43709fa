"""64 conversations of five spoken turns at once, repeatedly: is a reply lost or mixed up, and does memory stay flat?

    python bench/load.py --minutes 10 --out docs/results/load.json

Starts `dualslm serve` with the embedded model as a process of its own on loopback. Each conversation has its own turns:
words of one shipped clip in the tone of another, drawn by the seed. The right replies are those of `Session` in this
process, one conversation at a time; any other reply, or none, counts as an error. Memory is the server's resident set
after each round of all conversations.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import openai
import psutil
from measuring import about, write_result

from dualslm import tiny
from dualslm.conversation import Conversation, Speech
from dualslm.inference.audio_cache import AudioCache
from dualslm.inference.session import Session
from dualslm.model.generation import GenerationSettings
from dualslm.tiny.world import LISTEN

CLIPS = sorted(tiny.CLIPS.glob("*.wav"))
TURNS = 5
MAX_NEW_TOKENS = 64  # of a reply

Turn = tuple[int, int]
"""Which clip says the words, and which one lends its tone."""


def conversations(count: int, seed: int) -> list[list[Turn]]:
    """The turns of so many different conversations."""
    # All differ, so that a reply that went to the wrong client shows.
    draw = random.Random(seed)
    found: set[tuple[Turn, ...]] = set()
    while len(found) < count:
        found.add(tuple((draw.randrange(len(CLIPS)), draw.randrange(len(CLIPS))) for _ in range(TURNS)))
    return [list(one) for one in sorted(found)]


def expected(asked: list[list[Turn]]) -> list[list[str]]:
    """The replies of each conversation, alone and in this process."""
    model = tiny.load()
    audio_cache = AudioCache(model)  # one for all: 64 conversations share nine recordings
    clips = [Speech(path) for path in CLIPS]
    replies = []
    for turns in asked:
        session = Session(
            model,
            Conversation(LISTEN),
            generation=GenerationSettings(MAX_NEW_TOKENS),
            context=tiny.CONTEXT,
            audio_cache=audio_cache,
        )
        replies.append([session.reply(clips[words].in_the_tone_of(clips[tone])) for words, tone in turns])
    return replies


async def hold(api: openai.AsyncOpenAI, turns: list[Turn], sound: list[str]) -> list[str | Exception]:
    """One conversation over HTTP from its first turn to its last; each request has the whole history, as clients do."""
    messages: list[Any] = []
    replies: list[str | Exception] = []
    for words, tone in turns:
        part = {"type": "input_audio", "input_audio": {"data": sound[words], "format": "wav"}}
        messages.append({"role": "user", "content": [part | {"tone": {"data": sound[tone], "format": "wav"}}]})
        try:
            answer = await api.chat.completions.create(model="dualslm", messages=messages, max_tokens=MAX_NEW_TOKENS)
            replies.append(answer.choices[0].message.content or "")
        except openai.APIError as error:
            print(repr(error), repr(error.__cause__), file=sys.stderr)
            return [*replies, error]
        messages.append({"role": "assistant", "content": replies[-1]})
    return replies


async def rounds(url: str, run: psutil.Process, asked: list[list[Turn]], want: list[list[str]], minutes: float) -> Any:
    """Rounds of all conversations until the time is over."""
    api = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)
    sound = [base64.b64encode(path.read_bytes()).decode() for path in CLIPS]
    found: list[dict[str, Any]] = []
    began = time.perf_counter()
    while not found or time.perf_counter() - began < 60 * minutes:
        start = time.perf_counter()
        got = await asyncio.gather(*(hold(api, turns, sound) for turns in asked))
        took = time.perf_counter() - start
        # Not strict inside: a conversation ends at its first lost reply.
        flat = [
            (one, other) for mine, own in zip(got, want, strict=True) for one, other in zip(mine, own, strict=False)
        ]
        dropped = sum(isinstance(one, Exception) for one, _ in flat)
        wrong = sum(isinstance(one, str) and one != other for one, other in flat)
        answered = sum(isinstance(one, str) for one, _ in flat)
        mib = run.memory_info().rss / 2**20
        found.append({"s": took, "answered": answered, "wrong": wrong, "dropped": dropped, "rss_mib": round(mib, 1)})
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    asked = conversations(args.conversations, args.seed)
    want = expected(asked)
    command = [sys.executable, "-m", "dualslm", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as run:
        assert run.stdout is not None
        url = run.stdout.readline().split()[-1]
        try:
            found = asyncio.run(rounds(url, psutil.Process(run.pid), asked, want, args.minutes))
        finally:
            run.terminate()
    result = {
        **about(),
        "talks": args.conversations,
        "turns": TURNS,
        "seed": args.seed,
        "different_talks": len({tuple(one) for one in want}),
        "minutes": round(sum(one["s"] for one in found) / 60, 1),
        "answered": sum(one["answered"] for one in found),
        "wrong": sum(one["wrong"] for one in found),
        "dropped": sum(one["dropped"] for one in found),
        "exit": run.returncode,
        "rounds": found,
    }
    print(json.dumps({key: value for key, value in result.items() if key != "rounds"}, indent=1))
    write_result(result, args.out)


if __name__ == "__main__":
    main()
