"""Function calling over OpenAI's API: a call, its result, the answer; and every request for what is not served."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from support.servekit import SAD, ScriptedBackend, assistant, audio_part, client, threaded, user
from support.tool_templates import LLAMA31_TOOLS, QWEN25_TOOLS, WEATHER

from dualslm import tiny
from dualslm.conversation import Conversation
from dualslm.model.dualslm import DualSLM
from dualslm.serve.app import app
from dualslm.serve.limits import Limits
from dualslm.serve.service import Service
from dualslm.tiny.questions import ASKED

MODEL: Any = "dualslm"
TOOLS: Any = [WEATHER]
CLOCK: Any = {"type": "function", "function": {"name": "clock"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'


@pytest.fixture(scope="module")
def model() -> DualSLM:
    """The embedded model, with the chat template of an LLM that calls tools."""
    model = tiny.load(load_llm=False)
    model.llm.tokenizer.chat_template = QWEN25_TOOLS
    return model


@contextmanager
def serving(model: DualSLM, backend: ScriptedBackend, **limits: Any) -> Iterator[str]:
    with threaded(app(Service(model, backend, questions=ASKED), page=False, limits=Limits(**limits))) as address:
        yield address


@pytest.fixture(scope="module")
def said() -> ScriptedBackend:
    return ScriptedBackend(CALL)


@pytest.fixture(scope="module")
def url(model: DualSLM, said: ScriptedBackend) -> Iterator[str]:
    with serving(model, said) as address:
        yield address


def ask(url: str, body: dict[str, Any]) -> httpx2.Response:
    return httpx2.post(url + "/chat/completions", json={"model": MODEL, **body}, timeout=60)


def called(id: str = "abcdefgh1", name: str = "weather", arguments: str = '{"city": "Bern"}') -> Any:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def calling(*calls: Any, content: str | None = None) -> Any:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def result(content: Any = "Rain.", id: str = "abcdefgh1") -> Any:
    return {"role": "tool", "tool_call_id": id, "content": content}


def test_a_spoken_question_a_call_its_result_and_the_answer(model: DualSLM) -> None:
    """The whole round with OpenAI's own client."""
    backend = ScriptedBackend(CALL, "It rains in Zürich.")
    with serving(model, backend) as url:
        messages: list[Any] = [{"role": "system", "content": "Help."}, user(audio_part(SAD))]
        api = client(url).chat.completions
        first = api.create(model=MODEL, messages=messages, tools=TOOLS).choices[0]
        assert (first.finish_reason, first.message.content) == ("tool_calls", None)
        (call,) = first.message.tool_calls or []
        assert call.type == "function"
        assert call.function.name == "weather"
        assert json.loads(call.function.arguments) == {"city": "Zürich"}
        messages += [first.message, {"role": "tool", "tool_call_id": call.id, "content": "Rain<|im_end|>"}]
        second = api.create(model=MODEL, messages=messages, tools=TOOLS).choices[0]
        assert (second.finish_reason, second.message.content) == ("stop", "It rains in Zürich.")
        assert second.message.tool_calls is None
    asked, answered = backend.prompts
    words = model.llm.tokenizer
    # The first prompt is how the second one begins, recording and all, as far as the call.
    begun = len(asked)
    assert answered[:begun] == asked
    assert -1 in asked
    ends = answered.count(words.convert_tokens_to_ids("<|im_end|>"))
    assert ends == asked.count(words.convert_tokens_to_ids("<|im_end|>")) + 2  # of the call and of its result
    text = words.decode(answered[begun:])
    assert CALL in text
    assert "<tool_response>\nRain<|im_end|>\n</tool_response>" in text


def test_the_example(root: Path, model: DualSLM, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / "examples" / "tools.py"
    backend = ScriptedBackend(CALL, "Take an umbrella.")
    with serving(model, backend) as url:
        monkeypatch.setattr("sys.argv", ["tools.py", url, str(SAD)])
        exec(compile(path.read_text(), str(path), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == 'weather({"city": "Zürich"})\nTake an umbrella.\n'
    assert "Rain in Zürich, 12 degrees." in model.llm.tokenizer.decode(
        [token for token in backend.prompts[1] if token >= 0]
    )


def test_streamed_as_it_is_whole(url: str, said: ScriptedBackend) -> None:
    for reply in (CALL, f"Let me look.\n{CALL}\n{OTHER}", "No <tool> is needed, <tool_", f"{CALL} Done.", '{"a": 1}'):
        said.says = [reply]
        api = client(url).chat.completions
        whole = api.create(model=MODEL, messages=[user("Rain?")], tools=[*TOOLS, CLOCK]).choices[0]
        chunks = list(api.create(model=MODEL, messages=[user("Rain?")], tools=[*TOOLS, CLOCK], stream=True))
        choices = [chunk.choices[0] for chunk in chunks]
        assert "".join(choice.delta.content or "" for choice in choices) == (whole.message.content or "")
        assert [choice.finish_reason for choice in choices if choice.finish_reason] == [whole.finish_reason]
        deltas = [call for choice in choices for call in choice.delta.tool_calls or []]
        assert [delta.index for delta in deltas] == list(range(len(deltas)))
        assert all(delta.id and delta.type == "function" and delta.function for delta in deltas)
        calls = [(one.function.name, one.function.arguments) for one in deltas if one.function]
        assert calls == [
            (call.function.name, call.function.arguments)
            for call in whole.message.tool_calls or []
            if call.type == "function"
        ]
        assert bool(calls) == (whole.finish_reason == "tool_calls") == ("<tool_call>" in reply)
    said.says = [f"Let me look. {CALL}"]
    chunks = list(api.create(model=MODEL, messages=[user("Rain?")], tools=TOOLS, stream=True))
    assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks) > 3, "text before a call comes at once"


def test_several_calls_or_one(url: str, said: ScriptedBackend) -> None:
    said.says = [f"So.\n{CALL}\n{OTHER}"]
    body = {"messages": [user("Rain?")], "tools": [*TOOLS, CLOCK]}
    two = ask(url, body).json()["choices"][0]["message"]
    assert (two["content"], [call["function"]["name"] for call in two["tool_calls"]]) == ("So.", ["weather", "clock"])
    one = ask(url, body | {"parallel_tool_calls": False, "n": 2}).json()["choices"]
    assert [[call["function"]["name"] for call in each["message"]["tool_calls"]] for each in one] == [["weather"]] * 2
    assert one[0]["message"]["tool_calls"][0]["id"] != one[1]["message"]["tool_calls"][0]["id"]


def test_a_reply_that_was_cut_off_has_its_whole_calls(model: DualSLM) -> None:
    backend = ScriptedBackend(f'{CALL}<tool_call>{{"name": "clock", "argu')
    backend.reason = "length"
    with serving(model, backend) as url:
        choice = ask(url, {"messages": [user("Rain?")], "tools": [*TOOLS, CLOCK]}).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["weather"]
    assert choice["message"]["content"] == '<tool_call>{"name": "clock", "argu'


def test_without_tools_a_reply_is_text(url: str, said: ScriptedBackend) -> None:
    said.says = [CALL]
    bodies: list[dict[str, Any]] = [{}, {"tools": []}, {"tools": TOOLS, "tool_choice": "none"}]
    for body in bodies:
        choice = ask(url, {"messages": [user("Rain?")], **body}).json()["choices"][0]
        assert choice["finish_reason"] == "stop"
        assert choice["message"] == {"role": "assistant", "content": CALL, "refusal": None}
        assert said.asked[-1] == ([], [])
    # and earlier calls stay in the conversation
    history = [user("Rain?"), calling(called()), result()]
    assert ask(url, {"messages": history, "tools": TOOLS, "tool_choice": "none"}).status_code == 200


def test_what_a_backend_is_asked(url: str, said: ScriptedBackend) -> None:
    said.says = [CALL]
    ask(url, {"messages": [user("Rain?")], "tools": TOOLS, "stop": "x"})
    assert said.asked[-1] == (["x"], ["<tool_call>", "</tool_call>"])
    llama = tiny.load(load_llm=False)
    llama.llm.tokenizer.chat_template = LLAMA31_TOOLS.replace("<|eot_id|>", "<|im_end|>")
    backend = ScriptedBackend('<|python_tag|>{"name": "weather", "parameters": {}}')
    with serving(llama, backend) as address:
        choice = ask(address, {"messages": [user("Rain?")], "tools": TOOLS}).json()["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert backend.asked == [(["<|eom_id|>"], ["<|python_tag|>", "<|eom_id|>"])]


def test_history_may_be_written_in_any_of_openais_ways(url: str, said: ScriptedBackend) -> None:
    said.says = ["Wet."]
    parts = [{"type": "text", "text": "Ra"}, {"type": "text", "text": "in."}]
    turns = [user("Rain?"), calling(called(), called("b", "clock", "")), result(parts), result("noon", "b")]
    turns += [assistant("Wet."), user("And now?"), calling(called(content := "c"), content="Hm."), result(id=content)]
    extras: dict[str, Any] = {"refusal": None, "annotations": [], "function_call": None}
    turns = [turn | extras if turn["role"] == "assistant" else turn | {"name": None} for turn in turns]
    answer = ask(url, {"messages": turns, "tools": TOOLS, "parallel_tool_calls": True})
    assert answer.json()["choices"][0]["message"]["content"] == "Wet."


STRICT = copy.deepcopy(WEATHER)
STRICT["function"]["strict"] = True


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tool_choice": "required"}, ["tool_choice:", "'auto' or 'none'"]),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, ["tool_choice:", "'auto'"]),
        ({"tools": [STRICT]}, ["tools.0.function.strict:", "schema"]),
        ({"tools": [WEATHER, {"type": "web_search"}]}, ["tools.1.type:", "'function'", "web_search"]),
        ({"tools": [{"type": "function"}]}, ["tools.0.function: is missing"]),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, ["tools.0.function.name:"]),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 5}}]}, ["parameters: must be an ob"]),
        ({"tools": 5}, ["tools: must be a list"]),
        ({"messages": [result()]}, ["messages.0.tool_call_id:", "'abcdefgh1'"]),
        ({"messages": [user("a"), calling(called()), result(id="x")]}, ["messages.2.tool_call_id:", "'x'"]),
        ({"messages": [user("a"), calling(called()), result(), result()]}, ["messages.3.tool_call_id:"]),
        ({"messages": [user("a"), calling(called())]}, ["messages:", "'abcdefgh1' is missing"]),
        ({"messages": [user("a"), calling(called()), user("b")]}, ["messages.2:", "'abcdefgh1' is missing"]),
        ({"messages": [user("a"), calling(called(), called()), result()]}, ["messages.1.tool_calls.1.id:"]),
        ({"messages": [user("a"), calling(called(arguments="[1]")), result()]}, ["tool_calls.0.function.arguments:"]),
        ({"messages": [user("a"), calling(called(arguments="{")), result()]}, ["tool_calls.0.function.arguments:"]),
        ({"messages": [user("a"), calling({"id": "a"}), result()]}, ["messages.1.tool_calls.0.function: is missing"]),
        ({"messages": [user("a"), calling(called()), {"role": "tool", "content": "a"}]}, ["tool_call_id: is missing"]),
    ],
)
def test_what_is_not_served_is_named(url: str, fields: dict[str, Any], words: list[str]) -> None:
    answer = ask(url, {"messages": [user("Rain?")], "tools": TOOLS, **fields})
    assert answer.status_code == 400, answer.text
    message = answer.json()["error"]["message"]
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_tools_are_part_of_what_names_a_conversation(model: DualSLM, said: ScriptedBackend) -> None:
    service = Service(model, said, questions=ASKED)
    bare, offered = Conversation().user("a"), Conversation(tools=TOOLS).user("a")
    assert service._salt(bare, "me") == service._salt(bare.copy(), "me") != service._salt(offered, "me")


def test_an_llm_whose_calls_cannot_be_told_needs_the_option() -> None:
    other = tiny.load(load_llm=False)
    other.llm.tokenizer.chat_template = QWEN25_TOOLS.replace('\\n<tool_call>\\n{"name": "', "\\n<function=")
    backend = ScriptedBackend(f"Hm. {CALL}")
    body = {"messages": [user("Rain?")], "tools": TOOLS}
    with serving(other, backend) as url:
        error = ask(url, body).json()["error"]
        assert error["param"] == "tools"
        assert "--tool-call-parser hermes|llama3_json|mistral" in error["message"]
    with serving(other, backend, tool_call_parser="hermes") as url:
        assert ask(url, body).json()["choices"][0]["finish_reason"] == "tool_calls"
    with serving(other, backend, ignore_tools=True) as url:
        choice = ask(url, body | {"tools": [*TOOLS, {"type": "web_search"}]}).json()["choices"][0]
        assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", f"Hm. {CALL}")
        assert "weather" not in other.llm.tokenizer.decode(backend.prompts[-1])


def test_an_llm_without_tools_says_what_would_work() -> None:
    with serving(tiny.load(load_llm=False), ScriptedBackend("a")) as url:
        for fields in ({"tools": TOOLS}, {"messages": [user("a"), calling(called()), result()]}):
            error = ask(url, {"messages": [user("Rain?")], **fields}).json()["error"]
            assert "another LLM" in error["message"]
            assert "--ignore-tools" in error["message"]
        with pytest.raises(openai.BadRequestError, match="chat template takes none"):
            client(url).chat.completions.create(model=MODEL, messages=[user("a")], tools=TOOLS)


# ---------------------------------------------------------------------- /v1/responses

FLAT: Any = [{"type": "function", **WEATHER["function"], "strict": False}]


def test_the_same_over_responses(model: DualSLM) -> None:
    backend = ScriptedBackend(f"Let me look.\n{CALL}", "It rains in Zürich.")
    with serving(model, backend) as url:
        api = client(url).responses
        spoken: Any = {"role": "user", "content": [{"type": "input_audio", **audio_part(SAD)}]}
        first = api.create(model=MODEL, input=[spoken], tools=FLAT)
        assert (first.status, first.output_text, first.tool_choice) == ("completed", "Let me look.", "auto")
        said, call = first.output
        assert call.type == "function_call"
        assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Zürich"})
        given: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain"}
        items: Any = [spoken, said.to_dict(), call.to_dict(), given]
        assert api.create(model=MODEL, input=items, tools=FLAT).output_text == "It rains in Zürich."
        # as chat completions have the same conversation
        chat = [user(audio_part(SAD)), calling(called(call.call_id, "weather", call.arguments), content="Let me look.")]
        ask(url, {"messages": [*chat, result("Rain", call.call_id)], "tools": TOOLS})
        assert backend.prompts[2] == backend.prompts[1]


@pytest.mark.parametrize("reply", [CALL, f"Let me look. {CALL}", f"{CALL}{OTHER}", "No.", ""])
def test_the_events_of_responses_that_call(url: str, said: ScriptedBackend, reply: str) -> None:
    said.says = [reply]
    tools: Any = [*FLAT, {"type": "function", "name": "clock"}]
    with client(url).responses.stream(model=MODEL, input="Rain?", tools=tools) as stream:
        events = list(stream)
        final = stream.get_final_response()  # put together by the client itself
    whole = client(url).responses.create(model=MODEL, input="Rain?", tools=tools)
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == len(whole.output)
    shown = [[item.to_dict() for item in one.output] for one in (final, whole)]
    for item in [*shown[0], *shown[1]]:
        for ours in ("id", "call_id", "parsed", "parsed_arguments"):
            item.pop(ours, None)
        for part in item.get("content", []):  # type: ignore[attr-defined]
            part.pop("parsed", None)
    assert shown[0] == shown[1]
    assert [item.type for item in whole.output].count("function_call") == reply.count("<tool_call>")


def test_what_responses_do_not_serve_is_named(url: str) -> None:
    strict = [{**FLAT[0], "strict": True}]
    wrong: list[Any] = [{"tools": strict}, {"tools": [*FLAT, {"type": "web_search"}]}, {"tool_choice": "required"}]
    for fields, word in zip(wrong, ["strict", "web_search", "tool_choice"], strict=True):
        with pytest.raises(openai.BadRequestError, match=word):
            client(url).responses.create(**{"model": MODEL, "input": "Rain?", "tools": FLAT, **fields})
