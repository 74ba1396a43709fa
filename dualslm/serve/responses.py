"""OpenAI's `/v1/responses`: the same replies as chat completions give, in the shape that newer clients ask for (ours).

No response is stored: a client sends the earlier turns again, as with chat completions.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing
from itertools import count, groupby
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BeforeValidator, Field, field_validator

from dualslm.conversation import ToolCall
from dualslm.inference.backend import TokenLogprob
from dualslm.serve.completion import Completion, sse
from dualslm.serve.errors import RefusedError, openai_error
from dualslm.serve.openai_reply import call_json, logprobs_json
from dualslm.serve.openai_schema import (
    MESSAGE_EXTRAS,
    REPLY_EXTRAS,
    AnyMessage,
    AssistantMessage,
    AudioPart,
    ChatRequest,
    StreamOptions,
    SystemMessage,
    TextPart,
    ToolMessage,
    UserMessage,
)
from dualslm.serve.strict import Items, Name, Strict
from dualslm.serve.tools import Called, CallMessage

if TYPE_CHECKING:
    from dualslm.serve.app import Server

Status: TypeAlias = Literal["in_progress", "completed", "incomplete"]
LOGPROBS = "message.output_text.logprobs"


class InputText(Strict):
    """Text of a user, of an instruction, or of an earlier reply."""

    ignored = frozenset({"annotations", "logprobs", "cache_control"})

    type: Literal["input_text", "output_text", "text"]
    text: str


Content = Annotated[InputText | AudioPart, Field(discriminator="type")]


class InputItem(Strict):
    """A turn."""

    ignored = MESSAGE_EXTRAS | REPLY_EXTRAS | {"phase", "object"}

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Items[Content]

    def message(self) -> AnyMessage:
        """The turn as a message of a chat.

        Raises:
            RefusedError: a recording that is not a user's.
        """
        if isinstance(self.content, str):
            parts: list[TextPart | AudioPart] = [TextPart(type="text", text=self.content)]
        else:
            parts = [
                TextPart(type="text", text=part.text) if isinstance(part, InputText) else part for part in self.content
            ]
        if self.role == "user":
            return UserMessage(role="user", content=parts)
        texts = [part for part in parts if isinstance(part, TextPart)]
        if len(texts) < len(parts):
            message = f"input_audio: only the user speaks; give the {self.role}'s turn as text."
            raise RefusedError(400, message, "invalid_value")
        if self.role == "assistant":
            return AssistantMessage.model_validate({"role": "assistant", "content": texts})
        return SystemMessage(role=self.role, content=texts)


class CallItem(Strict):
    """A call that an earlier response made."""

    ignored = frozenset({"id", "status"})

    type: Literal["function_call"]
    call_id: Name
    name: Name
    arguments: str

    def call(self) -> CallMessage:
        """The call as a message of a chat has it."""
        return CallMessage(id=self.call_id, function=Called(name=self.name, arguments=self.arguments))


class ResultItem(Strict):
    """The result of a call."""

    ignored = frozenset({"id", "status"})

    type: Literal["function_call_output"]
    call_id: Name
    output: str | Items[InputText]

    def message(self) -> AnyMessage:
        """The result as a message of a chat."""
        texts = [self.output] if isinstance(self.output, str) else [part.text for part in self.output]
        return ToolMessage(role="tool", tool_call_id=self.call_id, content="\n".join(texts))


AnyItem = Annotated[
    InputItem | CallItem | ResultItem,
    Field(discriminator="type"),
    # messages need not say that they are some
    BeforeValidator(lambda item: {"type": "message", **item} if isinstance(item, dict) else item),
]


class TextSettings(Strict):
    """What the text of a reply should be like."""

    format: dict[str, Any] | None = Field(None, description="text; json_object or json_schema behind vLLM alone")


class ResponsesRequest(Strict):
    """A conversation to be answered."""

    ignored = ChatRequest.ignored

    model: Name
    input: str | Items[AnyItem] = Field(min_length=1)
    instructions: str | None = Field(None, description="the system text")
    view: Name = Field(
        "speech,speech", description="sources of P and L: speech, text or none", examples=["none,speech"]
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: Items[Name] = Field([])
    text: TextSettings | None = None
    tools: Items[dict[str, Any]] | None = Field(None, description="functions, where the LLM's chat template takes them")
    parallel_tool_calls: bool | None = Field(None, description="false: a reply has one call at most")
    truncation: Literal["auto", "disabled"] = Field("auto", description="the oldest turns are left out, or all refused")

    @field_validator("include")
    @classmethod
    def is_known(cls, include: list[str]) -> list[str]:
        """What can be told beside the text."""
        # what tools and thoughts would add to a response is none where there are none
        if (other := [name for name in include if name != LOGPROBS and name.startswith("message")]) != []:
            raise ValueError(f"{other[0]!r} is not told here; leave it out.")
        return include

    def chat(self) -> ChatRequest:
        """The same as a request for a chat completion."""
        items = [InputItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        messages: list[AnyMessage] = []
        for of_calls, some in groupby(items, lambda item: isinstance(item, CallItem)):
            if of_calls:  # those of one response stand side by side
                calls = [item.call() for item in some if isinstance(item, CallItem)]
                messages.append(AssistantMessage(role="assistant", refusal=None, tool_calls=calls))
            else:
                messages += [item.message() for item in some if not isinstance(item, CallItem)]
        if self.instructions:
            messages.insert(0, SystemMessage(role="system", content=self.instructions))
        wanted = self.text.format if self.text else None
        if wanted and wanted.get("type") == "json_schema":  # chat completions have the schema one level deeper
            schema = {name: value for name, value in wanted.items() if name != "type" and value is not None}
            wanted = {"type": "json_schema", "json_schema": schema}
        fields = {
            "model": self.model,
            "messages": messages,
            # chat completions have the function one level deeper
            "tools": [
                {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}
                if tool.get("type") == "function"
                else tool
                for tool in self.tools or ()
            ],
            "parallel_tool_calls": self.parallel_tool_calls,
            "view": self.view,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_completion_tokens": self.max_output_tokens,
            "logprobs": LOGPROBS in self.include or bool(self.top_logprobs),
            "top_logprobs": self.top_logprobs,
            "response_format": wanted,
        }
        return ChatRequest.model_validate(fields)


def add_responses_route(api: FastAPI, server: Server, needs_key: list[Any]) -> None:
    """Adds `/v1/responses`.

    Args:
        api: the application.
        server: what its routes share.
        needs_key: dependencies that check the API key.
    """

    @api.post("/v1/responses", tags=["chat"], dependencies=needs_key, response_model=None)
    async def respond(body: ResponsesRequest, request: Request) -> Response:
        """The reply to a conversation of text and speech, whole or streamed."""
        server.check_model(body.model)
        began = time.perf_counter()
        async with server.admitted(request) as slot:
            ask, prompt = await server.prepared(request, body.chat())
            if body.truncation == "disabled" and prompt.left_out_turns:
                message = "input: too long for the LLM's context; send fewer turns, or truncation: 'auto'."
                raise RefusedError(400, message, "context_length_exceeded")
            reply = _Reply(body, Completion(server, ask, prompt, began))
            if not body.stream:
                return JSONResponse(await server.wait_for(request, reply.whole()))
            headers = {"Cache-Control": "no-cache"}
            return StreamingResponse(reply.events(slot.pop_all()), media_type="text/event-stream", headers=headers)


class _Reply:
    """One response: its JSON, and its events.

    Args:
        body: the request.
        completion: the reply as it is drawn.
    """

    def __init__(self, body: ResponsesRequest, completion: Completion) -> None:
        self.body = body
        self.completion = completion
        self.id = f"resp_{uuid.uuid4().hex}"
        self.item_id = f"msg_{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.text = ""
        self.logprobs: list[TokenLogprob] = []

    async def whole(self) -> dict[str, Any]:
        """The response as one JSON object."""
        async with aclosing(self.completion.pieces()) as pieces:
            async for _, piece in pieces:
                self.text += piece.text
                self.logprobs += piece.logprobs
        self.completion.count()
        return self._json(self._status())

    async def events(self, slot: AsyncExitStack) -> AsyncGenerator[str]:
        """The response as server-sent events; the slot in the queue is given up after the last."""
        numbers = count()

        def event(kind: str, **more: Any) -> str:
            return sse({"type": f"response.{kind}", "sequence_number": next(numbers), **more})

        with self.completion.counted():
            async with slot, aclosing(self.completion.pieces()) as pieces:
                try:
                    for one in announced(self._json("in_progress")):
                        yield event(**one)
                    at = {"item_id": self.item_id, "output_index": 0, "content_index": 0}
                    async with asyncio.timeout(self.completion.server.limits.timeout):
                        async for _, piece in pieces:
                            if piece.text and not self.text:
                                for one in opened(self._item("in_progress")):
                                    yield event(**one)
                            self.text += piece.text
                            self.logprobs += piece.logprobs
                            if piece.text:
                                logprobs = _logprobs(piece.logprobs)
                                yield event("output_text.delta", **at, delta=piece.text, logprobs=logprobs)
                    status = self._status()
                    if not self.text and not self._calls:  # a reply without a word is one all the same
                        for one in opened(self._item("in_progress")):
                            yield event(**one)
                    if self.text or not self._calls:
                        done = {**at, "text": self.text, "logprobs": _logprobs(self.logprobs)}
                        yield event("output_text.done", **done)
                        yield event("content_part.done", **at, part=self._part())
                        yield event("output_item.done", output_index=0, item=self._item(status))
                    for one in call_events(self._items(status)):
                        yield event(**one)
                    yield event(status, response=self._json(status))
                except Exception as error:  # status 200 was sent already, so the error travels as an event
                    yield sse({"type": "error", "sequence_number": next(numbers), **openai_error(error)[1]})

    def _status(self) -> Status:
        return "incomplete" if self.completion.reason(0) == "length" else "completed"

    @property
    def _calls(self) -> list[ToolCall]:
        return self.completion.calls.get(0, [])

    def _part(self) -> dict[str, Any]:
        return output_text(self.text) | {"logprobs": _logprobs(self.logprobs)}

    def _item(self, status: Status) -> dict[str, Any]:
        content = [] if status == "in_progress" else [self._part()]
        return {"id": self.item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _items(self, status: Status) -> list[dict[str, Any]]:
        """What the reply says, and what it calls."""
        says = [self._item(status)] if self.text or not self._calls else []
        for call in self._calls:
            ids = {"id": f"fc_{call.id}", "call_id": call.id}
            says.append({"type": "function_call", **ids, **call_json(call)["function"], "status": "completed"})
        return says

    def _json(self, status: Status) -> dict[str, Any]:
        body = self.body
        ended = status != "in_progress"
        used = self.completion.usage()
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "model": body.model,
            "output": self._items(status) if ended else [],
            "usage": {
                "input_tokens": used.prompt_tokens,
                "input_tokens_details": used.prompt_tokens_details | {"cache_write_tokens": 0},
                "output_tokens": used.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": used.total_tokens,
            }
            if ended
            else None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "error": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "temperature": self.completion.ask.generation.temperature,
            "top_p": self.completion.ask.generation.top_p,
            "text": {"format": (body.text.format if body.text else None) or {"type": "text"}},
            "truncation": body.truncation,
            "metadata": {},
            "parallel_tool_calls": self.completion.ask.several_calls,
            "previous_response_id": None,
            "store": False,
            "tool_choice": "auto" if self.completion.ask.calls else "none",
            "tools": body.tools if self.completion.ask.calls else [],
            "left_out_turns": self.completion.prompt.left_out_turns,
        }


def announced(response: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events with which a response begins."""
    yield {"kind": "created", "response": response}
    yield {"kind": "in_progress", "response": response}


def opened(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events before the first text of a reply."""
    yield {"kind": "output_item.added", "output_index": 0, "item": item}
    at = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    yield {"kind": "content_part.added", **at, "part": output_text("")}


def call_events(items: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The events of the calls among the items of a response."""
    for index, item in enumerate(items):
        if item["type"] != "function_call":
            continue
        at = {"item_id": item["id"], "output_index": index}
        begun = item | {"arguments": "", "status": "in_progress"}
        yield {"kind": "output_item.added", "output_index": index, "item": begun}
        yield {"kind": "function_call_arguments.delta", **at, "delta": item["arguments"]}
        yield {"kind": "function_call_arguments.done", **at, "name": item["name"], "arguments": item["arguments"]}
        yield {"kind": "output_item.done", "output_index": index, "item": item}


def output_text(text: str) -> dict[str, Any]:
    """A part of a reply."""
    return {"type": "output_text", "text": text, "annotations": []}


def _logprobs(logprobs: Any) -> list[dict[str, Any]]:
    written = logprobs_json(logprobs)
    return written["content"] if written else []
