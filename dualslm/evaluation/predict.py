"""`predict`: systems answer items, batch by batch, into predictions.jsonl (docs/evaluation.md).

A job is one batch of items of one task, asked of one system through one view. Which items share a batch follows from
the manifests alone, and a job is written whole or not at all, so that a run that was killed, or that any number of
processes share, ends with the same bytes. Processes are those of torchrun or accelerate (RANK, WORLD_SIZE); each has
a work file of its own, and the first puts them together. No torch.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from dualslm.conversation import Part, Reply, Speech, View
from dualslm.errors import DualSLMError
from dualslm.evaluation.items import Exam, lacks
from dualslm.evaluation.systems.item import Item, System, card
from dualslm.files import replacing, sha256

PREDICTIONS, META = "predictions.jsonl", "predictions.meta.json"
WAIT = 0.5  # s between looks at the other processes' work
SETTINGS = ("systems", "manifests", "views", "tasks", "limit", "seed", "batch")


@dataclass(frozen=True)
class Job:
    """A batch for one system through one view; the views of one batch share a `turn`."""

    turn: int
    system: System
    view: View | None
    items: tuple[Item, ...]


@dataclass
class Plan:
    """Everything that is to be asked.

    Attributes:
        jobs: in the order of the predictions.
        skipped: what is not asked, by reason.
    """

    jobs: list[Job] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def plan(exam: Exam, systems: Sequence[System], views: Sequence[View] = (), batch: int = 16) -> Plan:
    """The jobs for some systems.

    Args:
        exam: what is asked.
        systems: that are asked; their names differ.
        views: for systems that know views; those of the item's kind where empty.
        batch: items of a job.
    """
    names = [system.name for system in systems]
    if len({*names}) < len(names):
        raise DualSLMError("two systems have one name", got=", ".join(names), do="give one of them another: name=...")
    out = Plan(skipped=Counter(exam.skipped))
    for system in systems:
        fit = []
        for item in exam.items:
            if why := system.unfit(item):
                out.skipped[f"{system.name}, {item.task}: {why}"] += 1
            else:
                fit.append(item)
        for _, some in groupby(sorted(fit, key=_set), key=_set):
            whole = list(some)
            for start in range(0, len(whole), batch):
                _add(out, system, whole[start : start + batch], views)
    return out


def _add(out: Plan, system: System, items: Sequence[Item], views: Sequence[View]) -> None:
    """One batch through every view."""
    own = system.views(items[0])
    turn = out.jobs[-1].turn + 1 if out.jobs else 0
    for view in (views or own) if own != (None,) else own:
        able = []
        for item in items:
            if view is not None and (why := lacks(item, view)):
                out.skipped[f"{system.name}, view {view}: {why}"] += 1
            else:
                able.append(item)
        if able:
            out.jobs.append(Job(turn, system, view, tuple(able)))


def run(
    out: Path,
    asked: Plan,
    settings: Mapping[str, Any],
    *,
    command: str = "",
    versions: Mapping[str, str] | None = None,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Does all jobs and writes the predictions; goes on where it was stopped.

    Args:
        out: folder.
        asked: the jobs.
        settings: what they follow from; other settings are refused in the same folder.
        command: that the user gave, for the record.
        versions: of the packages, for the record.
        show: is told how many jobs are done, and of how many.

    Returns:
        The file of predictions.

    Raises:
        DualSLMError: the folder holds predictions of other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    stated = json.loads(json.dumps({**settings, "systems": _cards(asked.jobs)}))
    final = out / PREDICTIONS
    if final.exists():
        return _finished(out, stated)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    done = _done(out, stated)
    own = [place for place, job in enumerate(asked.jobs) if job.turn % world == rank and place not in done]
    started, spent = time.monotonic(), time.process_time()
    with _work(out, rank, stated).open("ab") as file:
        for count, place in enumerate(own):
            show(count, len(own))
            lines = _lines(asked.jobs[place], out)
            file.write(json.dumps({"job": place, "lines": lines}, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    show(len(own), len(own))
    if rank:
        return final
    times = {"took_s": round(time.monotonic() - started, 1), "cpu_s": round(time.process_time() - spent, 1)}
    return _finish(out, asked, stated, {"command": command, "versions": dict(versions or {}), **times})


def manifests(paths: Sequence[Path]) -> list[dict[str, str]]:
    """The manifests that were read, with their hashes."""
    return [{"file": path.name, "sha256": sha256(path)} for path in paths]


def _set(item: Item) -> tuple[str, str, str]:
    return item.corpus, item.split, item.task


def _cards(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    return list({job.system.name: card(job.system) for job in jobs}.values())


# ---------------------------------------------------------------------- lines


def _lines(job: Job, out: Path) -> list[dict[str, Any]]:
    answers = job.system.answer(job.items, job.view)
    return [_line(job, item, answer, out) for item, answer in zip(job.items, answers, strict=True)]


def _line(job: Job, item: Item, answer: Reply, out: Path) -> dict[str, Any]:
    """A prediction."""
    speech, last = item.speech, item.conversation.turns[-1]
    known = {
        "id": item.id,
        "system": job.system.name,
        "view": None if job.view is None else str(job.view),
        "task": item.task,
        "kind": item.kind,
        "corpus": item.corpus,
        "split": item.split,
        "cluster": item.cluster,
        "direction": item.direction,
        "system_text": item.conversation.system,
        "context": [{"role": turn.role, "text": _text(turn.parts)} for turn in item.conversation.turns[:-1]],
        "asked": " ".join(part for part in last.parts if isinstance(part, str)) or None,
        "transcript": speech.transcript,
        "caption": speech.caption,
        "labels": dict(speech.labels),
        "choices": list(item.choices) if item.choices else None,
        "truth": item.truth,
        "audio": _beside(speech, out),
        "seconds": item.seconds,
        "answer": answer.text,
        "ended": answer.finished,
    }
    return known | ({"likelihoods": dict(answer.likelihoods)} if answer.likelihoods else {})


def _text(parts: Sequence[Part]) -> str:
    return "\n".join(part if isinstance(part, str) else part.transcript or "" for part in parts)


def _beside(speech: Speech, out: Path) -> str | None:
    """Where a recording lies, from the predictions' folder."""
    if speech.audio is None:
        return None
    path = Path(str(speech.audio)).resolve()
    return os.path.relpath(path, out.resolve()).replace(os.sep, "/")


# ---------------------------------------------------------------------- stopping and going on


def _work(out: Path, rank: int, stated: Mapping[str, Any]) -> Path:
    """The work file of a process, with a head that says what it is for, and without half a line at its end."""
    path = out / f".predictions.{rank}.work"
    if not path.exists():
        with replacing(path) as partial:
            partial.write_text(json.dumps(stated, ensure_ascii=False) + "\n", encoding="utf-8")
        return path
    whole = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(whole.rfind(b"\n") + 1)
    return path


def _done(out: Path, stated: Mapping[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """The lines of every job that is done, of all work files."""
    done: dict[int, list[dict[str, Any]]] = {}
    for path in sorted(out.glob(".predictions.*.work")):
        head, *rest = path.read_bytes().split(b"\n")[:-1] or [b"{}"]
        _check(out, json.loads(head), stated)
        done |= {job["job"]: job["lines"] for job in map(json.loads, rest)}
    return done


def _check(out: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    other = [key for key in SETTINGS if found.get(key) != wanted.get(key)]
    if other:
        got = f"other {', '.join(other)}"
        raise DualSLMError(f"{out} was begun with other settings", got=got, do="give another --out, or delete it")


def _finished(out: Path, stated: Mapping[str, Any]) -> Path:
    try:
        found = json.loads((out / META).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        got, do = f"no readable {META}", "give another --out, or delete it"
        raise DualSLMError(
            f"{out / PREDICTIONS} is there, and nothing tells how it was made", got=got, do=do
        ) from error
    _check(out, found["settings"], stated)
    return out / PREDICTIONS


def _finish(out: Path, asked: Plan, stated: Mapping[str, Any], record: Mapping[str, Any]) -> Path:
    """Waits for the other processes, then puts all work together."""
    while len(done := _done(out, stated)) < len(asked.jobs):
        time.sleep(WAIT)
    lines = [line for place in range(len(asked.jobs)) for line in done[place]]
    skipped = dict(sorted(asked.skipped.items()))
    meta = {**record, "settings": stated, "seed": stated.get("seed"), "n": len(lines), "skipped": skipped}
    with replacing(out / META) as partial:
        partial.write_text(json.dumps(meta, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with replacing(out / PREDICTIONS) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    for path in out.glob(".predictions.*.work"):
        path.unlink()
    return out / PREDICTIONS


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file of predictions.

    Raises:
        DualSLMError: it cannot be read, or a line is no prediction: what is missing is never taken as empty.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                yield _record(line, f"{path} line {number}")
    except OSError as error:
        raise DualSLMError(f"cannot read the predictions {path}", got=error.strerror, do="run predict first") from error


KEYS = ("id", "system", "view", "task", "corpus", "split", "cluster", "choices", "truth", "answer", "ended")


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        missing = [key for key in KEYS if key not in row]
    except (ValueError, TypeError) as error:
        raise DualSLMError(f"{where} is no prediction", got=str(error), do="run predict again") from error
    if missing or not isinstance(row["answer"], str):
        got = f"no {missing[0]}" if missing else f"answer {row['answer']!r}"
        raise DualSLMError(f"{where} is no prediction", got=got, do="give every key; docs/evaluation.md lists them")
    return dict(row)
