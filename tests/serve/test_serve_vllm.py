"""`dualslm serve --vllm`: our server encodes, stock vLLM replies; the same replies as with the LLM in process."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
from support.servekit import ANGRY, CLIP, SAD, assistant, audio_part, client, process, user

from dualslm import Conversation, DualSLM, Speech, View, tiny
from dualslm.model.generation import GenerationSettings
from dualslm.tiny.world import LISTEN

MODEL: Any = "dualslm"


@pytest.fixture(scope="module")
def model() -> DualSLM:
    return tiny.load()


@pytest.fixture(scope="module")
def urls(vllm: str) -> Iterator[list[str]]:
    """Two servers beside one vLLM."""
    with process("--vllm", vllm) as (one, _), process("--vllm", vllm) as (two, _):
        yield [one, two]


def test_conversations_of_several_turns_and_lengths(urls: list[str], model: DualSLM) -> None:
    """Each turn goes to the other server: they keep no state."""
    paths = [*CLIP.values()]
    for length in (1, 2, 4):
        conversation = Conversation(LISTEN)
        messages: list[Any] = []
        for turn in range(length):
            parts: list[Any] = [paths[(3 * length + turn) % len(paths)]]
            said: list[Any] = [Speech(parts[0])]
            if turn % 3 == 1:
                parts = ["I lost my umbrella."]
                said = ["I lost my umbrella."]
            messages.append(user(*(part if isinstance(part, str) else audio_part(part) for part in parts)))
            answer = client(urls[turn % 2]).chat.completions.create(model=MODEL, messages=messages)
            reply = answer.choices[0].message.content or ""
            assert reply == model.reply(conversation.user(*said))
            assert answer.usage is not None
            assert answer.usage.completion_tokens > 3
            conversation.assistant(reply)
            messages.append(assistant(reply))


@pytest.mark.parametrize("view", ["speech,none", "none,speech", "text,speech", "speech,text", "none,text"])
def test_views(urls: list[str], model: DualSLM, view: str) -> None:
    said = Speech(ANGRY, transcript="I won a prize.", caption="happy")
    part = audio_part(ANGRY, transcript="I won a prize.", caption="happy")
    answer = client(urls[0]).chat.completions.create(model=MODEL, messages=[user(part)], extra_body={"view": view})
    assert answer.choices[0].message.content == model.reply(Conversation(LISTEN).user(said), view=View.parse(view))


def test_streaming_and_many_at_once(urls: list[str], model: DualSLM) -> None:
    def streamed(index: int) -> list[str]:
        path = [*CLIP.values()][index % len(CLIP)]
        chunks = client(urls[index % 2]).chat.completions.create(
            model=MODEL, messages=[user(audio_part(path))], stream=True
        )
        return [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]

    want = [model.reply(Conversation(LISTEN).user(Speech([*CLIP.values()][index % len(CLIP)]))) for index in range(12)]
    with ThreadPoolExecutor(12) as pool:
        got = list(pool.map(streamed, range(12)))
    assert ["".join(pieces) for pieces in got] == want
    assert all(len([piece for piece in pieces if piece]) > 3 for pieces in got)


def test_sampling_options_pass_through(urls: list[str], model: DualSLM) -> None:
    api = client(urls[0]).chat.completions
    message = user(audio_part(SAD))
    whole = api.create(model=MODEL, messages=[message]).choices[0].message.content or ""
    cut = api.create(model=MODEL, messages=[message], max_tokens=4).choices[0]
    assert cut.finish_reason == "length"
    assert cut.message.content == model.reply(Conversation(LISTEN).user(Speech(SAD)), generation=GenerationSettings(4))
    word = whole.split()[3]
    stopped = api.create(model=MODEL, messages=[message], stop=word).choices[0]
    assert (stopped.finish_reason, stopped.message.content) == ("stop", whole[: whole.index(word)])
    drawn = [
        api.create(model=MODEL, messages=[message], temperature=2, seed=seed, max_tokens=30).choices[0].message.content
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    narrow = api.create(model=MODEL, messages=[message], temperature=2, top_p=1e-6)
    assert narrow.choices[0].message.content == whole


def test_words_and_attributes(urls: list[str]) -> None:
    assert "umbrella" in client(urls[0]).audio.transcriptions.create(model=MODEL, file=ANGRY).text
    form: Any = {"data": {"model": MODEL}, "files": {"file": ANGRY.read_bytes()}, "timeout": 60}
    assert httpx2.post(urls[1] + "/audio/attributes", **form).json()["attributes"]["emotion"] == "angry"


def test_a_conversation_that_is_too_long_is_refused_before_vllm(urls: list[str]) -> None:
    with pytest.raises(openai.BadRequestError, match="too long"):
        client(urls[0]).chat.completions.create(model=MODEL, messages=[user("word " * 2000)])
