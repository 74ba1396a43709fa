"""A dataset of the Hugging Face hub or a local one, by a map of columns, downloaded or streamed.

Recordings are stored as the dataset holds them, undecoded, below `clips/` beside the manifests. A dataset of several
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
    """One entry for each row of every split."""
    columns = jsonl.column_map(raw.options["map"])
    # `prepare` makes every root an absolute path; what does not exist is a hub id, which is made relative again.
    name = str(raw.root) if raw.root.exists() else relative(raw.root, Path.cwd())
    limit = raw.options["limit"]
    if limit is not None and not (limit.isdigit() and int(limit)):
        raise DualSLMError("--limit makes no sense", got=limit, do="give 1 or more")
    splits = _load(name, raw.options)
    raw.total = None if raw.options["streaming"] else sum(len(data) for data in splits.values())
    for split, data in splits.items():
        # Class labels are numbers in the rows; these columns know their names.
        classes = {key: kind for key, kind in (data.features or {}).items() if hasattr(kind, "int2str")}
        undecoded = _undecoded(data, columns["audio"], name)
        for number, example in enumerate(islice(_read(undecoded, name), limit and int(limit)), 1):
            try:
                row = dict(example)
                for key, kind in classes.items():
                    if isinstance(row.get(key), int) and row[key] >= 0:  # -1 marks a row without a label
                        row[key] = kind.int2str(row[key])
                row[columns["audio"]] = _clip(raw.out, split, number, row[columns["audio"]])
                # Other columns may hold anything, even fields that would make the row a conversation.
                wanted = {key: row[key] for key in columns.values() if key in row}
                given = split if len(splits) > 1 else ""
                yield jsonl.entry(raw, raw.out / split, number, wanted, columns, given)
            except Fault as fault:
                raise DualSLMError(f"{name} {split} row {number}: {fault}", got=fault.got, do=fault.do) from fault


def _load(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The splits of a dataset by name."""
    try:
        import datasets  # optional, and slow to import
    except ImportError as error:
        do = "pip install 'dualslm[hf]'"
        raise DualSLMError("cannot read Hugging Face datasets", got="no datasets library", do=do) from error
    datasets.disable_progress_bars()
    try:
        # Folders of `save_to_disk` hold one of these files, and `load_dataset` refuses such folders.
        if (Path(name) / "dataset_dict.json").exists() or (Path(name) / "state.json").exists():
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, options["config"], streaming=options["streaming"])
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetGenerationError) as error:
        raise _unreadable(name, error) from error
    return dict(found) if hasattr(found, "items") else {"train": found}


def _unreadable(name: str, error: Exception) -> DualSLMError:
    """The error for a dataset that cannot be read; an audio folder needs more packages than the others."""
    # The library wraps errors in `DatasetGenerationError`; the cause tells the user what is missing.
    first = error
    while isinstance(first.__cause__, Exception):
        first = first.__cause__
    do = "check its name, or give a folder"
    if isinstance(first, ImportError):
        do = "pip install torchcodec (it needs FFmpeg), or list them in JSON Lines: dualslm prepare jsonl"
    return DualSLMError(f"cannot load the dataset {name!r}", got=str(first).strip().splitlines()[0], do=do)


def _read(data: Any, name: str) -> Iterator[Any]:
    """The rows of a split."""
    # A streamed audio folder imports its decoder at the first row only.
    try:
        yield from data
    except ImportError as error:
        raise _unreadable(name, error) from error


def _undecoded(data: Any, column: str, name: str) -> Any:
    """A split whose recordings are given as bytes or paths, not as samples."""
    import datasets

    features = data.features or {}
    if features and column not in features:
        got = f"columns {', '.join(features)}"
        raise DualSLMError(f"{name} has no column {column}", got=got, do="name it by --map audio=COLUMN")
    if isinstance(features.get(column), datasets.Audio):
        return data.cast_column(column, datasets.Audio(decode=False))
    return data


def _clip(out: Path, split: str, number: int, cell: Any) -> str | None:
    """The path of a recording; bytes that the dataset holds itself are written to a file below `clips/` first."""
    if not isinstance(cell, Mapping):
        return None if cell is None else str(Path(cell).absolute())
    data = cell.get("bytes")
    path = cell.get("path")
    if data is None:
        return None if path is None else str(Path(path).absolute())
    clip = Path(CLIPS, split, f"{number:07}{Path(path or '').suffix or '.wav'}")
    # Not written again by a run that resumes: the date of the file would change, and with it the log of probes.
    if not (out / clip).exists() or (out / clip).stat().st_size != len(data):
        (out / clip).parent.mkdir(parents=True, exist_ok=True)
        with replacing(out / clip) as partial:
            partial.write_bytes(data)
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
        Option("config", "configuration of the dataset, for example en", metavar="NAME"),
        Option("streaming", "read row by row instead of downloading first", False),
        Option("limit", "only so many rows of each split", metavar="N"),
    ),
)
