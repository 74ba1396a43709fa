"""What a client may set in a realtime session, as OpenAI writes it today and as it wrote it before (ours)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from dualslm.serve.openai_schema import DEFAULT_REPLY_TOKENS, MAX_REPLY_TOKENS
from dualslm.serve.strict import Name, Strict
from dualslm.serve.turn_detection import TurnSettings

RATE = 24_000  # Hz, of OpenAI's audio/pcm


class InputFormat(Strict):
    """Samples of 16 bits, little-endian, one channel."""

    type: Literal["audio/pcm"] = "audio/pcm"
    rate: int = Field(default=RATE, ge=8_000, le=48_000)


class TurnDetection(Strict):
    """The server finds where turns begin and end."""

    ignored = frozenset({"idle_timeout_ms", "eagerness"})  # nobody is called to; how eager is how long a pause

    type: Literal["server_vad", "semantic_vad"] = "server_vad"
    threshold: float = Field(default=0.5, ge=0.05, le=0.95)
    prefix_padding_ms: int = Field(default=300, ge=0, le=2_000)
    silence_duration_ms: int = Field(default=500, ge=50, le=10_000)
    create_response: bool = True
    interrupt_response: bool = True

    def settings(self, longest_s: float) -> TurnSettings:
        """The same for `TurnDetector`."""
        return TurnSettings(
            self.threshold, self.prefix_padding_ms / 1000, self.silence_duration_ms / 1000, longest_s=longest_s
        )


class Transcription(Strict):
    """The words of each turn are told as well, read from L alone."""

    ignored = frozenset({"model", "prompt", "delay"})  # the words never reach the reply

    language: Literal["", "en"] = ""


class AudioInput(Strict):
    """How a client's sound arrives."""

    ignored = frozenset({"noise_reduction"})  # the encoder takes sound as it is

    format: InputFormat = InputFormat()
    turn_detection: TurnDetection | None = TurnDetection()
    transcription: Transcription | None = None


class AudioSettings(Strict):
    """Sound: in alone, for replies are text."""

    ignored = frozenset({"output"})

    input: AudioInput = AudioInput()


class SessionSettings(Strict):
    """What `session.update` may set."""

    ignored = frozenset(
        {"id", "object", "expires_at", "tracing", "parallel_tool_calls", "voice", "output_audio_format", "speed"}
    )

    type: Literal["realtime"] = "realtime"
    model: Name | None = None
    instructions: str | None = None
    output_modalities: list[Literal["text"]] = Field(default=["text"], min_length=1, max_length=1)
    max_output_tokens: int | Literal["inf"] = DEFAULT_REPLY_TOKENS
    temperature: float = Field(default=0.0, ge=0, le=2)
    audio: AudioSettings = AudioSettings()
    truncation: Literal["auto"] = "auto"

    @model_validator(mode="before")
    @classmethod
    def as_before(cls, data: Any) -> Any:
        """Names of the first version of the interface, which voice frameworks still send."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        for old, new in (("modalities", "output_modalities"), ("max_response_output_tokens", "max_output_tokens")):
            if old in data:
                data[new] = data.pop(old)
        if data.pop("input_audio_format", "pcm16") != "pcm16":
            raise ValueError("input_audio_format: samples are taken as 'pcm16' alone.")
        moved = {}
        for old, new in (("turn_detection", "turn_detection"), ("input_audio_transcription", "transcription")):
            if old in data:
                moved[new] = data.pop(old)
        if moved:
            audio = dict(data.get("audio") or {})
            data["audio"] = audio | {"input": {**(audio.get("input") or {}), **moved}}
        return data

    @property
    def max_new_tokens(self) -> int:
        """Tokens of a reply, at most."""
        wanted = MAX_REPLY_TOKENS if self.max_output_tokens == "inf" else self.max_output_tokens
        return max(1, min(wanted, MAX_REPLY_TOKENS))

    def changed(self, update: dict[str, Any]) -> SessionSettings:
        """The settings with some others; objects are changed field by field, as OpenAI does."""
        new = SessionSettings.model_validate(update)
        return SessionSettings.model_validate(_merged(self.stated(), new.model_dump(exclude_unset=True)))

    def stated(self) -> dict[str, Any]:
        """As a client is told."""
        return self.model_dump()


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    both = dict(old)
    for name, value in new.items():
        inner = both.get(name)
        both[name] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return both
