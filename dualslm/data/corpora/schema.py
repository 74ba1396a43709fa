"""The manifest of talks, line by line: what a line may hold, and a precise fault where it does not.

`manifest.schema.json` beside this file says the same in JSON Schema, for tools and editors; what that language
cannot say (how a talk must end, what a task needs, ids that stand twice) is checked here alone. docs/manifest.md
explains the fields.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from dualslm.errors import DualSLMError

SCHEMA_FILE = Path(__file__).with_name("manifest.schema.json")

KINDS = ("linguistic", "paralinguistic", "dual")
TASKS = ("asr", "gender", "pitch", "tempo", "energy", "emotion", "respond")
ROLES = ("user", "assistant")
LEVELS = ("low", "normal", "high")
# Attributes with a closed set of values in talks with tasks; an emotion is whatever the corpus calls it.
LABELS: Mapping[str, tuple[str, ...]] = {
    "gender": ("male", "female"),
    "pitch": LEVELS,
    "tempo": ("slow", "normal", "fast"),
    "energy": LEVELS,
}


class Fault(ValueError):  # noqa: N818 - it becomes an error only with a file and a line
    """What is wrong with one line.

    Args:
        field: where, for example `turns[0].parts[1].audio`.
        wrong: what is wrong with it.
        got: what stands there.
        do: how to mend it.
    """

    def __init__(self, field: str, wrong: str, *, got: object, do: str) -> None:
        super().__init__(field, wrong)
        self.field, self.wrong, self.got, self.do = field, wrong, got, do

    def __str__(self) -> str:
        return f"{self.field} {self.wrong}"

    def within(self, outer: str) -> Fault:
        """The same, seen from outside: checks know what they look at, and their callers where that stands."""
        self.field = outer + ("." if self.field and self.field[0] != "[" else "") + self.field
        return self


def check(row: object, *, complete: bool = True) -> dict[str, Any]:
    """Gives a line of a manifest back when it is one.

    Args:
        row: what the line's JSON holds.
        complete: every task has what it needs, under our names; a reader that leaves tasks out does without.

    Raises:
        Fault: the first thing that is wrong.
    """
    if not isinstance(row, dict):
        _fail("is not an object", row, "write one talk in braces on each line", field="the line")
    if "audio" in row:
        do = "make manifests of such lines: dualslm prepare jsonl"
        _fail("is a recording, not a talk", row["audio"], do, field="the line")
    _record(row, ROW_FIELDS, ("id", "turns"))
    if ("kind" in row) == ("tasks" in row):
        got = "both" if "kind" in row else "neither"
        do = "give kind to a talk with its answer, tasks to one without"
        _fail("or tasks must be given", got, do, field="kind")
    _end(row)
    if complete and "tasks" in row:
        _answerable(row)
    return row


def read(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The talks of a manifest with their line numbers, checked one after the other; empty lines are passed over.

    Raises:
        DualSLMError: the file cannot be read, or a line is no talk; file, line and field are named.
    """
    seen: set[int] = set()
    for number, line in lines(path):
        try:
            row = check(parse(line))
            if (key := hash(row["id"])) in seen:
                _fail("stands twice in the file", row["id"], "give every talk an id of its own", field="id")
            seen.add(key)
        except Fault as fault:
            raise at(path, number, fault) from fault
        yield number, row


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not empty, with their numbers from 1.

    Raises:
        DualSLMError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DualSLMError(f"cannot read {path}", got=error.strerror, do="check the path") from error


def parse(line: bytes) -> object:
    """The JSON of a line.

    Raises:
        Fault: it is not UTF-8, not JSON, or names a field twice.
    """
    try:
        return _JSON.decode(line.decode("utf-8"))
    except Fault:
        raise
    except UnicodeDecodeError as error:
        raise Fault("the line", "is not UTF-8", got=f"byte {error.start}", do="save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        got = f"{error.msg} at column {error.colno}"
        raise Fault("the line", "is not JSON", got=got, do="write one JSON object on each line") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise Fault("the line", "is not JSON", got=str(error), do="write one JSON object on each line") from error


def at(path: Path, number: int, fault: Fault) -> DualSLMError:
    """The error for a fault in a line of a file."""
    return DualSLMError(f"{path} line {number}: {fault}", got=_short(fault.got), do=fault.do)


# ---------------------------------------------------------------------- how a talk ends


def _end(row: Mapping[str, Any]) -> None:
    """A talk ends with its answer, or with the spoken turn that its tasks are about."""
    role = "assistant" if "kind" in row else "user"
    if (got := row["turns"][-1]["role"]) != role:
        what = "kind: it ends with the answer" if "kind" in row else "tasks: it ends with the spoken turn"
        field = f"turns[{len(row['turns']) - 1}].role"
        _fail(f"must be {role} in a talk with {what}", got, f"end with the {role}", field=field)


def _answerable(row: Mapping[str, Any]) -> None:
    """The answers of all tasks can be made."""
    _normal(row["turns"])
    for task in row["tasks"]:
        _needs(task, len(row["turns"]) - 1, row["turns"][-1]["parts"])


def _normal(turns: Sequence[Mapping[str, Any]]) -> None:
    """Answers are made from labels, so these have our values; where the answer stands already, they are free."""
    for number, turn in enumerate(turns):
        for place, part in enumerate(turn["parts"]):
            for name, value in part.get("labels", {}).items() if isinstance(part, dict) else ():
                if name in LABELS and value not in LABELS[name]:
                    field = f"turns[{number}].parts[{place}].labels.{name}"
                    _fail("is unknown", value, f"give one of {', '.join(LABELS[name])}", field=field)


def _needs(task: str, number: int, parts: Sequence[Any]) -> None:
    """What a task asks of the last turn."""
    spoken = [(place, part) for place, part in enumerate(parts) if isinstance(part, dict) and "audio" in part]
    where, for_what = f"turns[{number}].parts", f"the task {task}"
    if not spoken:
        _fail("holds no recording", for_what, "end with a spoken turn", field=where)
    for place, part in spoken:
        if task in ("asr", "respond"):
            field, given = "transcript", part.get("transcript") is not None
        else:
            field, given = f"labels.{task}", task in part.get("labels", {})
        if not given:
            _fail("is missing", for_what, "give it, or leave the task out", field=f"{where}[{place}].{field}")


# ---------------------------------------------------------------------- fields


def _text(value: object) -> None:
    if not isinstance(value, str) or not value or value.isspace():
        _fail("must be text that is not empty", value, "write it in quotes, or leave the field out")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        _fail("holds half a character", ascii(value), "write both halves of the pair")


def _path(value: object) -> None:
    _text(value)
    if "\0" in str(value):
        _fail("must be a path", ascii(value), "leave the character of number 0 out")


def _text_or_null(value: object) -> None:
    if value is not None:
        _text(value)


def _kind(value: object) -> None:
    _one_of(value, KINDS)


def _role(value: object) -> None:
    _one_of(value, ROLES)


def _tasks(value: object) -> None:
    if not isinstance(value, list) or not value:
        _fail("must be a list of tasks", value, f"name some of {', '.join(TASKS)}")
    for place, task in enumerate(value):
        if task not in TASKS:
            _fail("is unknown", task, f"give one of {', '.join(TASKS)}", field=f"[{place}]")
        if task in value[:place]:
            _fail("stands twice", task, "name every task once", field=f"[{place}]")


def _seconds(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        _fail("must be a number above 0", value, "give the length of the last recording in s")


def _turns(value: object) -> None:
    if not isinstance(value, list) or not value:
        _fail("must be a list of turns", value, "give at least one")
    _items(value, _turn)


def _turn(turn: object) -> None:
    if not isinstance(turn, dict):
        _fail("is not an object", turn, "give role and parts in braces")
    _record(turn, TURN_FIELDS, ("role", "parts"))


def _parts(value: object) -> None:
    if not isinstance(value, list) or not value:
        _fail("must be a list of parts", value, "give text or a recording")
    _items(value, _part)


def _part(part: object) -> None:
    if not isinstance(part, dict):
        return _text(part)
    if "audio" not in part and part.get("transcript") is None:
        _fail("is missing", "no such field", "give the path of the recording", field="audio")
    _record(part, SPEECH_FIELDS, ())


def _labels(labels: object) -> None:
    if not isinstance(labels, dict):
        _fail("is not an object", labels, 'write for example {"gender": "female"}')
    for name, value in labels.items():
        try:
            _text(value)
        except Fault as fault:
            raise fault.within(name) from None


def _choices(choices: object) -> None:
    for name, values in _object(choices).items():
        if not isinstance(values, list) or len(values) < 2:
            _fail("must be a list of values", values, "give two or more", field=name)
        try:
            _items(values, _text)
        except Fault as fault:
            raise fault.within(name) from None


def _object(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        _fail("is not an object", value, "write names and values in braces")
    return value


def _provenance(value: object) -> None:
    known = _object(value)
    for name in ("llm", "revision"):
        try:
            _text_or_null(known.get(name))
        except Fault as fault:
            raise fault.within(name) from None


def _flag(value: object) -> None:
    if not isinstance(value, bool):
        _fail("is neither true nor false", value, "give one of the two")


Check: TypeAlias = Callable[[object], object]
ROW_FIELDS: Mapping[str, Check] = {
    "id": _text,
    "kind": _kind,
    "tasks": _tasks,
    "system": _text_or_null,
    "turns": _turns,
    "corpus": _text,
    "speaker": _text,
    "dialogue": _text,
    "group": _text,
    "seconds": _seconds,
    "source": _text,
    "reference": _text,
    "early_stop": _flag,
    "provenance": _provenance,
}
TURN_FIELDS: Mapping[str, Check] = {"role": _role, "parts": _parts}
SPEECH_FIELDS: Mapping[str, Check] = {
    "audio": _path,
    "transcript": _text_or_null,
    "caption": _text_or_null,
    "labels": _labels,
    "choices": _choices,
    "measured": _object,
}


# ---------------------------------------------------------------------- their parts


def _record(row: Mapping[str, Any], fields: Mapping[str, Check], needed: Sequence[str]) -> None:
    """An object of certain fields, each of its own kind."""
    for name, value in row.items():
        if name not in fields:
            _fail("is no field of it", name, f"it has {', '.join(fields)}", field=name)
        try:
            fields[name](value)
        except Fault as fault:
            raise fault.within(name) from None
    for name in needed:
        if name not in row:
            _fail("is missing", "no such field", f"give its {name}", field=name)


def _items(values: Sequence[object], check: Check) -> None:
    for place, value in enumerate(values):
        try:
            check(value)
        except Fault as fault:
            raise fault.within(f"[{place}]") from None


def _one_of(value: object, known: Sequence[str]) -> None:
    if value not in known:
        _fail("is unknown", value, f"give one of {', '.join(known)}")


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        _fail("stands twice in one object", twice, "keep one", field=twice)
    return row


def _no_constant(name: str) -> NoReturn:
    _fail("is not JSON", name, "write a number", field="the line")


_JSON = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)


def _fail(wrong: str, got: object, do: str, *, field: str = "") -> NoReturn:
    raise Fault(field, wrong, got=got, do=do)


def _short(value: object, longest: int = 60) -> str:
    text = value if isinstance(value, str) and value.strip() else repr(value)
    return text if len(text) <= longest else text[: longest - 3] + "..."
