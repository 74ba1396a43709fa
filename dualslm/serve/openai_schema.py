"""OpenAI's JSON → conversations: what a request may hold (ours).

Any user turn may have text and `input_audio` parts. Beyond OpenAI's fields a request may have a `view`, and a
recording a `transcript`, a `caption` and a `tone` (another recording, or a description, whose tone it takes). A field
that would change the reply and is not understood is refused, not ignored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, field_validator

from dualslm.conversation import Conversation, Part, Speech, View
from dualslm.model.generation import GREEDY, GenerationSettings
from dualslm.serve.errors import RefusedError
from dualslm.serve.limits import Limits
from dualslm.serve.recordings import AudioData, Recordings, ToneCaption, check_speech
from dualslm.serve.service import Ask
from dualslm.serve.strict import Items, Name, StopText, Strict
from dualslm.serve.tools import CallHistory, CallMessage, call_format, parse_tools

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_REPLY_TOKENS = 256  # unless the request says otherwise: OpenAI has no limit here, a small LLM may never stop
MAX_REPLY_TOKENS = 32_768  # of any reply; the context limits it further
MAX_REPLIES = 16  # to one request
MAX_STOP_TEXTS = 4  # as OpenAI


class TextPart(Strict):
    """Written text."""

    ignored = frozenset({"id", "uuid", "annotations", "cache_control"})

    type: Literal["text"]
    text: str


class AudioPart(Strict):
    """Speech."""

    ignored = frozenset({"id", "uuid", "cache_control"})

    type: Literal["input_audio"]
    input_audio: AudioData
    transcript: str | None = Field(None, description="its words, for views that read L as text")
    caption: str | None = Field(None, description="how it is said, for views that read P as text")
    tone: AudioData | ToneCaption | None = Field(None, description="take how it is said from this instead")


def _as_written_by_others(part: Any) -> Any:
    """The `audio_url` of vLLM as OpenAI's `input_audio`; its address must be a `data:` URL, which holds the bytes."""
    if not isinstance(part, dict) or part.get("type") != "audio_url" or not isinstance(part.get("audio_url"), dict):
        return part
    rest = {name: value for name, value in part.items() if name not in ("type", "audio_url")}
    address = part["audio_url"]
    audio = {"data" if name == "url" else name: value for name, value in address.items()}
    return {"type": "input_audio", "input_audio": audio, **rest}


UserPart = Annotated[TextPart | AudioPart, Field(discriminator="type"), BeforeValidator(_as_written_by_others)]
MESSAGE_EXTRAS = frozenset({"id", "uuid", "created_at", "timestamp", "status", "metadata", "cache_control"})


class SystemMessage(Strict):
    """The system text; at the beginning only."""

    ignored = MESSAGE_EXTRAS

    role: Literal["system", "developer"]
    content: str | Items[TextPart]
    name: str | None = None


class UserMessage(Strict):
    """A turn of the user's."""

    ignored = MESSAGE_EXTRAS

    role: Literal["user"]
    content: str | Items[UserPart]
    name: str | None = None


# An LLM's thoughts are no part of a conversation: chat templates leave those of earlier turns out, too.
REPLY_EXTRAS = frozenset(
    {
        "annotations",
        "provider_specific_fields",
        "reasoning",
        "reasoning_content",
        "reasoning_details",
        "thinking_blocks",
    }
)


class AssistantMessage(Strict):
    """An earlier reply."""

    ignored = MESSAGE_EXTRAS | REPLY_EXTRAS

    role: Literal["assistant"]
    content: str | Items[TextPart] | None = None
    name: str | None = None
    refusal: str | None = Field(None, description="what was said instead of a reply")
    tool_calls: Items[CallMessage] | None = Field(None, description="what it asked to be called")


class ToolMessage(Strict):
    """The result of a call."""

    ignored = MESSAGE_EXTRAS

    role: Literal["tool"]
    content: str | Items[TextPart]
    tool_call_id: Name
    name: str | None = None


AnyMessage: TypeAlias = SystemMessage | UserMessage | AssistantMessage | ToolMessage
Message = Annotated[AnyMessage, Field(discriminator="role")]


class StreamOptions(Strict):
    """What a stream carries besides the reply."""

    include_usage: bool = False
    include_obfuscation: bool = False
    continuous_usage_stats: Literal[False] = False


class ChatRequest(Strict):
    """A conversation to be answered."""

    ignored = frozenset(
        {
            "cache_prompt",
            "keep_alive",
            "metadata",
            "moderation",
            "prediction",  # makes a reply faster, and no other
            "priority",
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "request_id",
            "safety_identifier",
            "service_tier",
            "store",  # nothing is stored
            "user",
        }
    )
    model: Name
    messages: Items[Message] = Field(min_length=1)
    view: Name = Field(
        "speech,speech", description="sources of P and L: speech, text or none", examples=["none,speech"]
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: StopText | Items[StopText] | None = Field(None, description="at most 4 texts before which the reply ends")
    temperature: float | None = Field(None, ge=0, le=2, description="0: the likeliest token; else the model's own")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="-1 or 0: from all tokens")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100, description="over the tokens of the reply")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(None, ge=1, description="a reply is never longer than the context allows")
    max_completion_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1, le=MAX_REPLIES)
    tools: Items[dict[str, Any]] | None = Field(None, description="functions, where the LLM's chat template takes them")
    parallel_tool_calls: bool | None = Field(None, description="false: a reply has one call at most")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20, description="with logprobs")
    response_format: dict[str, Any] | None = Field(None, description="json_object or json_schema: behind vLLM alone")

    @field_validator("response_format")
    @classmethod
    def is_known(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        """One of OpenAI's formats; None for plain text."""
        if not value:
            return None
        kind = value.get("type")
        if kind not in ("text", "json_object", "json_schema"):
            raise ValueError(f"{kind!r} is no format of a reply; send 'text', 'json_object' or 'json_schema'.")
        return None if kind == "text" else value

    def generation(self, defaults: GenerationSettings = GREEDY) -> GenerationSettings:
        """The settings of the reply.

        Args:
            defaults: the model's own, for what the request leaves open.
        """
        # `max_tokens` is the field's former name, which clients still send
        wanted = self.max_completion_tokens or self.max_tokens or DEFAULT_REPLY_TOKENS
        return defaults.changed(
            max_new_tokens=min(wanted, MAX_REPLY_TOKENS),
            # the model's own unless given, as a rule 0, where OpenAI has 1: the same conversation gets the same reply
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            top_k=None if self.top_k is None else max(0, self.top_k),
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            response_format=json.dumps(self.response_format) if self.response_format else None,
        )


def parse_chat(
    request: ChatRequest,
    limits: Limits,
    tokenizer: PreTrainedTokenizerBase,
    system: str | None,
    defaults: GenerationSettings = GREEDY,
) -> Ask:
    """The conversation and the settings of a request, its recordings decoded.

    Args:
        request: the request's body.
        limits: limits of turns and recordings.
        tokenizer: the LLM's, whose chat template takes tools or does not.
        system: system text of a conversation that has none.
        defaults: settings of the reply that the request leaves open.

    Raises:
        RefusedError: a request over a limit, messages in an order that makes no sense, or tools that cannot be called.
        DualSLMError: an unknown view, or a recording that cannot be used, for example one without speech.
    """
    calls = call_format(tokenizer, limits.tool_call_parser) if request.tools and not limits.ignore_tools else None
    turns = len(request.messages)
    if turns > limits.turns:
        raise RefusedError(413, f"{turns} messages; at most {limits.turns} are taken.", "too_many_turns")
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stop) > MAX_STOP_TEXTS:
        raise RefusedError(400, f"{len(stop)} stop texts; at most {MAX_STOP_TEXTS} are taken.", "invalid_value")
    if request.top_logprobs and not request.logprobs:
        raise RefusedError(400, "top_logprobs: asks for logprobs; send logprobs: true with it.", "invalid_value")
    view = View.parse(request.view)
    conversation = _conversation(request.messages, limits, tokenizer, system)
    conversation.tools = parse_tools(request.tools or ()) if calls is not None else ()
    # after all recordings are decoded: that they are too long together is the graver fault
    if "speech" in (view.para, view.ling):
        for turn in conversation.turns:
            for speech in turn.speeches:
                check_speech(speech, limits)
    stop = [text for text in stop if text]
    several = request.parallel_tool_calls is not False
    return Ask(conversation, view, request.generation(defaults), stop, calls, several_calls=several)


def _conversation(
    messages: Sequence[AnyMessage], limits: Limits, tokenizer: PreTrainedTokenizerBase, system: str | None
) -> Conversation:
    """The conversation of some messages; system messages stand at the beginning only."""
    system_texts: list[str] = []
    for message in messages:
        if not isinstance(message, SystemMessage):
            break
        system_texts.append(_text(message.content))
    recordings = Recordings(limits)
    conversation = Conversation("\n".join(system_texts) if system_texts else system)
    history = CallHistory(tokenizer)
    for index, message in enumerate(messages[len(system_texts) :], len(system_texts)):
        where = f"messages.{index}"
        if isinstance(message, ToolMessage):
            conversation.tool(_text(message.content), history.answered(message.tool_call_id, where))
            continue
        history.check_all_answered(where)
        if isinstance(message, SystemMessage):
            # chat templates have one place for it: moved to the front it would silently mean something else
            raise RefusedError(400, "A system message stands in the middle; put it first.", "invalid_value")
        if isinstance(message, AssistantMessage):
            calls = history.calls(message.tool_calls, where) if message.tool_calls else []
            text = _text(message.content or message.refusal or "")
            # without words beside a call nothing is said, not even a blank line after what was said before
            conversation.assistant(*([text] if text or not calls else []), calls=calls)
        elif isinstance(message.content, str):
            conversation.user(message.content)
        else:
            parts: list[Part] = [
                part.text if isinstance(part, TextPart) else _speech(part, recordings) for part in message.content
            ]
            conversation.user(*parts)
    history.check_all_answered("messages")
    return conversation


def _speech(part: AudioPart, recordings: Recordings) -> Speech:
    """A spoken part, with the recording or the caption whose tone it takes."""
    tone = None
    if isinstance(part.tone, ToneCaption):
        tone = Speech(caption=part.tone.caption)
    elif part.tone is not None:
        # P is read from the tone, so a view that reads P as text needs the caption there
        tone = recordings.load(part.tone, caption=part.caption)
    return recordings.load(part.input_audio, tone=tone, transcript=part.transcript, caption=part.caption)


def _text(content: str | Sequence[TextPart]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)
