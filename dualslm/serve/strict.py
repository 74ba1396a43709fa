"""Bodies and forms of requests: what changes nothing passes, what would change the reply and is not served is refused.

Clients send every field that they know, most of them null, empty or at the value that means nothing. A field that is
ignored in silence although it asks for something would be worse than a refusal: hence a table of values that change
nothing, and a sentence for each field that is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from types import MappingProxyType, NoneType
from typing import Annotated, Any, ClassVar, TypeAlias, TypeVar, get_args

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_REPORTED_FIELDS = 3  # a malformed list has an error for each of its items; the first few say enough
MAX_SHOWN = 40  # characters of a wrong value
MAX_STOP_CHARACTERS = 256  # of one: each piece of a reply is compared with every beginning of it
MAX_NAME_CHARACTERS = 256  # of a model's name, a view and the like
MAX_ITEMS = 4096  # of any list; `Limits` has fewer for most

T = TypeVar("T")
# The first wrong item of a list is enough: a list of a million would otherwise have a million errors.
Items: TypeAlias = Annotated[list[T], Field(max_length=MAX_ITEMS, fail_fast=True)]
Name: TypeAlias = Annotated[str, Field(max_length=MAX_NAME_CHARACTERS)]
StopText: TypeAlias = Annotated[str, Field(max_length=MAX_STOP_CHARACTERS)]

NOTHING: tuple[Any, ...] = (None, "", [], {})
NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "add_generation_prompt": (True,),
        "add_special_tokens": (False,),
        "background": (False,),
        "best_of": (1,),
        "chat_template_kwargs": ({"enable_thinking": False}, {"thinking": False}),  # as every prompt is rendered
        "chunking_strategy": ("auto",),
        "continue_final_message": (False,),
        "echo": (False,),
        "enable_thinking": (False,),
        "function_call": ("none", "auto"),  # without functions
        "ignore_eos": (False,),
        "include_reasoning": (False, True),  # there is none
        "length_penalty": (1,),  # of beams, of which there are none
        "max_tool_calls": (0,),
        "min_tokens": (0,),
        "mirostat": (0,),
        "modalities": (["text"],),
        "output_modalities": (["text"],),
        "reasoning": ({"effort": "none"},),
        "reasoning_effort": ("none",),
        "return_token_ids": (False,),
        "separate_reasoning": (False, True),
        "skip_special_tokens": (True,),
        "task": ("transcribe",),  # of Whisper's servers
        "thinking": ({"type": "disabled"},),
        "strict": (False,),
        "tool_choice": ("none", "auto"),  # "none" drops the tools, see `Strict`
        "translate": (False, "false"),
        "typical_p": (1,),
        "use_beam_search": (False,),
        "vad_filter": (False, "false"),
        "verbosity": ("medium",),  # OpenAI's default
    }
)
"""Values of fields that are not served, at which they change nothing."""

WHY: Mapping[str, str] = MappingProxyType(
    {
        "audio": "replies are text; leave it out",
        "background": "replies are not made in the background; ask with stream instead",
        "best_of": "use n",
        "chunking_strategy": "a recording is transcribed whole; split it yourself, or leave it out",
        "conversation": "no conversation is stored here; send the earlier turns again",
        "function_call": "this model calls no functions; leave it out",
        "include": "nothing is told beside the reply; leave it out",
        "keywords": "no words to expect can be given; leave it out",
        "known_speaker_names": "speakers are not told apart; leave it out",
        "known_speaker_references": "speakers are not told apart; leave it out",
        "languages": "nobody says which language L holds; leave it out",
        "prompt": "no words to expect can be given; leave it out",
        "functions": "this model calls no functions; leave it out",
        "modalities": "replies are text alone; send ['text'], or leave it out",
        "output_modalities": "replies are text alone; send ['text'], or leave it out",
        "previous_response_id": "no response is stored here; send the earlier turns again",
        "reasoning": "the LLM replies without a chain of thought; leave it out",
        "reasoning_effort": "the LLM replies without a chain of thought; leave it out, or send 'none'",
        "strict": "nothing holds arguments to their schema; send false, or leave it out",
        "tool_choice": "no LLM can be made to call a tool here; send 'auto' or 'none', or leave it out",
        "tools": "no tools are called over this route; leave it out, or ask for chat completions",
        "verbosity": "say in the system text how long replies should be",
        "web_search_options": "nothing is searched for; leave it out",
    }
)
"""What to do instead, for fields that clients know and that are not served."""

KINDS = {
    "string": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "an object",
    "model_attributes": "an object",
    "model": "an object",
    "bytes": "a file",
    "is_instance_of": "a file",
}
BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


class Strict(BaseModel):
    """A body, or a part of one, in which a field that is not understood is an error.

    Null is as good as absent, where it is no value of its own. Of unknown fields those pass that are empty, that are
    at a value which changes nothing (`NEUTRAL`), or that never change a reply.

    Attributes:
        ignored: fields that change nothing, whatever they hold.
    """

    # pydantic would ignore unknown fields; a misspelt `view` would then change nothing and tell nobody
    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    ignored: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def drop_what_changes_nothing(cls, data: Any) -> Any:
        """The fields that ask for something."""
        if not isinstance(data, dict):
            return data
        if data.get("tool_choice") == "none":  # tools that may not be called change nothing
            data = {name: value for name, value in data.items() if name != "tools"}
        return {name: value for name, value in data.items() if not cls._changes_nothing(name, value)}

    @classmethod
    def _changes_nothing(cls, name: str, value: Any) -> bool:
        if name in cls.ignored:
            return True
        if (field := cls.model_fields.get(name)) is not None:
            return value is None and not field.is_required() and NoneType not in get_args(field.annotation)
        if any(field.alias == name for field in cls.model_fields.values()):
            return False
        if isinstance(value, dict):
            value = {
                key: part for key, part in value.items() if part is not None
            }  # null is as good as absent inside too
        return value in NOTHING or value in NEUTRAL.get(name, ())


# ---------------------------------------------------------------------- what is wrong, in our words


def wrong_fields(error: RequestValidationError) -> Iterator[tuple[str, str]]:
    """The fields of a request that are wrong, each with a sentence that names it; the first few.

    A value that may be of several forms has an error for each form. Those of the form that fits best are given: the
    ones deepest inside.
    """
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for one in error.errors():
        found.setdefault(_path(one["loc"], error.body, one["type"] == "missing"), []).append(dict(one))
    deepest = [path for path in found if not any(other[: len(path)] == path != other for other in found)]
    for path in deepest[:MAX_REPORTED_FIELDS]:
        name = ".".join(path)
        yield name or "body", f"{name}: {_sentence(path, found[path])}" if name else _sentence(path, found[path])


def _path(loc: Sequence[Any], body: Any, missing: bool) -> tuple[str, ...]:
    """Where a value stands, without the names that pydantic gives to the forms that it tried."""
    path: list[str] = []
    at = body
    for index, step in enumerate(loc):
        if step in ("body", "query", "path") and index == 0:
            continue
        absent = missing and index == len(loc) - 1
        if isinstance(at, Mapping) and f"{step}[]" in at:  # a list, as some clients name it in forms
            at = at.get(f"{step}[]")
        elif isinstance(at, Mapping) and (step in at or absent):
            at = at.get(step)
        elif isinstance(at, list) and isinstance(step, int) and step < len(at):
            at = at[step]
        elif not absent and path:
            continue
        path.append(str(step).removesuffix("[]"))  # the first is a field, by whichever of its names it came
    return tuple(path)


def _sentence(path: Sequence[str], errors: Sequence[Mapping[str, Any]]) -> str:
    kinds = list(dict.fromkeys(kind for one in errors if (kind := _kind(one["type"])) is not None))
    if kinds and len(kinds) == len({one["type"] for one in errors}):
        return f"must be {' or '.join(kinds)}, got {_shown(errors[0].get('input'))}."
    one = errors[0]
    context = one.get("ctx") or {}
    match one["type"]:
        case "json_invalid":
            return f"The body is not JSON: {context.get('error', 'it cannot be read')}."
        case "missing":
            return "is missing; give it."
        case "extra_forbidden":
            return _not_served(path[-1])
        case "union_tag_not_found":
            return f"has no {context['discriminator']}; give it one."
        case "union_tag_invalid":
            return f"{context['tag']!r} is not taken here; send {_either(context['expected_tags'])}."
        case "literal_error" | "enum":
            return f"must be {_either(context['expected'])}, got {_shown(one.get('input'))}."
        case "value_error":
            return str(context["error"])
        case kind if kind in BOUNDS:
            key, words = BOUNDS[kind]
            return f"must be {words} {context[key]}, got {_shown(one.get('input'))}."
        case kind if kind.endswith("too_short"):
            return "is empty; give at least one."
        case kind if kind.endswith("too_long"):
            return f"is too long; give at most {context['max_length']}."
        case _:
            return f"makes no sense: got {_shown(one.get('input'))}; see /docs for what it may be."


def _kind(error_type: str) -> str | None:
    """What a value of the wrong type should have been."""
    for suffix in ("_type", "_parsing", "_from_float", "_of"):
        if error_type.endswith(suffix):
            return KINDS.get(error_type.removesuffix(suffix)) or KINDS.get(error_type)
    return None


def _not_served(name: str) -> str:
    if name in WHY:
        return f"not supported here: {WHY[name]}."
    known = _all_fields(Strict)
    # What another route takes under this very name is not misspelt.
    near = [] if name in known else get_close_matches(name[:MAX_NAME_CHARACTERS], known, n=1, cutoff=0.72)
    hint = f"; is {near[0]} meant?" if near else "; leave it out."
    return f"not supported here{hint}"


def _all_fields(of: type[Strict]) -> list[str]:
    return [*of.model_fields, *(name for kind in of.__subclasses__() for name in _all_fields(kind))]


def _either(choices: str) -> str:
    """`'a', 'b'` as `'a' or 'b'`."""
    *first, last = choices.replace(" or ", ", ").split(", ")
    return f"{', '.join(first)} or {last}" if first else last


def _shown(value: Any) -> str:
    try:
        # piece by piece: a wrong value may be as long as its body
        pieces = json.JSONEncoder(ensure_ascii=False).iterencode(value[:MAX_SHOWN] if isinstance(value, str) else value)
        text = "".join(islice(pieces, MAX_SHOWN))
    except (TypeError, ValueError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
