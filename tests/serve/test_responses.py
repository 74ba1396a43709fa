"""`/v1/responses`, several replies, log-probabilities and penalties, by OpenAI's own client."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import openai
import pytest
import torch
from support.servekit import ANGRY, SAD, assistant, audio_part, client, threaded, user

from dualslm import Conversation, DualSLM, Speech, tiny
from dualslm.inference.backend import Piece
from dualslm.model.generation import GenerationSettings, Sampler
from dualslm.model.inputs import PromptEmbeds
from dualslm.prompt import render
from dualslm.serve.app import app
from dualslm.serve.service import Service
from dualslm.tiny.questions import ASKED
from dualslm.tiny.world import LISTEN

MODEL: Any = "dualslm"


def spoken(path: Any) -> Any:
    return {"role": "user", "content": [audio_part(path)]}


# ---------------------------------------------------------------------- /v1/responses


def test_text_and_audio(url: str, model: DualSLM) -> None:
    api = client(url).responses
    typed = api.create(model=MODEL, input="I lost my dog.")
    assert typed.output_text == model.reply(Conversation(LISTEN).user("I lost my dog."))
    assert (typed.status, typed.output[0].type) == ("completed", "message")
    heard = api.create(model=MODEL, input=[spoken(SAD)], instructions="Be brief.")
    assert heard.output_text == model.reply(Conversation("Be brief.").user(Speech(SAD)))
    assert heard.usage is not None
    assert heard.usage.total_tokens == heard.usage.input_tokens + heard.usage.output_tokens
    again: Any = [spoken(SAD), *[one.to_dict() for one in heard.output], {"role": "user", "content": "Thanks."}]
    want = Conversation("Be brief.").user(Speech(SAD)).assistant(heard.output_text).user("Thanks.")
    assert api.create(model=MODEL, input=again, instructions="Be brief.").output_text == model.reply(want)


def test_the_events_of_a_stream(url: str) -> None:
    api = client(url).responses
    whole = api.create(model=MODEL, input=[spoken(ANGRY)]).output_text
    events = list(api.create(model=MODEL, input=[spoken(ANGRY)], stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert "".join(getattr(event, "delta", "") for event in events) == whole
    assert getattr(events[-1], "response").output_text == whole  # noqa: B009 (the union's other events have none)
    assert [getattr(event, "sequence_number", None) for event in events] == list(range(len(events)))
    with api.stream(model=MODEL, input=[spoken(ANGRY)]) as stream:  # the client puts the pieces together itself
        assert stream.get_final_response().output_text == whole


def test_a_reply_that_is_cut_off_is_incomplete(url: str) -> None:
    cut = client(url).responses.create(model=MODEL, input="I am happy.", max_output_tokens=2)
    assert (cut.status, cut.incomplete_details.reason if cut.incomplete_details else None) == (
        "incomplete",
        "max_output_tokens",
    )
    streamed = list(client(url).responses.create(model=MODEL, input="I am happy.", max_output_tokens=2, stream=True))
    assert streamed[-1].type == "response.incomplete"


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id: not supported here: no response is stored"),
        ({"tools": [{"type": "web_search"}]}, "tools: this LLM calls no tools"),
        ({"reasoning": {"effort": "high"}}, "reasoning: not supported"),
        ({"background": True}, "background: not supported"),
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {}}}}, "vLLM"),
        ({"include": ["message.input_image.image_url"]}, "include: 'message.input"),
        ({"input": []}, "input: is empty"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "'input_image'"),
        ({"input": [{"role": "assistant", "content": [audio_part(SAD)]}]}, "only the user speaks"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": "b"}]}, "calls no tools"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "'function_call_output'"),
    ],
)
def test_what_responses_do_not_serve_is_named(url: str, more: Any, word: str) -> None:
    with pytest.raises(openai.BadRequestError, match=word):
        client(url).responses.create(**{"model": MODEL, "input": "Hi.", **more})


def test_neutral_values_of_responses_pass(url: str) -> None:
    neutral: Any = {"tools": [], "tool_choice": "auto", "store": True, "include": [], "reasoning": {"effort": None}}
    neutral |= {
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "metadata": {"a": "b"},
        "background": False,
    }
    neutral |= {"parallel_tool_calls": True, "truncation": "disabled", "previous_response_id": None, "user": "u"}
    api = client(url).responses
    want = api.create(model=MODEL, input="I lost my dog.").output_text
    assert api.create(model=MODEL, input="I lost my dog.", **neutral).output_text == want


# ---------------------------------------------------------------------- n, logprobs, penalties


def test_several_replies(url: str) -> None:
    api = client(url).chat.completions
    drawing: Any = {"model": MODEL, "messages": [user(audio_part(SAD))], "temperature": 1.5, "max_tokens": 20}
    several = api.create(**drawing, n=3, seed=5)
    texts = [choice.message.content for choice in several.choices]
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    assert [api.create(**drawing, seed=5 + index).choices[0].message.content for index in range(3)] == texts
    assert several.usage is not None
    assert several.usage.completion_tokens > 20
    streamed = ["", "", ""]
    reasons: dict[int, Any] = {}
    for chunk in api.create(**drawing, n=3, seed=5, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason
    assert streamed == texts
    assert None not in reasons.values()


def test_logprobs_are_the_llms_own(url: str, model: DualSLM) -> None:
    api = client(url).chat.completions
    asked: Any = {"model": MODEL, "messages": [user(audio_part(SAD))], "logprobs": True, "top_logprobs": 3}
    choice = api.create(**asked).choices[0]
    assert choice.logprobs is not None
    content = choice.logprobs.content or []
    assert "".join(one.token for one in content) == choice.message.content
    assert all(one.logprob == max(other.logprob for other in one.top_logprobs) for one in content)
    assert all(len(one.top_logprobs) == 3 for one in content)
    # the first token's, from a forward pass of our own
    talk = Conversation(LISTEN).user(Speech(SAD))
    from dualslm.inference.audio_cache import AudioCache

    (embeds,) = AudioCache(model).embed([render(talk, model.llm.tokenizer)])
    logits_V = model.llm.prefill([embeds.embeds_TD]).logits_BV[0]
    assert math.isclose(content[0].logprob, float(logits_V.log_softmax(-1).max()), abs_tol=1e-3)
    chunks = list(api.create(**asked, stream=True))
    told = [one for chunk in chunks for part in chunk.choices if part.logprobs for one in part.logprobs.content or []]
    assert [one.token for one in told] == [one.token for one in content]
    response = client(url).responses.create(
        model=MODEL, input=[spoken(SAD)], include=["message.output_text.logprobs"], top_logprobs=3
    )
    part = getattr(response.output[0], "content")[0]  # noqa: B009 (the union's other items have none)
    assert [one.token for one in part.logprobs] == [one.token for one in content]


def test_penalties_and_truncations_of_the_draw(url: str) -> None:
    api = client(url).chat.completions
    message = [user("I am happy.")]
    plain = api.create(model=MODEL, messages=message).choices[0].message.content
    narrow: Any = {"temperature": 2, "seed": 3}
    for only_one in ({"top_k": 1}, {"min_p": 1.0}):
        answer = api.create(model=MODEL, messages=message, extra_body=only_one, **narrow)
        assert answer.choices[0].message.content == plain
    for field in ({"extra_body": {"repetition_penalty": 100.0}}, {"frequency_penalty": 2}, {"presence_penalty": 2}):
        options: Any = field
        answer = api.create(model=MODEL, messages=[user(audio_part(SAD))], max_tokens=30, **options)
        assert answer.choices[0].message.content


def test_penalties_are_those_of_their_definitions() -> None:
    logits_BV = torch.tensor([[2.0, 1.9, -1.0, 0.5]])
    device = logits_BV.device

    def drawn(number: int, **penalty: Any) -> list[int]:
        sampler = Sampler(GenerationSettings(**penalty), device)
        return [int(sampler(logits_BV)[0]) for _ in range(number)]

    assert drawn(3) == [0, 0, 0]
    assert drawn(4, presence_penalty=0.3) == [0, 1, 0, 0]  # 1.7 against 1.9, then against 1.6
    assert drawn(4, frequency_penalty=0.3) == [0, 1, 0, 1]  # it grows each time
    assert drawn(3, repetition_penalty=2.0) == [0, 1, 0]  # 1.0 against 1.9, then against 0.95
    assert drawn(5, repetition_penalty=10.0) == [0, 1, 3, 0, 0]  # what is below 0 is never the likeliest
    settings = GenerationSettings(repetition_penalty=1.2, top_k=5)
    assert settings.stated == {
        "max_new_tokens": 256,
        "temperature": 0.0,
        "top_p": 1.0,
        "repetition_penalty": 1.2,
        "top_k": 5,
    }
    assert GenerationSettings().stated.keys() == {"max_new_tokens", "temperature", "top_p"}


class Recorder:
    """Stands where vLLM would: notes the settings, and says one word."""

    context = None

    def __init__(self) -> None:
        self.settings: list[dict[str, Any]] = []

    async def stream(
        self,
        prompt: PromptEmbeds,
        generation: GenerationSettings,
        stop: Sequence[str] = (),
        keep_special: Sequence[str] = (),
    ) -> AsyncGenerator[Piece]:
        self.settings.append(generation.as_openai())
        yield Piece('{"a": 1}', 1, reason="stop")

    def state(self) -> Mapping[str, float]:
        return {}

    async def close(self) -> None:
        """There is nothing to end."""


def test_what_another_server_is_told() -> None:
    backend = Recorder()
    service = Service(tiny.load(load_llm=False), backend, questions=ASKED, system=LISTEN)
    schema: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}, "strict": True}}
    with threaded(app(service, page=False)) as address:
        api = client(address)
        body = {"top_k": 40, "repetition_penalty": 1.1, "min_p": 0.1}
        api.chat.completions.create(
            model=MODEL,
            messages=[user("Hi."), assistant("Hello."), user(audio_part(SAD))],
            response_format=schema,
            logprobs=True,
            top_logprobs=2,
            frequency_penalty=0.5,
            extra_body=body,
        )
        flat: Any = {"format": {"type": "json_schema", **schema["json_schema"]}}
        assert api.responses.create(model=MODEL, input="Hi.", text=flat).output_text == '{"a": 1}'
    told, second = backend.settings
    assert told.items() >= {**body, "logprobs": 2, "frequency_penalty": 0.5, "response_format": schema}.items()
    assert second["response_format"] == schema
