"""The first token of a reply to spoken turns of several lengths: ours by two settings, and a cascade.

    python bench/first_token.py --encoder WHISPER --llm LLM [--cascade PYTHON] [--rounds 5] [--out RESULT.json]

A round is one conversation of ten spoken turns for each length of a turn. At each turn every way answers before any
goes on to the next, beginning with another one each time, so that they meet the same state of the machine. All ways
have the same LLM, a `Session` each, and its prefix cache. The ways:

- "paper": 30 s through the encoder, ten embeddings of L a second;
- "short windows, L skipped": `window = "clip"`, and `--per-second` embeddings of L a second, as an aligned adapter with
  `linguistic.skip` leaves;
- "cascade": faster-whisper (int8, one beam) writes the words down, and the LLM reads them. `--cascade` names the Python
  of an environment that has it (bench/recognizer.py), and the encoder's folder must hold the whole checkpoint with its
  tokenizer, which is converted once into `--converted`.

Adapters are fresh, as only speed counts. What is said are the shipped clips one after another, or `--recordings`.
`--quick` goes through two turns of one length with the embedded model's parts and only shows that it runs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

sys.path.insert(0, str(Path(__file__).parents[1] / "docs/build"))

import numpy as np
import soundfile
import tables
import torch
from measuring import about, skipping, write_result
from numpy.typing import NDArray
from tables import SHORT
from worker import Worker

from dualslm import pocket, tiny
from dualslm.audio import SAMPLE_RATE, load
from dualslm.conversation import Conversation, Speech
from dualslm.inference.session import Session
from dualslm.model.dualslm import DualSLM
from dualslm.model.encoder import SpeechEncoder
from dualslm.model.generation import GenerationSettings

PAPER = "paper"
CASCADE = "cascade"
SYSTEM = "You are a good listener. Answer in one sentence."
REPLY_TOKENS = 8  # the first alone is measured
Way: TypeAlias = Callable[[Session, NDArray[np.float32]], float]
"""Answers a spoken turn in a session and gives the seconds to the first token."""


def models(encoder: str, llm: str, per_second: float) -> dict[str, DualSLM]:
    """Fresh adapters between the same parts, by the two settings."""
    paper = DualSLM.from_parts(encoder, llm).eval()
    clipped = SpeechEncoder(paper.encoder.whisper, paper.encoder.features, window="clip")
    short = skipping(DualSLM(clipped, paper.llm, linguistic={"skip": True}).eval(), per_second)
    return {PAPER: paper, SHORT: short}


def spoken(session: Session, samples: NDArray[np.float32]) -> float:
    """A turn through P and L."""
    session.reply(Speech(samples))
    assert session.times is not None
    return session.times.first_token


def cascade(recognizer: Worker, folder: Path) -> Way:
    """A turn through a recognizer's words."""

    def way(session: Session, samples: NDArray[np.float32]) -> float:
        path = folder / "turn.wav"
        soundfile.write(path, samples, SAMPLE_RATE)  # before the clock starts: a recorder would have written it
        began = time.perf_counter()
        words = str(recognizer.ask(str(path))["text"])
        recognized = time.perf_counter() - began
        session.reply(words or "Hello.")  # nothing may be recognized; a turn needs words
        assert session.times is not None
        return recognized + session.times.first_token

    return way


def turns_of(recordings: Sequence[Path], seconds: float, count: int) -> list[NDArray[np.float32]]:
    """The recordings one after another, cut into turns of one length, no two alike."""
    joined_N = np.concatenate([load(path) for path in recordings])
    size = round(seconds * SAMPLE_RATE)
    # From another place each time: an audio cache must not know a turn, and there may be too few recordings.
    starts = [number * (size + 811) % len(joined_N) for number in range(count)]
    return [np.resize(np.roll(joined_N, -start), size).astype(np.float32) for start in starts]


def conversation(
    talk: dict[str, tuple[DualSLM, Way]], turns: Sequence[NDArray[np.float32]], first: int
) -> dict[str, list[float]]:
    """Seconds to the first token of each turn, by way; way number `first` begins at the first turn, then the next."""
    settings = GenerationSettings(max_new_tokens=REPLY_TOKENS)
    sessions = {name: Session(model, Conversation(SYSTEM), generation=settings) for name, (model, _) in talk.items()}
    names = list(talk)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number, samples in enumerate(turns):
        begin = (first + number) % len(names)
        for name in names[begin:] + names[:begin]:
            seconds[name].append(talk[name][1](sessions[name], samples))
    return seconds


def measure(
    talk: dict[str, tuple[DualSLM, Way]], recordings: Sequence[Path], args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """A row for each length of a turn: the seconds of each way at each turn of each round."""
    for seconds in args.seconds:
        turns = turns_of(recordings, seconds, args.turns)
        conversation(talk, turns[:1], 0)  # warms up
        rounds = [conversation(talk, turns, number) for number in range(args.rounds)]
        yield {"seconds": seconds, "rounds": rounds}


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default=pocket.ENCODER)
    parser.add_argument("--llm", default=pocket.LLM)
    parser.add_argument("--cascade", type=Path, metavar="PYTHON")
    parser.add_argument("--converted", type=Path, default=Path("runs/whisper-int8"))
    parser.add_argument("--recordings", type=Path, nargs="+", default=sorted(tiny.CLIPS.glob("*.wav")))
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 4.0, 8.0, 20.0])
    parser.add_argument("--per-second", type=float, default=4.0, help="embeddings of L that skipping leaves")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    if args.quick:
        args.encoder, args.llm = str(tiny.WEIGHTS / "encoder"), str(tiny.WEIGHTS / "llm")
        args.seconds, args.turns, args.rounds = [1.0], 2, 1
    talk: dict[str, tuple[DualSLM, Way]] = {
        name: (model, spoken) for name, model in models(args.encoder, args.llm, args.per_second).items()
    }
    with ExitStack() as stack:
        if args.cascade is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            script = [str(args.cascade), str(Path(__file__).with_name("recognizer.py"))]
            if not (args.converted / "model.bin").exists():
                subprocess.run([*script, "convert", args.encoder, str(args.converted)], check=True)
            started = Worker([*script, "serve", str(args.converted), str(torch.get_num_threads())])
            talk[CASCADE] = (talk[PAPER][0], cascade(stack.enter_context(started), folder))
        settings = {"per_second": args.per_second, "turns": args.turns, "rounds": args.rounds}
        result: dict[str, Any] = {**about(), **settings, "encoder": args.encoder, "llm": args.llm, "rows": []}
        for row in measure(talk, args.recordings, args):
            result["rows"].append(row)
            write_result(result, args.out)
    print(tables.first_token(result))


if __name__ == "__main__":
    main()
