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
from typing import Any, NoReturn

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
SPEECH_FIELDS = ("audio", "transcript", "caption", "labels", "choices", "measured")


class Fault(ValueError):  # noqa: N818 - it becomes an error only with a file and a line
    """What is wrong with one line.

    Args:
        field: where, for example `turns[0].parts[1].audio`.
        wrong: what is wrong with it.
        got: what stands there.
        do: how to mend it.
    """

    def __init__(self, field: str, wrong: str, *, got: object, do: str) -> None:
        self.field, self.wrong, self.got, self.do = field, wrong, got, do
        super().__init__(f"{field} {wrong}")


def check(row: object, *, complete: bool = True) -> Mapping[str, Any]:
    """Gives a line of a manifest back when it is one.

    Args:
        row: what the line's JSON holds.
        complete: every task has what it needs, under our names; a reader that leaves tasks out does without.

    Raises:
        Fault: the first thing that is wrong.
    """
    if not isinstance(row, dict):
        _fail("the line", "is not an object", row, "write one talk in braces on each line")
    _known(row, "", ROW_FIELDS)
    for name in ("id", "turns"):
        if name not in row:
            _fail(name, "is missing", "no such field", f"give every talk its {name}")
    for name, value in row.items():
        ROW_FIELDS[name](name, value)
    if ("kind" in row) == ("tasks" in row):
        got = "both" if "kind" in row else "neither"
        _fail("kind", "or tasks must be given", got, "give kind to a talk with its answer, tasks to one without")
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
                _fail("id", "stands twice in the file", row["id"], "give every talk an id of its own")
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
        return json.loads(line.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
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
    number, last = len(row["turns"]) - 1, row["turns"][-1]
    role = "assistant" if "kind" in row else "user"
    if last["role"] != role:
        what = "kind: it ends with the answer" if "kind" in row else "tasks: it ends with the spoken turn"
        _fail(f"turns[{number}].role", f"must be {role} in a talk with {what}", last["role"], f"end with the {role}")


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
                if name in LABELS:
                    _one_of(f"turns[{number}].parts[{place}].labels.{name}", value, LABELS[name])


def _needs(task: str, number: int, parts: Sequence[Any]) -> None:
    """What a task asks of the last turn."""
    spoken = [(place, part) for place, part in enumerate(parts) if isinstance(part, dict) and "audio" in part]
    where = f"turns[{number}].parts"
    if not spoken:
        _fail(where, "holds no recording", f"the task {task}", "end with a spoken turn")
    for place, part in spoken:
        if task in ("asr", "respond") and part.get("transcript") is None:
            _fail(f"{where}[{place}].transcript", "is missing", f"the task {task}", "give it, or leave the task out")
        if task not in ("asr", "respond") and task not in part.get("labels", {}):
            _fail(f"{where}[{place}].labels.{task}", "is missing", f"the task {task}", "give it, or leave the task out")


# ---------------------------------------------------------------------- fields


def _text(field: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        _fail(field, "must be text that is not empty", value, "write it in quotes, or leave the field out")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        _fail(field, "holds half a character", ascii(value), "write both halves of the pair")


def _system(field: str, value: object) -> None:
    if value is not None:
        _text(field, value)


def _kind(field: str, value: object) -> None:
    _one_of(field, value, KINDS)


def _tasks(field: str, value: object) -> None:
    if not isinstance(value, list) or not value:
        _fail(field, "must be a list of tasks", value, f"name some of {', '.join(TASKS)}")
    for place, task in enumerate(value):
        _one_of(f"{field}[{place}]", task, TASKS)
        if task in value[:place]:
            _fail(f"{field}[{place}]", "stands twice", task, "name every task once")


def _seconds(field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        _fail(field, "must be a number above 0", value, "give the length of the last recording in s")


def _turns(field: str, value: object) -> None:
    if not isinstance(value, list) or not value:
        _fail(field, "must be a list of turns", value, "give at least one")
    for place, turn in enumerate(value):
        _turn(f"{field}[{place}]", turn)


def _turn(field: str, turn: object) -> None:
    if not isinstance(turn, dict):
        _fail(field, "is not an object", turn, "give role and parts in braces")
    _known(turn, f"{field}.", ("role", "parts"))
    _one_of(f"{field}.role", turn.get("role"), ROLES)
    parts = turn.get("parts")
    if not isinstance(parts, list) or not parts:
        _fail(f"{field}.parts", "must be a list of parts", parts, "give text or a recording")
    for place, part in enumerate(parts):
        _part(f"{field}.parts[{place}]", part)


def _part(field: str, part: object) -> None:
    if not isinstance(part, dict):
        return _text(field, part)
    _known(part, f"{field}.", SPEECH_FIELDS)
    if "audio" not in part and part.get("transcript") is None:
        _fail(f"{field}.audio", "is missing", "no such field", "give the path of the recording")
    for name in ("audio", "transcript", "caption"):
        if part.get(name) is not None or (name == "audio" and name in part):
            _text(f"{field}.{name}", part[name])
    _labels(f"{field}.labels", part.get("labels", {}))
    _choices(f"{field}.choices", part.get("choices", {}))
    _object(f"{field}.measured", part.get("measured", {}))


def _labels(field: str, labels: object) -> None:
    if not isinstance(labels, dict):
        _fail(field, "is not an object", labels, 'write for example {"gender": "female"}')
    for name, value in labels.items():
        _text(f"{field}.{name}", value)


def _choices(field: str, choices: object) -> None:
    for name, values in _object(field, choices).items():
        if not isinstance(values, list) or len(values) < 2:
            _fail(f"{field}.{name}", "must be a list of values", values, "give two or more")
        for place, value in enumerate(values):
            _text(f"{field}.{name}[{place}]", value)


def _object(field: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        _fail(field, "is not an object", value, "write names and values in braces")
    return value


def _flag(field: str, value: object) -> None:
    if not isinstance(value, bool):
        _fail(field, "is neither true nor false", value, "give one of the two")


ROW_FIELDS: Mapping[str, Callable[[str, object], object]] = {
    "id": _text,
    "kind": _kind,
    "tasks": _tasks,
    "system": _system,
    "turns": _turns,
    "corpus": _text,
    "speaker": _text,
    "dialogue": _text,
    "group": _text,
    "seconds": _seconds,
    "source": _text,
    "reference": _text,
    "early_stop": _flag,
    "provenance": _object,
}


# ---------------------------------------------------------------------- their parts


def _known(row: Mapping[str, Any], prefix: str, fields: Sequence[str] | Mapping[str, Any]) -> None:
    for name in row:
        if name not in fields:
            _fail(f"{prefix}{name}", "is no field of it", name, f"it has {', '.join(fields)}")


def _one_of(field: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        _fail(field, "is unknown", value, f"give one of {', '.join(known)}")


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        _fail(twice, "stands twice in one object", twice, "keep one")
    return row


def _no_constant(name: str) -> NoReturn:
    _fail("the line", "is not JSON", name, "write a number")


def _fail(field: str, wrong: str, got: object, do: str) -> NoReturn:
    raise Fault(field, wrong, got=got, do=do)


def _short(value: object, longest: int = 60) -> str:
    text = value if isinstance(value, str) and value.strip() else repr(value)
    return text if len(text) <= longest else text[: longest - 3] + "..."
