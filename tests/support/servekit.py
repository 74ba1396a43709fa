"""Servers for tests: a real process, or an application in a thread whose LLM draws at a pace that the test sets."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import openai
import uvicorn
from fastapi import FastAPI

from dualslm.inference.backend import Piece, Reason
from dualslm.model.generation import GenerationSettings
from dualslm.model.inputs import PromptEmbeds
from dualslm.tiny import CLIPS

ROOT = Path(__file__).resolve().parents[2]
CLIP = {path.stem: path for path in sorted(CLIPS.glob("*.wav"))}
ANGRY, SAD = CLIP["hear_1_angry"], CLIP["hear_3_sad"]


class SlowBackend:
    """A backend that draws a token every `pace` s, and counts the replies that run and those that were abandoned."""

    context = None

    def __init__(self, pace: float = 0.02) -> None:
        self.pace = pace
        self.running = 0
        self.abandoned = 0

    async def stream(
        self,
        prompt: PromptEmbeds,
        generation: GenerationSettings,
        stop: Sequence[str] = (),
        keep_special: Sequence[str] = (),
    ) -> AsyncGenerator[Piece]:
        self.running += 1
        self.abandoned += 1  # until the last token was taken
        try:
            for number in range(1, generation.max_new_tokens):
                await asyncio.sleep(self.pace)
                yield Piece("la ", number)
            yield Piece("", generation.max_new_tokens, reason="length")
            self.abandoned -= 1
        finally:
            self.running -= 1

    def state(self) -> Mapping[str, float]:
        return {"slow_running": self.running}

    async def close(self) -> None:
        """There is nothing to end."""


class ScriptedBackend:
    """A backend that says what it is told, a character in each piece, and notes what it was asked.

    Attributes:
        says: the replies, the next one first; the last is said again and again.
        reason: why each of them ends.
        prompts: token ids of the prompts; -1 at positions of recordings.
        asked: stop texts and special tokens to keep, of each request.
    """

    context = None

    def __init__(self, *says: str) -> None:
        self.says = list(says)
        self.reason: Reason = "stop"
        self.prompts: list[list[int]] = []
        self.asked: list[tuple[list[str], list[str]]] = []

    async def stream(
        self,
        prompt: PromptEmbeds,
        generation: GenerationSettings,
        stop: Sequence[str] = (),
        keep_special: Sequence[str] = (),
    ) -> AsyncGenerator[Piece]:
        self.prompts.append([key if isinstance(key, int) else -1 for key in prompt.keys])
        self.asked.append((list(stop), list(keep_special)))
        says = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        for number, character in enumerate(says, 1):
            yield Piece(character, number)
        yield Piece("", len(says), reason=self.reason)

    def state(self) -> Mapping[str, float]:
        return {}

    async def close(self) -> None:
        """There is nothing to end."""


@contextmanager
def process(*options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`dualslm serve` on a free port, and its address up to and with /v1."""
    command = [sys.executable, "-m", "dualslm", "serve", "--port", "0", *options]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert run.stdout is not None
    line = run.stdout.readline()
    try:
        assert "answers on" in line, line
        yield line.split()[-1], run
    finally:
        run.terminate()
        run.wait(60)


@contextmanager
def threaded(app: FastAPI) -> Iterator[str]:
    """An application on a free port, and its address up to and with /v1."""
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", 0, log_level="error", timeout_graceful_shutdown=5))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        thread.join(30)


def client(url: str, key: str = "none") -> openai.OpenAI:
    """OpenAI's own client."""
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=120)


def audio_part(audio: Path | bytes, **more: Any) -> dict[str, Any]:
    """A content part that holds a recording."""
    data = audio if isinstance(audio, bytes) else audio.read_bytes()
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}, **more}


heard = audio_part  # the former name, which other tests import


def user(*parts: Any) -> Any:
    """A message of the user's."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": content}


def assistant(text: str) -> Any:
    """An earlier reply."""
    return {"role": "assistant", "content": text}
