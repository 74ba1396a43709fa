"""TOML to dataclasses and back, strictly: a table is a dataclass, a key is a field, anything else is an error.

A key that the dataclass does not have is an error that names the full key, so that a typing mistake is never
mistaken for a default. Values are checked when a dataclass is created. `key_value` reads the "key=value" of command
lines.
"""

from __future__ import annotations

import dataclasses
import logging
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dualslm.errors import DualSLMError

log = logging.getLogger("dualslm")

NAMES: Mapping[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
MAX_BITS = 63  # of a whole number, beside its sign
MAX_DIGITS = 9  # of the number of a table in a list
Table = TypeVar("Table")


def read(kind: type[Table], text: str, overrides: Iterable[str] = (), *, name: str) -> Table:
    """TOML text → a dataclass.

    Args:
        kind: the dataclass.
        text: TOML.
        overrides: changes of single keys, such as "stage.1.lr=1e-5"; lists are counted from 1.
        name: name of the text for error messages.

    Raises:
        DualSLMError: not TOML, or a key or value that `kind` does not have; the error names the full key.
    """
    try:
        raw = tomllib.loads(text.removeprefix("\ufeff"))  # a byte order mark, as Windows programs write it
    # A number of more digits than Python reads is a plain ValueError; brackets nested too deeply end in the other.
    except (ValueError, RecursionError) as error:
        raise DualSLMError(f"{name} is not TOML", got=str(error), do="correct that line") from error
    for override in overrides:
        _set(raw, override)
    return table(kind, raw, "")


def plain(value: Any) -> Any:
    """A dataclass as a table of TOML values; keys whose value is None are left out, because TOML has no null."""
    if is_dataclass(value):
        entries = {_key(entry): plain(getattr(value, entry.name)) for entry in fields(value)}
        return {key: entry for key, entry in entries.items() if entry is not None}
    return [plain(part) for part in value] if isinstance(value, tuple) else value


def key_value(text: str, *, wrong: str, do: str) -> tuple[str, str]:
    """Splits "key=value" at the first "=".

    Args:
        text: what was written, for example on a command line.
        wrong: what an error says is wrong.
        do: what an error says to do.

    Raises:
        DualSLMError: there is no "=", or nothing before it.
    """
    # The first "=" alone counts: addresses, paths and TOML values may hold more of them.
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise DualSLMError(wrong, got=repr(text), do=do)
    return key, value


def _key(entry: dataclasses.Field[Any]) -> str:
    # A list of tables is written [[stage]] in TOML, and its field is called `stages` in Python.
    return str(entry.metadata.get("key", entry.name))


def table(kind: type[Table], raw: object, where: str) -> Table:
    """A table → a dataclass.

    Args:
        kind: the dataclass.
        raw: a TOML table, or an object of JSON without nulls.
        where: the full key so far, such as "model.", for errors.

    Raises:
        DualSLMError: a key or value that `kind` does not have; the error names the full key.
    """
    assert is_dataclass(kind)
    if not isinstance(raw, dict):
        raise _wrong(where, "a table", raw)
    known = {_key(entry): entry for entry in fields(kind)}
    raw = _under_new_names(raw, known, where)
    _refuse_unknown(raw, known, where)
    for key, entry in known.items():
        if key not in raw and entry.default is MISSING:
            raise DualSLMError(f"the recipe lacks {where}{key}", got="nothing", do=f"add {where}{key} = ...")
    hints = get_type_hints(kind)
    values = {known[key].name: _value(hints[known[key].name], raw[key], where + key) for key in raw}
    try:
        return kind(**values)
    except DualSLMError as error:
        # The dataclass knows its own key alone; the path of the table is known here.
        raise DualSLMError(where + error.wrong, got=error.got, do=error.do) from None


def _under_new_names(raw: dict[str, Any], known: Mapping[str, dataclasses.Field[Any]], where: str) -> dict[str, Any]:
    """A table with its keys under their current names; an old name is read for one more version, with a warning.

    Raises:
        DualSLMError: a key is given under both names.
    """
    renamed = {entry.metadata["was"]: key for key, entry in known.items() if "was" in entry.metadata}
    for old, key in renamed.items():
        if old in raw and key in raw:
            raise DualSLMError(f"{where}{key} is given twice", got=f"{old} and {key}", do=f"keep {key}")
        if old in raw:
            log.warning(
                "%s%s is now %s%s; the old name is read in this version for the last time", where, old, where, key
            )
    return {renamed.get(key, key): value for key, value in raw.items()}


def _refuse_unknown(raw: Mapping[str, object], known: Iterable[str], where: str) -> None:
    for key in raw:
        if key not in known:
            raise DualSLMError(
                f"the recipe has an unknown key {where}{key}",
                got=repr(key),
                do=_suggest(key, sorted(known), prefix=where),
            )


def _value(kind: Any, raw: object, where: str) -> Any:
    """A TOML value → a value of the type `kind`."""
    if type(raw) is int and raw.bit_length() > MAX_BITS:
        # TOML has no such number, though Python reads it; one of 4,300 digits could not even be named in an error.
        got = f"a whole number of {raw.bit_length()} bits"
        raise DualSLMError(f"{where} is too large", got=got, do=f"give a number of at most {MAX_BITS} bits")
    origin = get_origin(kind)
    inner = get_args(kind)
    if origin in (Union, UnionType):  # X | None: TOML has no null, so a key that is given is an X
        return _value(inner[0], raw, where)
    if origin is tuple:
        if not isinstance(raw, list):
            raise _wrong(where, "a list", raw)
        return tuple(_value(inner[0], part, f"{where}.{number}") for number, part in enumerate(raw, 1))
    if origin is Literal:
        if raw not in inner:
            raise DualSLMError(f"{where} is unknown", got=repr(raw), do=_suggest(str(raw), inner))
        return raw
    if isinstance(kind, type) and is_dataclass(kind):
        return table(kind, raw, f"{where}.")
    return _scalar(kind, raw, where)


def _scalar(kind: type, raw: object, where: str) -> Any:
    if kind is float and type(raw) is int:
        return float(raw)
    if type(raw) is not kind:  # isinstance would let true pass for 1
        raise _wrong(where, NAMES[kind], raw)
    return raw


def _wrong(where: str, wanted: str, raw: object) -> DualSLMError:
    got = "a table" if isinstance(raw, dict) else "a list" if isinstance(raw, list) else repr(raw)
    return DualSLMError(f"{where.rstrip('.')} must be {wanted}", got=got, do="correct it in the recipe")


def _suggest(word: str, known: Sequence[str], *, prefix: str = "") -> str:
    import difflib  # late: `dualslm --help` answers sooner without it

    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {prefix}{close[0]}?" if close else f"choose one of {', '.join(known)}"


def _set(raw: dict[str, Any], override: str) -> None:
    """Writes one "key.to.set=value" into the raw recipe."""
    wrong = "not an override"
    do = "write for example stage.1.lr=1e-5"
    path, text = key_value(override, wrong=wrong, do=do)
    keys = path.strip().split(".")
    if not all(keys):
        raise DualSLMError(wrong, got=repr(override), do=do)
    node: Any = raw
    for depth, key in enumerate(keys[:-1], 1):
        node = _child(node, key, ".".join(keys[:depth]))
    if not isinstance(node, dict):
        raise DualSLMError(f"{path.strip()} cannot be set", got="no table there", do="name a key of a table")
    node[keys[-1]] = _parse_value(text.strip())


def _child(node: Any, key: str, where: str) -> Any:
    """What a key leads to; the key of a list is a number, counted from 1."""
    if isinstance(node, list):
        if not key.isdecimal() or len(key) > MAX_DIGITS or not 1 <= int(key) <= len(node):
            do = f"give a number from 1 to {len(node)}"
            raise DualSLMError(f"there is no {where} in the recipe", got=repr(key), do=do)
        return node[int(key) - 1]
    # A table that is not in the file is made: overrides may set keys of it. A plain value is passed on to `_set`,
    # which refuses it with the full key.
    return node.setdefault(key, {}) if isinstance(node, dict) else node


def _parse_value(text: str) -> Any:
    """A TOML value; anything else, such as a hub id without quotes, is text."""
    try:
        value = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # as in `read`
        return text
    # A text with a line break could smuggle in further keys.
    return value["value"] if value.keys() == {"value"} else text
