"""Tokens a second of many conversations at once: in process, and with the LLM behind vLLM (parts of bench/serve.py).

In process: 1, 8 and 32 spoken conversations at once through `Service`, all recordings new, and the ratio to one at a
time. Behind vLLM: spoken conversations through `dualslm serve --vllm`, against text prompts of as many positions, with
replies of as many tokens, sent to the same vLLM server directly. Rounds of all ways alternate, and vLLM's prefix cache
is off. The recordings are first new, so that all are encoded, and then known, as those of earlier turns are. The
encoder has the shape `cpu`, with windows of 30 s or short ones, or `small`, which takes almost no time, like an encoder
with a card of its own. Encoder and vLLM share all cores, or where the machine has two each has one of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import soundfile
import torch
from rich.console import Console
from rich.table import Table
from support.factory import tokenizer
from support.servekit import process
from support.vllmkit import NAME, serving
from train_step import SHAPES
from transformers import Qwen2ForCausalLM, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from dualslm import tiny
from dualslm.audio import Window, load
from dualslm.conversation import Conversation, Speech
from dualslm.inference.describe import ASKED
from dualslm.inference.local import LocalBackend
from dualslm.model.dualslm import DualSLM
from dualslm.model.generation import GenerationSettings
from dualslm.serve.service import Ask, Service
from dualslm.tiny.world import LISTEN

AT_ONCE = (1, 8, 32)
MAX_NEW_TOKENS = 48  # of a reply
RECORDING_S = 4.0  # of a made recording
WAYS = ("text", "recordings new", "recordings known")
OPEN_REQUESTS = 16  # at once, behind vLLM
ROUND_REQUESTS = 32  # in a round
ENCODERS: Mapping[str, Window] = {"cpu": "full", "cpu, short windows": "clip", "small": "full"}
SUMMARIES = (min, statistics.median, max)


def conversations(args: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second in process, by the number of conversations at once."""
    return {"rows": asyncio.run(_conversations(args.rounds)), "reply": MAX_NEW_TOKENS}


async def _conversations(rounds: int) -> list[dict[str, Any]]:
    model = tiny.load()
    service = Service(
        model, LocalBackend(model.llm, max(AT_ONCE)), questions=ASKED, context=tiny.CONTEXT, system=LISTEN
    )
    rng = np.random.default_rng(0)
    clips = [load(path) for path in sorted(tiny.CLIPS.glob("*.wav"))]
    found: dict[int, list[float]] = {count: [] for count in AT_ONCE}
    for number in range(rounds + 1):  # the first warms up
        for count in AT_ONCE:
            asks = [_ask(clips, rng) for _ in range(max(AT_ONCE))]
            tokens = 0
            began = time.perf_counter()
            for start in range(0, len(asks), count):
                replies = (_reply_tokens(service, ask) for ask in asks[start : start + count])
                tokens += sum(await asyncio.gather(*replies))
            if number:
                found[count].append(tokens / (time.perf_counter() - began))
    await service.close()
    return [
        {
            "talks": count,
            "tokens_per_s": statistics.median(found[count]),
            "times_one": [
                few(many / one for many, one in zip(found[count], found[1], strict=True)) for few in SUMMARIES
            ],
        }
        for count in AT_ONCE
    ]


def _ask(clips: Sequence[Any], rng: np.random.Generator) -> Ask:
    wave = clips[int(rng.integers(len(clips)))] * rng.uniform(0.7, 1.0)  # other samples: the cache must not know them
    return Ask(
        Conversation(LISTEN).user(Speech(wave.astype(np.float32))), generation=GenerationSettings(MAX_NEW_TOKENS)
    )


async def _reply_tokens(service: Service, ask: Ask) -> int:
    return [piece.tokens async for piece in service.stream(ask)][-1]


def show_conversations(result: dict[str, Any]) -> Iterator[Table]:
    """One row for each number of conversations."""
    table = Table("conversations at once", "tokens/s", "times one", title="in process, the embedded model")
    for row in result["rows"]:
        low, middle, high = row["times_one"]
        table.add_row(str(row["talks"]), f"{row['tokens_per_s']:.0f}", f"{middle:.2f} [{low:.2f}, {high:.2f}]")
    yield table


# ---------------------------------------------------------------------- behind vLLM


def vllm(args: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of spoken conversations through `dualslm serve`, and of text prompts sent to vLLM itself."""
    found = []
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = _saved(folder)
        quiet = ("--no-enable-prefix-caching", "--no-enable-log-requests")
        for shared in (True, False) if len(cores) > 1 else (True,):
            with _on(cores if shared else cores[:1]), serving(folder, *quiet, llm=folder / "llm") as url:
                for encoder, model in models.items():
                    with (
                        _on(cores if shared else cores[1:]),
                        process("--any-sound", "--vllm", url, "--model", str(model)) as (own, _),
                    ):
                        rates = asyncio.run(_rounds(url, own, args.rounds))
                    found.append({"encoder": encoder, "cores": "shared" if shared else "of its own", **rates})
    return {"at_once": OPEN_REQUESTS, "requests": ROUND_REQUESTS, "reply": MAX_NEW_TOKENS, "rows": found}


@contextmanager
def _on(cores: Sequence[int]) -> Iterator[None]:
    """Runs this process, and what it starts meanwhile, on some cores alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _saved(folder: Path) -> dict[str, Path]:
    """Writes random parts to disk as users have them: adapters between an LLM and encoders of two shapes."""
    torch.manual_seed(0)
    Qwen2ForCausalLM(SHAPES["cpu"].qwen()).save_pretrained(folder / "llm")
    tokenizer().save_pretrained(folder / "llm")
    for name, window in ENCODERS.items():
        shape = SHAPES[name.split(",")[0]]
        encoder = folder / f"encoder-{name}"
        WhisperEncoder(shape.whisper()).save_pretrained(encoder)
        WhisperFeatureExtractor(feature_size=shape.mels).save_pretrained(encoder)
        made = DualSLM.from_parts(
            encoder=str(encoder),
            llm=str(folder / "llm"),
            linguistic={"hidden": shape.hidden},
            window=window,
            device="cpu",
        )
        made.save_pretrained(folder / name)
    return {name: folder / name for name in ENCODERS}


async def _rounds(url: str, service: str, rounds: int) -> dict[str, list[float]]:
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    async with httpx2.AsyncClient(timeout=600) as web:
        for number in range(rounds + 1):  # the first warms up
            bodies = [_spoken_body(rng) for _ in range(ROUND_REQUESTS)]
            new = await _many(web, service + "/chat/completions", bodies)
            # Text prompts of the lengths that the spoken ones had, which are known only now.
            text = await _many(web, url + "/completions", [_text_body(rng, *used) for used in new[0]])
            known = await _many(web, service + "/chat/completions", bodies)
            assert text[0] == new[0] == known[0], "as many positions and tokens"
            rates = dict(zip(WAYS, (text[1], new[1], known[1]), strict=True))
            Console(stderr=True).print(f"round {number}: {rates}")
            for way, rate in rates.items() if number else ():
                found[way].append(rate)
    return found


async def _many(web: Any, address: str, bodies: Sequence[dict[str, Any]]) -> tuple[list[tuple[int, int]], float]:
    """Prompt and reply tokens of each request, and reply tokens a second of all."""
    free = asyncio.Semaphore(OPEN_REQUESTS)
    began = time.perf_counter()

    async def one(body: dict[str, Any]) -> tuple[int, int]:
        async with free:
            answer = await web.post(address, json=body)
            answer.raise_for_status()
            used = answer.json()["usage"]
            return used["prompt_tokens"], used["completion_tokens"]

    found = list(await asyncio.gather(*map(one, bodies)))
    return found, sum(tokens for _, tokens in found) / (time.perf_counter() - began)


def _spoken_body(rng: np.random.Generator) -> dict[str, Any]:
    file = io.BytesIO()
    soundfile.write(file, 0.1 * rng.standard_normal(round(16_000 * RECORDING_S)), 16_000, format="WAV")
    data = {"data": base64.b64encode(file.getvalue()).decode(), "format": "wav"}
    user = {"role": "user", "content": [{"type": "input_audio", "input_audio": data}]}
    system = {"role": "system", "content": "You are a kind listener. Answer in one sentence. " * 2}
    return {"model": "dualslm", "messages": [system, user], "max_tokens": MAX_NEW_TOKENS}


def _text_body(rng: np.random.Generator, positions: int, tokens: int) -> dict[str, Any]:
    ids = rng.integers(10, 380, positions).tolist()
    return {"model": NAME, "prompt": ids, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}


def show_vllm(result: dict[str, Any]) -> Iterator[Table]:
    """One table for each encoder, one row for each way."""
    for row in result["rows"]:
        table = Table(
            "way", "tokens/s", "of text", title=f"behind vLLM, encoder {row['encoder']}, cores {row['cores']}"
        )
        for way in WAYS:
            ratios = [rate / text for rate, text in zip(row[way], row[WAYS[0]], strict=True)]
            low, middle, high = (few(ratios) for few in SUMMARIES)
            table.add_row(way, f"{statistics.median(row[way]):.1f}", f"{middle:.2f} [{low:.2f}, {high:.2f}]")
        yield table
