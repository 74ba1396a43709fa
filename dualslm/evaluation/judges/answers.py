"""A judge's answer, read strictly: the right keys, whole numbers of the scale, and one answer only.

Nothing is clamped, rounded or filled in. An answer that cannot be read raises an `UnusableError`, whose text also goes
to the judge when it is asked once more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from dualslm.evaluation.judges.protocols import Allowed

# Greedy, to the last tag: what a reasoning model considers on its way must not be taken for its verdict.
THOUGHT = re.compile(r"^.*</think>", re.DOTALL)


class UnusableError(Exception):
    """An answer without a verdict.

    Attributes:
        kind: reason in two or three words, by which such answers are counted.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        self.kind = kind
        super().__init__(f"{kind}: {detail}" if detail else kind)


def read(text: str | None, allowed: Allowed) -> dict[str, Any]:
    """The verdict in an answer.

    Tried in turn: the whole text as JSON, the JSON objects in it, `key: value` for every key.

    Args:
        text: text of the answer; what comes before `</think>` is left out.
        allowed: keys of a verdict with the values of each.

    Raises:
        UnusableError: no verdict, or more than one.
    """
    text = THOUGHT.sub("", text or "").strip()
    if not text:
        raise UnusableError("empty answer")
    whole = _parsed(text)
    if whole is not None:
        return checked(whole, allowed)
    objects = [found for found in map(_parsed, _objects(text)) if isinstance(found, dict)]
    # Of two objects that differ, one may be quoted from the reply that was judged, and nothing says which.
    if any(one != objects[0] for one in objects):
        raise UnusableError("two answers", "more than one JSON object")
    return checked(objects[0] if objects else _pairs(text, allowed), allowed)


def checked(found: Any, allowed: Allowed) -> dict[str, Any]:
    """The verdict, if it has the right keys and values and nothing else; its keys in the order of `allowed`.

    Raises:
        UnusableError: a key is missing or unknown, or a value is of another type or outside the scale.
    """
    if not isinstance(found, dict):
        raise UnusableError("no JSON object", f"got {_short(found)}")
    if missing := [key for key in allowed if key not in found]:
        raise UnusableError("missing key", ", ".join(missing))
    if extra := [key for key in found if key not in allowed]:
        raise UnusableError("unknown key", ", ".join(map(_short, extra)))
    for key, values in allowed.items():
        value = found[key]
        kind = type(values[0])
        if type(value) is not kind:  # isinstance takes true for an int, and `in` takes 4.0 for 4
            raise UnusableError("not a whole number" if kind is int else "not a word", f"{key} is {_short(value)}")
        if value not in values:
            raise UnusableError("out of range", f"{key} is {_short(value)}, not one of {[*values]}")
    return {key: found[key] for key in allowed}


def _parsed(text: str) -> Any:
    """The value of a JSON text; None where it is no JSON, or has an object with a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError):  # "[[[[..." from a judge in a loop exhausts the parser's stack
        return None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # json.loads would silently keep the last of two values for a key.
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def _objects(text: str) -> Iterator[str]:
    """Every balanced {...} that lies in no other; braces inside strings do not count."""
    depth = 0
    start = 0
    in_string = False
    escaped = False
    for position, sign in enumerate(text):
        if in_string:
            in_string = escaped or sign != '"'
            escaped = sign == "\\" and not escaped
        elif sign == '"' and depth:  # outside of braces a quotation mark is prose, and need not be closed
            in_string = True
        elif sign == "{":
            if not depth:
                start = position
            depth += 1
        elif sign == "}" and depth:
            depth -= 1
            if not depth:
                yield text[start : position + 1]


def _pairs(text: str, allowed: Allowed) -> dict[str, Any]:
    """What stands behind each key in lines such as `content: 4` or `**content** = 4/5`."""
    found: dict[str, Any] = {}
    for key, values in allowed.items():
        said = re.findall(rf'(?<!\w){re.escape(key)}[*"\'`]*\s*[:=]\s*[*"\'`]*([^\s,;*"\'`)}}]+)', text, re.IGNORECASE)
        if len(set(said)) > 1:
            raise UnusableError("two answers", f"{key} is {' and '.join(map(_short, said[:3]))}")
        if said:
            found[key] = _converted(said[0].rstrip("."), values[-1])
    if not found:
        raise UnusableError("no JSON object", f"got {_short(text)}")
    return found


def _converted(said: str, highest: int | str) -> int | str:
    if isinstance(highest, str):
        return said.lower()
    plain = said.removesuffix(f"/{highest}")
    # "4.5" and "4-5" stay text, which `checked` then refuses with the judge's own words.
    return int(plain) if re.fullmatch(r"-?[0-9]{1,6}", plain) else said


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
