"""What changes nothing passes; what would change a reply and is not served is refused in one sentence that names it."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx2
import openai
import pytest
import soundfile
from support.servekit import ANGRY, SAD, audio_part, client, user

MODEL: Any = "dualslm"
SAID = base64.b64encode(SAD.read_bytes()).decode()
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
PYDANTIC = ("input should", "input tag", "extra inputs", "field required", "validation", "function-", "tagged-union")


@pytest.fixture(scope="module")
def plain(url: str) -> str:
    return replied(ask(url, {"messages": [user(audio_part(SAD))]}))


def ask(url: str, body: dict[str, Any]) -> httpx2.Response:
    return httpx2.post(url + "/chat/completions", json={"model": MODEL, **body}, timeout=120)


def replied(answer: httpx2.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def refused(answer: httpx2.Response, *words: str) -> str:
    """The one line of a refusal, which is in none of the words of the library that found the fault."""
    assert answer.status_code == 400, answer.text
    message = str(answer.json()["error"]["message"])
    assert all(word in message for word in words), message
    assert not any(word in message.lower() for word in PYDANTIC), message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "functions": None, "function_call": "auto"},
        {"tool_choice": "auto", "logit_bias": None, "service_tier": "auto", "store": False, "metadata": {}},
        {"logit_bias": {}, "modalities": ["text"], "audio": None, "prediction": None, "verbosity": "medium"},
        {"n": 1, "logprobs": False, "top_logprobs": 0, "presence_penalty": 0.0, "frequency_penalty": 0},
        {"top_k": -1, "min_p": 0, "repetition_penalty": 1.0, "response_format": {"type": "text"}, "stop": ""},
        {"stream": None, "stream_options": None, "view": None, "temperature": None, "max_tokens": None, "stop": [""]},
        {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "reasoning_effort": None, "wiew": None},
        {"chat_template_kwargs": {"enable_thinking": False}, "options": {}, "extra_body": {}, "keep_alive": "5m"},
        {"min_tokens": 0, "length_penalty": 1.0, "enable_thinking": False, "thinking": {"type": "disabled"}},
        {"reasoning": {"effort": "none", "summary": None}, "chat_template_kwargs": {"enable_thinking": None}},
        {"max_completion_tokens": 10**6, "stream_options": {"include_usage": True}, "response_format": {}},
    ],
)
def test_neutral_values_pass(url: str, plain: str, fields: dict[str, Any]) -> None:
    assert replied(ask(url, {"messages": [user(audio_part(SAD))], **fields})) == plain


@pytest.mark.parametrize(
    "extras",
    [
        {"refusal": None, "audio": None, "tool_calls": None, "function_call": None, "annotations": []},
        {"tool_calls": [], "reasoning_content": None, "reasoning": "I should be kind.", "provider_specific_fields": {}},
        {"id": "msg_1", "metadata": {"shown": True}, "name": None, "timestamp": 1, "refusal": ""},
        {"content": [{"type": "text", "text": "Hello.", "annotations": []}]},
    ],
)
def test_a_reply_may_come_back_as_clients_keep_it(url: str, extras: dict[str, Any]) -> None:
    reply = {"role": "assistant", "content": "Hello."}
    talk = [user("Hi."), reply, user("I am happy.")]
    want = replied(ask(url, {"messages": talk}))
    assert replied(ask(url, {"messages": [user("Hi."), reply | extras, user("I am happy.")]})) == want


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, ["tools:", "calls no tools"]),
        ({"tool_choice": "required"}, ["tool_choice:", "'none'"]),
        ({"logit_bias": {"5": 100}}, ["logit_bias:"]),
        ({"modalities": ["text", "audio"]}, ["modalities:", "['text']"]),
        ({"reasoning_effort": "high"}, ["reasoning_effort:"]),
        ({"reasoning": {"effort": "low", "summary": None}}, ["reasoning:"]),
        ({"thinking": {"type": "enabled"}}, ["thinking:"]),
        ({"min_tokens": 5}, ["min_tokens:"]),
        ({"chat_template_kwargs": {"enable_thinking": True}}, ["chat_template_kwargs:"]),
        ({"response_format": {"type": "yaml"}}, ["response_format:", "'yaml'"]),
        ({"response_format": {"type": "json_object"}}, ["vLLM"]),
        ({"wiew": "text,text"}, ["wiew:", "view"]),
        ({"n": 0}, ["n: must be at least 1, got 0."]),
        ({"top_logprobs": 2}, ["top_logprobs:", "logprobs: true"]),
        ({"temperature": "warm"}, ["temperature: must be a number", "warm"]),
        ({"stop": 5}, ["stop: must be a text or a list, got 5."]),
        ({"messages": None}, ["messages: must be a list, got null."]),
        ({"messages": []}, ["messages:", "empty"]),
        ({"messages": [{"content": "Hi."}]}, ["messages.0: has no 'role'"]),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "a"}]}, ["messages.0:", "calls no tools"]),
        ({"messages": [{"role": "user"}]}, ["messages.0.content: is missing"]),
        (
            {"messages": [{"role": "user", "content": None}]},
            ["messages.0.content: must be a text or a list, got null."],
        ),
        ({"messages": [user({"type": "image_url", "image_url": {"url": "x"}})]}, ["messages.0.content.0: 'image_url'"]),
        ({"messages": [user({"type": "audio_url", "audio_url": {"url": "https://a.b/c.wav"}})]}, ["not from an addr"]),
        ({"messages": [user({"type": "input_audio", "input_audio": {"data": "?"}})]}, ["base64"]),
        ({"messages": [user({"type": "input_audio", "input_audio": {"data": SAID, "format": "pcm16"}})]}, ["'pcm16'"]),
        ({"messages": [user({"type": "input_audio", "input_audio": {"data": 5}})]}, ["input_audio.data: must be a te"]),
        (
            {"messages": [user("Hi."), {"role": "assistant", "tool_calls": [CALL]}, user("Hi.")]},
            ["messages.1.tool_calls:", "calls no tools"],
        ),
    ],
)
def test_what_is_not_served_is_named(url: str, fields: dict[str, Any], words: list[str]) -> None:
    refused(ask(url, {"messages": [user("Hi.")], **fields}), *words)


def test_a_body_that_is_no_json_or_no_object(url: str) -> None:
    json_type = {"Content-Type": "application/json"}
    refused(httpx2.post(url + "/chat/completions", content=b'{"model": ', headers=json_type), "not JSON")
    refused(httpx2.post(url + "/chat/completions", content=b"[]", headers=json_type), "must be an object")


@pytest.mark.parametrize(
    "data",
    [
        f"data:audio/wav;base64,{SAID}",
        f"data:;base64,{SAID}",
        base64.encodebytes(SAD.read_bytes()).decode(),
        base64.urlsafe_b64encode(SAD.read_bytes()).decode().rstrip("="),
    ],
)
def test_base64_in_any_spelling(url: str, plain: str, data: str) -> None:
    part = {"type": "input_audio", "input_audio": {"data": data, "format": None}}
    assert replied(ask(url, {"messages": [user(part)]})) == plain
    as_vllm = {"type": "audio_url", "audio_url": {"url": data}}
    assert replied(ask(url, {"messages": [user(as_vllm)]})) == plain


@pytest.mark.parametrize(("kind", "name"), [("OGG", "opus"), ("FLAC", "audio/x-flac"), ("MP3", "MPGA")])
def test_names_of_formats(url: str, plain: str, kind: str, name: str) -> None:
    samples, rate = soundfile.read(SAD)
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype="OPUS" if kind == "OGG" else None)
    part = audio_part(file.getvalue())
    part["input_audio"]["format"] = name
    reply = replied(ask(url, {"messages": [user(part)]}))
    assert reply == plain or kind != "FLAC"  # what loses nothing is heard as the wav is


def test_routes_that_are_not_there_are_named(url: str) -> None:
    answer = httpx2.post(url + "/completions", json={"model": MODEL, "prompt": "Hi."})
    assert answer.status_code == 404
    assert "/docs" in answer.json()["error"]["message"]


# ---------------------------------------------------------------------- forms


def upload(url: str, form: dict[str, Any], route: str = "transcriptions") -> httpx2.Response:
    files: Any = {"file": ("a.wav", ANGRY.read_bytes())}
    return httpx2.post(f"{url}/audio/{route}", data={"model": MODEL, **form}, files=files, timeout=120)


WORDS = "umbrella"


@pytest.mark.parametrize(
    "form",
    [
        {"language": "en", "temperature": "0", "prompt": "", "chunking_strategy": "auto", "stream": "false"},
        {"language": "", "timestamp_granularities[]": ["segment"], "response_format": "json"},
        {"language": "English", "timestamp_granularities": "segment", "include[]": ""},
        {"language": "en-US", "user": "u"},
        {"vad_filter": "false", "task": "transcribe", "translate": "false"},
    ],
)
def test_neutral_values_of_forms_pass(url: str, form: dict[str, Any]) -> None:
    answer = upload(url, form)
    assert answer.status_code == 200, answer.text
    assert WORDS in answer.json()["text"]


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"prompt": "names: Molly"}, ["prompt:"]),
        ({"language": "de"}, ["language:", "'de'"]),
        ({"timestamp_granularities[]": ["word"], "response_format": "verbose_json"}, ["timestamp_gran", "'word'"]),
        ({"timestamp_granularities": "word"}, ["timestamp_granularities", "'word'"]),
        ({"response_format": "diarized_json"}, ["response_format:", "'srt'"]),
        ({"response_format": "srt", "stream": "true"}, ["response_format:", "cannot be streamed"]),
        ({"temperature": "2"}, ["temperature: must be at most 1"]),
        ({"temperature": "warm"}, ["temperature: must be a number"]),
        ({"include[]": ["logprobs"]}, ["include:"]),
        ({"chunking_strategy": '{"type": "server_vad"}'}, ["chunking_strategy:"]),
        ({"seed": "1"}, ["seed: not supported here; leave it out."]),
        ({"task": "translate"}, ["task:"]),
        ({"langauge": "en"}, ["langauge:", "language"]),
        ({"file": "a.wav"}, ["file"]),
    ],
)
def test_what_a_form_asks_for_in_vain_is_named(url: str, form: dict[str, Any], words: list[str]) -> None:
    if "file" in form:
        answer = httpx2.post(url + "/audio/transcriptions", data={"model": MODEL, **form}, timeout=60)
    else:
        answer = upload(url, form)
    refused(answer, *words)


def test_attributes_check_their_form_too(url: str) -> None:
    assert upload(url, {"user": "u"}, "attributes").json()["attributes"]["emotion"] == "angry"
    refused(upload(url, {"view": "text,text"}, "attributes"), "view:")


def test_a_transcription_is_streamed(url: str) -> None:
    api = client(url).audio.transcriptions
    whole = api.create(model=MODEL, file=ANGRY).text
    events = list(api.create(model=MODEL, file=ANGRY, stream=True))
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert len(deltas) > 3
    assert "".join(deltas).strip() == whole
    assert (events[-1].type, getattr(events[-1], "text", None)) == ("transcript.text.done", whole)


def test_subtitles_and_segments(url: str) -> None:
    api = client(url).audio.transcriptions
    words = api.create(model=MODEL, file=ANGRY).text
    srt = str(api.create(model=MODEL, file=ANGRY, response_format="srt"))
    vtt = str(api.create(model=MODEL, file=ANGRY, response_format="vtt"))
    assert srt.startswith("1\n00:00:00,000 --> 00:00:0")
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:0")
    assert words in srt
    assert words in vtt
    with pytest.raises(openai.NotFoundError, match="dualslm"):
        api.create(model="whisper-1", file=ANGRY)
