"""Predictions → questions: what each judge is asked about each reply, and what is settled by rule.

An empty reply gets the least score and is not sent. What a judge would have to guess (no transcript, no way of
speaking for a protocol that shows it) is not sent either: it is unscored, with the reason.
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
ID = ("item_id", "system", "view", "judge", "model", "protocol", "repeat", "order", "prompt_sha")


@dataclass(frozen=True)
class Question:
    """One question to one judge.

    Attributes:
        judge: who is asked.
        protocol: by which.
        repeat: which time, from 0.
        known: the keys of its verdict's record that are known before it is asked.
        messages: that are sent.
        settled: the verdict where nothing has to be asked.
    """

    judge: JudgeSpec
    protocol: Protocol
    repeat: int
    known: Mapping[str, Any]
    messages: Sequence[Mapping[str, str]] = field(repr=False)
    settled: Verdict | None = None

    @property
    def id(self) -> str:
        """The same for a question that is the same in all that its answer can depend on."""
        return identity(self.known)

    def record(self, verdict: Verdict) -> dict[str, Any]:
        """A line of verdicts.jsonl."""
        found: dict[str, Any] = {"scores": verdict.scores, "status": "scored" if verdict.scores else "unscored"}
        found |= {"reason": verdict.reason, "raw": verdict.raw, "rung": verdict.rung, "asked": verdict.asked}
        return {
            **self.known,
            **found,
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
                for shown in ((one, two), (two, one)):
                    about = _about(found[one]) | {"system": f"{one} or {two}", "view": None, "order": [*shown]}
                    both = [found[name] for name in shown]
                    out += [_question(judge, protocol, 0, {"run_id": run_id, **about}, both) for judge in judges]
    return out


def label(row: Row) -> str:
    """A system with its view, as in tables: `tiny [speech,none]`; without one where it knows no views."""
    return f"{row['system']} [{row['view']}]" if row.get("view") else str(row["system"])


def _checked(rows: Sequence[Row]) -> Iterator[Row]:
    for place, row in enumerate(rows):
        if missing := [key for key in NEEDED if key not in row]:
            got = f"no {missing[0]} in row {place + 1}"
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
    known |= {"protocol_sha": protocol.print, "prompt_sha": digest(messages)}
    return Question(judge, protocol, repeat, known, messages, _settled(protocol, item, rows))


def item_of(rows: Sequence[Row]) -> Item:
    """What is shown of predictions for the same item: one, or two to be compared."""
    row = rows[0]
    said = [row.get("asked"), row.get("transcript")]
    return Item(
        history=tuple({"role": turn["role"], "text": turn["text"]} for turn in row.get("context") or ()),
        words="\n".join(part for part in said if part),
        delivery=row.get("caption") or _spelt(row.get("labels") or {}),
        replies=tuple(str(one["answer"] or "") for one in rows),
    )


def _spelt(labels: Mapping[str, Any]) -> str | None:
    return ", ".join(f"{name}: {value}" for name, value in labels.items() if value is not None) or None


def _settled(protocol: Protocol, item: Item, rows: Sequence[Row]) -> Verdict | None:
    """The verdict that needs no judge: no question can be asked, or a rule answers it."""
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
