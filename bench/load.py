"""64 talks of five spoken turns at once, again and again: is any reply lost or mixed up, and does memory stay flat?

    python bench/load.py --minutes 10 --out docs/results/load.json

Starts `dualslm serve` with the embedded model as a process of its own on loopback. Each talk has its own turns: words
of one shipped clip in the tone of another, drawn by the seed. Its replies were found beforehand in this process, one
talk at a time, by `Session`; a reply that is another talk's, or none, counts as an error. Memory is the server's
resident set after each round of all talks.
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
from measuring import about, keep

from dualslm import tiny
from dualslm.conversation import Conversation, Speech
from dualslm.inference.audio_cache import AudioCache
from dualslm.inference.session import Session
from dualslm.model.generation import GenerationSettings
from dualslm.tiny.world import LISTEN

CLIPS = sorted(tiny.CLIPS.glob("*.wav"))
TURNS = 5
LONGEST = 64  # tokens of a reply

Turn = tuple[int, int]
"""Which clip says the words, and which one lends its tone."""


def conversations(count: int, seed: int) -> list[list[Turn]]:
    """Turns of talks that all differ."""
    draw = random.Random(seed)
    found: set[tuple[Turn, ...]] = set()
    while len(found) < count:
        found.add(tuple((draw.randrange(len(CLIPS)), draw.randrange(len(CLIPS))) for _ in range(TURNS)))
    return [list(one) for one in sorted(found)]


def expected(asked: list[list[Turn]]) -> list[list[str]]:
    """The replies of each talk, alone and in this process."""
    model = tiny.load()
    audio_cache, clips = AudioCache(model), [Speech(path) for path in CLIPS]
    replies = []
    for turns in asked:
        conversation = Session(
            model,
            Conversation(LISTEN),
            generation=GenerationSettings(LONGEST),
            context=tiny.CONTEXT,
            audio_cache=audio_cache,
        )
        replies.append([conversation.reply(clips[words].in_the_tone_of(clips[tone])) for words, tone in turns])
    return replies


async def hold(api: openai.AsyncOpenAI, turns: list[Turn], sound: list[str]) -> list[str | Exception]:
    """One talk from its first turn to its last, with its history sent anew each time."""
    messages: list[Any] = []
    said: list[str | Exception] = []
    for words, tone in turns:
        part = {"type": "input_audio", "input_audio": {"data": sound[words], "format": "wav"}}
        messages.append({"role": "user", "content": [part | {"tone": {"data": sound[tone], "format": "wav"}}]})
        try:
            answer = await api.chat.completions.create(model="dualslm", messages=messages, max_tokens=LONGEST)
            said.append(answer.choices[0].message.content or "")
        except openai.APIError as error:
            print(repr(error), repr(error.__cause__), file=sys.stderr)
            return [*said, error]
        messages.append({"role": "assistant", "content": said[-1]})
    return said


async def rounds(url: str, run: psutil.Process, asked: list[list[Turn]], want: list[list[str]], minutes: float) -> Any:
    """Rounds of all talks until the time is over."""
    api = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)
    sound = [base64.b64encode(path.read_bytes()).decode() for path in CLIPS]
    began, found = time.perf_counter(), []
    while not found or time.perf_counter() - began < 60 * minutes:
        start = time.perf_counter()
        got = await asyncio.gather(*(hold(api, turns, sound) for turns in asked))
        took = time.perf_counter() - start
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
    parser.add_argument("--talks", type=int, default=64)
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
    keep(result, args.out)


if __name__ == "__main__":
    main()
