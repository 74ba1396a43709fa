"""What a running talk takes, and what many at once give: time to the first token, tokens a second.

    python bench/serve.py [--part latency talks] [--size tiny|cpu|full ...] [--rounds 7] [--out RESULT.json]

A talk of ten spoken turns goes through a `Session`. At the first and the last turn the same talk is answered in two
other ways in the same run: its recordings known and everything read anew, and everything encoded and read anew, as
others do who keep no state. `tiny` is the embedded model with its own clips; `cpu` and `full` have random weights and
the shapes of bench/train_step.py, recordings of 4 s, and replies of 30 tokens that are given, because random weights
say nothing that could be read again. On a GPU steps are captured, as `dualslm serve` can have them; the talk that warms
up captures them.

Parts `talks` and `vllm` are told in bench/throughput.py; `vllm` needs what `make test-vllm` installs, and is measured
only where it is asked for. A part of the result file is one entry of `PARTS`, written as soon as it is there; the
others in the file stay as they are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
import throughput
import torch
from measuring import about, keep
from rich.console import Console
from rich.table import Table
from rivals import built
from support import vllmkit
from support.factory import tokenizer
from train_step import SHAPES
from transformers import Qwen2ForCausalLM, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from dualslm import tiny
from dualslm.audio import load
from dualslm.conversation import Conversation, Speech
from dualslm.inference.audio_cache import AudioCache
from dualslm.inference.session import Session
from dualslm.model.dualslm import DualSLM
from dualslm.model.encoder import SpeechEncoder
from dualslm.model.generation import GenerationSettings
from dualslm.model.llm import FrozenLM, Prefilled
from dualslm.prompt import render

TURNS = 10
SECONDS = 4.0  # s, length of a made recording
HOW = GenerationSettings(max_new_tokens=30)
REPLY = "I am sorry to hear that. Tell me more about it, if you like: what happened then?"
OURS, READ, ALL = "ours", "- keys and values kept", "- embeddings kept (all encoded and read anew)"


class Forced(FrozenLM):
    """An LLM that says what it is told, at the price of saying it."""

    def decode(self, read: Prefilled, generation: GenerationSettings = HOW) -> Generator[list[int | None]]:
        """Yields given tokens; each is read as a drawn one is."""
        ids = self.tokenizer.encode(REPLY, add_special_tokens=False)[: generation.max_new_tokens]
        with torch.no_grad(), self._steps(read, len(ids) + 1) as step:
            for token in ids:
                yield [token]
                step(torch.tensor([token], device=self.device))


def made(size: str) -> tuple[DualSLM, list[Speech]]:
    """A model of a size, and what is said to it."""
    if size == "tiny":
        clips = [load(path) for path in sorted(tiny.CLIPS.glob("*.wav"))]
        clips += [0.9 * clip for clip in clips]  # no recording comes twice
        return tiny.load(), [Speech(clip) for clip in clips[:TURNS]]
    shape, device = SHAPES[size], "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with built(device, dtype):
        whisper, llm = WhisperEncoder(shape.whisper()), Qwen2ForCausalLM(shape.qwen())
    audio_cache = SpeechEncoder(whisper, WhisperFeatureExtractor(feature_size=shape.mels))
    mind = Forced(llm, tokenizer())
    rng = np.random.default_rng(0)
    waves = [0.1 * rng.standard_normal(round(16_000 * SECONDS)) for _ in range(TURNS)]
    model = DualSLM(audio_cache, mind, linguistic={"hidden": shape.hidden}).eval()
    return model, [Speech(wave.astype(np.float32)) for wave in waves]


def first_token(session: Session, conversation: Conversation) -> float:
    """Seconds until a session has the first token of its reply to a talk."""
    for _ in session.answer(conversation, generation=GenerationSettings(max_new_tokens=1)):
        pass
    assert session.times is not None
    return session.times.first_token


def one_talk(model: DualSLM, clips: list[Speech]) -> Iterator[dict[str, Any]]:
    """A talk from beginning to end: seconds to the first token, each way, at the first turn and the last."""
    conversation = Session(model, Conversation("You are a good listener."), generation=HOW)
    for turn, clip in enumerate(clips, 1):
        conversation.reply(Speech(clip.audio))
        assert conversation.times is not None
        if turn in (1, TURNS):
            asked = Conversation(conversation.conversation.system, conversation.conversation.turns[:-1])
            times = conversation.times
            took = {OURS: times.first_token, READ: first_token(Session(model, audio_cache=known(model, asked)), asked)}
            took[ALL] = first_token(Session(model), asked)
            yield {"turn": turn, "seconds": took, "positions": times.positions, "reused": times.reused}


def known(model: DualSLM, conversation: Conversation) -> AudioCache:
    """Ears that have heard every recording of a talk but the last."""
    audio_cache = AudioCache(model)
    if earlier := conversation.turns[:-2]:
        audio_cache.embed([render(Conversation(conversation.system, earlier), model.llm.tokenizer)])
    return audio_cache


def latency(args: argparse.Namespace) -> dict[str, Any]:
    """The quickest of the rounds each way: whatever else runs on a machine only ever adds time."""
    found = []
    for size in args.size:
        model, clips = made(size)
        if model.llm.device.type == "cuda":
            model.llm.enable_cuda_graphs()
        list(one_talk(model, clips))  # warms up
        rounds = []
        for number in range(args.rounds):
            rounds.append(list(one_talk(model, clips)))
            Console(stderr=True).print(f"{size}: round {number + 1}, {rounds[-1][-1]['seconds']}")
        found.append({"size": size, "rows": _rows(rounds), "ratios": _ratios(rounds), "turns": _shape(rounds[0])})
    return {"rounds": args.rounds, "talk": TURNS, "sizes": found}


def _rows(rounds: list[list[dict[str, Any]]]) -> dict[str, list[float]]:
    """The quickest seconds of each way at the first turn and the last."""
    return {way: [min(one[place]["seconds"][way] for one in rounds) for place in (0, 1)] for way in (OURS, READ, ALL)}


def _ratios(rounds: list[list[dict[str, Any]]]) -> dict[str, list[float]]:
    """Each ratio of the quickest times, and the median of the talks' own ratios."""
    rows = _rows(rounds)
    grown = [last["seconds"][OURS] / first["seconds"][OURS] for first, last in rounds]
    spared = [last["seconds"][ALL] / last["seconds"][OURS] for _, last in rounds]
    return {
        f"turn {TURNS} / turn 1, ours": [rows[OURS][1] / rows[OURS][0], statistics.median(grown)],
        f"all anew / ours, turn {TURNS}": [rows[ALL][1] / rows[OURS][1], statistics.median(spared)],
    }


def _shape(conversation: list[dict[str, Any]]) -> list[dict[str, int]]:
    return [{key: turn[key] for key in ("turn", "positions", "reused")} for turn in conversation]


def show_latency(result: dict[str, Any]) -> Iterator[Table]:
    """One table a size."""
    for one in result["sizes"]:
        table = Table("way", "turn 1, s", f"turn {TURNS}, s", title=one["size"])
        for way, (first, last) in one["rows"].items():
            table.add_row(way, f"{first:.3f}", f"{last:.3f}")
        for name, (quickest, median) in one["ratios"].items():
            table.add_row(name, "", f"{quickest:.2f} (median {median:.2f})")
        yield table


PARTS: dict[str, tuple[Callable[[argparse.Namespace], dict[str, Any]], Callable[[dict[str, Any]], Iterator[Table]]]]
PARTS = {
    "latency": (latency, show_latency),
    "talks": (throughput.conversations, throughput.show_talks),
    "vllm": (throughput.vllm, throughput.show_vllm),
}


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--part", choices=list(PARTS), nargs="+", default=["latency", "talks"])
    parser.add_argument("--size", choices=["tiny", *SHAPES], nargs="+", default=["tiny", "full" if gpu else "cpu"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    if "vllm" in args.part and not vllmkit.python().exists():
        parser.error(f"part vllm needs {vllmkit.python()}, which `make test-vllm` makes")
    result = json.loads(args.out.read_text()) if args.out is not None and args.out.exists() else {}
    for name in args.part:
        measure, show = PARTS[name]
        began = time.perf_counter()
        result[name] = {
            **about(),
            **measure(args),
            "took_s": round(time.perf_counter() - began),
        }
        keep(result, args.out)
        for table in show(result[name]):
            Console().print(table)


if __name__ == "__main__":
    main()
