"""`dualslm targets`: the frozen LLM writes the replies of the `respond` task (paper §III-B; docs/tasks.md).

Every line that asks for `respond` becomes a finished example of kind `dual`, with the LLM's own reply to the styled
transcript, its provenance, and `early_stop`: whether the reply ended by itself, so that its end is learnt. Replies go
into a work file first, a whole batch at a time; a run that was killed is resumed after the last whole batch and ends
with the same bytes.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import re
import zlib
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from dualslm.conversation import Conversation, Reply
from dualslm.data.cluster import Each
from dualslm.data.manifest import caption_of, moved, read_conversation
from dualslm.data.manifest_index import TARGETS, rows
from dualslm.data.progress import Progress
from dualslm.data.tasks import NO_ANSWER, left_out, waiting
from dualslm.errors import DualSLMError
from dualslm.files import parsed_json, replacing, sha256
from dualslm.model.reasoning import ALOUD, UNMARKED, separate
from dualslm.recipe import Recipe
from dualslm.training.teacher import Teacher, messages

AGAIN = "give another --out, or delete it: its replies are then drawn again"
SHOWN_TARGETS = 24  # on the sheet of samples
SHOWN_DROPPED = 8  # replies that are no target, on the same sheet
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
    """Manifests, and the file that their targets are written to.

    Attributes:
        sources: paths of the manifests.
        out: path of the targets, a manifest too.
    """

    sources: tuple[Path, ...]
    out: Path

    @property
    def work(self) -> Path:
        """The file of what is done so far: a line of settings, then one for each example."""
        return self.out.with_name(f".{self.out.name}.work")

    @property
    def report(self) -> Path:
        """The file of counts and settings."""
        return self.out.with_suffix(".report.json")

    @property
    def samples(self) -> Path:
        """The file of some replies, to look at."""
        return self.out.with_suffix(".samples.md")


def jobs_of(recipe: Recipe, out: str | None = None) -> list[Job]:
    """The files to write: NAME.targets.jsonl beside every manifest that asks for replies.

    Args:
        recipe: recipe with the manifests.
        out: one file for all training manifests instead; nothing is then written for validation.

    Raises:
        DualSLMError: no manifest has a line that asks for a reply.
    """
    also = [path for stage in recipe.stages for path in stage.also]
    train = [Path(path) for path in dict.fromkeys([*recipe.data.train, *also]) if not path.endswith(TARGETS)]
    validation = [Path(path) for path in recipe.data.validation if not path.endswith(TARGETS)]
    manifests = dict.fromkeys([*train, *(validation if out is None else [])])
    asking = [path for path in manifests if any(waiting(row) is not None for _, row in rows(path))]
    if not asking:
        names = ", ".join(map(str, [*train, *validation])) or "no manifest"
        raise DualSLMError("no line asks for an answer", got=names, do='give lines with "tasks": ["respond"]')
    if out is not None:
        return [Job(tuple(asking), Path(out))]
    return [Job((path,), path.with_suffix(TARGETS)) for path in asking]


def write(
    job: Job, writer: Teacher, *, seed: int, batch: int = 16, limit: int | None = None, each: Each = map
) -> dict[str, Any]:
    """Writes the targets of one job, or resumes it where it was stopped.

    Args:
        job: manifests to read, and file to write.
        writer: LLM that replies.
        seed: seed of prompts, captions and, where tokens are drawn, of replies.
        batch: number of examples that are answered at once.
        limit: largest number of examples; all when None.
        each: what does everything that needs the LLM: `map` does it here, `Cluster.map` on many machines.

    Returns:
        The report.

    Raises:
        DualSLMError: targets of another LLM or of other settings are there already, a manifest that cannot be read, or
            a server that does not answer.
    """
    [provenance] = each(lambda one: one.about, [writer])
    settings = {**provenance, "seed": seed, "batch": batch, "limit": limit, "sources": _hashes(job.sources)}
    if job.out.exists():
        return _finished(job, settings)
    job.out.parent.mkdir(parents=True, exist_ok=True)
    done = _resume(job, settings, batch)
    total = sum(1 for _ in islice(_examples(job, seed), limit))
    left = islice(_examples(job, seed), done, limit)
    asked: deque[list[tuple[Row, Conversation]]] = deque()  # batches whose replies are awaited

    def questions() -> Iterator[tuple[list[Conversation], int]]:
        for number, examples in enumerate(iter(lambda: list(islice(left, batch)), []), done // batch):
            asked.append(examples)
            # A batch's seed follows from its number, so a resumed run draws the same replies.
            yield [conversation for _, conversation in examples], zlib.crc32(f"{seed}/{number}".encode())

    with job.work.open("ab") as file, Progress("targets", total, done) as progress:
        for replies in each(lambda question: writer.write(*question), questions()):
            for (row, conversation), reply in zip(asked.popleft(), replies, strict=True):
                line = _line(row, conversation, reply, provenance)
                file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())  # a crash of the machine loses one batch at most
            progress.update(progress.done + len(replies))
    return _finish(job, settings)


def _line(row: Row, conversation: Conversation, reply: Reply, provenance: Mapping[str, Any]) -> Row:
    """A line of the work file: a target without the chain of thought, or a reply that is none, with the reason."""
    answer, thought = separate(reply.text)
    # What kind of thought was cut off is for `_settled`, and in no manifest.
    known = {} if thought == "none" else {"thought": thought}
    why = ALOUD if thought != "none" and not answer else fault(answer)
    if why:
        return {"id": row["id"], "dropped": why, "reply": reply.text, **known}
    return {**_target(row, conversation, replace(reply, text=answer), provenance), **known}


def fault(text: str) -> str | None:
    """Why a reply is no target; None where it is one."""
    if not text.strip():
        return "empty"
    if separate(text).thought == "endless":
        return ALOUD
    if text.lstrip().startswith("["):
        return "written as a styled transcript"
    return "refusal" if REFUSAL.match(text.strip().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")) else None


# ---------------------------------------------------------------------- examples in, lines out


def _examples(job: Job, seed: int) -> Iterator[tuple[Row, Conversation]]:
    """Every example that waits for its reply: as a line of the new file, and as the LLM reads it."""
    for path in job.sources:
        for _, row in rows(path):
            asked = waiting(row, seed)
            if asked is not None:
                conversation = read_conversation(asked, path.parent, seed)
                yield moved(_captioned(asked, seed), path.parent, job.out.parent), conversation


def _captioned(row: Row, seed: int) -> Row:
    """A line with the captions that the LLM reads, so that a training with another seed does not draw other ones."""

    def with_caption(part: Any) -> Any:
        caption = caption_of(part, seed) if isinstance(part, Mapping) else None
        return {**part, "caption": caption} if caption else part

    return {
        **row,
        "turns": [{**turn, "parts": [with_caption(part) for part in turn["parts"]]} for turn in row["turns"]],
    }


def _target(row: Row, conversation: Conversation, reply: Reply, provenance: Mapping[str, Any]) -> Row:
    """A finished line, with what its reply was made from."""
    prompt = hashlib.sha256(json.dumps(messages(conversation), ensure_ascii=False).encode()).hexdigest()
    return {
        **row,
        "turns": [*row["turns"], {"role": "assistant", "parts": [reply.text]}],
        "early_stop": reply.finished,
        "provenance": {**provenance, "view": "text,text", "prompt": prompt},
    }


# ---------------------------------------------------------------------- stopping and resuming


def _hashes(paths: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of each manifest by file name: targets of a manifest that was changed do not belong to it."""
    found = {}
    for path in paths:
        try:
            found[path.name] = sha256(path)
        except OSError as error:
            raise DualSLMError(f"cannot read the manifest {path}", got=error.strerror, do="check the path") from error
    return found


def _resume(job: Job, settings: Mapping[str, Any], batch: int) -> int:
    """The number of examples that are done; what comes after the last whole batch is cut off.

    Half a batch may hold half a line, and its replies would have to be drawn again with the batch's seed anyway.
    """
    if job.work.exists():
        with job.work.open("r+b") as file:
            head = file.readline()
            if head.endswith(b"\n"):
                _check_settings(job, parsed_json(head, f"line 1 of {job.work}", AGAIN, fields=()), settings)
                done = 0
                end = file.tell()
                for count, line in enumerate(iter(file.readline, b""), 1):
                    if line.endswith(b"\n") and count % batch == 0:
                        done = count
                        end = file.tell()
                file.truncate(end)
                return done
    with replacing(job.work) as partial:
        partial.write_text(json.dumps(settings) + "\n")
    return 0


def _check_settings(job: Job, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuses to go on with another LLM or with other settings."""
    other = [key for key in wanted if found.get(key) != wanted[key]]
    if not other:
        return
    if {"llm", "revision", "fingerprint", "print"} & set(other):
        wrong = f"{job.out} has targets of another LLM, and one file holds those of one"
    else:
        wrong = f"{job.out} was begun with other settings"
    differences = "; ".join(f"{key} {wanted[key]}, not {found.get(key)}" for key in other[:3])
    file = job.out if job.out.exists() else job.work
    raise DualSLMError(wrong, got=differences, do=f"give another --out, or delete {file}")


def _finished(job: Job, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The report of targets that are there already."""
    try:
        text = job.report.read_bytes()
        found: dict[str, Any] = parsed_json(text, str(job.report), AGAIN, fields=("settings",))
    except (OSError, DualSLMError) as error:
        raise DualSLMError(
            f"{job.out} is there, without a report of how it was made",
            got=f"no readable {job.report.name}",
            do="give another --out, or delete it",
        ) from error
    _check_settings(job, found["settings"], json.loads(json.dumps(settings)))  # compared as JSON gives it back
    job.work.unlink(missing_ok=True)  # a run may be killed between the targets and this
    return found


def _finish(job: Job, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Writes report, sheet of samples and targets from the work file, and deletes it.

    The targets come last: where they are, everything is.
    """
    written = cut_off = thoughts = 0
    dropped = Counter[str]()
    for line in _settled(job):
        thoughts += line.pop("thought", None) is not None and "dropped" not in line
        if "dropped" in line:
            dropped[line["dropped"]] += 1
        else:
            written += 1
            cut_off += not line["early_stop"]
    not_asked = Counter(
        why
        for path in job.sources
        for _, row in rows(path)
        if (why := left_out(row).get("respond", NO_ANSWER)) != NO_ANSWER
    )
    report = {
        "written": written,
        "cut_off": cut_off,
        "thoughts": thoughts,
        "dropped": dict(sorted(dropped.items())),
        "not_asked": dict(sorted(not_asked.items())),
        "settings": settings,
    }
    with replacing(job.samples) as partial:
        partial.write_text(_sheet(job, report), encoding="utf-8")
    with replacing(job.report) as partial:
        partial.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with replacing(job.out) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(
            json.dumps({key: value for key, value in line.items() if key != "thought"}, ensure_ascii=False) + "\n"
            for line in _settled(job)
            if "dropped" not in line
        )
    job.work.unlink()
    return report


def _work_lines(job: Job) -> Iterator[dict[str, Any]]:
    """The lines of the work file after its settings."""
    with job.work.open("rb") as file:
        for number, line in enumerate(islice(file, 1, None), 2):
            yield parsed_json(line, f"line {number} of {job.work}", AGAIN, fields=())


def _settled(job: Job) -> Iterator[dict[str, Any]]:
    """The lines of the work file, without replies that are thoughts throughout.

    A closing tag alone shows that the LLM's chat template opens a thought before every reply, so a reply without that
    tag, for example one that was cut off, never came to its answer.
    """
    opened = any(line.get("thought") == "opened" for line in _work_lines(job))
    for line in _work_lines(job):
        if opened and "thought" not in line and "dropped" not in line:
            yield {"id": line["id"], "dropped": UNMARKED, "reply": line["turns"][-1]["parts"][0]}
        else:
            yield line


# ---------------------------------------------------------------------- to look at


def _sheet(job: Job, report: Mapping[str, Any]) -> str:
    """Some targets, and some replies that were dropped, in Markdown."""

    def chosen(dropped: bool, count: int) -> list[dict[str, Any]]:
        # By the hash of their ids: a resumed run chooses the same, and no more than `count` lines are in memory.
        lines = (line for line in _settled(job) if ("dropped" in line) == dropped)
        return heapq.nsmallest(count, lines, key=lambda line: zlib.crc32(str(line["id"]).encode()))

    dropped = ", ".join(f"{count} {why}" for why, count in report["dropped"].items()) or "none"
    sections = [
        f"# Targets by {report['settings']['llm']}\n",
        f"{report['written']} written, {report['cut_off']} of them cut off; dropped: {dropped}.\n",
        *([f"A chain of thought was cut from {report['thoughts']} of them.\n"] if report["thoughts"] else []),
    ]
    for line in chosen(False, SHOWN_TARGETS):
        conversation = read_conversation(line, job.out.parent)
        turns = [f"- **{message['role']}**: {_one_line(message['content'])}" for message in messages(conversation)]
        title = f"## {line['id']}{'' if line['early_stop'] else ' (cut off)'}"
        sections.append("\n".join([f"{title}\n", *turns]) + "\n")
    for line in chosen(True, SHOWN_DROPPED):
        sections.append(f"## {line['id']} (dropped: {line['dropped']})\n\n> {_one_line(line['reply'])}\n")
    return "\n".join(sections)


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "(nothing)"
