"""`dualslm targets`: the frozen LLM writes the answers of the `respond` task (paper §III-B; docs/tasks.md).

Every line that asks for `respond` becomes a finished talk of kind `dual`, with the LLM's own reply to the styled
transcript, its provenance, and `early_stop`: whether the reply ended by itself, so that its end is learnt. Work
goes into a file of its own, a whole batch at a time; a run that was killed goes on after the last whole batch and
ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console
from rich.progress import Progress

from dualslm.conversation import Conversation, Reply
from dualslm.data.manifest import caption_of, moved, read_conversation
from dualslm.data.manifest_index import TARGETS, rows
from dualslm.data.tasks import NO_ANSWER, left_out, waiting
from dualslm.errors import DualSLMError
from dualslm.files import replacing, sha256
from dualslm.recipe import Recipe
from dualslm.training.teacher import Teacher, messages

SAMPLES = 24  # replies on the sheet
UNABLE = r"(can't|cannot|can not|won't|am unable to|am not able to)"
REFUSAL = re.compile(
    rf"((i'm|i am) (very |really |so )?sorry,? but |sorry,? but )?(i {UNABLE} "
    r"(help|assist|answer|respond|continue|provide|engage|discuss|comply|fulfil)"
    r"|(as|i'm|i am) (just |only )?an? (ai\b|artificial intelligence|(large )?language model))",
    re.IGNORECASE,
)
Row: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """Manifests, and the file that gets their targets."""

    sources: tuple[Path, ...]
    out: Path

    @property
    def work(self) -> Path:
        """What is done so far: a line of settings, then one for each talk."""
        return self.out.with_name(f".{self.out.name}.work")

    @property
    def report(self) -> Path:
        """Counts and provenance."""
        return self.out.with_suffix(".report.json")

    @property
    def samples(self) -> Path:
        """Replies to look at."""
        return self.out.with_suffix(".samples.md")


def jobs_of(recipe: Recipe, out: str | None = None) -> list[Job]:
    """The files to write: NAME.targets.jsonl beside every manifest with unwritten answers, or `out` for training.

    Raises:
        DualSLMError: no manifest has a line that asks for an answer.
    """
    also = [path for stage in recipe.stages for path in stage.also]
    train = [Path(path) for path in dict.fromkeys([*recipe.data.train, *also]) if not path.endswith(TARGETS)]
    validation = [Path(path) for path in recipe.data.validation if not path.endswith(TARGETS)]
    asking = [path for path in dict.fromkeys([*train, *(validation if out is None else [])]) if _wants(path)]
    if not asking:
        names = ", ".join(map(str, [*train, *validation])) or "no manifest"
        raise DualSLMError("no line asks for an answer", got=names, do='give lines with "tasks": ["respond"]')
    if out is not None:
        return [Job(tuple(asking), Path(out))]
    return [Job((path,), path.with_suffix(TARGETS)) for path in asking]


def write(job: Job, writer: Teacher, *, seed: int, batch: int = 16, limit: int | None = None) -> dict[str, Any]:
    """Writes the targets of one job; goes on where it was stopped.

    Args:
        job: what to read and write.
        writer: the LLM.
        seed: of prompts, captions and, where tokens are drawn, of replies.
        batch: talks that are answered at once.
        limit: only so many talks.

    Returns:
        The report.

    Raises:
        DualSLMError: targets of another LLM or of other settings stand there, or a manifest or server is amiss.
    """
    about = writer.about
    settings = {**about, "seed": seed, "batch": batch, "limit": limit, "sources": _sources(job.sources)}
    if job.out.exists():
        return _finished(job, settings)
    job.out.parent.mkdir(parents=True, exist_ok=True)
    done = _resume(job, settings, batch)
    total = sum(1 for _ in islice(_conversations(job, seed), limit))
    left = _batches(islice(_conversations(job, seed), done, limit), batch)
    with job.work.open("ab") as file, Progress(console=Console(stderr=True)) as bar:
        steps = bar.track(left, -(-(total - done) // batch), description="targets")
        for number, some in enumerate(steps, done // batch):
            replies = writer.write([conversation for _, conversation in some], zlib.crc32(f"{seed}/{number}".encode()))
            lines = [_line_of(*one, reply, about) for one, reply in zip(some, replies, strict=True)]
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())
    return _finish(job, settings)


def fault(text: str) -> str | None:
    """Why a reply is no target; None where it is one."""
    if not text.strip():
        return "empty"
    if "<think>" in text:
        return "thinks aloud"
    if text.lstrip().startswith("["):
        return "written as a styled transcript"
    return "refusal" if REFUSAL.match(text.strip().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")) else None


# ---------------------------------------------------------------------- talks in, lines out


def _conversations(job: Job, seed: int) -> Iterator[tuple[Row, Conversation]]:
    """Every talk that waits for its answer: as a line for the new file, and as the LLM reads it."""
    for path in job.sources:
        for _, row in rows(path):
            asked = waiting(row, seed)
            if asked is not None:
                conversation = read_conversation(asked, path.parent, seed)
                yield moved(_captioned(asked, seed), path.parent, job.out.parent), conversation


def _captioned(row: Row, seed: int) -> Row:
    """With the captions that the LLM reads, so that another seed does not change them afterwards."""

    def part(one: Any) -> Any:
        known = isinstance(one, Mapping) and caption_of(one, seed)
        return {**one, "caption": known} if known else one

    return {**row, "turns": [{**turn, "parts": [part(one) for one in turn["parts"]]} for turn in row["turns"]]}


def _batches(examples: Iterator[tuple[Row, Conversation]], size: int) -> Iterator[list[tuple[Row, Conversation]]]:
    while some := list(islice(examples, size)):
        yield some


def _line_of(row: Row, conversation: Conversation, reply: Reply, about: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the work file: a target, or why there is none."""
    if why := fault(reply.text):
        return {"id": row["id"], "dropped": why, "reply": reply.text}
    return _target(row, conversation, reply, about)


def _target(row: Row, conversation: Conversation, reply: Reply, about: Mapping[str, Any]) -> dict[str, Any]:
    prompt = hashlib.sha256(json.dumps(messages(conversation), ensure_ascii=False).encode()).hexdigest()
    return {
        **row,
        "turns": [*row["turns"], {"role": "assistant", "parts": [reply.text]}],
        "early_stop": reply.finished,
        "provenance": {**about, "view": "text,text", "prompt": prompt},
    }


def _wants(path: Path) -> bool:
    return any(waiting(row) is not None for _, row in rows(path))


# ---------------------------------------------------------------------- stopping and going on


def _sources(paths: Sequence[Path]) -> dict[str, str]:
    found = {}
    for path in paths:
        try:
            found[path.name] = sha256(path)
        except OSError as error:
            raise DualSLMError(f"cannot read the manifest {path}", got=error.strerror, do="check the path") from error
    return found


def _resume(job: Job, settings: Mapping[str, Any], batch: int) -> int:
    """How many talks are done; what comes after the last whole batch is cut off."""
    if job.work.exists():
        with job.work.open("r+b") as file:
            head = file.readline()
            if head.endswith(b"\n"):
                _check(job, json.loads(head), settings)
                whole, ends = 0, file.tell()
                for count, line in enumerate(iter(file.readline, b""), 1):
                    if line.endswith(b"\n") and count % batch == 0:
                        whole, ends = count, file.tell()
                file.truncate(ends)
                return whole
    with replacing(job.work) as partial:
        partial.write_text(json.dumps(settings) + "\n")
    return 0


def _check(job: Job, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuses to go on with another LLM or with other settings."""
    other = [key for key in wanted if found.get(key) != wanted[key]]
    if not other:
        return
    told = "; ".join(f"{key} {wanted[key]}, not {found.get(key)}" for key in other[:3])
    if {"llm", "revision", "fingerprint", "print"} & set(other):
        wrong = f"{job.out} has targets of another LLM, and one file holds those of one"
    else:
        wrong = f"{job.out} was begun with other settings"
    where = job.out if job.out.exists() else job.work
    raise DualSLMError(wrong, got=told, do=f"give another --out, or delete {where}")


def _finished(job: Job, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The report of a file that is there already."""
    try:
        found: dict[str, Any] = json.loads(job.report.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DualSLMError(
            f"{job.out} is there, and nothing tells how it was made",
            got=f"no readable {job.report.name}",
            do="give another --out, or delete it",
        ) from error
    _check(job, found["settings"], json.loads(json.dumps(settings)))
    job.work.unlink(missing_ok=True)
    return found


def _finish(job: Job, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Report, sheet of samples and, last, the targets, all from the work file."""
    counts, dropped = Counter[str](), Counter[str]()
    for line in _worked(job):
        if "dropped" in line:
            dropped[line["dropped"]] += 1
        else:
            counts["written"] += 1
            counts["cut off"] += not line["early_stop"]
    skipped = Counter(
        why
        for path in job.sources
        for _, row in rows(path)
        if (why := left_out(row).get("respond", NO_ANSWER)) != NO_ANSWER
    )
    report = {
        "written": counts["written"],
        "cut_off": counts["cut off"],
        "dropped": dict(sorted(dropped.items())),
        "not_asked": dict(sorted(skipped.items())),
        "settings": settings,
    }
    with replacing(job.samples) as partial:
        partial.write_text(_sheet(job, report), encoding="utf-8")
    with replacing(job.report) as partial:
        partial.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with replacing(job.out) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in _worked(job) if "dropped" not in line)
    job.work.unlink()
    return report


def _worked(job: Job) -> Iterator[dict[str, Any]]:
    with job.work.open(encoding="utf-8") as file:
        yield from map(json.loads, islice(file, 1, None))


# ---------------------------------------------------------------------- to look at


def _sheet(job: Job, report: Mapping[str, Any]) -> str:
    """Some replies, and some that were dropped, drawn by their ids."""

    def drawn(which: bool, count: int) -> list[dict[str, Any]]:
        lines = (line for line in _worked(job) if ("dropped" in line) == which)
        return heapq.nsmallest(count, lines, key=lambda line: zlib.crc32(str(line["id"]).encode()))

    dropped = ", ".join(f"{count} {why}" for why, count in report["dropped"].items()) or "none"
    said = [
        f"# Targets by {report['settings']['llm']}\n",
        f"{report['written']} written, {report['cut_off']} of them cut off; dropped: {dropped}.\n",
    ]
    said += [_sample(line, job.out.parent) for line in drawn(False, SAMPLES)]
    said += [f"## {line['id']} (dropped: {line['dropped']})\n\n> {_line(line['reply'])}\n" for line in drawn(True, 8)]
    return "\n".join(said)


def _sample(line: dict[str, Any], folder: Path) -> str:
    conversation = read_conversation(line, folder)
    turns = [f"- **{message['role']}**: {_line(message['content'])}" for message in messages(conversation)]
    return f"## {line['id']}{'' if line['early_stop'] else ' (cut off)'}\n\n" + "\n".join(turns) + "\n"


def _line(text: str) -> str:
    return " ".join(text.split()) or "(nothing)"
