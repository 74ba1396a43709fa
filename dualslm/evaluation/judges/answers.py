"""A judge's answer, read strictly: the right keys, whole numbers of the scale, and one answer only.

Nothing is clamped, rounded or filled in. An answer that cannot be read is an `UnusableError` that says why, in words
that are also told to the judge when it is asked once more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from dualslm.evaluation.judges.protocols import Allowed

THOUGHT = re.compile(r"^.*</think>", re.DOTALL)


class UnusableError(Exception):
    """An answer without a verdict.

    Attributes:
        kind: the reason in two or three words, for counting.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        self.kind = kind
        super().__init__(f"{kind}: {detail}" if detail else kind)


def read(text: str | None, allowed: Allowed) -> dict[str, Any]:
    """The verdict in an answer.

    Tried in turn: the whole text as JSON, the JSON objects in it, `key: value` for every key. Where two objects
    differ there is no verdict: one of them may be quoted from what was judged.

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
    if any(one != objects[0] for one in objects):
        raise UnusableError("two answers", "more than one JSON object")
    return checked(objects[0] if objects else _pairs(text, allowed), allowed)


def checked(found: Any, allowed: Allowed) -> dict[str, Any]:
    """The same, if it has the right keys and values and nothing else.

    Raises:
        UnusableError: it has not.
    """
    if not isinstance(found, dict):
        raise UnusableError("no JSON object", f"got {_short(found)}")
    if missing := [key for key in allowed if key not in found]:
        raise UnusableError("missing key", ", ".join(missing))
    if extra := [key for key in found if key not in allowed]:
        raise UnusableError("unknown key", ", ".join(map(_short, extra)))
    for key, values in allowed.items():
        value, kind = found[key], type(values[0])
        if type(value) is not kind:  # a bool is an int to isinstance, and 4.0 equals 4
            raise UnusableError("not a whole number" if kind is int else "not a word", f"{key} is {_short(value)}")
        if value not in values:
            raise UnusableError("out of range", f"{key} is {_short(value)}, not one of {[*values]}")
    return {key: found[key] for key in allowed}


def _parsed(text: str) -> Any:
    """JSON, or None; an object that says a key twice is none."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def _objects(text: str) -> Iterator[str]:
    """Every balanced {...} that lies in no other; braces inside strings do not count."""
    depth = start = 0
    quoted = escaped = False
    for place, sign in enumerate(text):
        if quoted:
            quoted, escaped = escaped or sign != '"', sign == "\\" and not escaped
        elif sign == '"' and depth:
            quoted = True
        elif sign == "{":
            start, depth = (place, 1) if not depth else (start, depth + 1)
        elif sign == "}" and depth:
            depth -= 1
            if not depth:
                yield text[start : place + 1]


def _pairs(text: str, allowed: Allowed) -> dict[str, Any]:
    """`content: 4` or `**content** = 4/5` for each key; another number than a plain one stays text, and is refused."""
    found: dict[str, Any] = {}
    for key, values in allowed.items():
        said = re.findall(rf'(?<!\w){re.escape(key)}[*"\'`]*\s*[:=]\s*[*"\'`]*([^\s,;*"\'`)}}]+)', text, re.IGNORECASE)
        if len(set(said)) > 1:
            raise UnusableError("two answers", f"{key} is {' and '.join(map(_short, said[:3]))}")
        if said:
            found[key] = _value(said[0].rstrip("."), values[-1])
    if not found:
        raise UnusableError("no JSON object", f"got {_short(text)}")
    return found


def _value(said: str, most: int | str) -> int | str | float:
    if isinstance(most, str):
        return said.lower()
    plain = said.removesuffix(f"/{most}")
    return int(plain) if re.fullmatch(r"-?[0-9]{1,6}", plain) else said


def _short(value: Any) -> str:
    spelt = json.dumps(value, ensure_ascii=False, default=str)
    return spelt if len(spelt) <= 60 else f"{spelt[:57]}..."
