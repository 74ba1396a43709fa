"""Conversations: time to the first token of one, and tokens a second of many at once.

    python bench/serve.py [--part latency talks] [--size tiny|cpu|full ...] [--rounds 7] [--out RESULT.json]

A conversation of ten spoken turns goes through a `Session`. At the first and the last turn the same prompt is answered
in two other ways in the same run: with its recordings in the audio cache and everything prefilled anew, and with
everything encoded and prefilled anew, as without any cache. `tiny` is the embedded model with its own clips. `cpu` and
`full` have random weights, the shapes of bench/train_step.py, recordings of 4 s, and given replies of 30 tokens,
because random weights give no text that could be read again. On a GPU decoding steps are captured, as `dualslm serve`
can do; the conversation that warms up captures them.

bench/throughput.py has the parts `talks` and `vllm`; `vllm` needs what `make test-vllm` installs, and is measured on
request alone. Each part is one entry of the result file, written as soon as it is measured; other entries stay as they
are.
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
from measuring import about, write_result
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
RECORDING_S = 4.0  # of a made recording
GENERATION = GenerationSettings(max_new_tokens=30)
REPLY = "I am sorry to hear that. Tell me more about it, if you like: what happened then?"
OURS = "ours"  # the ways, as the result file names them
NO_PREFIX_CACHE = "- keys and values kept"
NO_CACHE = "- embeddings kept (all encoded and read anew)"


class Forced(FrozenLM):
    """An LLM that replies with a given text, at the cost of generating it."""

    def decode(self, read: Prefilled, generation: GenerationSettings = GENERATION) -> Generator[list[int | None]]:
        """Yields given tokens; each goes through the LLM as a drawn one does."""
        ids = self.tokenizer.encode(REPLY, add_special_tokens=False)[: generation.max_new_tokens]
        with torch.no_grad(), self._steps(read, len(ids) + 1) as step:
            for token in ids:
                yield [token]
                step(torch.tensor([token], device=self.device))


def made(size: str) -> tuple[DualSLM, list[Speech]]:
    """A model of a size, and the recordings of the user turns."""
    if size == "tiny":
        clips = [load(path) for path in sorted(tiny.CLIPS.glob("*.wav"))]
        clips += [0.9 * clip for clip in clips]  # other samples: the audio cache must not know them
        return tiny.load(), [Speech(clip) for clip in clips[:TURNS]]
    shape = SHAPES[size]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with built(device, dtype):
        whisper = WhisperEncoder(shape.whisper())
        llm = Qwen2ForCausalLM(shape.qwen())
    encoder = SpeechEncoder(whisper, WhisperFeatureExtractor(feature_size=shape.mels))
    rng = np.random.default_rng(0)
    waves = [0.1 * rng.standard_normal(round(16_000 * RECORDING_S)) for _ in range(TURNS)]
    model = DualSLM(encoder, Forced(llm, tokenizer()), linguistic={"hidden": shape.hidden}).eval()
    return model, [Speech(wave.astype(np.float32)) for wave in waves]


def first_token(session: Session, conversation: Conversation) -> float:
    """Seconds until a session has the first token of its reply to a conversation."""
    for _ in session.answer(conversation, generation=GenerationSettings(max_new_tokens=1)):
        pass
    assert session.times is not None
    return session.times.first_token


def one_conversation(model: DualSLM, clips: list[Speech]) -> Iterator[dict[str, Any]]:
    """A whole conversation: seconds to the first token, each way, at the first turn and the last."""
    session = Session(model, Conversation("You are a good listener."), generation=GENERATION)
    for turn, clip in enumerate(clips, 1):
        session.reply(Speech(clip.audio))
        times = session.times
        assert times is not None
        if turn in (1, TURNS):
            asked = Conversation(session.conversation.system, session.conversation.turns[:-1])
            with_audio_cache = Session(model, audio_cache=audio_cache_before(model, asked))
            seconds = {OURS: times.first_token, NO_PREFIX_CACHE: first_token(with_audio_cache, asked)}
            seconds[NO_CACHE] = first_token(Session(model), asked)
            yield {"turn": turn, "seconds": seconds, "positions": times.positions, "reused": times.reused}


def audio_cache_before(model: DualSLM, conversation: Conversation) -> AudioCache:
    """An audio cache with every recording of a conversation except the last."""
    audio_cache = AudioCache(model)
    if earlier := conversation.turns[:-2]:
        audio_cache.embed([render(Conversation(conversation.system, earlier), model.llm.tokenizer)])
    return audio_cache


def latency(args: argparse.Namespace) -> dict[str, Any]:
    """The quickest of the rounds, each way: whatever else runs on a machine only ever adds time."""
    found = []
    for size in args.size:
        model, clips = made(size)
        if model.llm.device.type == "cuda":
            model.llm.enable_cuda_graphs()
        list(one_conversation(model, clips))  # warms up
        rounds = []
        for number in range(args.rounds):
            rounds.append(list(one_conversation(model, clips)))
            Console(stderr=True).print(f"{size}: round {number + 1}, {rounds[-1][-1]['seconds']}")
        lengths = [{key: turn[key] for key in ("turn", "positions", "reused")} for turn in rounds[0]]
        found.append({"size": size, "rows": _rows(rounds), "ratios": _ratios(rounds), "turns": lengths})
    return {"rounds": args.rounds, "talk": TURNS, "sizes": found}


def _rows(rounds: list[list[dict[str, Any]]]) -> dict[str, list[float]]:
    """The quickest seconds of each way at the first turn and the last."""
    ways = (OURS, NO_PREFIX_CACHE, NO_CACHE)
    return {way: [min(one[turn]["seconds"][way] for one in rounds) for turn in (0, 1)] for way in ways}


def _ratios(rounds: list[list[dict[str, Any]]]) -> dict[str, list[float]]:
    """Each ratio of the quickest times, and the median of the ratios within one conversation."""
    rows = _rows(rounds)
    growth = [last["seconds"][OURS] / first["seconds"][OURS] for first, last in rounds]
    saved = [last["seconds"][NO_CACHE] / last["seconds"][OURS] for _, last in rounds]
    return {
        f"turn {TURNS} / turn 1, ours": [rows[OURS][1] / rows[OURS][0], statistics.median(growth)],
        f"all anew / ours, turn {TURNS}": [rows[NO_CACHE][1] / rows[OURS][1], statistics.median(saved)],
    }


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
    "talks": (throughput.conversations, throughput.show_conversations),
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
        write_result(result, args.out)
        for table in show(result[name]):
            Console().print(table)


if __name__ == "__main__":
    main()
