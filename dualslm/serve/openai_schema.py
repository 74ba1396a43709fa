"""OpenAI's JSON ↔ talks: what may stand in a request, and what an answer looks like (ours).

Text and `input_audio` parts, in any turn of the user's. Beyond OpenAI's fields a request may name a `view`, a
recording its `transcript`, its `caption` and a `tone`, the recording whose tone it takes. A field that would change
the reply and is not understood is refused, not passed over.
"""

from __future__ import annotations

import base64
import binascii
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from dualslm.audio import SAMPLE_RATE, TooLongError, load
from dualslm.conversation import Conversation, Part, Speech, View
from dualslm.model.generation import GenerationSettings
from dualslm.serve.limits import Limits, RefusedError
from dualslm.serve.service import Ask

LONGEST = 256  # tokens of a reply, unless the request says otherwise
MOST_TOKENS = 32_768


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AudioData(_Strict):
    """The bytes of an audio file in base64, and what they are called: the bytes themselves decide."""

    data: str = Field(description="the bytes of a wav, mp3, flac or ogg file, in base64")
    format: Literal["wav", "mp3", "flac", "ogg"] = "wav"


class Described(_Strict):
    """A tone in words."""

    caption: str = Field(min_length=1)


class TextPart(_Strict):
    """Something written."""

    type: Literal["text"]
    text: str


class AudioPart(_Strict):
    """Something said."""

    type: Literal["input_audio"]
    input_audio: AudioData
    transcript: str | None = Field(None, description="its words, for views that read L as text")
    caption: str | None = Field(None, description="how it is said, for views that read P as text")
    tone: AudioData | Described | None = Field(None, description="take how it is said from this instead")


UserPart = Annotated[TextPart | AudioPart, Field(discriminator="type")]


class SystemMessage(_Strict):
    """The system text; at the beginning only."""

    role: Literal["system", "developer"]
    content: str | list[TextPart]
    name: str | None = None


class UserMessage(_Strict):
    """A turn of the user's."""

    role: Literal["user"]
    content: str | list[UserPart]
    name: str | None = None


class AssistantMessage(_Strict):
    """An earlier reply."""

    role: Literal["assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: None = None
    audio: None = None
    tool_calls: None = None
    function_call: None = None
    annotations: list[Any] | None = None


AnyMessage: TypeAlias = SystemMessage | UserMessage | AssistantMessage
Message = Annotated[AnyMessage, Field(discriminator="role")]


class StreamOptions(_Strict):
    """What a stream tells besides the reply."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(_Strict):
    """A talk to be answered."""

    model: str
    messages: list[Message] = Field(min_length=1)
    view: str = Field("speech,speech", description="sources of P and L: speech, text or none", examples=["none,speech"])
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = Field(None, description="at most 4 texts before which the reply ends")
    temperature: float | None = Field(None, ge=0, le=2, description="0, the default, takes the likeliest token")
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    n: Literal[1] | None = Field(None, description="one reply to a request")
    logprobs: Literal[False] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    modalities: list[Literal["text"]] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    user: str | None = Field(None, description="changes nothing")
    metadata: dict[str, str] | None = Field(None, description="changes nothing")
    store: bool | None = Field(None, description="changes nothing: nothing is stored")


def ask_of(request: ChatRequest, limits: Limits, system: str | None) -> Ask:
    """The talk that a request holds, its recordings decoded.

    Raises:
        RefusedError: over a limit, or a talk that makes no sense.
        DualSLMError: an unknown view, or a recording that cannot be used.
    """
    if len(request.messages) > limits.turns:
        raise RefusedError(
            413, f"{len(request.messages)} messages; at most {limits.turns} are taken.", "too_many_turns"
        )
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stop) > 4:
        raise RefusedError(400, f"{len(stop)} stop texts; at most 4 are taken.", "invalid_value")
    most = request.max_completion_tokens or request.max_tokens or LONGEST
    generation = GenerationSettings(
        most, request.temperature or 0.0, 1.0 if request.top_p is None else request.top_p, request.seed
    )
    return Ask(_conversation(request.messages, limits, system), View.parse(request.view), generation, stop)


def speech_of(data: bytes, limits: Limits, **known: Any) -> Speech:
    """A recording from the bytes of a file.

    Raises:
        RefusedError: longer than it may be.
        DualSLMError: not audio.
    """
    try:
        return Speech(load(data, longest=limits.audio), **known)
    except TooLongError as error:
        raise RefusedError(413, str(error), "audio_too_long") from error


def speech_of_data(audio: AudioData, limits: Limits, **known: Any) -> Speech:
    """`speech_of` for a recording in base64."""
    return speech_of(_bytes(audio), limits, **known)


def _conversation(
    messages: Sequence[SystemMessage | UserMessage | AssistantMessage], limits: Limits, system: str | None
) -> Conversation:
    first = next((place for place, one in enumerate(messages) if not isinstance(one, SystemMessage)), len(messages))
    recordings = _Recordings(limits)
    texts = [_text(one.content) for one in messages[:first] if isinstance(one, SystemMessage)]
    conversation = Conversation("\n".join(texts) if texts else system)
    for one in messages[first:]:
        if isinstance(one, SystemMessage):
            raise RefusedError(400, "A system message stands in the middle; put it first.", "invalid_value")
        if isinstance(one, AssistantMessage):
            conversation.assistant(_text(one.content or ""))
        else:
            conversation.user(*_parts(one, recordings))
    return conversation


def _parts(message: UserMessage, recordings: _Recordings) -> list[Part]:
    if isinstance(message.content, str):
        return [message.content]
    return [one.text if isinstance(one, TextPart) else recordings.said(one) for one in message.content]


class _Recordings:
    """Decodes the recordings of a request, as many seconds of them as may be."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.seconds = limits, 0.0

    def said(self, part: AudioPart) -> Speech:
        tone = None
        if isinstance(part.tone, Described):
            tone = Speech(caption=part.tone.caption)
        elif part.tone is not None:
            tone = self._decoded(part.tone, caption=part.caption)
        return self._decoded(part.input_audio, tone=tone, transcript=part.transcript, caption=part.caption)

    def _decoded(self, audio: AudioData, **known: Any) -> Speech:
        speech = speech_of_data(audio, self.limits, **known)
        self.seconds += len(speech.audio) / SAMPLE_RATE  # type: ignore[arg-type]
        if self.seconds > self.limits.speech:
            message = f"The recordings are longer than {self.limits.speech:g} s together."
            raise RefusedError(413, message, "audio_too_long")
        return speech


def _bytes(audio: AudioData) -> bytes:
    try:
        return base64.b64decode(audio.data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(400, f"The audio is not base64: {error}.", "invalid_audio") from error


def _text(content: str | Sequence[TextPart]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


# ---------------------------------------------------------------------- answers


class Usage(BaseModel):
    """Positions of the prompt, P and L among them, and tokens of the reply."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


def usage(prompt: int, heard: int, reused: int, drawn: int) -> Usage:
    """What a reply took."""
    details = {"audio_tokens": heard, "cached_tokens": reused}
    return Usage(
        prompt_tokens=prompt, completion_tokens=drawn, total_tokens=prompt + drawn, prompt_tokens_details=details
    )


class Envelope:
    """What all answers to one request have in common."""

    def __init__(self, model: str) -> None:
        self.id, self.created, self.model = f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), model

    def whole(self, text: str, reason: str, used: Usage, left_out: int) -> dict[str, Any]:
        """A chat.completion; `left_out_turns` beyond OpenAI's."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        return self._with("chat.completion", [choice]) | {"usage": used.model_dump(), "left_out_turns": left_out}

    def chunk(self, delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        """A chat.completion.chunk."""
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return self._with("chat.completion.chunk", [choice])

    def last(self, used: Usage, left_out: int) -> dict[str, Any]:
        """The chunk that tells what the reply took."""
        return self._with("chat.completion.chunk", []) | {"usage": used.model_dump(), "left_out_turns": left_out}

    def _with(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}
