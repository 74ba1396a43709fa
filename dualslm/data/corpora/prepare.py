"""Raw folder → manifests, one for each split, with a report and a completion marker (paper §IV-A).

What is written is a function of the raw folder and the settings alone. Every file is written under a temporary
name, synced and renamed, the marker `complete.json` last: a run that is killed at any instant and started again
ends with the same bytes, and a preparation that was stopped is never mistaken for a complete one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from dualslm.data.corpora.apart import Apart
from dualslm.data.corpora.base import Corpus, Entry, Raw, relative
from dualslm.data.corpora.clips import LoggedProbe, NoSpeechRule
from dualslm.data.corpora.report import SplitCounts
from dualslm.data.corpora.schema import Fault, check
from dualslm.data.progress import bar
from dualslm.errors import DualSLMError
from dualslm.files import replacing, sha256

MARKER = "complete.json"
REPORT = "report.json"
EXCLUDED = "excluded.tsv"
PROBE_LOG = ".clips.journal"  # the file name of every version, so that a run stopped under an older one is resumed
FORMAT = 1  # version of what is written; a preparation of another version is not complete
MAX_SECONDS = 30.0  # s, the window of the speech encoder
ORDER = ("train", "validation", "test")
SHOW_AFTER = 200  # rows between two updates of the progress bar


def prepare(
    corpus: Corpus,
    root: Path,
    out: Path,
    *,
    options: Mapping[str, Any] | None = None,
    tasks: Sequence[str] = (),
    verify: bool = False,
    no_speech: NoSpeechRule | None = None,
    max_seconds: float = MAX_SECONDS,
    seed: int = 0,
    again: bool = False,
) -> dict[str, Any]:
    """Writes the manifests of a corpus.

    Args:
        corpus: corpus of the raw folder.
        root: raw folder, or raw file.
        out: folder for `<split>.jsonl`, `report.json`, `excluded.tsv` and `complete.json`.
        options: values of the corpus's options by name; defaults hold for the others.
        tasks: names of the tasks of the recordings; the corpus's own tasks unless given.
        verify: decode every recording.
        no_speech: gives for 16 kHz samples why they hold no speech, or None; asked where `verify` decodes them.
        max_seconds: greatest length in s of a usable recording.
        seed: seed of our own splits.
        again: prepare again what is already complete.

    Returns:
        The report, as in `report.json`.

    Raises:
        DualSLMError: not the folder of this corpus, nothing usable in it, or a clip, dialogue or speaker in two splits.
    """
    chosen = {option.name: option.default for option in corpus.options} | dict(options or {})
    root = root.absolute()
    out = out.absolute()
    # JSON Lines are read from every *.jsonl of a folder, so a second run would read the manifests of the first.
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
    if no_speech is not None:
        settings["speech"] = True
    if not again and (report := finished(out, settings)) is not None:
        (out / PROBE_LOG).unlink(missing_ok=True)  # left by a kill between the marker and the end
        return report
    _clear(out)
    classes = tuple(dict.fromkeys(corpus.labels.get("emotion", {}).values()))
    with LoggedProbe(out / PROBE_LOG, max_seconds, verify=verify, no_speech=no_speech) as probe:
        raw = Raw(root.resolve(), out.resolve(), corpus.name, wanted, chosen, seed, probe, classes)
        try:
            report = _write(corpus, raw, settings)
        except DualSLMError:
            # After a mistake of the user's, such as a wrong folder, neither an empty log nor an empty folder stays.
            if probe.probed + probe.reused == 0:
                (out / PROBE_LOG).unlink(missing_ok=True)
                with suppress(OSError):
                    out.rmdir()
            raise
    (out / PROBE_LOG).unlink()
    return report


def finished(out: Path, settings: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The report of a complete preparation.

    Args:
        out: folder of the preparation.
        settings: settings that it must have been made with; any when None.

    Returns:
        The report, or None where there is no complete preparation.
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
    """Creates the folder and deletes what an older preparation wrote; refuses a folder with files of others."""
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        own = _written(out)  # the marker is last, so that a kill in between leaves the list of what to delete
        others = sorted(path.name for path in {*out.glob("*.jsonl")} - {*own})
    if others:
        do = "move them away, or give --out another folder"
        raise DualSLMError(f"{out} holds other manifests", got=", ".join(others), do=do)
    with _writing(out):
        for path in own:
            path.unlink(missing_ok=True)


def _written(out: Path) -> list[Path]:
    """The files that an older preparation wrote."""
    own = []
    marker = out / MARKER
    # A log means a preparation that was stopped. All manifests beside it are its own, for none is begun in a folder
    # that holds other manifests.
    if (out / PROBE_LOG).exists():
        own += [*out.glob("*.jsonl"), *out.glob(".*.partial"), out / EXCLUDED, out / REPORT]
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


def _write(corpus: Corpus, raw: Raw, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Writes all files but the log, the marker last."""
    counts: dict[str, SplitCounts] = {}
    firsts: dict[str, str] = {}  # the first excluded row by reason, for the error where all are excluded
    apart = Apart(corpus.apart(raw.options))
    ids: set[int] = set()  # as hashes, like `Apart`: millions of ids fit in memory
    with ExitStack() as stack:
        files = _Files(raw.out, stack)
        for entry in stack.enter_context(_progress(corpus, raw)):
            counts.setdefault(entry.split, SplitCounts()).add(entry)
            if entry.reason is not None:
                firsts.setdefault(entry.reason, f"{entry.name} {entry.detail}".strip())
                files.write(EXCLUDED, "\t".join((entry.split, entry.name, entry.reason, entry.detail)))
            for row in entry.conversations:
                try:
                    check(row)
                except Fault as fault:
                    wrong = f"row {entry.name}: {fault}"
                    raise DualSLMError(wrong, got=repr(fault.got)[:80], do=fault.do) from fault
                apart.add(entry.split, row)
                # After `apart`, so that a line copied to another split is reported as a leak.
                if (key := hash(row["id"])) in ids:
                    raise DualSLMError("two conversations have one id", got=row["id"], do="give each an id of its own")
                ids.add(key)
                files.write(f"{entry.split}.jsonl", json.dumps(row, ensure_ascii=False))
        # Raised within the stack, so that no manifest gets its final name.
        if not any(split.conversations for split in counts.values()):
            raise _nothing(raw, counts, firsts)
    report = {
        "corpus": corpus.name,
        "folder": raw.root.name,
        "splits": {split: counts[split].to_json() for split in sorted(counts, key=_rank)},
        "notes": raw.notes,
    }
    _write_json(raw.out / REPORT, report)
    hashes = {name: sha256(raw.out / name) for name in sorted([*files.open, REPORT])}
    _write_json(raw.out / MARKER, {"settings": settings, "files": hashes})
    return report


def _nothing(raw: Raw, counts: Mapping[str, SplitCounts], firsts: Mapping[str, str]) -> DualSLMError:
    rows = sum(split.rows for split in counts.values())
    if not rows:
        do = "see docs/corpora.md for the folders expected"
        return DualSLMError(f"nothing in {raw.root} can be used", got="no row at all", do=do)
    examples = "; ".join(f"{reason}, for example {first}" for reason, first in sorted(firsts.items()))
    got = f"{rows:,} rows, all left out: {examples}"
    return DualSLMError(f"nothing in {raw.root} can be used", got=got, do="correct them")


class _Files:
    """Text files, each opened at its first line, that get their final names when the stack is closed."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.open: dict[str, IO[str]] = {}

    def write(self, name: str, line: str) -> None:
        """Adds a line to a file."""
        if name not in self.open:
            # Entered first and so left last: a file is closed before it is renamed.
            partial = self.stack.enter_context(replacing(self.folder / name))
            self.open[name] = self.stack.enter_context(
                partial.open("w", encoding="utf-8", errors="backslashreplace", newline="\n")
            )
        self.open[name].write(line.replace("\n", " ") + "\n")


@contextmanager
def _progress(corpus: Corpus, raw: Raw) -> Iterator[Iterator[Entry]]:
    """The rows of a corpus, with a progress bar where stderr is a terminal."""
    with bar(transient=True, disable=not sys.stderr.isatty()) as shown:
        task = shown.add_task(corpus.name, total=None)

        def rows() -> Iterator[Entry]:
            for count, entry in enumerate(corpus.rows(raw)):
                # `raw.total` is known only after the corpus has read its metadata, hence at the first row.
                if count % SHOW_AFTER == 0:
                    shown.update(task, completed=count, total=raw.total)
                yield entry

        yield rows()


def _rank(split: str) -> tuple[int, str]:
    side = split.partition("-")[0]
    return (ORDER.index(side) if side in ORDER else len(ORDER), split)


def _write_json(path: Path, value: object) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
