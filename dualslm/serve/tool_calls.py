"""Calls of tools in replies: how LLMs write them, which way an LLM has, and what a reply calls (ours).

The backend gives text, as vLLM does too, since a prompt goes there as embeddings. So calls are read here, for every
backend, in the formats of public LLMs, which have the names of vLLM's `--tool-call-parser`.

A call is one if it is whole: JSON with the name of a function that was offered and an object of arguments. Anything
else stays text, and is never half a call.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from dualslm.chat_template import format_of, rendered
from dualslm.conversation import ToolCall
from dualslm.errors import DualSLMError
from dualslm.inference.backend import overlap

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ID_CHARACTERS = 9  # letters and digits, which Mistral's chat templates insist on
Reader: TypeAlias = "Callable[[Any], ToolCall]"
"""Makes a call of its JSON; a ValueError where it is none."""


DECODER = json.JSONDecoder(parse_constant=int)  # which refuses NaN and Infinity: they are not JSON


@dataclass(frozen=True)
class CallFormat:
    """A way in which LLMs write calls.

    Attributes:
        name: vLLM's name of it.
        opens: texts of which one begins the calls of a reply.
        first: whether nothing may stand before a mark.
        special: tokens that stay in the text of a reply, where a tokenizer has them as special ones.
        stop: texts that end a reply with calls.
        read: calls and the text between them, from the first mark on.
    """

    name: str
    opens: tuple[str, ...]
    first: bool
    special: tuple[str, ...]
    stop: tuple[str, ...]
    read: Callable[[str, Reader], Iterator[str | ToolCall]]


# ---------------------------------------------------------------------- formats


def _value(text: str, start: int) -> tuple[Any, int]:
    """The JSON value after some blanks, and where it ends.

    Raises:
        ValueError: there is none that is whole.
    """
    start = len(text) - len(text[start:].lstrip())
    try:
        return DECODER.raw_decode(text, start)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _hermes(text: str, call: Reader) -> Iterator[str | ToolCall]:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number of times."""
    opens, closes = FORMATS["hermes"].special
    while text:
        before, mark, text = text.partition(opens)
        yield before
        try:
            value, end = _value(text, 0)
            rest = text[end:].lstrip()
            # The reply may end without the closing mark: the object is whole all the same.
            if rest and not rest.startswith(closes):
                raise ValueError("more than a call")
            yield call(value)
            text = rest.removeprefix(closes)
        except ValueError:
            yield mark


def _llama3_json(text: str, call: Reader) -> Iterator[str | ToolCall]:
    """`{"name": ..., "parameters": {...}}` as the whole reply; several have semicolons between them."""
    start = len(text) - len(text.lstrip())
    start += len("<|python_tag|>") * text.startswith("<|python_tag|>", start)
    calls: list[ToolCall] = []
    try:
        while start < len(text):
            value, start = _value(text, start)
            calls.append(call(value))
            rest = text[start:].lstrip()
            if rest and not rest.startswith(";"):
                raise ValueError("more than calls")
            start = len(text) - len(rest.removeprefix(";").lstrip())
        yield from calls
    except ValueError:
        yield text


NAMED = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\])?")


def _mistral(text: str, call: Reader) -> Iterator[str | ToolCall]:
    """`[TOOL_CALLS][{"name": ..., "arguments": {...}}]`, or the newer `[TOOL_CALLS]name[ARGS]{...}`."""
    while text:
        before, mark, text = text.partition("[TOOL_CALLS]")
        yield before
        try:
            if (named := NAMED.match(text)) is not None:
                arguments, end = _value(text, named.end())
                values = [{"name": named[1], "arguments": arguments}]
            else:
                values, end = _value(text, 0)
            # all of a list or none: what is wrong with one may be wrong with the others
            yield from [call(value) for value in (values if isinstance(values, list) else [values])]
            text = text[end:]
        except ValueError:
            yield mark


FORMATS: Mapping[str, CallFormat] = MappingProxyType(
    {
        "hermes": CallFormat("hermes", ("<tool_call>",), False, ("<tool_call>", "</tool_call>"), (), _hermes),
        "llama3_json": CallFormat(
            "llama3_json",
            ("<|python_tag|>", "{"),
            True,
            ("<|python_tag|>", "<|eom_id|>"),
            ("<|eom_id|>",),  # ends a message after which Llama waits for a result
            _llama3_json,
        ),
        "mistral": CallFormat(
            "mistral", ("[TOOL_CALLS]",), False, ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"), (), _mistral
        ),
    }
)


# ---------------------------------------------------------------------- a reply


class CallStream:
    """Text and calls of a reply that comes in pieces.

    Text is held back while it may be the beginning of a mark; what follows a mark is held until the reply has ended.

    Args:
        written: the LLM's way to write calls.
        names: functions that may be called.
        several: whether there may be more than one call; all but the first are left out otherwise.
    """

    def __init__(self, written: CallFormat, names: Collection[str], *, several: bool = True) -> None:
        self.format = written
        self.names = names
        self.several = several
        self.calls: list[ToolCall] = []
        self.said = False
        self.opened = False
        self.held = ""

    def add(self, text: str) -> str:
        """What can be shown now that this text has come."""
        self.held += text
        if self.opened:
            return ""
        held = self.held
        at = min((found for mark in self.format.opens if (found := held.find(mark)) >= 0), default=-1)
        if self.format.first and (self.said or held[: max(at, 0)].strip()):
            at = -1
        self.opened = at >= 0
        if self.opened:
            end = at
        else:
            # Of a mark that may stand nowhere but at the beginning nothing is held back once something else is said.
            begun = held.strip()
            may_be = any(mark.startswith(begun) for mark in self.format.opens) and not self.said
            waits = may_be or not self.format.first
            end = len(held) - max(overlap(held, mark) for mark in self.format.opens) * waits
        shown = held[:end].rstrip()  # blanks before a call are no part of what is said
        self.held = held[len(shown) :]
        self.said = self.said or bool(shown)
        return shown

    def rest(self) -> str:
        """What is left to be shown when no more text comes; then `calls` has the calls."""
        rest, self.held = self.held, ""
        if not self.opened:
            return rest
        parts = list(self.format.read(rest, self._call))
        calls = [part for part in parts if isinstance(part, ToolCall)]
        self.calls = calls if self.several else calls[:1]
        if not calls:
            return rest  # exactly as it was written
        text = "".join(part for part in parts if isinstance(part, str)).rstrip()
        return text if self.said else text.lstrip()

    def _call(self, value: Any) -> ToolCall:
        """A call of its JSON.

        Raises:
            ValueError: it is none, or of no function that was offered.
        """
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(name, str) or name not in self.names:
            raise ValueError("no call of a function that was offered")
        arguments = value.get("arguments", value.get("parameters"))
        if not isinstance(arguments, dict):
            raise ValueError("no arguments")
        json.dumps(arguments, ensure_ascii=False).encode()  # JSON can spell out half a character, which is no text
        alphabet = string.ascii_letters + string.digits
        return ToolCall("".join(secrets.choice(alphabet) for _ in range(ID_CHARACTERS)), name, arguments)


# ---------------------------------------------------------------------- what an LLM's chat template does

PROBE: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "probed_function",
        "description": "Tells the time.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string", "description": "Where."}}},
    },
}
PROBED_CALL = {"name": "probed_function", "arguments": {"place": "probed place"}}


@dataclass(frozen=True)
class ToolTemplate:
    """What a chat template does with tools, found by trying.

    Attributes:
        takes_tools: it writes tools, calls and results into a prompt.
        written: how it writes a call, as the LLM does then; None where that is no format that is read here.
    """

    takes_tools: bool
    written: CallFormat | None


def tool_template(tokenizer: PreTrainedTokenizerBase) -> ToolTemplate:
    """What the chat template of a tokenizer does with tools; it is tried once."""
    return _tried(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=8)
def _tried(tokenizer: PreTrainedTokenizerBase, _: str) -> ToolTemplate:
    """The template is named for the cache: it can be set anew on the same tokenizer."""
    ask = {"role": "user", "content": "a"}
    made = {"id": "probed123", "type": "function", "function": PROBED_CALL}
    call = {"role": "assistant", "content": "", "tool_calls": [made]}
    result = {"role": "tool", "content": "probed result", "tool_call_id": "probed123", "name": "probed_function"}
    write = partial(rendered, tokenizer, tools=[PROBE])
    try:
        prompt = write([ask, call, result], generation=True)
        if not all(text in prompt for text in ("Tells the time.", "probed place", "probed result")):
            return ToolTemplate(takes_tools=False, written=None)
        asked = write([ask], generation=True)
        before = write([ask], generation=False)
        called = write([ask, call], generation=False)
    except DualSLMError:
        return ToolTemplate(takes_tools=False, written=None)
    # A prompt may open a thought that no earlier turn has, and then is not how that turn begins.
    text = called.removeprefix(asked if called.startswith(asked) else before)
    text = text.partition(tokenizer.decode([format_of(tokenizer).end]))[0]
    for written in FORMATS.values():
        stream = CallStream(written, ["probed_function"])
        stream.add(text)
        stream.rest()
        if [{"name": one.name, "arguments": one.arguments} for one in stream.calls] == [PROBED_CALL]:
            return ToolTemplate(takes_tools=True, written=written)
    return ToolTemplate(takes_tools=True, written=None)
