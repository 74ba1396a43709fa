"""The format of a manifest, line by line: the fields that a line may have, and a precise fault where it is not valid.

`manifest.schema.json` beside this file says the same in JSON Schema, for tools and editors; what that language
cannot express (how a conversation must end, what a task needs, ids that occur twice) is checked here alone.
docs/manifest.md explains the fields.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from dualslm.errors import DualSLMError
from dualslm.files import BYTE_ORDER_MARK, holds_half, open_regular

SCHEMA_FILE = Path(__file__).with_name("manifest.schema.json")
Check: TypeAlias = Callable[[object], object]
"""Raises a `Fault` where a value is not valid."""

KINDS = ("linguistic", "paralinguistic", "dual")
TASKS = ("asr", "gender", "pitch", "tempo", "energy", "emotion", "respond")
ROLES = ("user", "assistant")
LEVELS = ("low", "normal", "high")
# Attributes with a closed set of values in rows with tasks; an emotion is whatever the corpus calls it.
LABELS: Mapping[str, tuple[str, ...]] = {
    "gender": ("male", "female"),
    "pitch": LEVELS,
    "tempo": ("slow", "normal", "fast"),
    "energy": LEVELS,
}


class Fault(ValueError):  # noqa: N818 - it becomes an error only with a file and a line
    """What is wrong with one line.

    Args:
        field: path of the field, for example `turns[0].parts[1].audio`.
        wrong: what is wrong with the field.
        got: value of the field.
        do: how to correct it.
    """

    def __init__(self, field: str, wrong: str, *, got: object, do: str) -> None:
        super().__init__(field, wrong)
        self.field = field
        self.wrong = wrong
        self.got = got
        self.do = do

    def __str__(self) -> str:
        return f"{self.field} {self.wrong}"

    def within(self, outer: str) -> Fault:
        """The same fault, its field prefixed by `outer`: a check knows the value, its caller the path to it."""
        self.field = outer + ("." if self.field and self.field[0] != "[" else "") + self.field
        return self


def check(row: object, *, complete: bool = True) -> dict[str, Any]:
    """Checks a line of a manifest and returns it.

    Args:
        row: JSON value of the line.
        complete: also check that no recording is null, and that every task has the labels that it needs, in our
            spelling; readers that leave out examples of which something is missing do not need that.

    Raises:
        Fault: the first fault of the line.
    """
    if not isinstance(row, dict):
        _fail("is not an object", row, "write one conversation in braces on each line", field="the line")
    if "audio" in row:
        do = "make manifests of such lines: dualslm prepare jsonl"
        _fail("is a recording, not a talk", row["audio"], do, field="the line")
    _record(row, ROW_FIELDS, ("id", "turns"))
    if ("kind" in row) == ("tasks" in row):
        got = "both" if "kind" in row else "neither"
        do = "give kind to a conversation with its answer, tasks to one without"
        _fail("or tasks must be given", got, do, field="kind")
    _check_end(row)
    if complete and (null := null_recording(row)) is not None:
        _fail("is null", "no recording", "leave the line out", field=null)
    if complete and "tasks" in row:
        _check_labels(row["turns"])
        for task in row["tasks"]:
            _check_task(task, len(row["turns"]) - 1, row["turns"][-1]["parts"])
    return row


def null_recording(row: Mapping[str, Any]) -> str | None:
    """The field of a checked line that has null for a recording; None where every recording has a path."""
    for number, turn in enumerate(row["turns"]):
        for index, part in enumerate(turn["parts"]):
            if not isinstance(part, str) and part.get("audio", "") is None:
                return f"turns[{number}].parts[{index}].audio"
    return None


def read(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows of a manifest with their line numbers, checked one after the other; empty lines are skipped.

    Args:
        path: path of the manifest.

    Raises:
        DualSLMError: the file cannot be read, or a line is not valid; the error names file, line and field.
    """
    seen: set[int] = set()  # ids as hashes, so that millions of them fit in memory
    for number, line in lines(path):
        try:
            row = check(parse(line))
            if (key := hash(row["id"])) in seen:
                _fail("occurs twice in the file", row["id"], "give each conversation an id of its own", field="id")
            seen.add(key)
        except Fault as fault:
            raise at(path, number, fault) from fault
        yield number, row


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not empty, with their numbers, counted from 1.

    Raises:
        DualSLMError: the file cannot be read.
    """
    with open_regular(path, "the file", "check the path") as file:
        for number, line in enumerate(file, 1):
            if not is_blank(line):
                yield number, line


def is_blank(line: bytes) -> bool:
    """Whether a line holds nothing, or a byte order mark alone."""
    return not line.strip().removeprefix(BYTE_ORDER_MARK)


def parse(line: bytes) -> object:
    """The JSON of a line.

    Raises:
        Fault: the line is not UTF-8, not JSON, or names a field twice.
    """
    try:
        # Not in the first line alone: files that were put together have marks in the middle.
        return _JSON.decode(line.removeprefix(BYTE_ORDER_MARK).decode("utf-8"))
    except Fault:
        raise
    except UnicodeDecodeError as error:
        raise Fault("the line", "is not UTF-8", got=f"byte {error.start}", do="save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        got = f"{error.msg} at column {error.colno}"
        raise Fault("the line", "is not JSON", got=got, do="write one JSON object on each line") from error
    # ValueError: an integer of more digits than Python converts. RecursionError: brackets nested too deeply.
    except (ValueError, RecursionError) as error:
        raise Fault("the line", "is not JSON", got=str(error), do="write one JSON object on each line") from error


def at(path: Path, number: int, fault: Fault) -> DualSLMError:
    """The error for a fault in a line of a file."""
    return DualSLMError(f"{path} line {number}: {fault}", got=_short(fault.got), do=fault.do)


# ---------------------------------------------------------------------- how a conversation ends


def _check_end(row: Mapping[str, Any]) -> None:
    """A conversation ends with its answer, or with the spoken turn that its tasks are about."""
    role = "assistant" if "kind" in row else "user"
    if (got := row["turns"][-1]["role"]) != role:
        what = "kind: it ends with the answer" if "kind" in row else "tasks: it ends with the spoken turn"
        field = f"turns[{len(row['turns']) - 1}].role"
        _fail(f"must be {role} in a conversation with {what}", got, f"end with the {role}", field=field)


def _check_labels(turns: Sequence[Mapping[str, Any]]) -> None:
    """Labels of rows with tasks have our values."""
    # Answers are made from them. In a row that has its answer already, labels may be anything.
    for number, turn in enumerate(turns):
        for index, part in enumerate(turn["parts"]):
            for name, value in part.get("labels", {}).items() if isinstance(part, dict) else ():
                if name in LABELS and value not in LABELS[name]:
                    field = f"turns[{number}].parts[{index}].labels.{name}"
                    _fail("is unknown", value, f"give one of {', '.join(LABELS[name])}", field=field)


def _check_task(task: str, number: int, parts: Sequence[Any]) -> None:
    """The last turn, of index `number`, has what a task needs."""
    spoken = [(index, part) for index, part in enumerate(parts) if isinstance(part, dict) and "audio" in part]
    where = f"turns[{number}].parts"
    if not spoken:
        _fail("holds no recording", f"the task {task}", "end with a spoken turn", field=where)
    for index, part in spoken:
        if task in ("asr", "respond"):
            field = "transcript"
            given = part.get("transcript") is not None
        else:
            field = f"labels.{task}"
            given = task in part.get("labels", {})
        if not given:
            do = "give it, or leave the task out"
            _fail("is missing", f"the task {task}", do, field=f"{where}[{index}].{field}")


# ---------------------------------------------------------------------- fields


def _text(value: object) -> None:
    if not isinstance(value, str) or not value or value.isspace():
        _fail("must be text that is not empty", value, "write it in quotes, or leave the field out")
    _whole_characters(value)


def _whole_characters(value: object) -> None:
    if holds_half(value):
        _fail("holds half a character", "one of U+D800 to U+DFFF alone", "write both halves of the pair")


def _path(value: object) -> None:
    # Null stands for a recording that is not there: its line is counted and gives no example.
    _text_or_null(value)
    if "\0" in str(value):  # no file system has such a name, and Python raises at the first use
        _fail("must be a path", ascii(value), "leave out the character U+0000")


def _text_or_null(value: object) -> None:
    if value is not None:
        _text(value)


def _one_of(known: Sequence[str]) -> Check:
    def check_value(value: object) -> None:
        if value not in known:
            _fail("is unknown", value, f"give one of {', '.join(known)}")

    return check_value


def _tasks(value: object) -> None:
    if not isinstance(value, list) or not value:
        _fail("must be a list of tasks", value, f"name some of {', '.join(TASKS)}")
    for index, task in enumerate(value):
        if task not in TASKS:
            _fail("is unknown", task, f"give one of {', '.join(TASKS)}", field=f"[{index}]")
        if task in value[:index]:
            _fail("is given twice", task, "name every task once", field=f"[{index}]")


def _seconds(value: object) -> None:
    # `True` is an int in Python, and JSON's 1e999 becomes infinite.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        _fail("must be a number above 0", value, "give the length of the last recording in s")


def _list_of(what: str, check_item: Check, do: str) -> Check:
    def check_value(value: object) -> None:
        if not isinstance(value, list) or not value:
            _fail(f"must be a list of {what}", value, do)
        _items(value, check_item)

    return check_value


def _turn(turn: object) -> None:
    if not isinstance(turn, dict):
        _fail("is not an object", turn, "give role and parts in braces")
    _record(turn, TURN_FIELDS, ("role", "parts"))


def _part(part: object) -> None:
    if not isinstance(part, dict):
        return _text(part)
    # Words alone may stand for a recording: views read channels from text.
    if "audio" not in part and part.get("transcript") is None:
        _fail("is missing", "no such field", "give the path of the recording", field="audio")
    _record(part, SPEECH_FIELDS, ())


def _labels(labels: object) -> None:
    for name, value in _object(labels).items():
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
    _whole_characters(value)
    return value


def _provenance(value: object) -> None:
    known = _object(value)
    # Only these two are read again, to refuse targets of two LLMs; the rest is for people.
    for name in ("llm", "revision"):
        try:
            _text_or_null(known.get(name))
        except Fault as fault:
            raise fault.within(name) from None


def _true_or_false(value: object) -> None:
    if not isinstance(value, bool):
        _fail("is neither true nor false", value, "give one of the two")


ROW_FIELDS: Mapping[str, Check] = {
    "id": _text,
    "kind": _one_of(KINDS),
    "tasks": _tasks,
    "system": _text_or_null,
    "turns": _list_of("turns", _turn, "give at least one"),
    "corpus": _text,
    "speaker": _text,
    "dialogue": _text,
    "group": _text,
    "seconds": _seconds,
    "source": _text,
    "reference": _text,
    "early_stop": _true_or_false,
    "provenance": _provenance,
}
TURN_FIELDS: Mapping[str, Check] = {
    "role": _one_of(ROLES),
    "parts": _list_of("parts", _part, "give text or a recording"),
}
SPEECH_FIELDS: Mapping[str, Check] = {
    "audio": _path,
    "transcript": _text_or_null,
    "caption": _text_or_null,
    "labels": _labels,
    "choices": _choices,
    "measured": _object,
}


# ---------------------------------------------------------------------- objects and lists


def _record(row: Mapping[str, Any], fields: Mapping[str, Check], needed: Sequence[str]) -> None:
    """Checks an object: it has no fields but `fields`, each passes its check, and the fields `needed` are there."""
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
    for index, value in enumerate(values):
        try:
            check(value)
        except Fault as fault:
            raise fault.within(f"[{index}]") from None


def _no_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    # The json module alone would keep the last of two fields of one name and say nothing.
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        _fail("occurs twice in one object", twice, "keep one", field=twice)
    return row


def _no_constant(name: str) -> NoReturn:
    # NaN and Infinity, which Python's decoder would accept though JSON has no such words.
    _fail("is not JSON", name, "write a number", field="the line")


_JSON = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant)


def _fail(wrong: str, got: object, do: str, *, field: str = "") -> NoReturn:
    raise Fault(field, wrong, got=got, do=do)


def _short(value: object, longest: int = 60) -> str:
    text = value if isinstance(value, str) and value.strip() else repr(value)
    return text if len(text) <= longest else text[: longest - 3] + "..."
