"""What a model's card says about how replies are drawn holds on the server, where a request does not say otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.servekit import SAD, audio_part, client, threaded, user

from dualslm import tiny
from dualslm.conversation import Conversation, Speech
from dualslm.inference.local import LocalBackend
from dualslm.model.dualslm import DualSLM
from dualslm.model.generation import GREEDY
from dualslm.serve.app import app
from dualslm.serve.openai_schema import ChatRequest
from dualslm.serve.service import Service
from dualslm.tiny.questions import ASKED
from dualslm.tiny.world import LISTEN

MODEL: Any = "dualslm"
OWN = GREEDY.changed(repetition_penalty=100.0)  # no word twice, which changes the reply


@pytest.fixture(scope="module")
def own() -> DualSLM:
    model = tiny.load()
    model.generation = OWN
    return model


@pytest.fixture(scope="module")
def address(own: DualSLM) -> Iterator[str]:
    service = Service(own, LocalBackend(own.llm), questions=ASKED, context=tiny.CONTEXT, system=LISTEN)
    with threaded(app(service, page=False)) as address:
        yield address


@pytest.fixture(scope="module")
def expected(own: DualSLM) -> tuple[str, str]:
    """The reply by the model's own settings, and the greedy one."""
    conversation = Conversation(LISTEN).user(Speech(SAD))
    return own.reply(conversation), own.reply(conversation, generation=GREEDY)


def test_a_chat_is_drawn_as_the_card_says_unless_asked_otherwise(address: str, expected: tuple[str, str]) -> None:
    penalized, greedy = expected
    assert penalized != greedy

    def reply(**fields: Any) -> str:
        answer = client(address).chat.completions.create(model=MODEL, messages=[user(audio_part(SAD))], **fields)
        return answer.choices[0].message.content or ""

    assert reply() == penalized
    assert reply(extra_body={"repetition_penalty": None}) == penalized
    assert reply(extra_body={"repetition_penalty": 1.0}) == greedy


def test_so_are_responses(address: str, expected: tuple[str, str]) -> None:
    said: Any = [{"role": "user", "content": [{"type": "input_audio", **audio_part(SAD)}]}]
    assert client(address).responses.create(model=MODEL, input=said).output_text == expected[0]


def test_so_is_a_realtime_session(address: str, own: DualSLM) -> None:
    asked = "I lost my dog today."
    conversation = Conversation(LISTEN).user(asked)
    assert own.reply(conversation) != own.reply(conversation, generation=GREEDY)
    item: Any = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": asked}]}
    with client(address).realtime.connect(model=MODEL) as connection:
        connection.conversation.item.create(item=item)
        connection.response.create()
        text = next(event.text for event in connection if event.type == "response.output_text.done")
    assert text == own.reply(conversation)


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", 0.5), ("top_p", 0.9), ("top_k", 7), ("min_p", 0.1), ("presence_penalty", 1.0), ("seed", 3)],
)
def test_each_setting_is_the_cards_unless_stated(field: str, value: float) -> None:
    defaults = GREEDY.changed(**{field: value})
    asked: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi."}]}
    assert ChatRequest.model_validate(asked).generation(defaults) == defaults
    neutral = {"temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0, "presence_penalty": 0, "seed": 4}[field]
    changed = getattr(ChatRequest.model_validate(asked | {field: neutral}).generation(defaults), field)
    assert changed == max(0, neutral)
