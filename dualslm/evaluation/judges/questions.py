"""Turns predictions into questions to judges, and gives the verdict itself where a rule decides it.

An empty reply gets the lowest score and is not sent. Nor is a reply for which a judge would have to guess, without a
transcript or, under a protocol that shows it, without the way of speaking: it is unscored, with the reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dualslm.errors import DualSLMError
from dualslm.evaluation.judges.ask import Verdict
from dualslm.evaluation.judges.cache import digest
from dualslm.evaluation.judges.protocols import Item, Protocol, empty
from dualslm.evaluation.judges.spec import JudgeSpec

Row = Mapping[str, Any]
NEEDED = ("id", "system", "answer")
EMPTY = "empty reply: the least score, by rule"
# What an answer can depend on. The messages are in it as a hash: a changed transcript makes a new question.
ID = ("item_id", "system", "view", "judge", "model", "protocol", "repeat", "order", "prompt_sha")


@dataclass(frozen=True)
class Question:
    """One question to one judge.

    Attributes:
        judge: judge that is asked.
        protocol: protocol of the question.
        repeat: number of the repeat, from 0.
        known: part of the verdict's record that is known before the question is asked.
        messages: chat messages that are sent.
        settled: verdict by rule; None where the judge has to be asked.
    """

    judge: JudgeSpec
    protocol: Protocol
    repeat: int
    known: Mapping[str, Any]
    messages: Sequence[Mapping[str, str]] = field(repr=False)
    settled: Verdict | None = None

    @property
    def id(self) -> str:
        """Identity of the question: equal for questions that agree in all that their answer can depend on."""
        return identity(self.known)

    def record(self, verdict: Verdict) -> dict[str, Any]:
        """A line of verdicts.jsonl."""
        return {
            **self.known,
            "scores": verdict.scores,
            "status": "scored" if verdict.scores else "unscored",
            "reason": verdict.reason,
            "raw": verdict.raw,
            "rung": verdict.rung,
            "asked": verdict.asked,
            "latency": round(verdict.seconds, 4),
            "usage": verdict.usage,
            "served": verdict.served,
        }


def identity(record: Mapping[str, Any]) -> str:
    """A question's identity, from its record."""
    return digest([record.get(key) for key in ID])


def pointwise(
    rows: Sequence[Row], judges: Sequence[JudgeSpec], protocols: Sequence[Protocol], repeats: int, run_id: str | None
) -> list[Question]:
    """One question for each reply, judge, protocol and repeat."""
    replies = [row for row in _checked(rows) if row.get("task", "respond") == "respond"]
    return [
        _question(judge, protocol, repeat, {"run_id": run_id, **_about(row)}, [row])
        for protocol in protocols
        for row in replies
        for judge in judges
        for repeat in range(repeats)
    ]


def pairwise(
    rows: Sequence[Row],
    pairs: Sequence[tuple[str, str]],
    judges: Sequence[JudgeSpec],
    protocol: Protocol,
    run_id: str | None,
) -> list[Question]:
    """Two questions for each item that both systems of a pair answered: one in each order."""
    by_item: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in _checked(rows):
        by_item[row["id"]][label(row)] = row
    systems = list(dict.fromkeys(label(row) for row in rows))
    if unknown := [name for pair in pairs for name in pair if name not in systems]:
        raise DualSLMError("no such system", got=unknown[0], do=f"name two of {', '.join(systems)}")
    out = []
    for found in by_item.values():
        for one, two in pairs:
            if one in found and two in found:
                # Judges prefer what they read first or last: only both orders together tell that from a preference.
                for shown in ((one, two), (two, one)):
                    about = _about(found[one]) | {"system": f"{one} or {two}", "view": None, "order": [*shown]}
                    both = [found[name] for name in shown]
                    out += [_question(judge, protocol, 0, {"run_id": run_id, **about}, both) for judge in judges]
    return out


def label(row: Row) -> str:
    """A system with its view, as in tables: `tiny [speech,none]`; the name alone where it has no views."""
    return f"{row['system']} [{row['view']}]" if row.get("view") else str(row["system"])


def _checked(rows: Sequence[Row]) -> Iterator[Row]:
    for number, row in enumerate(rows, 1):
        if missing := [key for key in NEEDED if key not in row]:
            got = f"no {missing[0]} in row {number}"
            raise DualSLMError("that is no prediction", got=got, do="give every key; run predict again")
        yield row


def _about(row: Row) -> dict[str, Any]:
    return {
        "item_id": row["id"],
        "cluster": row.get("cluster"),
        "direction": row.get("direction"),
        "system": row["system"],
        "view": row.get("view"),
        "words": len(str(row["answer"] or "").split()),
    }


def _question(
    judge: JudgeSpec, protocol: Protocol, repeat: int, about: Mapping[str, Any], rows: Sequence[Row]
) -> Question:
    item = item_of(rows)
    messages = protocol.messages(item)
    known = {**about, "judge": judge.name, "model": judge.model, "protocol": protocol.id, "repeat": repeat}
    known |= {"protocol_sha": protocol.fingerprint, "prompt_sha": digest(messages)}
    return Question(judge, protocol, repeat, known, messages, _settled(protocol, item, rows))


def item_of(rows: Sequence[Row]) -> Item:
    """What a judge reads of one prediction, or of two for the same item that are compared."""
    row = rows[0]
    said = [row.get("asked"), row.get("transcript")]
    labels = [f"{name}: {value}" for name, value in (row.get("labels") or {}).items() if value is not None]
    return Item(
        history=tuple({"role": turn["role"], "text": turn["text"]} for turn in row.get("context") or ()),
        words="\n".join(part for part in said if part),
        delivery=row.get("caption") or ", ".join(labels) or None,
        replies=tuple(str(one["answer"] or "") for one in rows),
    )


def _settled(protocol: Protocol, item: Item, rows: Sequence[Row]) -> Verdict | None:
    """The verdict where no question can be asked, or a rule answers it; else None."""
    if any(row["answer"] is None for row in rows):
        return Verdict(reason="no reply in the predictions")
    if not rows[0].get("transcript"):
        return Verdict(reason="no transcript of what the user says")
    if protocol.styled and item.delivery is None:
        return Verdict(reason="no caption or label of how the user speaks")
    blank = [empty(reply) for reply in item.replies]
    if not any(blank):
        return None
    if not protocol.pairwise:
        return Verdict(scores=protocol.least, reason=EMPTY)
    better = "tie" if all(blank) else "second" if blank[0] else "first"
    return Verdict(scores={"better": better}, reason="empty reply: the other is better, by rule")
