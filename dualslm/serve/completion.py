"""The reply to a request, or several, on their way to a client: whole, or as events (ours).

`Completion` takes the pieces from the service, counts what they took and puts them into OpenAI's JSON.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dualslm.conversation import ToolCall
from dualslm.inference.backend import Piece, TokenLogprob
from dualslm.serve.errors import openai_error
from dualslm.serve.openai_reply import Envelope, Usage, call_json, choice, usage
from dualslm.serve.service import Ask, EncodedPrompt
from dualslm.serve.tool_calls import CallStream

if TYPE_CHECKING:
    from dualslm.serve.app import Server


@dataclass
class Completion:
    """The reply to a request, or several, on the way to a client, and what they took so far.

    Attributes:
        server: what the routes share.
        ask: conversation and settings.
        prompt: the encoded conversation.
        began: time of the request, in s of `time.perf_counter`.
        replies: number of replies to the one prompt.
        last: the piece that came last of each reply that has begun.
        seconds: s from the request to the end of each step.
        calls: of tools, of each reply that has ended with some.
    """

    server: Server
    ask: Ask
    prompt: EncodedPrompt
    began: float
    replies: int = 1
    last: dict[int, Piece] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[int, list[ToolCall]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seconds["encode"] = time.perf_counter() - self.began

    async def whole(self) -> dict[str, Any]:
        """The replies as one JSON object."""
        texts = [""] * self.replies
        logprobs: list[list[TokenLogprob]] = [[] for _ in texts]
        async with aclosing(self.pieces()) as pieces:
            async for index, piece in pieces:
                texts[index] += piece.text
                logprobs[index] += piece.logprobs
        self.count()
        choices = [
            choice(index, text, self.reason(index), logprobs[index], self.calls.get(index, ()))
            for index, text in enumerate(texts)
        ]
        return Envelope(self.server.name).whole(choices, self.usage(), self.prompt.left_out_turns)

    async def events(self, slot: AsyncExitStack, *, include_usage: bool) -> AsyncGenerator[str]:
        """The reply as server-sent events.

        Args:
            slot: the request's slot in the queue; given up after the last event, or when the client leaves.
            include_usage: whether an event with tokens and seconds follows the reply.
        """
        envelope = Envelope(self.server.name)
        with self.counted():
            async with slot, aclosing(self.pieces()) as pieces:
                try:
                    for index in range(self.replies):
                        yield sse(envelope.chunk({"role": "assistant", "content": ""}, index=index))
                    async with asyncio.timeout(self.server.limits.timeout):
                        async for index, piece in pieces:
                            if piece.text or piece.logprobs:
                                delta = {"content": piece.text}
                                yield sse(envelope.chunk(delta, index=index, logprobs=piece.logprobs))
                    for index in range(self.replies):
                        for number, call in enumerate(self.calls.get(index, ())):
                            called = {"tool_calls": [{"index": number, **call_json(call)}]}
                            yield sse(envelope.chunk(called, index=index))
                        yield sse(envelope.chunk({}, self.reason(index), index=index))
                    if include_usage:
                        self.seconds["whole"] = time.perf_counter() - self.began
                        used = envelope.usage_chunk(self.usage(), self.prompt.left_out_turns)
                        yield sse(used | {"seconds": self.seconds})
                except Exception as error:  # status 200 was sent already, so the error travels as an event
                    yield sse({"error": openai_error(error)[1]})
        yield "data: [DONE]\n\n"

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece]]:
        """The pieces of all replies, each with the number of its reply, by turns; calls of tools are no text."""
        async with AsyncExitStack() as stack:
            streams: dict[int, AsyncGenerator[Piece]] = {}
            names = {tool["function"]["name"] for tool in self.ask.conversation.tools}
            written = self.ask.calls
            readers = [
                CallStream(written, names, several=self.ask.several_calls) if written else None
                for _ in range(self.replies)
            ]
            for index in range(self.replies):
                # another seed for each: equal seeds would draw equal replies
                seed = None if self.ask.generation.seed is None else self.ask.generation.seed + index
                ask = replace(self.ask, generation=self.ask.generation.changed(seed=seed))
                streams[index] = self.server.service.stream(ask, self.prompt)
                await stack.enter_async_context(aclosing(streams[index]))
            while streams:
                for index, stream in list(streams.items()):
                    piece = await anext(stream, None)
                    if piece is None:
                        del streams[index]
                        continue
                    if not self.last:
                        self.seconds["first_token"] = time.perf_counter() - self.began
                        self.server.metrics.first_text.observe(self.seconds["first_token"])
                    if (reader := readers[index]) is not None:
                        text = reader.add(piece.text) + (reader.rest() if piece.reason else "")
                        piece = replace(piece, text=text)
                        if reader.calls:
                            self.calls[index] = reader.calls
                    self.last[index] = piece
                    yield index, piece

    def reason(self, index: int) -> str:
        """Why a reply has ended."""
        reason = self.last[index].reason
        assert reason is not None, "a backend's last piece has a reason"
        # a reply that was cut off may have whole calls before the one that was cut
        return "tool_calls" if index in self.calls and reason == "stop" else reason

    def usage(self) -> Usage:
        """Positions and tokens, so far."""
        positions = len(self.prompt.embeds.keys)
        return usage(positions, self.prompt.audio_positions, self._reused, self._drawn)

    @property
    def _reused(self) -> int:
        return self.last[0].reused if 0 in self.last else 0

    @property
    def _drawn(self) -> int:
        return sum(piece.tokens for piece in self.last.values())

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts what was sent within, which may end early: a client that leaves ends the generator that sends."""
        try:
            yield
        except BaseException:  # GeneratorExit or CancelledError: faults are sent as events within
            self.server.metrics.disconnects.inc()
            raise
        finally:
            self.count()

    def count(self) -> None:
        """Adds what the reply took to the metrics."""
        numbers = {"read": len(self.prompt.embeds.keys), "reused": self._reused, "drawn": self._drawn}
        for kind, number in numbers.items():
            self.server.metrics.tokens.labels(kind).inc(number)
        self.server.metrics.whole_reply.observe(time.perf_counter() - self.began)


def sse(data: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
