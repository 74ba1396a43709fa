"""Routes that explain: what a recording holds and how surely, and what a reply rests on (ours; for the page).

Degrees and influence need the LLM's own likelihoods, so they exist where its weights are: not behind vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request

from dualslm.conversation import Speech
from dualslm.errors import DualSLMError
from dualslm.inference.attribution import Degrees, cannot_be_weighed, degrees, last_voice, weighed, weighed_prompts
from dualslm.inference.describe import Description, Questions
from dualslm.inference.session import CHARACTERS_PER_POSITION
from dualslm.serve.caller import CALLER
from dualslm.serve.openai_schema import ChatRequest, parse_chat
from dualslm.serve.recordings import AudioData, check_speech, load_base64_speech
from dualslm.serve.strict import Name, Strict

if TYPE_CHECKING:
    from dualslm.serve.app import Server

MAX_WEIGHED_POSITIONS = 1024  # of a prompt and its reply that is weighed: two dozen copies of it are read


class DescribeRequest(Strict):
    """A recording to be described."""

    model: Name
    input_audio: AudioData


def add_explain_routes(api: FastAPI, server: Server, needs_key: list[Any]) -> None:
    """Adds `/v1/about`, `/v1/heard`, `/v1/trace` and `/v1/influence`.

    Args:
        api: the application.
        server: what its routes share.
        needs_key: dependencies that check the API key.
    """
    service = server.service

    @api.get("/v1/about", tags=["explain"], dependencies=needs_key)
    async def about() -> dict[str, Any]:
        """The model's name and limits, the system text unless one is given, whether likelihoods are at hand."""
        return {
            "model": server.name,
            "limits": f"This model {service.model.limits}.",
            "system": service.system,
            "likelihoods": service.llm_is_local,
        }

    async def recording(body: DescribeRequest) -> Speech:
        speech = await server.threads.run(load_base64_speech, body.input_audio, server.limits)
        await server.threads.run(check_speech, speech, server.limits)
        return speech

    @api.post("/v1/heard", tags=["explain"], dependencies=needs_key)
    async def describe(body: DescribeRequest, request: Request) -> dict[str, Any]:
        """The words from L alone; the attributes from P alone, with the share of each choice where it is known."""
        server.check_model(body.model)
        async with server.admitted(request):
            speech = await recording(body)
            description = await server.wait_for(request, service.describe(speech))
            shares: Mapping[str, Degrees] = {}
            if service.llm_is_local or service.model.aligned:
                # the audio cache belongs to the encoder's thread, whoever uses it
                work = service.run_in_encoder_thread(
                    degrees, service.audio_cache, speech, service.questions, description
                )
                shares = await server.wait_for(request, work)
        return description_json(description, shares, service.questions)

    @api.post("/v1/trace", tags=["explain"], dependencies=needs_key)
    async def trace(body: DescribeRequest, request: Request) -> dict[str, Any]:
        """The emotion of a recording from moment to moment, from P alone; null in a window where none is named."""
        server.check_model(body.model)
        async with server.admitted(request):
            speech = await recording(body)
            windows = await server.wait_for(request, service.trace_emotion(speech))
        return {"windows": [{"from": start, "to": end, "emotion": emotion} for start, end, emotion in windows]}

    @api.post("/v1/influence", tags=["explain"], dependencies=needs_key)
    async def weigh(body: ChatRequest, request: Request) -> dict[str, Any]:
        """What decided the last message, a reply: nats that its tokens lose in another tone and after other words."""
        server.check_model(body.model)
        if not service.llm_is_local:
            do = "serve without --vllm and --llama-cpp to weigh replies"
            raise DualSLMError("no likelihoods here", got="an LLM that runs elsewhere", do=do)
        async with server.admitted(request):
            parsed = server.threads.run(parse_chat, body, server.limits, service.model.llm.tokenizer, service.system)
            ask = await server.wait_for(request, parsed)
            turns = ask.conversation.turns
            if len(turns) < 2 or turns[-1].role != "assistant":
                do = "end the conversation with the reply"
                raise DualSLMError("no reply to weigh", got="another last message", do=do)
            reply = "".join(part for part in turns.pop().parts if isinstance(part, str))
            # by its characters first, which are counted and not tokenised; then by its positions
            if not reply.strip() or len(reply) > MAX_WEIGHED_POSITIONS * CHARACTERS_PER_POSITION:
                raise cannot_be_weighed(f"a reply of {len(reply)} characters", MAX_WEIGHED_POSITIONS)
            # encoded here already, because only then is it known whether the conversation is short enough
            prompt = await server.wait_for(request, service.encode(ask))
            positions = len(prompt.embeds.keys)
            if prompt.left_out_turns or positions > MAX_WEIGHED_POSITIONS:
                got = f"{positions} positions before it, and {prompt.left_out_turns} turns left out"
                raise cannot_be_weighed(got, MAX_WEIGHED_POSITIONS)
            voice = last_voice(ask.conversation)
            heard = None if voice is None else await server.wait_for(request, service.describe(voice))
            work = service.run_in_encoder_thread(
                weighed_prompts,
                service.audio_cache,
                ask.conversation,
                reply,
                ask.view,
                service.questions,
                heard,
                longest=MAX_WEIGHED_POSITIONS,
            )
            prompts = await server.wait_for(request, work)
            # in a thread of its own: it takes the LLM's time, and nobody's recordings should wait for it
            weighing = service.explainer.run(weighed, service.model, prompts, CALLER.get().check_wanted)
            return asdict(await server.wait_for(request, weighing))


def description_json(description: Description, shares: Mapping[str, Degrees], questions: Questions) -> dict[str, Any]:
    """A description as JSON, with captions of the same voice in each emotion, to be used as a tone.

    Args:
        description: words and attributes of a recording.
        shares: share of each choice, by attribute; empty where the likelihoods are not at hand.
        questions: their values are the choices.
    """
    values = description.attributes
    attributes = {name: {"value": value, "degrees": shares.get(name)} for name, value in values.items()}
    known = {name: value for name, value in values.items() if value is not None}
    # adapters may have been trained without emotions: then there are no captions to offer
    emotions = questions.attributes["emotion"].values if "emotion" in questions.attributes else ()
    captions = {emotion: questions.caption({**known, "emotion": emotion}) for emotion in emotions}
    return {
        "words": description.words,
        "caption": description.caption,
        "attributes": attributes,
        "captions": captions,
    }
