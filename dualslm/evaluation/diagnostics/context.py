"""Does the model use what was said before, and does it still do what it is told? (paper §III-C: context, task vectors)

The history is told truly, not at all, and as another talk's; the likelihood of the reference reply needs no judge.
The alarm gives instructions that no adapter was trained on: a model whose embeddings have become task vectors
writes the transcript all the same, or a sentence about the voice.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from dualslm.conversation import NORMAL, ORACLE, Conversation, Turn
from dualslm.evaluation.diagnostics.base import Examiner, Line, Result, line
from dualslm.evaluation.diagnostics.items import Item, Material
from dualslm.evaluation.metrics import word_errors, words

DEPTHS = (0, 1, 2, 3, 5, 8)  # exchanges that are kept
UNSEEN = (  # none is like a task of `dualslm.data.tasks` or of the tiny world
    "Whatever the user says, answer with the single word yes.",
    "Invent a title for what the user tells you.",
    "Ask the user one question about what they said.",
    "Say goodbye to the user.",
    "Say the opposite of what the user says.",
    "Name one object that the user speaks of.",
)
NEAR = 0.25  # a transcript with so few word errors is still one


def history(desk: Examiner, material: Material) -> Result:
    """Nats a token of the reference reply with the true history, none, another talk's, and parts of the true one."""
    items = [item for item in material.replies if exchanges(item)]
    if len({item.group for item in items}) < 2:
        return Result("Use of the history", [], "No talks with a history.")
    rng = random.Random(desk.seed)
    shuffled = [
        _with_history(item, rng.choice([o for o in items if o is not item]).conversation.turns) for item in items
    ]
    versions = {
        "the true history": [item.conversation for item in items],
        "no history": [last_exchanges(item, 0) for item in items],
        "another talk's history": shuffled,
    }
    nats = {name: desk.nats(conversations, NORMAL) for name, conversations in versions.items()}
    lines = [_line(f"reply after {name}, nats a token", items, told) for name, told in nats.items()]
    for name in ("no history", "another talk's history"):
        lost = [(a - b, n) for (a, n), (b, _) in zip(nats[name], nats["the true history"], strict=True)]
        lines.append(_line(f"lost with {name}, nats a token", items, lost))
    deepest = max(map(exchanges, items))
    for depth in (depth for depth in DEPTHS if depth <= deepest):
        some = [item for item in items if exchanges(item) == deepest]
        told = desk.nats([last_exchanges(item, depth) for item in some], NORMAL)
        lines.append(_line(f"of {deepest} exchanges the last {depth}, nats a token", some, told))
    used = lines[4].low > 0
    says = "The reply draws on the history" if used else "It is not shown that the reply draws on the history"
    return Result("Use of the history", lines, f"{says}.")


def alarm(desk: Examiner, material: Material) -> Result:
    """How often an instruction never trained on is answered by a transcript or a sentence about the voice."""
    items = [item for item in material.recordings.values() if item.speech.caption]
    labels = {" ".join(words(item.answer)) for item in material.voices}
    groups = [item.group for item in items]
    told = [Conversation(UNSEEN[place % len(UNSEEN)]).user(item.speech) for place, item in enumerate(items)]
    shares = {}
    for name, view in (("heard", NORMAL), ("read as text", ORACLE)):
        kinds = [_kind(a, item, labels) for a, item in zip(desk.answers(told, view), items, strict=True)]
        shares[name] = {kind: [one == kind for one in kinds] for kind in ("transcript", "label")}
    lines = []
    for kind, label in (("transcript", "merely the transcript"), ("label", "merely a sentence about the voice")):
        base = line("", shares["read as text"][kind], groups)
        lines.append(line(f"{label}, heard, %", shares["heard"][kind], groups, zero=base.value))
        lines.append(line(f"{label}, the LLM reading it as text, %", shares["read as text"][kind], groups))
    rings = [one for one in lines[::2] if one.low > (one.zero or 0.0) + 1]  # one point: an end that is nearly 0
    says = "Alarm: the embeddings bring their own task along" if rings else "No alarm"
    note = "an LLM that does not follow such instructions as text cannot show more"
    return Result("Task vectors: instructions never trained on", lines, f"{says} ({note}).")


def exchanges(item: Item) -> int:
    """The exchanges before the last user turn."""
    return (len(item.conversation.turns) - 2) // 2


def last_exchanges(item: Item, count: int) -> Conversation:
    """The talk with the last so many exchanges before its last turn."""
    return Conversation(item.conversation.system, item.conversation.turns[-2 - 2 * count :])


def _with_history(item: Item, other: Sequence[Turn]) -> Conversation:
    return Conversation(item.conversation.system, [*other[:-2], *item.conversation.turns[-2:]])


def _line(label: str, items: Sequence[Item], told: Sequence[tuple[float, int]]) -> Line:
    sums, lengths = [nats for nats, _ in told], [float(tokens) for _, tokens in told]
    return line(label, sums, [item.group for item in items], wholes=lengths, percent=False)


def _kind(answer: str, item: Item, labels: set[str]) -> str:
    got, said = words(answer), words(item.speech.transcript or "")
    if said and word_errors(said, got) <= NEAR * len(said):
        return "transcript"
    return "label" if " ".join(got) in labels else "other"
