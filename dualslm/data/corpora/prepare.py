"""Raw folder → manifests, one for each split, with a report and a completion marker (paper §IV-A).

What is written is a function of the raw folder and the settings alone. Every file is written under a temporary
name, synced and renamed, the marker `complete.json` last: a run that is killed at any instant and started again
ends with the same bytes, and nobody takes half a preparation for a whole one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from dualslm.data.corpora.apart import Apart
from dualslm.data.corpora.base import Corpus, Entry, Raw, Talk, relative
from dualslm.data.corpora.clips import Clips
from dualslm.data.corpora.report import Tally
from dualslm.data.corpora.schema import Fault, check
from dualslm.errors import DualSLMError
from dualslm.files import replacing, sha256

MARKER, REPORT, LEFT_OUT, JOURNAL = "complete.json", "report.json", "excluded.tsv", ".clips.journal"
FORMAT = 1
MAX_SECONDS = 30.0  # s: the window of the speech encoder
ORDER = ("train", "validation", "test")
SHOW_AFTER = 200  # rows between two steps of the bar


def prepare(
    corpus: Corpus,
    root: Path,
    out: Path,
    *,
    options: Mapping[str, Any] | None = None,
    tasks: Sequence[str] = (),
    verify: bool = False,
    max_seconds: float = MAX_SECONDS,
    seed: int = 0,
    again: bool = False,
) -> dict[str, Any]:
    """Writes the manifests of a corpus.

    Args:
        corpus: that the folder holds.
        root: its raw folder, or file.
        out: folder for `<split>.jsonl`, `report.json`, `excluded.tsv` and `complete.json`.
        options: of the corpus; its defaults hold where one is not given.
        tasks: what the recordings are for; the corpus's own tasks unless given.
        verify: decode every recording.
        max_seconds: longest recording in s that is taken.
        seed: of our own splits.
        again: prepare anew what is already complete.

    Returns:
        The report, as it stands in `report.json`.

    Raises:
        DualSLMError: not the folder of this corpus, nothing usable in it, or a clip, dialogue or speaker in two splits.
    """
    chosen = {option.name: option.default for option in corpus.options} | dict(options or {})
    root, out = root.absolute(), out.absolute()
    if root.resolve() in (out.resolve(), *out.resolve().parents) and corpus.name == "jsonl":
        raise DualSLMError(f"{out} lies in the folder that is read", got=f"{root}", do="give --out another folder")
    wanted = list(tasks or corpus.tasks)
    settings = {
        "corpus": corpus.name,
        "format": FORMAT,
        "raw": relative(root.resolve(), out.resolve()),
        "options": {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()},
        "tasks": wanted,
        "verify": verify,
        "max_seconds": max_seconds,
        "seed": seed,
    }
    if not again and (report := finished(out, settings)) is not None:
        (out / JOURNAL).unlink(missing_ok=True)
        return report
    _clear(out)
    classes = tuple(dict.fromkeys(corpus.labels.get("emotion", {}).values()))
    with Clips(out / JOURNAL, max_seconds, verify=verify) as hear:
        raw = Raw(root.resolve(), out.resolve(), corpus.name, wanted, chosen, seed, hear, classes)
        try:
            report = _write(corpus, raw, settings)
        except DualSLMError:
            _tidy(out, looked=hear.looks + hear.remembered > 0)
            raise
    (out / JOURNAL).unlink()
    return report


def finished(out: Path, settings: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The report of a complete preparation.

    Args:
        out: its folder.
        settings: that it must have been made with; any unless given.

    Returns:
        The report, or None where there is no complete one.
    """
    try:
        marker = json.loads((out / MARKER).read_text(encoding="utf-8"))
        report: dict[str, Any] = json.loads((out / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if settings is not None and marker["settings"] != settings:
        return None
    return report if all((out / name).is_file() for name in marker["files"]) else None


def _clear(out: Path) -> None:
    """Makes the folder, and takes away what an older preparation wrote, marker last; nothing where others wrote too."""
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        own = _written(out)
        others = sorted(path.name for path in {*out.glob("*.jsonl")} - {*own})
    if others:
        do = "move them away, or give --out another folder"
        raise DualSLMError(f"{out} holds other manifests", got=", ".join(others), do=do)
    with _writing(out):
        for path in own:
            path.unlink(missing_ok=True)


def _written(out: Path) -> list[Path]:
    """What an older preparation wrote. Manifests beside a journal are a stopped one's: none is begun beside others."""
    own, marker = [], out / MARKER
    if (out / JOURNAL).exists():
        own += [*out.glob("*.jsonl"), *out.glob(".*.partial"), out / LEFT_OUT, out / REPORT]
    if marker.exists():
        own += [out / Path(name).name for name in json.loads(marker.read_text(encoding="utf-8"))["files"]]
    return [*own, marker]


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        got = getattr(error, "strerror", None) or str(error)
        raise DualSLMError(f"cannot write to {out}", got=got, do="give --out a folder of its own") from error


def _tidy(out: Path, *, looked: bool) -> None:
    """After a mistake of the user's: no journal without a look in it, and no folder that holds nothing."""
    if not looked:
        (out / JOURNAL).unlink(missing_ok=True)
        with suppress(OSError):
            out.rmdir()


def _write(corpus: Corpus, raw: Raw, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All files but the journal; the marker last."""
    tallies, firsts = dict[str, Tally](), dict[str, str]()
    apart, ids = Apart(corpus.apart(raw.options)), set[int]()
    with ExitStack() as stack:
        files = _Files(raw.out, stack)
        for entry in stack.enter_context(_progress(corpus, raw)):
            tallies.setdefault(entry.split, Tally()).add(entry)
            if entry.reason is not None:
                firsts.setdefault(entry.reason, f"{entry.name} {entry.detail}".strip())
                files.write(LEFT_OUT, "\t".join((entry.split, entry.name, entry.reason, entry.detail)))
            for conversation in entry.conversations:
                _check(conversation, entry)
                apart.add(entry.split, conversation)
                _check_id(conversation, ids)
                files.write(f"{entry.split}.jsonl", json.dumps(conversation, ensure_ascii=False))
        if not any(tally.conversations for tally in tallies.values()):
            raise _nothing(raw, tallies, firsts)
    report = {
        "corpus": corpus.name,
        "folder": raw.root.name,
        "splits": {split: tallies[split].to_json() for split in sorted(tallies, key=_rank)},
        "notes": raw.notes,
    }
    _write_json(raw.out / REPORT, report)
    prints = {name: sha256(raw.out / name) for name in sorted([*files.open, REPORT])}
    _write_json(raw.out / MARKER, {"settings": settings, "files": prints})
    return report


def _check(conversation: Talk, entry: Entry) -> None:
    try:
        check(conversation)
    except Fault as fault:
        raise DualSLMError(f"row {entry.name}: {fault}", got=repr(fault.got)[:80], do=fault.do) from fault


def _check_id(conversation: Talk, ids: set[int]) -> None:
    if (key := hash(conversation["id"])) in ids:
        raise DualSLMError("two talks have one id", got=conversation["id"], do="give every talk an id of its own")
    ids.add(key)


def _nothing(raw: Raw, tallies: Mapping[str, Tally], firsts: Mapping[str, str]) -> DualSLMError:
    rows = sum(tally.rows for tally in tallies.values())
    told = "; ".join(f"{reason}, for example {first}" for reason, first in sorted(firsts.items()))
    do = "mend them" if rows else "see docs/corpora.md for the folders expected"
    got = f"{rows:,} rows, all left out: {told}" if rows else "no row at all"
    return DualSLMError(f"nothing in {raw.root} can be used", got=got, do=do)


class _Files:
    """Text files that are begun at their first line and get their names together at the end."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.open: dict[str, IO[str]] = {}

    def write(self, name: str, line: str) -> None:
        """Adds a line to a file."""
        if name not in self.open:
            partial = self.stack.enter_context(replacing(self.folder / name))
            self.open[name] = self.stack.enter_context(
                partial.open("w", encoding="utf-8", errors="backslashreplace", newline="\n")
            )
        self.open[name].write(line.replace("\n", " ") + "\n")


@contextmanager
def _progress(corpus: Corpus, raw: Raw) -> Iterator[Iterator[Entry]]:
    """The rows of a corpus, behind a bar where somebody looks on."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(corpus.name, total=None)

        def rows() -> Iterator[Entry]:
            for count, entry in enumerate(corpus.rows(raw)):
                if count % SHOW_AFTER == 0:
                    bar.update(task, completed=count, total=raw.total)
                yield entry

        yield rows()


def _rank(split: str) -> tuple[int, str]:
    side = split.partition("-")[0]
    return (ORDER.index(side) if side in ORDER else len(ORDER), split)


def _write_json(path: Path, value: object) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
