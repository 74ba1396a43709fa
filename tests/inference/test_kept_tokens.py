"""Special tokens that mark calls of tools reach the text of a reply where they are asked for, whoever runs the LLM."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import aclosing
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from types import SimpleNamespace
from typing import Any

import torch
from support.templates import tokenizer
from support.tool_templates import TOOL_FAMILIES
from tokenizers import AddedToken

from dualslm.inference.backend import Backend
from dualslm.inference.continuous_batch import ActiveRequest
from dualslm.inference.local import LocalBackend
from dualslm.inference.vllm import VLLMBackend
from dualslm.model.generation import GREEDY, GenerationSettings, TextStreamer, text_of
from dualslm.model.inputs import PromptEmbeds

WORDS = tokenizer("hermes-special", TOOL_FAMILIES)
MARKS = ("<tool_call>", "</tool_call>")
CALL = '<tool_call>\n{"name": "f"}\n</tool_call>'
PROMPT = PromptEmbeds(torch.zeros(3, 4), [20, 21, 22], torch.zeros(3, dtype=torch.long))


def test_marks_stay_where_they_are_asked_for() -> None:
    ids = WORDS.encode(f"a{CALL}<|im_end|>", add_special_tokens=False)
    assert text_of(WORDS, ids) == 'a\n{"name": "f"}\n'
    assert text_of(WORDS, ids, MARKS) == f"a{CALL}"
    assert text_of(WORDS, ids, ["<|python_tag|>"]) == 'a\n{"name": "f"}\n', "a mark that the tokenizer does not have"
    for kept in ((), MARKS):
        pieces = TextStreamer(WORDS, kept)
        assert "".join([*map(pieces.add, ids), pieces.rest()]) == text_of(WORDS, ids, kept)


def test_tokens_that_are_only_flagged_special_are_kept_too() -> None:
    words = tokenizer("qwen2.5")
    words._tokenizer.add_special_tokens([AddedToken("<|python_tag|>", special=True)])  # as Llama 3.1 has it
    assert "<|python_tag|>" not in words.all_special_tokens
    ids = words.encode("<|python_tag|>{}<|im_end|>", add_special_tokens=False)
    assert (text_of(words, ids), text_of(words, ids, ["<|python_tag|>"])) == ("{}", "<|python_tag|>{}")


async def said(backend: Backend, stop: Sequence[str], kept: Sequence[str]) -> str:
    async with aclosing(backend.stream(PROMPT, GREEDY, stop, kept)) as pieces:
        text = "".join([piece.text async for piece in pieces])
    await backend.close()
    return text


class Drawing:
    """A batch, as PyTorch's and llama.cpp's are, that draws given tokens."""

    context = None
    size = 1
    kept_positions = 0

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)
        self.requests: list[ActiveRequest] = []

    def join(self, prompt: PromptEmbeds, generation: GenerationSettings) -> ActiveRequest:
        made: Any = SimpleNamespace(positions=3, reused=0, tokens_left=99, logprobs=None)
        request: ActiveRequest = type("Request", (), vars(made))()
        self.requests.append(request)
        return request

    def step(self) -> list[tuple[ActiveRequest, int | None]]:
        return [(self.requests[0], self.ids.pop(0) if self.ids else None)]

    def leave(self, request: ActiveRequest) -> None:
        self.requests.remove(request)

    def clear(self) -> None:
        self.requests.clear()


def test_in_this_process_and_by_llama_cpp() -> None:
    llm: Any = SimpleNamespace(tokenizer=WORDS)
    ids = WORDS.encode(f"{CALL} more", add_special_tokens=False)
    assert asyncio.run(said(LocalBackend(llm, batch=Drawing(ids)), [], MARKS)) == f"{CALL} more"
    assert asyncio.run(said(LocalBackend(llm, batch=Drawing(ids)), [], [])) == '\n{"name": "f"}\n more'
    stopped = asyncio.run(said(LocalBackend(llm, batch=Drawing(ids)), ["</tool_call>"], MARKS))
    assert stopped == CALL.removesuffix("</tool_call>"), "a token that is kept may end a reply"


class _Noting(BaseHTTPRequestHandler):
    """Answers as vLLM does and notes the request."""

    bodies: list[dict[str, Any]]

    def do_GET(self) -> None:
        self._answer(json.dumps({"data": [{"id": "llm", "max_model_len": 512}]}).encode())

    def do_POST(self) -> None:
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self._answer(b"data: " + json.dumps({"choices": [{"text": CALL, "finish_reason": "stop"}]}).encode() + b"\n\n")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


def test_vllm_is_asked_to_leave_them_in() -> None:
    _Noting.bodies = []
    server = HTTPServer(("127.0.0.1", 0), _Noting)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/v1"
    plain = tokenizer("qwen2.5", TOOL_FAMILIES)  # whose marks are not special
    for words, kept in ((WORDS, MARKS), (WORDS, ()), (plain, MARKS)):
        backend = VLLMBackend(address, frozenset({1}), tokenizer=words)
        assert asyncio.run(said(backend, ["x"], kept)) == CALL
    server.shutdown()
    server.server_close()
    assert [body.get("skip_special_tokens", True) for body in _Noting.bodies] == [False, True, True]
    assert all(body["stop"] == ["x"] and "kept" not in body for body in _Noting.bodies)
