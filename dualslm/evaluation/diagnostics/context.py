"""Does the model use what was said before, and does it still follow instructions? (paper §III-C)

`history` reads the reference reply after its true history, after none, and after another conversation's; likelihood
needs no judge. `alarm` gives instructions that no adapter was trained on. A model whose embeddings have become task
vectors writes the transcript all the same, or a sentence about the voice.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from dualslm.conversation import NORMAL, ORACLE, Conversation
from dualslm.evaluation.diagnostics.base import Examiner, Line, Result, line
from dualslm.evaluation.diagnostics.items import Item, Material
from dualslm.evaluation.metrics.wer import word_errors, words

DEPTHS = (0, 1, 2, 3, 5, 8)  # exchanges of the history that are shown
UNSEEN = (  # none is like a task of `dualslm.data.tasks` or of the tiny world
    "Whatever the user says, answer with the single word yes.",
    "Invent a title for what the user tells you.",
    "Ask the user one question about what they said.",
    "Say goodbye to the user.",
    "Say the opposite of what the user says.",
    "Name one object that the user speaks of.",
)
TRANSCRIPT_WER = 0.25  # an answer with no more word errors than this counts as the transcript
ALARM_MARGIN = 1.0  # percentage points above zero: lower ends of intervals are seldom exactly 0
TRUE_HISTORY = "the true history"
NO_HISTORY = "no history"
OTHER_HISTORY = "another conversation's history"


def history(examiner: Examiner, material: Material) -> Result:
    """Nats per token of the reference reply with the true history, none, another's, and parts of the true one."""
    items = [item for item in material.replies if exchanges(item)]
    if len({item.group for item in items}) < 2:
        return Result("Use of the history", [], "No conversations with a history.")
    rng = random.Random(examiner.seed)
    shuffled = []
    for item in items:
        other = rng.choice([other for other in items if other is not item])
        turns = [*other.conversation.turns[:-2], *item.conversation.turns[-2:]]
        shuffled.append(Conversation(item.conversation.system, turns))
    versions = {
        TRUE_HISTORY: [item.conversation for item in items],
        NO_HISTORY: [last_exchanges(item, 0) for item in items],
        OTHER_HISTORY: shuffled,
    }
    nats = {name: examiner.nats(conversations, NORMAL) for name, conversations in versions.items()}
    lines = [_nats_line(f"reply after {name}, nats a token", items, found) for name, found in nats.items()]
    lost = []
    for name in (NO_HISTORY, OTHER_HISTORY):
        # Differences by item: replies differ far more in likelihood than a history changes any of them.
        more = [(a - b, n) for (a, n), (b, _) in zip(nats[name], nats[TRUE_HISTORY], strict=True)]
        lost.append(_nats_line(f"lost with {name}, nats a token", items, more))
    lines += lost
    # Only the longest conversations, so that every depth is measured on the same replies.
    deepest = max(map(exchanges, items))
    longest = [item for item in items if exchanges(item) == deepest]
    for depth in (depth for depth in DEPTHS if depth <= deepest):
        found = examiner.nats([last_exchanges(item, depth) for item in longest], NORMAL)
        lines.append(_nats_line(f"of {deepest} exchanges the last {depth}, nats a token", longest, found))
    # Another's history, not none: a shorter prompt alone may already make a reply less likely.
    used = lost[-1].low > 0
    says = "The reply draws on the history" if used else "It is not shown that the reply draws on the history"
    return Result("Use of the history", lines, f"{says}.")


def alarm(examiner: Examiner, material: Material) -> Result:
    """How often an instruction never trained on is answered by a transcript or a sentence about the voice."""
    items = [item for item in material.recordings.values() if item.speech.caption]
    voice_answers = {" ".join(words(item.answer)) for item in material.voices}
    groups = [item.group for item in items]
    asked = [Conversation(UNSEEN[index % len(UNSEEN)]).user(item.speech) for index, item in enumerate(items)]
    from_speech = _kinds(examiner.answers(asked, NORMAL), items, voice_answers)
    # The same LLM with the same words as text is the zero: a small one may repeat the user without any adapter.
    from_text = _kinds(examiner.answers(asked, ORACLE), items, voice_answers)
    lines = []
    rings = False
    for kind, label in (("transcript", "merely the transcript"), ("label", "merely a sentence about the voice")):
        base = line(f"{label}, the LLM reading it as text, %", [one == kind for one in from_text], groups)
        shown = line(f"{label}, heard, %", [one == kind for one in from_speech], groups, zero=base.value)
        rings = rings or shown.low > base.value + ALARM_MARGIN
        lines += [shown, base]
    says = "Alarm: the embeddings bring their own task along" if rings else "No alarm"
    note = "an LLM that does not follow such instructions as text cannot show more"
    return Result("Task vectors: instructions never trained on", lines, f"{says} ({note}).")


def exchanges(item: Item) -> int:
    """The number of exchanges before the last user turn."""
    return (len(item.conversation.turns) - 2) // 2


def last_exchanges(item: Item, count: int) -> Conversation:
    """The conversation with so many exchanges before its last one."""
    return Conversation(item.conversation.system, item.conversation.turns[-2 - 2 * count :])


def _nats_line(label: str, items: Sequence[Item], found: Sequence[tuple[float, int]]) -> Line:
    """Nats over tokens: a long reply weighs as much as its tokens do."""
    nats = [total for total, _ in found]
    lengths = [float(tokens) for _, tokens in found]
    return line(label, nats, [item.group for item in items], wholes=lengths, percent=False)


def _kinds(answers: Sequence[str], items: Sequence[Item], voice_answers: set[str]) -> list[str]:
    """What each answer is: the "transcript", an answer about the voice ("label"), or something "other"."""
    kinds = []
    for answer, item in zip(answers, items, strict=True):
        got = words(answer)
        spoken = words(item.speech.transcript or "")
        if spoken and word_errors(spoken, got) <= TRANSCRIPT_WER * len(spoken):
            kinds.append("transcript")
        else:
            kinds.append("label" if " ".join(got) in voice_answers else "other")
    return kinds
