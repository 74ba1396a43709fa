"""`predict`: systems answer items, batch by batch, into predictions.jsonl (docs/evaluation.md).

A job is one batch of items of one task, asked of one system through one view. Which items share a batch follows from
the manifests alone, and a job is written whole or not at all. So a run that was killed, or that any number of
processes share, ends with the same bytes. Processes are those of torchrun or accelerate (RANK, WORLD_SIZE), or tasks of
a cluster: each writes a work file of its own, and the first one puts them together. No torch.
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

from dualslm.conversation import Part, Reply, View
from dualslm.data.corpora.schema import is_blank
from dualslm.errors import DualSLMError
from dualslm.evaluation import prediction_fields
from dualslm.evaluation.items import Exam, lacks
from dualslm.evaluation.systems.item import Item, System, card
from dualslm.files import BYTE_ORDER_MARK, open_regular, parsed_json, replacing, sha256

PREDICTIONS = "predictions.jsonl"
META = "predictions.meta.json"
POLL_SECONDS = 0.5  # between looks at the other processes' work files
SETTINGS = (
    "systems",
    "manifests",
    "views",
    "tasks",
    "prompts",
    "history",
    "limit",
    "seed",
    "batch",
)  # the answers follow from these


@dataclass(frozen=True)
class Job:
    """A batch for one system through one view.

    Attributes:
        turn: number of the batch; the jobs of one batch through its views share it.
        system: the system that is asked.
        view: the view that it is asked through; None for a system without views.
        items: items of the batch.
    """

    turn: int
    system: System
    view: View | None
    items: tuple[Item, ...]


@dataclass
class Plan:
    """Everything that is to be asked.

    Attributes:
        jobs: jobs in the order of the predictions.
        skipped: number of questions that are not asked, by reason.
    """

    jobs: list[Job] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def plan(exam: Exam, systems: Sequence[System], views: Sequence[View] = (), batch: int = 16) -> Plan:
    """The jobs for some systems.

    Args:
        exam: items to be asked.
        systems: systems to be asked, under different names.
        views: views for the systems that have any; those of the item's kind where empty.
        batch: number of items of a job.
    """
    names = [system.name for system in systems]
    if len({*names}) < len(names):
        raise DualSLMError("two systems have one name", got=", ".join(names), do="give one of them another: name=...")
    out = Plan(skipped=Counter(exam.skipped))
    for system in systems:
        fit = []
        for item in exam.items:
            if item.second and not getattr(system, "reads_prompts", True):
                continue  # it answers alike however it is asked
            if why := system.unfit(item):
                out.skipped[f"{system.name}, {item.task}: {why}"] += 1
            else:
                fit.append(item)
        # `sorted` is stable: within a set the items keep the order of the manifest, and with it their batches.
        for _, members in groupby(sorted(fit, key=_set), key=_set):
            items = list(members)
            for start in range(0, len(items), batch):
                _add(out, system, items[start : start + batch], views)
    return out


def _add(out: Plan, system: System, items: Sequence[Item], views: Sequence[View]) -> None:
    """Adds one batch through every view."""
    own = system.views(items[0])
    if items[0].second:
        own = own[:1]  # a second figure is of normal use
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
    """Does all jobs and writes the predictions; a run that was stopped goes on.

    Args:
        out: folder of the predictions.
        asked: jobs to be done.
        settings: what the jobs follow from; a folder with other settings is refused.
        command: command line that the user gave, for the record.
        versions: versions of the packages, for the record.
        show: called with the number of jobs that are done and the number of all.

    Returns:
        The file of predictions.

    Raises:
        DualSLMError: the folder holds predictions of other settings.
    """
    share = (int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    done = answer(out, asked, settings, share, show)
    # The first process alone puts the answers together.
    return out / PREDICTIONS if share[0] else assemble(out, [done], command=command, versions=versions)


@dataclass(frozen=True)
class Answered:
    """What one process did of the jobs, and what it knows of all of them.

    Attributes:
        stated: settings, with the cards of the systems.
        jobs: number of all jobs.
        skipped: number of questions that are not asked, by reason.
        took_s: time that it took, in s.
        cpu_s: time of its CPUs, in s.
    """

    stated: Mapping[str, Any]
    jobs: int
    skipped: Mapping[str, int]
    took_s: float
    cpu_s: float


def answer(
    out: Path,
    asked: Plan,
    settings: Mapping[str, Any],
    share: tuple[int, int],
    show: Callable[[int, int], None] = lambda done, total: None,
) -> Answered:
    """Does one process's share of the jobs, into a work file of its own; what any process has done stays done.

    Args:
        out: folder of the predictions.
        asked: all jobs.
        settings: what the jobs follow from.
        share: (i, n): share i of n, counted from 0.
        show: called with the number of jobs that are done and the number of its own.

    Raises:
        DualSLMError: the folder holds predictions of other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    cards = {job.system.name: card(job.system) for job in asked.jobs}
    # Through JSON and back, so that they compare equal to what a file holds: tuples become lists.
    stated = json.loads(json.dumps({**settings, "systems": list(cards.values())}))
    rank, world = share
    if (out / PREDICTIONS).exists():
        _check_settings(out, _settings_of(out), stated)
        return Answered(stated, len(asked.jobs), asked.skipped, 0.0, 0.0)
    done = _done(out, stated)
    # Shared by turn, not by job: the views of one batch stay in one process, which encodes its recordings once.
    own = [index for index, job in enumerate(asked.jobs) if job.turn % world == rank and index not in done]
    started = time.monotonic()
    cpu_started = time.process_time()
    with _work_file(out, rank, stated).open("ab") as file:
        for count, index in enumerate(own):
            show(count, len(own))
            job = asked.jobs[index]
            answers = job.system.answer(job.items, job.view)
            lines = [_line(job, item, answer, out) for item, answer in zip(job.items, answers, strict=True)]
            file.write(json.dumps({"job": index, "lines": lines}, ensure_ascii=False).encode() + b"\n")
            # A batch may have cost minutes on a GPU: it must survive a killed machine, not only a killed process.
            file.flush()
            os.fsync(file.fileno())
    show(len(own), len(own))
    took_s = round(time.monotonic() - started, 1)
    cpu_s = round(time.process_time() - cpu_started, 1)
    return Answered(stated, len(asked.jobs), asked.skipped, took_s, cpu_s)


def manifests(paths: Sequence[Path]) -> list[dict[str, str]]:
    """The manifests that were read, with their hashes."""
    return [{"file": path.name, "sha256": sha256(path)} for path in paths]


def _set(item: Item) -> tuple[str, str, str]:
    return item.corpus, item.split, item.task


# ---------------------------------------------------------------------- lines


def _line(job: Job, item: Item, answer: Reply, out: Path) -> dict[str, Any]:
    """A prediction."""
    speech = item.speech
    *before, last = item.conversation.turns
    line: dict[str, Any] = {
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
        "context": [{"role": turn.role, "text": _text(turn.parts)} for turn in before],
        "asked": " ".join(part for part in last.parts if isinstance(part, str)) or None,
        "transcript": speech.transcript,
        "caption": speech.caption,
        "labels": dict(speech.labels),
        "choices": list(item.choices) if item.choices else None,
        "truth": item.truth,
        "audio": None,
        "seconds": item.seconds,
        "answer": answer.text,
        "ended": answer.finished,
    }
    if speech.audio is not None:
        # Relative to the predictions and with forward slashes, so that a copied folder still finds its recordings.
        path = os.path.relpath(Path(str(speech.audio)).resolve(), out.resolve())
        line["audio"] = path.replace(os.sep, "/")
    return line | ({"likelihoods": dict(answer.likelihoods)} if answer.likelihoods else {})


def _text(parts: Sequence[Part]) -> str:
    return "\n".join(part if isinstance(part, str) else part.transcript or "" for part in parts)


# ---------------------------------------------------------------------- stopping and going on


def _work_file(out: Path, rank: int, stated: Mapping[str, Any]) -> Path:
    """The work file of a process; its first line states the settings."""
    path = out / f".predictions.{rank}.work"
    if not path.exists():
        with replacing(path) as partial:
            partial.write_text(json.dumps(stated, ensure_ascii=False) + "\n", encoding="utf-8")
        return path
    # A process that was killed may have left half a line: the next job would be appended to it and lost with it.
    whole = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(whole.rfind(b"\n") + 1)
    return path


def _done(out: Path, stated: Mapping[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """The lines of every job that is done, from all work files.

    Those of an earlier run with more processes count too: a job's index does not depend on their number.
    """
    done: dict[int, list[dict[str, Any]]] = {}
    for path in sorted(out.glob(".predictions.*.work")):
        # What follows the last newline is empty, or half a line that another process is just writing.
        head, *rest = path.read_bytes().split(b"\n")[:-1] or [b"{}"]
        do = "give another --out, or delete it: its answers are then asked for again"
        _check_settings(out, parsed_json(head, f"line 1 of {path}", do, fields=()), stated)
        for number, line in enumerate(rest, 2):
            job = parsed_json(line, f"line {number} of {path}", do, fields=("job", "lines"))
            done[job["job"]] = job["lines"]
    return done


def _check_settings(out: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    other = [key for key in SETTINGS if found.get(key) != wanted.get(key)]
    if other:
        got = f"other {', '.join(other)}"
        raise DualSLMError(f"{out} was begun with other settings", got=got, do="give another --out, or delete it")


def _settings_of(out: Path) -> dict[str, Any]:
    """The settings of predictions that are complete."""
    try:
        meta = parsed_json((out / META).read_bytes(), str(out / META), "delete it", fields=("settings",))
    except (OSError, DualSLMError) as error:
        raise DualSLMError(
            f"{out / PREDICTIONS} is there, and nothing tells how it was made",
            got=f"no readable {META}",
            do="give another --out, or delete it",
        ) from error
    return dict(meta["settings"])


def assemble(
    out: Path, shares: Sequence[Answered], *, command: str = "", versions: Mapping[str, str] | None = None
) -> Path:
    """Waits for processes that are still at work, then writes all lines in the order of the jobs.

    Args:
        out: folder of the predictions.
        shares: what `answer` gave: of all processes that are known of, at least one.
        command: command line that the user gave, for the record.
        versions: versions of the packages, for the record.

    Returns:
        The file of predictions.
    """
    if (out / PREDICTIONS).exists():
        return out / PREDICTIONS
    stated, jobs, skipped = shares[0].stated, shares[0].jobs, shares[0].skipped
    while len(done := _done(out, stated)) < jobs:
        time.sleep(POLL_SECONDS)
    lines = [line for index in range(jobs) for line in done[index]]
    meta = {
        "command": command,
        "versions": dict(versions or {}),
        "took_s": max(share.took_s for share in shares),
        "cpu_s": round(sum(share.cpu_s for share in shares), 1),
        "settings": stated,
        "seed": stated.get("seed"),
        "n": len(lines),
        "skipped": dict(sorted(skipped.items())),
    }
    # The predictions come last: where they are, the meta file is too, and `run` takes the folder as finished.
    with replacing(out / META) as partial:
        partial.write_text(json.dumps(meta, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with replacing(out / PREDICTIONS) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    for path in out.glob(".predictions.*.work"):
        path.unlink()
    return out / PREDICTIONS


# ---------------------------------------------------------------------- reading them again


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file of predictions.

    Raises:
        DualSLMError: it cannot be read, or a line is no prediction: what is missing is never taken as empty.
    """
    with open_regular(path, "the predictions", "run predict first") as file:
        for number, line in enumerate(file, 1):
            if not is_blank(line):
                yield _record(line.removeprefix(BYTE_ORDER_MARK), f"{path} line {number}")


def _record(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DualSLMError(f"{where} is no prediction", got=str(error), do="run predict again") from error
    if (got := prediction_fields.wrong(row)) is not None:
        raise DualSLMError(f"{where} is no prediction", got=got, do="write it as docs/evaluation.md says")
    # Null is as good as absent: not every system tells likelihoods.
    return {name: value for name, value in row.items() if name != "likelihoods" or value is not None}
