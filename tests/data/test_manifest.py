"""The manifest schema: valid rows, and the file, line and field that are named where a row is not valid."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualslm.data.corpora.schema import SCHEMA_FILE, Fault, check, read
from dualslm.errors import DualSLMError

ANSWERED: dict[str, Any] = {
    "id": "a1",
    "kind": "linguistic",
    "system": "Write down what is said.",
    "turns": [
        {"role": "user", "parts": ["listen", {"audio": "a.wav", "transcript": "Hello.", "labels": {"gender": "male"}}]},
        {"role": "assistant", "parts": ["Hello."]},
    ],
}
OPEN: dict[str, Any] = {
    "id": "b1",
    "corpus": "mine",
    "tasks": ["asr", "emotion", "respond"],
    "turns": [
        {"role": "assistant", "parts": ["Yes?"]},
        {
            "role": "user",
            "parts": [{"audio": "b.wav", "transcript": "Hi.", "labels": {"emotion": "sad", "age": "old"}}],
        },
    ],
    "speaker": "s",
    "dialogue": "d",
    "group": "g",
    "seconds": 0.5,
    "source": "x.csv",
    "reference": "Oh dear.",
}
NULLS = {**ANSWERED, "system": None}
FREE = copy.deepcopy(ANSWERED)
FREE["turns"][0]["parts"][1]["labels"] = {"pitch": "middle"}

Damage = Callable[[dict[str, Any]], Any]


def put(path: str, value: Any) -> Damage:
    """Sets the value at a path such as turns.0.role; `...` deletes it."""

    def damage(row: dict[str, Any]) -> None:
        *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
        node: Any = row
        for step in way:
            node = node[step]
        if value is ...:
            del node[last]
        else:
            node[last] = value

    return damage


PART = "turns.1.parts.0"
DAMAGE: dict[str, tuple[dict[str, Any], Damage, str]] = {
    "no id": (ANSWERED, put("id", ...), "id"),
    "an empty id": (ANSWERED, put("id", " "), "id"),
    "a number for an id": (ANSWERED, put("id", 3), "id"),
    "a mistyped field": (ANSWERED, put("sytem", "x"), "sytem"),
    "neither kind nor tasks": (ANSWERED, put("kind", ...), "kind"),
    "kind and tasks": (ANSWERED, put("tasks", ["asr"]), "kind"),
    "another kind": (ANSWERED, put("kind", "musical"), "kind"),
    "a number for the system": (ANSWERED, put("system", 3), "system"),
    "no turns": (ANSWERED, put("turns", ...), "turns"),
    "empty turns": (ANSWERED, put("turns", []), "turns"),
    "a text for a turn": (ANSWERED, put("turns.0", "hello"), "turns[0]"),
    "another role": (ANSWERED, put("turns.0.role", "system"), "turns[0].role"),
    "a mistyped turn": (ANSWERED, put("turns.0.part", []), "turns[0].part"),
    "no parts": (ANSWERED, put("turns.0.parts", ...), "turns[0].parts"),
    "a number for a part": (ANSWERED, put("turns.0.parts.0", 3), "turns[0].parts[0]"),
    "an empty text": (ANSWERED, put("turns.0.parts.0", ""), "turns[0].parts[0]"),
    "a mistyped recording": (ANSWERED, put("turns.0.parts.1.text", "x"), "turns[0].parts[1].text"),
    "a recording of nothing": (OPEN, put(PART, {"caption": "sad"}), "turns[1].parts[0].audio"),
    "null for a path": (OPEN, put(f"{PART}.audio", None), "turns[1].parts[0].audio"),
    "a path that no system has": (OPEN, put(f"{PART}.audio", "b\0.wav"), "turns[1].parts[0].audio"),
    "a list of words": (OPEN, put(f"{PART}.transcript", ["Hi"]), "turns[1].parts[0].transcript"),
    "labels in a list": (OPEN, put(f"{PART}.labels", ["sad"]), "turns[1].parts[0].labels"),
    "a raw label": (OPEN, put(f"{PART}.labels.gender", "M"), "turns[1].parts[0].labels.gender"),
    "a number for a label": (OPEN, put(f"{PART}.labels.age", 30), "turns[1].parts[0].labels.age"),
    "a task for tasks": (OPEN, put("tasks", "asr"), "tasks"),
    "no task": (OPEN, put("tasks", []), "tasks"),
    "another task": (OPEN, put("tasks.1", "sing"), "tasks[1]"),
    "a task twice": (OPEN, put("tasks.1", "asr"), "tasks[1]"),
    "text for seconds": (OPEN, put("seconds", "1.5"), "seconds"),
    "no seconds": (OPEN, put("seconds", 0), "seconds"),
    "a list for an LLM": (ANSWERED, put("provenance", {"llm": ["x"]}), "provenance.llm"),
    "a number for a revision": (ANSWERED, put("provenance", {"revision": 3}), "provenance.revision"),
    "true for seconds": (OPEN, put("seconds", True), "seconds"),
    # JSON Schema cannot say these.
    "no answer": (ANSWERED, put("turns.1", ...), "turns[0].role"),
    "an answer to tasks": (OPEN, put("turns.1.role", "assistant"), "turns[1].role"),
    "tasks about a text": (OPEN, put(PART, "Hi."), "turns[1].parts"),
    "asr without words": (OPEN, put(f"{PART}.transcript", ...), "turns[1].parts[0].transcript"),
    "emotion without one": (OPEN, put(f"{PART}.labels.emotion", ...), "turns[1].parts[0].labels.emotion"),
}
BEYOND_JSON_SCHEMA = list(DAMAGE)[-5:]

LINES: dict[str, tuple[bytes, str]] = {
    "not JSON": (b"{", "the line"),
    "half a line": (json.dumps(OPEN).encode()[:90], "the line"),
    "not UTF-8": (json.dumps(OPEN).encode().replace(b"Hi.", b"H\xff."), "the line"),
    "a list": (b"[]", "the line"),
    "NaN": (json.dumps(OPEN).encode().replace(b"0.5", b"NaN"), "the line"),
    "half a character in a name of labels": (
        json.dumps(OPEN).encode().replace(b'{"emotion"', b'{"\\ud800": "x", "emotion"'),
        "turns[1].parts[0].labels",
    ),
    "half a character in a measurement": (
        json.dumps(OPEN).encode().replace(b'"labels"', b'"measured": {"x": "\\ud800"}, "labels"'),
        "turns[1].parts[0].measured",
    ),
    "half a character": (json.dumps(OPEN).encode().replace(b"Hi.", b"H\\ud800"), "turns[1].parts[0].transcript"),
    "a number without end": (json.dumps(OPEN).encode().replace(b"0.5", b"1" * 5000), "the line"),
    "a great number": (json.dumps(OPEN).encode().replace(b"0.5", b"1e999"), "seconds"),
    "brackets without end": (b"[" * 100_000, "the line"),
    "a field twice": (b'{"id": "x", "id": "y"}', "id"),
    "an id twice": (json.dumps(ANSWERED).encode(), "id"),
}


def damaged(name: str) -> dict[str, Any]:
    row, damage, _ = DAMAGE[name]
    row = copy.deepcopy(row)
    damage(row)
    return row


def refusal(tmp_path: Path, line: bytes) -> str:
    path = tmp_path / "m.jsonl"
    path.write_bytes(json.dumps(ANSWERED).encode() + b"\n\n" + line + b"\n")
    with pytest.raises(DualSLMError) as error:
        list(read(path))
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(f"{path} line 3: ")
    return text.removeprefix(f"{path} line 3: ")


@pytest.mark.parametrize("name", DAMAGE)
def test_a_broken_row_is_named_by_file_line_and_field(tmp_path: Path, name: str) -> None:
    assert refusal(tmp_path, json.dumps(damaged(name)).encode()).startswith(f"{DAMAGE[name][2]} ")


@pytest.mark.parametrize("name", LINES)
def test_a_broken_line_is_named(tmp_path: Path, name: str) -> None:
    line, field = LINES[name]
    assert refusal(tmp_path, line).startswith(f"{field} ")


def test_good_rows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(f"{json.dumps(ANSWERED)}\n\n{json.dumps(OPEN)}\n")
    assert list(read(path)) == [(1, ANSWERED), (3, OPEN)]
    with pytest.raises(DualSLMError, match="cannot read"):
        list(read(tmp_path / "none.jsonl"))


KEYS = st.sampled_from(["id", "kind", "tasks", "turns", "role", "parts", "audio", "transcript", "labels", "seconds"])
WORDS = st.sampled_from(["user", "assistant", "asr", "emotion", "dual", "", "a.wav"])
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=30,
)


@given(JSON | st.fixed_dictionaries({"id": WORDS, "kind": WORDS, "turns": st.lists(JSON)}))
@settings(max_examples=300, deadline=None)
def test_whatever_a_line_holds_it_is_a_row_or_a_fault(row: Any) -> None:
    with suppress(Fault):
        check(row)


@given(st.sampled_from(list(DAMAGE)), JSON)
@settings(max_examples=200, deadline=None)
def test_whatever_a_field_holds_json_schema_agrees(name: str, value: Any) -> None:
    row, _, field = DAMAGE[name]
    row = copy.deepcopy(row)
    path = re.sub(r"\[(\d+)\]", r".\1", field)
    try:
        put(path, value)(row)
    except (KeyError, IndexError):
        return
    try:
        check(row)
    except Fault:
        return
    assert fits_schema(row)


def fits(value: Any, schema: dict[str, Any], whole: dict[str, Any]) -> bool:
    """JSON Schema, as much of it as the file uses."""
    if "$ref" in schema:
        return fits(value, whole["$defs"][schema["$ref"].rpartition("/")[2]], whole)
    kinds: dict[str, Any] = {"object": dict, "array": list, "string": str, "number": (int, float), "null": type(None)}
    if "type" in schema and (not isinstance(value, kinds[schema["type"]]) or isinstance(value, bool)):
        return False
    own, known = value if isinstance(value, dict) else {}, schema.get("properties", {})
    rest = schema.get("additionalProperties", True)
    each = [known.get(name, rest) for name in own]
    items = value if isinstance(value, list) else []
    return all(
        (
            "enum" not in schema or value in schema["enum"],
            "pattern" not in schema or re.search(schema["pattern"], value) is not None,
            value > schema["exclusiveMinimum"] if "exclusiveMinimum" in schema else True,
            all(name in own for name in schema.get("required", ())),
            all(
                kind if isinstance(kind, bool) else fits(own[name], kind, whole)
                for name, kind in zip(own, each, strict=True)
            ),
            len(items) >= schema.get("minItems", 0),
            not schema.get("uniqueItems") or len({str(item) for item in items}) == len(items),
            all(fits(item, schema.get("items", {}), whole) for item in items),
            "anyOf" not in schema or any(fits(value, one, whole) for one in schema["anyOf"]),
            "oneOf" not in schema or sum(fits(value, one, whole) for one in schema["oneOf"]) == 1,
        )
    )


def fits_schema(row: Any) -> bool:
    whole = json.loads(SCHEMA_FILE.read_text())
    return fits(row, whole, whole)


def test_json_schema_and_check_agree() -> None:
    for row in (ANSWERED, OPEN, NULLS, FREE):
        check(row)
        assert fits_schema(row)
    for name in DAMAGE:
        assert fits_schema(damaged(name)) == (name in BEYOND_JSON_SCHEMA), name
        with pytest.raises(Fault):
            check(damaged(name))
