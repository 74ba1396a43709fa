"""Any other data: JSON Lines of the user's own, by a map of columns, or conversations in the form of a manifest.

A line with `turns` is a conversation already: its recordings are probed and its paths made relative to the output.
Any other line is one recording, whose columns are named by `--map`. Splits come from the files of a folder, from
a column, or from a hash of the speaker, the dialogue or the clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dualslm.data.corpora.base import LABEL_UNKNOWN, MISSING, Corpus, Entry, Option, Raw, look_into, split_of
from dualslm.data.corpora.schema import LABELS as VALUES
from dualslm.data.corpora.schema import TASKS, Fault, at, check, lines, null_recording, parse
from dualslm.errors import DualSLMError
from dualslm.toml import key_value

ATTRIBUTES = (*VALUES, "emotion")
FIELDS = ("audio", "transcript", "caption", "id", "speaker", "dialogue", "split", *ATTRIBUTES)
# Other names of splits, as files and columns have them.
SPLITS = {"dev": "validation", "val": "validation", "valid": "validation", "eval": "test"}

# Common spellings of our values, in lower case (our own list).
LABELS = {
    "gender": {"m": "male", "man": "male", "f": "female", "woman": "female"},
    "pitch": {"medium": "normal"},
    "tempo": {"low": "slow", "medium": "normal", "high": "fast"},
    "energy": {"quiet": "low", "soft": "low", "medium": "normal", "loud": "high"},
}


def rows(raw: Raw) -> Iterator[Entry]:
    """One entry for each line of every file."""
    columns = column_map(raw.options["map"])
    files = _files(raw.root)
    raw.total = sum(look_into(path)[1] for path in files)
    own_split = raw.root.is_dir()  # in a folder, each file is a split
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
    """The column of each of our fields; a field that is not mapped has a column of its own name.

    Args:
        pairs: what `--map` gives, each NAME=COLUMN.

    Raises:
        DualSLMError: a pair of another form, or not one of our fields.
    """
    wrong = "cannot read --map"
    do = f"write NAME=COLUMN, NAME one of {', '.join(FIELDS)}"
    columns = {name: name for name in FIELDS}
    for pair in pairs:
        name, column = key_value(pair, wrong=wrong, do=do)
        if name not in FIELDS or not column:
            raise DualSLMError(wrong, got=repr(pair), do=do)
        columns[name] = column
    return columns


def _files(root: Path) -> list[Path]:
    if root.is_dir():
        if found := sorted(path for path in root.glob("*.jsonl") if not path.name.startswith(".")):
            return found
        raise DualSLMError(f"no *.jsonl in {root}", got="none", do="give a JSON Lines file, or a folder of them")
    return [root]


def entry(raw: Raw, path: Path, number: int, row: dict[str, Any], columns: Mapping[str, str], split: str) -> Entry:
    """A line as an entry; its id is the user's, or the file's name and the line's number.

    Args:
        raw: raw folder and settings.
        path: path of the file; audio paths are relative to its folder.
        number: number of the line, counted from 1.
        row: JSON object of the line.
        columns: column of each of our fields.
        split: split of the whole file; "" where rows name it or it is drawn.

    Raises:
        Fault: a field of the line is missing or not valid.
    """
    if "turns" in row:
        checked = check(row, complete=False)
        if null_recording(checked) is not None:
            return Entry(_split(raw, split, checked), checked["id"], MISSING, "audio is null")
        return _conversation(raw, path, check(row), split)
    values = {name: _value(row, name, column) for name, column in columns.items()}
    if columns["audio"] not in row:
        do = "give it, or name its column by --map audio=COLUMN"
        raise Fault(columns["audio"], "is missing", got="no path of a recording", do=do)
    split = _split(raw, split or values.pop("split", ""), values)
    name = values["id"] or f"{path.stem}-{number}"
    if not values["audio"]:
        return Entry(split, name, MISSING, f"{columns['audio']} is null or empty")
    audio = str(row[columns["audio"]])  # as it is: a name may hold two spaces, or end with one
    labels, unknown = _labels(values)
    if unknown:
        return Entry(split, name, LABEL_UNKNOWN, unknown)
    part = {"transcript": values["transcript"], "caption": values["caption"], "labels": labels}
    rest = {"speaker": values["speaker"], "dialogue": values["dialogue"]}
    source = f"{path.name}:{number}"
    return raw.spoken(split, name, path.parent / audio, part=part, row={**rest, "source": source})


def _value(row: Mapping[str, Any], name: str, column: str) -> str:
    """The value of a field as text; "" where the column is missing or null."""
    value = row.get(column)
    if value is None:
        return ""
    # Numbers are taken for ids and speakers; `True` is an int too, and means a mistaken column.
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
    """The given split, or one drawn by what must stay together; where that is unknown, by the next smaller unit."""
    if given:
        return SPLITS.get(given, given).replace("/", "-")  # a split becomes a file name
    kinds = ("speaker", "dialogue", "clip")
    for kind in kinds[kinds.index(raw.options["split-by"]) :]:
        if name := row.get("audio" if kind == "clip" else kind):
            return split_of(str(name), raw.seed)
    return split_of(str(row["id"]), raw.seed)


def _conversation(raw: Raw, path: Path, row: Mapping[str, Any], split: str) -> Entry:
    """A conversation in the form of a manifest, with its paths made relative to the output."""
    split = _split(raw, split, row)
    name = row["id"]
    turns = []
    seconds = 0.0  # of the last recording, as the manifest's field `seconds` has it
    for turn in row["turns"]:
        parts = []
        for part in turn["parts"]:
            if isinstance(part, dict) and "audio" in part:
                audio = path.parent / part["audio"]
                info = raw.probe(audio)
                if info.reason is not None:
                    return Entry(split, name, info.reason, info.detail)
                seconds = info.seconds or 0.0
                part = raw.speech(audio, **{key: part[key] for key in part if key != "audio"})
            parts.append(part)
        turns.append({"role": turn["role"], "parts": parts})
    return Entry(split, name, seconds=seconds, conversations=({**row, "turns": turns},))


CORPUS = Corpus(
    name="jsonl",
    about="JSON Lines of your own: recordings by a map of columns, or conversations",
    rows=rows,
    tasks=TASKS[:-1],  # all but respond, whose answers the frozen LLM must write first
    labels=LABELS,
    apart=lambda options: ("clip", "dialogue", "speaker") if options["split-by"] == "speaker" else ("clip", "dialogue"),
    options=(
        Option("map", "the column of a field, for example audio=path; may be repeated", (), metavar="NAME=COLUMN"),
        Option("split-by", "what stays in one split as a whole", "speaker", ("speaker", "dialogue", "clip")),
    ),
)
