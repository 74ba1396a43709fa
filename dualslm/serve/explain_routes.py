"""Routes that look inside: what was heard and how surely, and what a reply rests on (ours; the page shows them).

Degrees and influence need the LLM's own likelihoods, so they are there where its weights are: not behind vLLM.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict

from dualslm.errors import DualSLMError
from dualslm.inference.attribution import Degrees, degrees, influence
from dualslm.inference.describe import Description, Questions
from dualslm.serve.openai_schema import AudioData, ChatRequest, ask_of, speech_of_data

if TYPE_CHECKING:
    from dualslm.serve.app import Server

LONGEST = 1024  # positions of a talk whose reply is weighed: two dozen copies of it are read at once


class HeardRequest(BaseModel):
    """A recording to be heard."""

    model_config = ConfigDict(extra="forbid")
    model: str
    input_audio: AudioData


def add_inside(made: FastAPI, server: Server, keyed: list[Any]) -> None:
    """Adds `/v1/about`, `/v1/heard` and `/v1/influence`."""
    service = server.service

    @made.get("/v1/about", tags=["inside"], dependencies=keyed)
    async def about() -> dict[str, Any]:
        """The model's name, the system text of talks that have none, and whether likelihoods can be told."""
        return {"model": server.name, "system": service.system, "likelihoods": service.llm_here}

    @made.post("/v1/heard", tags=["inside"], dependencies=keyed)
    async def heard(body: HeardRequest, request: Request) -> dict[str, Any]:
        """The words from L alone; the attributes from P alone, with the share of each choice where it can be told."""
        server.known(body.model)
        async with server.placed(request):
            speech = await asyncio.to_thread(speech_of_data, body.input_audio, server.limits)
            found = await server.within(request, service.heard(speech))
            sure: Mapping[str, Degrees] = {}
            if service.llm_here:
                work = service.in_ears(degrees, service.audio_cache, speech, service.questions, found)
                sure = await server.within(request, work)
        return told(found, sure, service.questions)

    @made.post("/v1/influence", tags=["inside"], dependencies=keyed)
    async def rests(body: ChatRequest, request: Request) -> dict[str, Any]:
        """What the last message, a reply, rests on: nats that its tokens lose without P, without L, without pieces."""
        server.known(body.model)
        if not service.llm_here:
            raise DualSLMError("no likelihoods here", got="an LLM in vLLM", do="serve without --vllm to weigh replies")
        async with server.placed(request):
            ask = await server.within(request, asyncio.to_thread(ask_of, body, server.limits, service.system))
            if len(ask.conversation.turns) < 2 or ask.conversation.turns[-1].role != "assistant":
                raise DualSLMError("no reply to weigh", got="another last message", do="end the talk with the reply")
            reply = "".join(part for part in ask.conversation.turns.pop().parts if isinstance(part, str))
            read = await server.within(request, service.read(ask))
            if len(read.prompt.keys) > LONGEST or not reply.strip():
                got = f"{len(read.prompt.keys)} positions before a reply of {len(reply)} characters"
                raise DualSLMError("this reply cannot be weighed", got=got, do=f"weigh talks of up to {LONGEST}")
            work = service.in_ears(influence, service.audio_cache, ask.conversation, reply, ask.view)
            return asdict(await server.within(request, work))


def told(heard: Description, sure: Mapping[str, Degrees], questions: Questions) -> dict[str, Any]:
    """What was heard, with captions of the same voice in each emotion, to be used as a tone."""
    attributes = {name: {"value": value, "degrees": sure.get(name)} for name, value in heard.attributes.items()}
    known = {name: value for name, value in heard.attributes.items() if value is not None}
    emotions = questions.attributes["emotion"].values if "emotion" in questions.attributes else ()
    captions = {value: questions.caption({**known, "emotion": value}) for value in emotions}
    return {"words": heard.words, "caption": heard.caption, "attributes": attributes, "captions": captions}
