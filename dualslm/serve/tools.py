"""Tools in requests: which functions may be called, which were, and what they gave (ours).

The LLM's own chat template writes them into the prompt. Whether it can is tried before (`tool_calls.tool_template`): a
template that leaves tools out would let an LLM answer as though there were none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError

from dualslm.conversation import ToolCall
from dualslm.serve.errors import RefusedError
from dualslm.serve.strict import Name, Strict
from dualslm.serve.tool_calls import FORMATS, CallFormat, tool_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FunctionName = Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")]
NO_PARAMETERS = {"type": "object", "properties": {}}
NO_TOOLS = (
    "this LLM calls no tools: its chat template takes none; serve another LLM, or leave tools out with --ignore-tools."
)


class Function(Strict):
    """A function that may be called."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="their JSON schema")


class Tool(Strict):
    """A tool, which is a function."""

    ignored = frozenset({"cache_control"})

    type: Literal["function"]
    function: Function


class Called(Strict):
    """The function of a call."""

    name: Name
    arguments: str = Field(description="an object as JSON")


class CallMessage(Strict):
    """A call that an earlier reply made."""

    ignored = frozenset({"index", "provider_specific_fields", "extra_content"})

    id: Name
    type: Literal["function"] = "function"
    function: Called


def parse_tools(tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tools as chat templates take them, with a function's name first, as its documentation has it.

    Raises:
        RequestValidationError: one that is no function, or asks for something that is not served.
    """
    parsed = []
    for index, tool in enumerate(tools):
        try:
            function = Tool.model_validate(tool).function
        except ValidationError as error:
            faults = [{**fault, "loc": ("tools", index, *fault["loc"])} for fault in error.errors()]
            raise RequestValidationError(faults, body={"tools": tools}) from None
        described = {} if function.description is None else {"description": function.description}
        parameters = function.parameters or NO_PARAMETERS  # without any, OpenAI has a function that takes none
        parsed.append({"type": "function", "function": {"name": function.name, **described, "parameters": parameters}})
    return parsed


def call_format(tokenizer: PreTrainedTokenizerBase, parser: str | None) -> CallFormat:
    """How the LLM writes calls.

    Args:
        tokenizer: the LLM's.
        parser: the format that the server was told; derived from the chat template when None.

    Raises:
        RefusedError: the LLM's chat template takes no tools, or nothing tells the format.
    """
    found = tool_template(tokenizer)
    if not found.takes_tools:
        raise RefusedError(400, f"tools: {NO_TOOLS}", "invalid_value", param="tools")
    if parser is not None:
        return FORMATS[parser]
    if found.written is None:
        message = (
            f"tools: how this LLM writes a call is not known; serve it with --tool-call-parser {'|'.join(FORMATS)}."
        )
        raise RefusedError(400, message, "invalid_value", param="tools")
    return found.written


class CallHistory:
    """Which calls of a conversation await their results, while its messages are read in order.

    Args:
        tokenizer: the LLM's, whose chat template has to take calls and results.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.waiting: dict[str, ToolCall] = {}

    def calls(self, calls: Sequence[CallMessage], where: str) -> list[ToolCall]:
        """The calls of a message, which then await their results.

        Raises:
            RefusedError: two calls with one id, arguments that are no object, or an LLM that calls nothing.
        """
        self._check_template(f"{where}.tool_calls")
        for index, call in enumerate(calls):
            field = f"{where}.tool_calls.{index}"
            try:
                arguments = json.loads(call.function.arguments or "{}")
            except (ValueError, RecursionError):
                arguments = None
            if not isinstance(arguments, dict):
                raise _wrong(f"{field}.function.arguments", "must be an object as JSON.")
            if call.id in self.waiting:
                raise _wrong(f"{field}.id", f"{call.id!r} is the id of a call before; give each its own.")
            self.waiting[call.id] = ToolCall(call.id, call.function.name, arguments)
        return list(self.waiting.values())

    def answered(self, id: str, where: str) -> ToolCall:
        """The call whose result a message is.

        Raises:
            RefusedError: no call awaits it.
        """
        self._check_template(where)
        if id not in self.waiting:
            raise _wrong(f"{where}.tool_call_id", f"no call of the assistant's turn before awaits a result for {id!r}.")
        return self.waiting.pop(id)

    def check_all_answered(self, where: str) -> None:
        """Refuses a message before the results of all calls are there.

        Raises:
            RefusedError: a result is missing.
        """
        if self.waiting:
            raise _wrong(where, f"the result of call {next(iter(self.waiting))!r} is missing; put it before.")

    def _check_template(self, where: str) -> None:
        if not tool_template(self.tokenizer).takes_tools:
            raise _wrong(where, NO_TOOLS)


def _wrong(param: str, why: str) -> RefusedError:
    return RefusedError(400, f"{param}: {why}", "invalid_value", param=param)
