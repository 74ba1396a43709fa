"""Replies as OpenAI's JSON: choices, chunks, calls of tools, log-probabilities and usage (ours)."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from dualslm.conversation import ToolCall
from dualslm.inference.backend import TokenLogprob

CACHED_STEP = 16  # positions: exact counts would tell where two prompts begin to differ


class Usage(BaseModel):
    """Positions of the prompt, P and L among them, and tokens of the reply."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


def usage(prompt: int, audio: int, reused: int, drawn: int) -> Usage:
    """What a reply took.

    Args:
        prompt: positions of the prompt.
        audio: positions of the prompt that are P or L.
        reused: positions of the prompt that came from the prefix cache; given in steps of `CACHED_STEP`.
        drawn: tokens of the reply.
    """
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=drawn,
        total_tokens=prompt + drawn,
        prompt_tokens_details={"audio_tokens": audio, "cached_tokens": reused // CACHED_STEP * CACHED_STEP},
    )


class Envelope:
    """What all JSON objects of one reply have in common.

    Args:
        model: name of the model.
    """

    def __init__(self, model: str) -> None:
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model = model

    def whole(self, choices: Sequence[dict[str, Any]], used: Usage, left_out_turns: int) -> dict[str, Any]:
        """A chat.completion of some choices (see `choice`); `left_out_turns` is not OpenAI's."""
        completion = self._with("chat.completion", [*choices])
        return completion | {"usage": used.model_dump(), "left_out_turns": left_out_turns}

    def chunk(
        self,
        delta: dict[str, Any],
        reason: str | None = None,
        *,
        index: int = 0,
        logprobs: Sequence[TokenLogprob] = (),
    ) -> dict[str, Any]:
        """A chat.completion.chunk."""
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs_json(logprobs)}
        return self._with("chat.completion.chunk", [choice])

    def usage_chunk(self, used: Usage, left_out_turns: int) -> dict[str, Any]:
        """The last chunk, which says what the reply took."""
        # OpenAI's own has no choices either: clients that take choices[0] without looking have to know this
        chunk = self._with("chat.completion.chunk", [])
        return chunk | {"usage": used.model_dump(), "left_out_turns": left_out_turns}

    def _with(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def choice(
    index: int, text: str, reason: str, logprobs: Sequence[TokenLogprob], calls: Sequence[ToolCall] = ()
) -> dict[str, Any]:
    """One of the replies to a request."""
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if calls:
        message |= {"content": text or None, "tool_calls": [call_json(call) for call in calls]}
    return {"index": index, "message": message, "finish_reason": reason, "logprobs": logprobs_json(logprobs)}


def call_json(call: ToolCall) -> dict[str, Any]:
    """A call as OpenAI writes it."""
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"id": call.id, "type": "function", "function": function}


def logprobs_json(logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    """Log-probabilities as OpenAI writes them; None for none."""
    if not logprobs:
        return None
    content = [
        _one_logprob(one.token, one.logprob) | {"top_logprobs": [_one_logprob(*other) for other in one.top]}
        for one in logprobs
    ]
    return {"content": content, "refusal": None}


def _one_logprob(token: str, logprob: float) -> dict[str, Any]:
    # a token may be some bytes of a character, whose text is not known
    known = "\N{REPLACEMENT CHARACTER}" not in token
    return {"token": token, "logprob": logprob, "bytes": list(token.encode()) if known else None}
