"""Anything else: JSON Lines of the user's own, by a map of columns, or talks in the shape of a manifest.

A line with `turns` is a talk already: its recordings are looked at and its paths made to count from the output.
Any other line is one recording, whose columns are named by `--map`. Splits come from the files of a folder, from
a column, or from a hash of the speaker, the dialogue or the clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dualslm.data.corpora.base import LABEL_UNKNOWN, Corpus, Entry, Option, Raw, look_into, split_of
from dualslm.data.corpora.schema import LABELS as VALUES
from dualslm.data.corpora.schema import TASKS, Fault, at, check, lines, parse
from dualslm.errors import DualSLMError

ATTRIBUTES = (*VALUES, "emotion")
FIELDS = ("audio", "transcript", "caption", "id", "speaker", "dialogue", "split", *ATTRIBUTES)
SPLITS = {"dev": "validation", "val": "validation", "valid": "validation", "eval": "test"}

# What people write for our values, in small letters (ours).
LABELS = {
    "gender": {"m": "male", "man": "male", "f": "female", "woman": "female"},
    "pitch": {"medium": "normal"},
    "tempo": {"low": "slow", "medium": "normal", "high": "fast"},
    "energy": {"quiet": "low", "soft": "low", "medium": "normal", "loud": "high"},
}


def rows(raw: Raw) -> Iterator[Entry]:
    """One entry a line of every file."""
    columns = column_map(raw.options["map"])
    files = _files(raw.root)
    raw.total = sum(look_into(path)[1] for path in files)
    own_split = raw.root.is_dir()
    for path in files:
        for number, line in lines(path):
            try:
                row = parse(line)
                if not isinstance(row, dict):
                    raise Fault("the line", "is not an object", got=row, do="write one object in braces on each line")
                yield entry(raw, path, number, row, columns, path.stem if own_split else "")
            except Fault as fault:
                raise at(path, number, fault) from fault


def column_map(pairs: tuple[str, ...]) -> dict[str, str]:
    """Our fields by the user's columns, from NAME=COLUMN; a field that is not named has a column of its name."""
    found = {name: name for name in FIELDS}
    for pair in pairs:
        name, _, column = pair.partition("=")
        if name not in FIELDS or not column:
            raise DualSLMError("cannot read --map", got=pair, do=f"write NAME=COLUMN, NAME one of {', '.join(FIELDS)}")
        found[name] = column
    return found


def _files(root: Path) -> list[Path]:
    if root.is_dir():
        if found := sorted(path for path in root.glob("*.jsonl") if not path.name.startswith(".")):
            return found
        raise DualSLMError(f"no *.jsonl in {root}", got="none", do="give a JSON Lines file, or a folder of them")
    return [root]


def entry(raw: Raw, path: Path, number: int, row: dict[str, Any], columns: Mapping[str, str], split: str) -> Entry:
    """A line as an entry; its id is the user's, or the file's name and the line's number."""
    if "turns" in row:
        return _conversation(raw, path, check(row), split)
    values = {name: _value(row, name, column) for name, column in columns.items()}
    if not values["audio"]:
        do = "give it, or name its column by --map audio=COLUMN"
        raise Fault(columns["audio"], "is missing", got="no path of a recording", do=do)
    split = _split(raw, split or values.pop("split", ""), values)
    name = values["id"] or f"{path.stem}-{number}"
    labels, unknown = _labels(values)
    if unknown:
        return Entry(split, name, LABEL_UNKNOWN, unknown)
    part = {"transcript": values["transcript"], "caption": values["caption"], "labels": labels}
    rest = {"speaker": values["speaker"], "dialogue": values["dialogue"]}
    source = f"{path.name}:{number}"
    return raw.spoken(split, name, path.parent / values["audio"], part=part, row={**rest, "source": source})


def _value(row: Mapping[str, Any], name: str, column: str) -> str:
    """A column as text; one that is not there, or null, is empty."""
    value = row.get(column)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise Fault(column, "must be text", got=value, do=f"name another column by --map {name}=COLUMN")
    return " ".join(str(value).split())


def _labels(values: Mapping[str, str]) -> tuple[dict[str, str], str | None]:
    out = {}
    for name in ATTRIBUTES:
        value = values[name].lower()
        value = LABELS.get(name, {}).get(value, value)
        if value and name in VALUES and value not in VALUES[name]:
            return {}, f"{name} {values[name]!r}"
        if value:
            out[name] = value
    return out, None


def _split(raw: Raw, given: str, row: Mapping[str, Any]) -> str:
    """The split that is given, or by a hash of what must stay together, or of the next best that is known."""
    if given:
        return SPLITS.get(given, given).replace("/", "-")
    kinds = ("speaker", "dialogue", "clip")
    for kind in kinds[kinds.index(raw.options["split-by"]) :]:
        if name := row.get("audio" if kind == "clip" else kind):
            return split_of(str(name), raw.seed)
    return split_of(str(row["id"]), raw.seed)


def _conversation(raw: Raw, path: Path, row: Mapping[str, Any], split: str) -> Entry:
    """A talk in the shape of a manifest, with its paths made to count from the output."""
    split, name = _split(raw, split, row), row["id"]
    turns, seconds = [], 0.0
    for turn in row["turns"]:
        parts = []
        for part in turn["parts"]:
            if isinstance(part, dict) and "audio" in part:
                heard = raw.hear(path.parent / part["audio"])
                if heard.reason is not None:
                    return Entry(split, name, heard.reason, heard.detail)
                seconds = heard.seconds or 0.0
                part = raw.speech(path.parent / part["audio"], **{key: part[key] for key in part if key != "audio"})
            parts.append(part)
        turns.append({"role": turn["role"], "parts": parts})
    return Entry(split, name, seconds=seconds, conversations=({**row, "turns": turns},))


CORPUS = Corpus(
    name="jsonl",
    about="JSON Lines of your own: recordings by a map of columns, or talks",
    rows=rows,
    tasks=TASKS[:-1],
    labels=LABELS,
    apart=lambda options: ("clip", "dialogue", "speaker") if options["split-by"] == "speaker" else ("clip", "dialogue"),
    options=(
        Option("map", "the column of a field, for example audio=path; may be repeated", (), metavar="NAME=COLUMN"),
        Option("split-by", "what falls in one split as a whole", "speaker", ("speaker", "dialogue", "clip")),
    ),
)
