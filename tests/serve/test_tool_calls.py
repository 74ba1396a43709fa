"""What a reply calls, in each format, whole or in pieces of any length; what is no whole call stays text."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.templates import FAMILIES, tokenizer
from support.tool_templates import PARSERS, TOOL_FAMILIES

from dualslm.cli import serve as cli_serve
from dualslm.serve.tool_calls import FORMATS, CallStream, tool_template

F, G = {"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}
JF, JG = json.dumps(F), json.dumps(G)
LF = '{"name": "f", "parameters": {"a": 1}}'
Found = tuple[str, list[Any]]


def read(parser: str, pieces: Any, **more: Any) -> Found:
    stream = CallStream(FORMATS[parser], ["f", "g"], **more)
    text = "".join([*map(stream.add, pieces), stream.rest()])
    return text, [{"name": call.name, "arguments": call.arguments} for call in stream.calls]


WHOLE: list[tuple[str, str, Found]] = [
    ("hermes", f"<tool_call>\n{JF}\n</tool_call>", ("", [F])),
    ("hermes", f"I look.\n<tool_call>\n{JF}\n</tool_call>\n<tool_call>{JG}</tool_call>", ("I look.", [F, G])),
    ("hermes", f" <tool_call>{JF}</tool_call> Done. ", ("Done.", [F])),
    ("hermes", f"A <tool_call>{JF}</tool_call> B", ("A  B", [F])),
    ("hermes", f"<tool_call>{JF}", ("", [F])),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>{\\""}}</tool_call>',
     ("", [{"name": "f", "arguments": {"a": '</tool_call>{"'}}])),
    ("hermes", f"<tool_call>{{bad}}</tool_call><tool_call>{JG}</tool_call>", ("<tool_call>{bad}</tool_call>", [G])),
    ("llama3_json", LF, ("", [F])),
    ("llama3_json", f"\n <|python_tag|>{LF}\n", ("", [F])),
    ("llama3_json", f"{LF}; {JG}", ("", [F, G])),
    ("mistral", f"[TOOL_CALLS] [{JF}, {JG}]", ("", [F, G])),
    ("mistral", f"Well. [TOOL_CALLS][{JF}]", ("Well.", [F])),
    ("mistral", 'a[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]x1[ARGS]{}', ("a", [F, G])),
    ("mistral", '[TOOL_CALLS]f{"a": 1}', ("", [F])),
]  # fmt: skip
TEXT = [
    ("hermes", "Hello there.\n"),
    ("hermes", "  a < b, <tool, <tool_call and\n\n "),
    ("hermes", ' x\n<tool_call>\n{"name": "f", "argu'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}} and more</tool_call>'),
    ("hermes", '<tool_call>{"name": "other", "arguments": {}}</tool_call>\n'),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "\\ud83d"}}</tool_call>'),
    ("hermes", '<tool_call>{"name": ["f"], "arguments": {}}</tool_call>'),
    ("hermes", "<tool_call>" + '{"name":' * 100_000),
    ("hermes", "<tool_call>[1]</tool_call>"),
    ("hermes", LF),
    ("llama3_json", f"So: {LF}"),
    ("llama3_json", f"{LF} That is it."),
    ("llama3_json", '{"answer": 42}'),
    ("llama3_json", '<|python_tag|>brave_search.call(query="rain")'),
    ("llama3_json", "<|python says <|python_tag|>"),
    ("llama3_json", f'{LF}; {{"name": "f"'),
    ("mistral", f"[TOOL_CALLS] [{JF}, "),
    ("mistral", f'[TOOL_CALLS][{JF}, {{"name": "other", "arguments": {{}}}}]'),
    ("mistral", '[TOOL_CALLS]f[ARGS]{"a": '),
    ("mistral", "[TOOL or [TOOL_CALL] of"),
    ("mistral", "[TOOL_CALLS]"),
]  # fmt: skip


@pytest.mark.parametrize(("parser", "reply", "found"), WHOLE)
def test_calls_are_read(parser: str, reply: str, found: Found) -> None:
    assert read(parser, [reply]) == found
    assert read(parser, reply) == found  # a character at a time
    assert read(parser, reply, several=False) == (found[0], found[1][:1])


@pytest.mark.parametrize(("parser", "reply"), TEXT)
def test_what_is_no_whole_call_is_text_as_it_was_written(parser: str, reply: str) -> None:
    assert read(parser, [reply]) == (reply, [])
    assert read(parser, reply[:2000]) == (reply[:2000], [])


@pytest.mark.parametrize("parser", list(FORMATS))
@settings(deadline=None)
@given(data=st.data())
def test_pieces_of_any_length_are_the_whole(parser: str, data: Any) -> None:
    some = [JF, LF, " ", "\n", "ok", "{", "}", ";", "[", "]", "<", "tool_call>", *FORMATS[parser].special]
    pieces = data.draw(st.lists(st.sampled_from(some), max_size=8))
    assert read(parser, pieces) == read(parser, ["".join(pieces)]) == read(parser, "".join(pieces))


def test_text_before_a_call_is_shown_at_once() -> None:
    stream = CallStream(FORMATS["hermes"], ["f"])
    assert [stream.add(piece) for piece in ("Let me", " look. ", "<", "b> ", "<tool_", "call>", JF)] == [
        "Let me", " look.", "", " <b>", "", "", ""]  # fmt: skip
    stream = CallStream(FORMATS["llama3_json"], ["f"])
    assert [stream.add(piece) for piece in ("<|py", "thing", " {", LF)] == ["", "<|pything", " {", LF]


def test_ids_are_new_and_what_mistrals_templates_take() -> None:
    stream = CallStream(FORMATS["mistral"], ["f"])
    stream.add(f"[TOOL_CALLS] [{JF}, {JF}]")
    stream.rest()
    one, two = (call.id for call in stream.calls)
    assert one != two
    assert all(len(id) == 9 and id.isalnum() and id.isascii() for id in (one, two))


# ---------------------------------------------------------------------- chat templates

cached = functools.cache(functools.partial(tokenizer, families=TOOL_FAMILIES))


@pytest.mark.parametrize("name", list(TOOL_FAMILIES))
def test_a_template_tells_how_its_llm_writes_calls(name: str) -> None:
    found = tool_template(cached(name))
    assert found.takes_tools
    assert found.written is FORMATS[PARSERS.get(name, "hermes")]


@pytest.mark.parametrize("name", list(FAMILIES))
def test_templates_without_tools_are_known(name: str) -> None:
    assert not tool_template(tokenizer(name)).takes_tools


@pytest.mark.parametrize(
    ("old", "new", "takes"),
    [
        ('{{- \'\\\\n<tool_call>\\\\n{"name": "\' }}', '{{- \'\\\\n<function="\' }}', True),  # as Qwen3-Coder, for one
        ("message.role == \"tool\"", "message.role == \"other\"", False),  # results would be dropped in silence
        ("{{- tool | tojson }}", "", False),
    ],
)  # fmt: skip
def test_what_a_template_does_is_tried(old: str, new: str, takes: bool) -> None:
    words = tokenizer("qwen2.5", families=TOOL_FAMILIES)
    template = str(words.chat_template)
    old, new = old.replace("\\\\", "\\"), new.replace("\\\\", "\\")
    assert old in template
    words.chat_template = template.replace(old, new)
    assert (tool_template(words).takes_tools, tool_template(words).written) == (takes, None)


def test_the_command_line_names_every_format() -> None:
    assert tuple(FORMATS) == cli_serve.PARSERS
