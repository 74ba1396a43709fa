"""`dualslm serve` as a process of its own, asked by OpenAI's client: it says what the Python API says."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
from support.servekit import ANGRY, CLIP, SAD, assistant, audio_part, client, process, user

from dualslm import Conversation, DualSLM, Speech, View
from dualslm.inference.audio_cache import AudioCache
from dualslm.inference.describe import describe
from dualslm.model.generation import GenerationSettings
from dualslm.tiny.questions import ASKED
from dualslm.tiny.world import LISTEN

MODEL: Any = "dualslm"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with process() as (address, run):
        yield address
        assert run.poll() is None


def reply(url: str, *messages: Any, **more: Any) -> str:
    answer = client(url).chat.completions.create(model=MODEL, messages=[*messages], **more)
    return answer.choices[0].message.content or ""


def test_text_and_audio_are_answered_as_in_python(url: str, model: DualSLM) -> None:
    assert reply(url, user("I lost my dog.")) == model.reply(Conversation(LISTEN).user("I lost my dog."))
    assert reply(url, user(audio_part(SAD))) == model.reply(Conversation(LISTEN).user(Speech(SAD)))
    terse = {"role": "system", "content": "Be brief."}
    assert reply(url, terse, user(audio_part(SAD))) == model.reply(Conversation("Be brief.").user(Speech(SAD)))


def test_a_conversation_with_audio_in_its_history(url: str, model: DualSLM) -> None:
    conversation = Conversation(LISTEN)
    messages: list[Any] = []
    cached = 0
    for path in (ANGRY, SAD, CLIP["memory_3_afraid"]):
        messages.append(user(audio_part(path), "What now?"))
        answer = client(url).chat.completions.create(model=MODEL, messages=messages)
        said = answer.choices[0].message.content or ""
        assert said == model.reply(conversation.user(Speech(path), "What now?"))
        conversation.assistant(said)
        messages.append(assistant(said))
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        known = answer.usage.prompt_tokens_details.cached_tokens or 0
        assert known > cached or not cached, "the history is read once"
        cached = known


def test_a_stream_is_the_reply_in_pieces(url: str) -> None:
    whole = reply(url, user(audio_part(ANGRY)))
    options: Any = {"include_usage": True}
    chunks = list(
        client(url).chat.completions.create(
            model=MODEL, messages=[user(audio_part(ANGRY))], stream=True, stream_options=options
        )
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole
    assert len([piece for piece in pieces if piece]) > 5
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 5


def test_many_at_once_each_get_their_own(url: str, model: DualSLM) -> None:
    paths = [*CLIP.values()][:8]
    want = [model.reply(Conversation(LISTEN).user(Speech(path))) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda path: reply(url, user(audio_part(path))), paths)) == want


def test_decoding_settings(url: str) -> None:
    api = client(url).chat.completions
    whole = reply(url, user(audio_part(ANGRY)))
    words = whole.split()
    cut = api.create(model=MODEL, messages=[user(audio_part(ANGRY))], max_completion_tokens=3).choices[0]
    assert cut.finish_reason == "length"
    assert whole.startswith(cut.message.content or "-")
    stopped = api.create(model=MODEL, messages=[user(audio_part(ANGRY))], stop=["xyz", f" {words[4]}"]).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.message.content == " ".join(words[:4])
    drawn = [reply(url, user("I am happy."), temperature=1.5, seed=seed, max_tokens=20) for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1
    assert reply(url, user("I am happy."), temperature=1.5, top_p=1e-6, seed=2) == reply(url, user("I am happy."))


def test_view_and_tone(url: str, model: DualSLM) -> None:
    said = Speech(ANGRY)
    for view in ("speech,none", "none,speech"):
        want = model.reply(Conversation(LISTEN).user(said), view=View.parse(view))
        assert reply(url, user(audio_part(ANGRY)), extra_body={"view": view}) == want
    tone = audio_part(SAD)["input_audio"]
    assert reply(url, user(audio_part(ANGRY, tone=tone))) == model.reply(
        Conversation(LISTEN).user(said.in_the_tone_of(Speech(SAD)))
    )
    known = Speech(ANGRY, transcript="I won a prize.", caption="happy")
    part = audio_part(ANGRY, transcript="I won a prize.", caption="happy")
    want = model.reply(Conversation(LISTEN).user(known), view=View("text", "text"))
    assert reply(url, user(part), extra_body={"view": "text,text"}) == want


def test_words_and_attributes(url: str, model: DualSLM) -> None:
    want = describe(AudioCache(model), Speech(ANGRY), ASKED)
    api = client(url).audio.transcriptions
    assert api.create(model=MODEL, file=ANGRY).text == want.words
    assert str(api.create(model=MODEL, file=ANGRY, response_format="text")).strip() == want.words
    verbose = api.create(model=MODEL, file=ANGRY, response_format="verbose_json")
    assert (verbose.text, verbose.duration > 1) == (want.words, True)
    form: Any = {"data": {"model": MODEL}, "files": {"file": ANGRY.read_bytes()}, "timeout": 60}
    assert httpx2.post(url + "/audio/attributes", **form).json() == {"attributes": want.attributes}


@pytest.mark.parametrize(
    ("messages", "more", "kind", "word"),
    [
        ([user("Hi.")], {"model": "gpt-4o"}, openai.NotFoundError, "dualslm"),
        ([user("Hi.")], {"n": 10_000}, openai.BadRequestError, "n: "),
        ([user("Hi.")], {"extra_body": {"wiew": "x"}}, openai.BadRequestError, "wiew"),
        ([user("Hi.")], {"extra_body": {"view": "eyes,ears"}}, openai.BadRequestError, "unknown source"),
        ([user("Hi.")], {"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools"),
        ([user(audio_part(b"RIFF nonsense"))], {}, openai.BadRequestError, "cannot decode"),
        ([user(audio_part(b""))], {}, openai.BadRequestError, "empty"),
        ([user({"type": "image_url", "image_url": {"url": "x"}})], {}, openai.BadRequestError, "image_url"),
        ([user("Hi."), assistant("Hi!")], {}, openai.BadRequestError, "ends with a user turn"),
        ([user("Hi."), {"role": "system", "content": "x"}, user("Hi.")], {}, openai.BadRequestError, "put it first"),
        ([user()], {}, openai.BadRequestError, "nothing"),
        ([user("word " * 2000)], {}, openai.BadRequestError, "too long"),
        ([user("Hi.")], {"stop": list("abcde")}, openai.BadRequestError, "at most 4"),
    ],
)
def test_mistakes_raise_the_right_class(url: str, messages: Any, more: Any, kind: Any, word: str) -> None:
    with pytest.raises(kind, match=word) as caught:
        client(url).chat.completions.create(**{"model": MODEL, "messages": messages, **more})
    assert caught.value.body is not None
    assert {"message", "type", "code"} <= caught.value.body.keys()


def test_state(url: str) -> None:
    assert httpx2.get(url.removesuffix("/v1") + "/health").json() == {"status": "ok", "model": MODEL}
    assert [one.id for one in client(url).models.list()] == [MODEL]
    assert client(url).models.retrieve(MODEL).owned_by == "dualslm"
    reply(url, user("Hi."))
    metrics = httpx2.get(url.removesuffix("/v1") + "/metrics").text
    assert 'dualslm_requests_total{route="/v1/chat/completions",status="200"}' in metrics
    assert "dualslm_requests_running 0.0" in metrics


def test_sigterm_finishes_open_replies(model: DualSLM) -> None:
    generation = GenerationSettings(120, temperature=2.0, seed=5)
    want = model.reply(Conversation(LISTEN).user(Speech(SAD)), generation=generation)
    with process() as (address, run):
        api = client(address).chat.completions
        options: Any = {"temperature": 2.0, "seed": 5, "max_tokens": 120, "stream": True}
        streams = [api.create(model=MODEL, messages=[user(audio_part(SAD))], **options) for _ in range(4)]
        first = [next(stream) for stream in streams]
        run.send_signal(signal.SIGTERM)
        for begun, stream in zip(first, streams, strict=True):
            chunks = [begun, *stream]
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == want
            assert chunks[-1].choices[0].finish_reason is not None
        assert run.wait(30) == 0
        with pytest.raises(openai.APIConnectionError):
            client(address).models.list()


def test_mistakes_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    from dualslm.cli import main as cli

    taken = socket.create_server(("127.0.0.1", 0))
    assert cli.main(["serve", "--port", "0", "--vllm", "http://127.0.0.1:9/v1"]) == 2
    assert "vLLM at http://127.0.0.1:9/v1 does not answer" in capsys.readouterr().err
    assert cli.main(["serve", "--max-turns", "0"]) == 2
    assert "--max-turns makes no sense: got 0" in capsys.readouterr().err
    for port, word in (("99999", "port must be"), (str(taken.getsockname()[1]), "in use")):
        assert cli.main(["serve", "--port", port]) == 2
        error = capsys.readouterr().err
        assert f"cannot listen on 127.0.0.1:{port}: got" in error
        assert word in error
    taken.close()
    assert cli.main(["serve", "--cuda-graphs", "--vllm", "http://127.0.0.1:9/v1"]) == 2
    assert "got --vllm and --cuda-graphs" in capsys.readouterr().err
