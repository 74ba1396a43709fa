"""Chat messages, as clients of other libraries write them, become conversations."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from dualslm.conversation import Conversation, Speech
from dualslm.errors import DualSLMError

FILE = b"RIFF, as far as this test goes"
AUDIO = {"type": "input_audio", "input_audio": {"data": base64.b64encode(FILE).decode(), "format": "wav"}}


def test_messages_as_openais_clients_write_them() -> None:
    conversation = Conversation.from_messages(
        [
            {"role": "system", "content": "Answer warmly."},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": [{"type": "text", "text": "Good morning!"}]},
            {"role": "user", "content": [AUDIO, {"type": "text", "text": "What do you hear?"}]},
        ]
    )
    assert conversation.system == "Answer warmly."
    assert [turn.role for turn in conversation.turns] == ["user", "assistant", "user"]
    spoken, typed = conversation.turns[-1].parts
    assert isinstance(spoken, Speech)
    assert spoken.audio == FILE
    assert typed == "What do you hear?"


def test_messages_as_processors_of_transformers_take_them() -> None:
    samples = np.zeros(160, np.float32)
    for audio in ("hello.wav", samples):
        conversation = Conversation.from_messages([{"role": "user", "content": [{"type": "audio", "audio": audio}]}])
        (speech,) = conversation.turns[0].speeches
        assert speech.audio is audio


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"role": "robot", "content": "hello"}], "message 1 has an unknown role: got 'robot'"),
        ([{"content": "hello"}], "message 1 has an unknown role: got None"),
        ([{"role": "user"}], "message 1 has no content: got NoneType"),
        ([{"role": "user", "content": []}], "message 1 has no content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "message 1 has a part that cannot be read"),
        ([{"role": "user", "content": ["hello"]}], "message 1 has a part that cannot be read: got str"),
        ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "message 1 has a part that cannot be read"),
        (
            [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "no base64!"}}]}],
            "the audio of message 1 is not base64",
        ),
        (
            [{"role": "user", "content": "hi"}, {"role": "system", "content": "Be kind."}],
            "message 2 is a system text where none may stand",
        ),
        ([{"role": "system", "content": [AUDIO]}], "message 1 is a system text where none may stand"),
    ],
)
def test_what_is_no_message_is_named(messages: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(DualSLMError, match=says):
        Conversation.from_messages(messages)
