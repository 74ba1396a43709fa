"""OpenAI's JSON ↔ conversations: what a request may hold, and what a response looks like (ours).

Any user turn may have text and `input_audio` parts. Beyond OpenAI's fields a request may have a `view`, and a
recording a `transcript`, a `caption` and a `tone` (another recording, or a description, whose tone it takes). A field
that would change the reply and is not understood is refused, not ignored.
"""

from __future__ import annotations

import base64
import binascii
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from dualslm.audio import SAMPLE_RATE, SampleBudget, TooLongError, load
from dualslm.conversation import Conversation, Part, Speech, View
from dualslm.inference.voice_activity import require_speech
from dualslm.model.generation import GenerationSettings
from dualslm.serve.caller import CALLER
from dualslm.serve.errors import RefusedError
from dualslm.serve.limits import Limits
from dualslm.serve.service import Ask

DEFAULT_REPLY_TOKENS = 256  # unless the request says otherwise: OpenAI has no limit here, a small LLM may never stop
MAX_REPLY_TOKENS = 32_768  # what a request may ask for; the context limits it further
MAX_STOP_TEXTS = 4  # as OpenAI
MAX_STOP_CHARACTERS = 256  # of one: each piece of a reply is compared with every beginning of it
MAX_NAME_CHARACTERS = 256  # of a model's name, a view and the like
MAX_ITEMS = 4096  # of any list; `Limits` has fewer for most
CACHED_STEP = 16  # positions: exact counts would tell where two prompts begin to differ


class _Strict(BaseModel):
    # pydantic would ignore unknown fields; a misspelt `view` would then change nothing and tell nobody
    model_config = ConfigDict(extra="forbid")


class AudioData(_Strict):
    """An audio file in base64, with OpenAI's name of its format; the file's own header decides."""

    data: str = Field(description="the bytes of a wav, mp3, flac or ogg file, in base64")
    format: Literal["wav", "mp3", "flac", "ogg"] = "wav"


class ToneCaption(_Strict):
    """A tone in words."""

    caption: str = Field(min_length=1)


T = TypeVar("T")
# The first wrong item of a list is enough: a list of a million would otherwise have a million errors.
Items: TypeAlias = Annotated[list[T], Field(max_length=MAX_ITEMS, fail_fast=True)]
Name: TypeAlias = Annotated[str, Field(max_length=MAX_NAME_CHARACTERS)]
StopText: TypeAlias = Annotated[str, Field(max_length=MAX_STOP_CHARACTERS)]


class TextPart(_Strict):
    """Written text."""

    type: Literal["text"]
    text: str


class AudioPart(_Strict):
    """Speech."""

    type: Literal["input_audio"]
    input_audio: AudioData
    transcript: str | None = Field(None, description="its words, for views that read L as text")
    caption: str | None = Field(None, description="how it is said, for views that read P as text")
    tone: AudioData | ToneCaption | None = Field(None, description="take how it is said from this instead")


UserPart = Annotated[TextPart | AudioPart, Field(discriminator="type")]


class SystemMessage(_Strict):
    """The system text; at the beginning only."""

    role: Literal["system", "developer"]
    content: str | Items[TextPart]
    name: str | None = None


class UserMessage(_Strict):
    """A turn of the user's."""

    role: Literal["user"]
    content: str | Items[UserPart]
    name: str | None = None


class AssistantMessage(_Strict):
    """An earlier reply."""

    role: Literal["assistant"]
    content: str | Items[TextPart] | None = None
    name: str | None = None
    refusal: None = None
    audio: None = None
    tool_calls: None = None
    function_call: None = None
    annotations: Items[Any] | None = None


AnyMessage: TypeAlias = SystemMessage | UserMessage | AssistantMessage
Message = Annotated[AnyMessage, Field(discriminator="role")]


class StreamOptions(_Strict):
    """What a stream carries besides the reply."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(_Strict):
    """A conversation to be answered."""

    model: Name
    messages: Items[Message] = Field(min_length=1)
    view: Name = Field(
        "speech,speech", description="sources of P and L: speech, text or none", examples=["none,speech"]
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: StopText | Items[StopText] | None = Field(None, description="at most 4 texts before which the reply ends")
    temperature: float | None = Field(None, ge=0, le=2, description="0, the default, takes the likeliest token")
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(None, ge=1, le=MAX_REPLY_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_REPLY_TOKENS)
    # fields that OpenAI's clients send at their neutral values; any other value would change the reply
    n: Literal[1] | None = Field(None, description="one reply to a request")
    logprobs: Literal[False] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    modalities: Items[Literal["text"]] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    user: str | None = Field(None, description="changes nothing")
    metadata: dict[str, str] | None = Field(None, description="changes nothing")
    store: bool | None = Field(None, description="changes nothing: nothing is stored")


def parse_chat(request: ChatRequest, limits: Limits, system: str | None) -> Ask:
    """The conversation and the settings of a request, its recordings decoded.

    Args:
        request: the request's body.
        limits: limits of turns and recordings.
        system: system text of a conversation that has none.

    Raises:
        RefusedError: a request over a limit, or messages in an order that makes no sense.
        DualSLMError: an unknown view, or a recording that cannot be used, for example one without speech.
    """
    turns = len(request.messages)
    if turns > limits.turns:
        raise RefusedError(413, f"{turns} messages; at most {limits.turns} are taken.", "too_many_turns")
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stop) > MAX_STOP_TEXTS:
        raise RefusedError(400, f"{len(stop)} stop texts; at most {MAX_STOP_TEXTS} are taken.", "invalid_value")
    generation = GenerationSettings(
        # `max_tokens` is the field's former name, which clients still send
        max_new_tokens=request.max_completion_tokens or request.max_tokens or DEFAULT_REPLY_TOKENS,
        # 0 unless given, where OpenAI has 1: the same conversation gets the same reply
        temperature=request.temperature or 0.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=request.seed,
    )
    view = View.parse(request.view)
    conversation = _conversation(request.messages, limits, system)
    # after all recordings are decoded: that they are too long together is the graver fault
    if "speech" in (view.para, view.ling):
        for turn in conversation.turns:
            for speech in turn.speeches:
                check_speech(speech, limits)
    return Ask(conversation, view, generation, stop)


def check_speech(speech: Speech, limits: Limits) -> None:
    """Refuses a recording in which nobody speaks, unless the limits let any sound pass.

    Raises:
        NoSpeechError: it holds no speech.
    """
    if not limits.any_sound:
        require_speech(speech)


def load_speech(data: bytes, limits: Limits, budget: SampleBudget | None = None, **known: Any) -> Speech:
    """A recording from the bytes of a file.

    Args:
        data: the file.
        limits: limits of its seconds and of what decoding it costs.
        budget: what is left for the recordings of the request; for this one alone when None.
        **known: further fields of `Speech`.

    Raises:
        RefusedError: a recording that is too long.
        DualSLMError: no audio.
    """
    caller = CALLER.get()
    caller.check_wanted()
    budget = budget or SampleBudget(limits.decoded, limits.decoded)
    try:
        # decoding stops at the limit: a small file of compressed silence would otherwise fill the memory
        samples = load(data, longest=limits.audio, budget=budget)
    except TooLongError as error:
        raise RefusedError(413, str(error), "audio_too_long") from error
    caller.take(samples.nbytes)
    return Speech(samples, **known)


def load_base64_speech(audio: AudioData, limits: Limits, budget: SampleBudget | None = None, **known: Any) -> Speech:
    """`load_speech` for a recording in base64."""
    try:
        data = base64.b64decode(audio.data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(400, f"The audio is not base64: {error}.", "invalid_audio") from error
    return load_speech(data, limits, budget, **known)


def _conversation(messages: Sequence[AnyMessage], limits: Limits, system: str | None) -> Conversation:
    """The conversation of some messages; system messages stand at the beginning only."""
    system_texts: list[str] = []
    for message in messages:
        if not isinstance(message, SystemMessage):
            break
        system_texts.append(_text(message.content))
    recordings = _Recordings(limits)
    conversation = Conversation("\n".join(system_texts) if system_texts else system)
    for message in messages[len(system_texts) :]:
        if isinstance(message, SystemMessage):
            # chat templates have one place for it: moved to the front it would silently mean something else
            raise RefusedError(400, "A system message stands in the middle; put it first.", "invalid_value")
        if isinstance(message, AssistantMessage):
            conversation.assistant(_text(message.content or ""))
        elif isinstance(message.content, str):
            conversation.user(message.content)
        else:
            parts: list[Part] = [
                part.text if isinstance(part, TextPart) else recordings.speech(part) for part in message.content
            ]
            conversation.user(*parts)
    return conversation


class _Recordings:
    """Decodes the recordings of one request, up to a limit of seconds for all of them.

    Args:
        limits: limits of seconds.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.seconds = 0.0
        self.budget = SampleBudget(limits.decoded, limits.decoded_together)

    def speech(self, part: AudioPart) -> Speech:
        """A spoken part, with the recording or the caption whose tone it takes."""
        tone = None
        if isinstance(part.tone, ToneCaption):
            tone = Speech(caption=part.tone.caption)
        elif part.tone is not None:
            # P is read from the tone, so a view that reads P as text needs the caption there
            tone = self._load(part.tone, caption=part.caption)
        return self._load(part.input_audio, tone=tone, transcript=part.transcript, caption=part.caption)

    def _load(self, audio: AudioData, **known: Any) -> Speech:
        speech = load_base64_speech(audio, self.limits, self.budget, **known)
        self.seconds += len(speech.audio) / SAMPLE_RATE  # type: ignore[arg-type]
        if self.seconds > self.limits.speech:
            message = f"The recordings are longer than {self.limits.speech:g} s together."
            raise RefusedError(413, message, "audio_too_long")
        return speech


def _text(content: str | Sequence[TextPart]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


# ---------------------------------------------------------------------- responses


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

    def whole(self, text: str, reason: str, used: Usage, left_out_turns: int) -> dict[str, Any]:
        """A chat.completion; `left_out_turns` is not OpenAI's."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        completion = self._with("chat.completion", [choice])
        return completion | {"usage": used.model_dump(), "left_out_turns": left_out_turns}

    def chunk(self, delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        """A chat.completion.chunk."""
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return self._with("chat.completion.chunk", [choice])

    def usage_chunk(self, used: Usage, left_out_turns: int) -> dict[str, Any]:
        """The last chunk, which says what the reply took."""
        # OpenAI's own has no choices either: clients that take choices[0] without looking have to know this
        chunk = self._with("chat.completion.chunk", [])
        return chunk | {"usage": used.model_dump(), "left_out_turns": left_out_turns}

    def _with(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}
