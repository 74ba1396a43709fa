"""A dataset of the Hugging Face hub or a local one, by a map of columns, whole or streamed.

Recordings are kept as the dataset has them, undecoded, below `clips/` beside the manifests. A dataset of several
splits keeps its own; one of a single split is split by a hash, as JSON Lines are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from dualslm.data.corpora import jsonl
from dualslm.data.corpora.base import Corpus, Entry, Option, Raw, relative
from dualslm.data.corpora.schema import TASKS, Fault
from dualslm.errors import DualSLMError
from dualslm.files import replacing

CLIPS = "clips"


def rows(raw: Raw) -> Iterator[Entry]:
    """One entry a row of every split."""
    columns = jsonl.column_map(raw.options["map"])
    name = str(raw.root) if raw.root.exists() else relative(raw.root, Path.cwd())
    limit = _limit(raw.options["limit"])
    splits = _load(name, raw.options)
    raw.total = None if raw.options["streaming"] else sum(len(data) for data in splits.values())
    for split, data in splits.items():
        classes = _classes(data)
        heard = _undecoded(data, columns["audio"], name)
        for number, example in enumerate(islice(_read(heard, name), limit), 1):
            try:
                row = {key: _named(classes.get(key), value) for key, value in example.items()}
                row[columns["audio"]] = _clip(raw.out, split, number, row[columns["audio"]])
                wanted = {key: row[key] for key in columns.values() if key in row}
                given = split if len(splits) > 1 else ""
                yield jsonl.entry(raw, raw.out / split, number, wanted, columns, given)
            except Fault as fault:
                raise DualSLMError(f"{name} {split} row {number}: {fault}", got=fault.got, do=fault.do) from fault


def _limit(text: str | None) -> int | None:
    if text is not None and not (text.isdigit() and int(text)):
        raise DualSLMError("--limit makes no sense", got=text, do="give 1 or more")
    return None if text is None else int(text)


def _load(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The splits of a dataset by name."""
    try:
        import datasets
    except ImportError as error:
        do = "pip install 'dualslm[hf]'"
        raise DualSLMError("cannot read Hugging Face datasets", got="no datasets library", do=do) from error
    datasets.disable_progress_bars()
    try:
        if (Path(name) / "dataset_dict.json").exists() or (Path(name) / "state.json").exists():
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, options["config"], streaming=options["streaming"])
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetGenerationError) as error:
        raise _unreadable(name, error) from error
    return dict(found) if hasattr(found, "items") else {"train": found}


def _unreadable(name: str, error: Exception) -> DualSLMError:
    """Why a dataset cannot be read; an audio folder needs more packages than the others."""
    first = error
    while isinstance(first.__cause__, Exception):
        first = first.__cause__
    do = "check its name, or give a folder"
    if isinstance(first, ImportError):
        do = "pip install torchcodec (it needs FFmpeg), or list them in JSON Lines: dualslm prepare jsonl"
    return DualSLMError(f"cannot load the dataset {name!r}", got=str(first).strip().splitlines()[0], do=do)


def _read(data: Any, name: str) -> Iterator[Any]:
    """The rows of a split."""
    try:
        yield from data
    except ImportError as error:
        raise _unreadable(name, error) from error


def _undecoded(data: Any, column: str, name: str) -> Any:
    """The split with its recordings as bytes or paths."""
    import datasets

    features = data.features or {}
    if features and column not in features:
        got = f"columns {', '.join(features)}"
        raise DualSLMError(f"{name} has no column {column}", got=got, do="name it by --map audio=COLUMN")
    if isinstance(features.get(column), datasets.Audio):
        return data.cast_column(column, datasets.Audio(decode=False))
    return data


def _classes(data: Any) -> dict[str, Any]:
    """The columns whose numbers have names."""
    return {key: kind for key, kind in (data.features or {}).items() if hasattr(kind, "int2str")}


def _named(kind: Any, value: Any) -> Any:
    return kind.int2str(value) if kind is not None and isinstance(value, int) and value >= 0 else value


def _clip(out: Path, split: str, number: int, cell: Any) -> str | None:
    """The path of a recording, which is written where the dataset holds it itself."""
    if not isinstance(cell, Mapping):
        return None if cell is None else str(Path(cell).absolute())
    samples, path = cell.get("bytes"), cell.get("path")
    if samples is None:
        return None if path is None else str(Path(path).absolute())
    clip = Path(CLIPS, split, f"{number:07}{Path(path or '').suffix or '.wav'}")
    if not (out / clip).exists() or (out / clip).stat().st_size != len(samples):
        (out / clip).parent.mkdir(parents=True, exist_ok=True)
        with replacing(out / clip) as partial:
            partial.write_bytes(samples)
    return str(clip)


CORPUS = Corpus(
    name="hf",
    about="a dataset of the Hugging Face hub, or one saved in a folder, by a map of columns",
    rows=rows,
    tasks=TASKS[:-1],
    labels=jsonl.LABELS,
    apart=jsonl.CORPUS.apart,
    options=(
        *jsonl.CORPUS.options,
        Option("config", "its configuration, for example en", metavar="NAME"),
        Option("streaming", "read it row by row instead of downloading it first", False),
        Option("limit", "only so many rows of each split", metavar="N"),
    ),
)
