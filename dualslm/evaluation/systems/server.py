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
from dualslm.evaluation.systems.item import Item, transcript_unless_asked
from dualslm.openai_client import Client, key_of


class AudioServer:
    """A model behind a server.

    Args:
        url: address up to and with /v1; the key is read from the environment's OPENAI_API_KEY.
        model: the server's name of the model.
        name: name in reports; the model's where empty.
        max_new_tokens: greatest length of an answer in tokens.
    """

    def __init__(self, url: str, model: str, *, name: str = "", max_new_tokens: int = 128) -> None:
        self.client = Client(url, key_of())
        self.model = model
        self.name = name or model
        self.max_new_tokens = max_new_tokens
        self.served: str | None = None  # the model that the first answer named

    @property
    def about(self) -> Mapping[str, Any]:
        """The model as it was asked for."""
        decoding = {"max_tokens": self.max_new_tokens, "temperature": 0}
        return {"kind": "server", "model": self.model, "decoding": decoding}

    def views(self, item: Item) -> Sequence[None]:
        """It knows no views."""
        return (None,)

    def unfit(self, item: Item) -> str | None:
        """It must have the recording."""
        return None if item.speech.audio else "no recording"

    def answer(self, items: Sequence[Item], view: View | None) -> list[Reply]:
        """The answers to one request for each item, all sent at once."""
        # The server batches what comes together; sent one by one, it would be idle most of the time.
        with ThreadPoolExecutor(len(items)) as pool:
            return list(pool.map(self._ask, items))

    def _ask(self, item: Item) -> Reply:
        body = {"model": self.model, "messages": messages(item.conversation, item.speech), "stream": False}
        answer = self.client.chat(body | {"max_tokens": self.max_new_tokens, "temperature": 0, "seed": 0})
        text, ended, served = self.client.said(answer)
        # A server that was restarted with another model in between would mix two systems in one row of a table.
        if self.served not in (None, served):
            raise DualSLMError("the server changed its model", got=f"{served} after {self.served}", do="use one model")
        self.served = served
        return Reply(text, ended)


def messages(conversation: Conversation, asked: Speech) -> list[dict[str, Any]]:
    """A conversation as chat messages, the recording in question as `input_audio`."""
    out: list[dict[str, Any]] = [{"role": "system", "content": conversation.system}] if conversation.system else []
    for turn in conversation.turns:
        parts = [_part(part, asked) for part in turn.parts]
        # Plain text as a string: many models' chat templates take a list of parts in a user's turn alone, or nowhere.
        plain = all(part["type"] == "text" for part in parts)
        out.append({"role": turn.role, "content": "\n".join(part["text"] for part in parts) if plain else parts})
    return out


def _part(part: Part, asked: Speech) -> dict[str, Any]:
    shown = transcript_unless_asked(part, asked)
    if isinstance(shown, str):
        return {"type": "text", "text": shown}
    assert shown.audio is not None
    return {"type": "input_audio", "input_audio": {"data": wav(shown), "format": "wav"}}


def wav(speech: Speech) -> str:
    """A recording as base64 of 16 kHz mono wav."""
    file = io.BytesIO()
    soundfile.write(file, load(speech.audio, speech.rate), SAMPLE_RATE, format="WAV", subtype="PCM_16")  # type: ignore[arg-type]
    return base64.b64encode(file.getvalue()).decode()
