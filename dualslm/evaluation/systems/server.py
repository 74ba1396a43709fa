"""Any OpenAI-compatible server that takes `input_audio`: Qwen2-Audio, ultravox, Voxtral, Qwen-Omni behind vLLM.

The recording in question is sent as 16 kHz wav; earlier spoken turns as their transcripts where there are any, since
many servers take one recording a request. No torch.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import soundfile

from dualslm.audio import SAMPLE_RATE, load
from dualslm.conversation import Conversation, Part, Reply, Speech, View
from dualslm.errors import DualSLMError
from dualslm.evaluation.systems.item import Item, given
from dualslm.openai_client import Client, key_of


class AudioServer:
    """A model behind a server.

    Args:
        url: up to and with /v1; the key is read from the environment's OPENAI_API_KEY.
        model: as the server calls it.
        name: as reports call it.
        longest: tokens of an answer.
    """

    def __init__(self, url: str, model: str, *, name: str = "", longest: int = 128) -> None:
        self.client = Client(url, key_of())
        self.model, self.name, self.longest = model, name or model, longest
        self.served: str | None = None

    @property
    def about(self) -> Mapping[str, Any]:
        """The model as it was asked for."""
        return {"kind": "server", "model": self.model, "decoding": {"max_tokens": self.longest, "temperature": 0}}

    def views(self, item: Item) -> Sequence[None]:
        """It has one way of hearing."""
        return (None,)

    def unfit(self, item: Item) -> str | None:
        """It must have the recording."""
        return None if item.speech.audio else "no recording"

    def answer(self, items: Sequence[Item], view: View | None) -> list[Reply]:
        """All requests at once, in order."""
        with ThreadPoolExecutor(len(items)) as pool:
            return list(pool.map(self._ask, items))

    def _ask(self, item: Item) -> Reply:
        body = {"model": self.model, "messages": messages(item.conversation, item.speech), "stream": False}
        answer = self.client.chat(body | {"max_tokens": self.longest, "temperature": 0, "seed": 0})
        text, ended, served = self.client.said(answer)
        if self.served not in (None, served):
            raise DualSLMError("the server changed its model", got=f"{served} after {self.served}", do="use one model")
        self.served = served
        return Reply(text, ended)


def messages(conversation: Conversation, heard: Speech) -> list[dict[str, Any]]:
    """A talk as chat messages with the recording in question as `input_audio`."""
    said: list[dict[str, Any]] = [{"role": "system", "content": conversation.system}] if conversation.system else []
    for turn in conversation.turns:
        parts = [_part(part, heard) for part in turn.parts]
        plain = all(part["type"] == "text" for part in parts)
        said.append({"role": turn.role, "content": "\n".join(part["text"] for part in parts) if plain else parts})
    return said


def _part(part: Part, heard: Speech) -> dict[str, Any]:
    got = given(part, heard)
    if isinstance(got, str):
        return {"type": "text", "text": got}
    assert got.audio is not None
    return {"type": "input_audio", "input_audio": {"data": wav(got), "format": "wav"}}


def wav(speech: Speech) -> str:
    """A recording as base64 of 16 kHz mono wav."""
    file = io.BytesIO()
    soundfile.write(file, load(speech.audio, speech.rate), SAMPLE_RATE, format="WAV", subtype="PCM_16")  # type: ignore[arg-type]
    return base64.b64encode(file.getvalue()).decode()
