"""Leaks: what a channel should not know (paper Tables I and III, the columns that they leave out).

Tone from L alone is compared with its proper zero: words tell of emotion too, so the zero is what the LLM makes of
the transcript, or the commonest value where that is more. Words from P alone are counted in two ways: as words that
are written, and as the right transcript among others, which finds what is known and cannot be written.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from dualslm.conversation import L_ONLY, NORMAL, NOTHING, P_ONLY, TRANSCRIPT, View
from dualslm.evaluation.diagnostics.base import Examiner, Line, Result, line
from dualslm.evaluation.diagnostics.items import Item, Material, with_value
from dualslm.evaluation.metrics.wer import word_errors, words

AMONG = 100  # transcripts to choose from
LEAK_MARGIN = 1.0  # percentage points above zero: lower ends of intervals are seldom exactly 0


def tone_from_words(examiner: Examiner, material: Material) -> Result:
    """An attribute from L alone against the commonest value and the LLM that reads the transcript."""
    attribute = material.attribute
    items = material.about(attribute)
    values = material.choices(attribute)
    groups = [item.group for item in items]
    truth = [item.speech.labels[attribute] for item in items]
    commonest = max(truth.count(value) for value in values) / len(truth)
    right = {}
    for view in (L_ONLY, P_ONLY, NORMAL, TRANSCRIPT):
        answers = likeliest_values(examiner, items, attribute, values, view)
        right[view] = [a == b for a, b in zip(answers, truth, strict=True)]
    # Not chance: a sad sentence read aloud would then count as a leak, however it is said.
    zero = 100 * max(commonest, sum(right[TRANSCRIPT]) / len(truth))
    labels = {L_ONLY: "L alone", P_ONLY: "P alone", NORMAL: "P and L", TRANSCRIPT: "the LLM reading the transcript"}
    lines = [
        line(f"{attribute} from {labels[view]}, %", right[view], groups, zero=zero if view == L_ONLY else None)
        for view in right
    ]
    found = lines[0].low > zero
    says = "L tells more of the tone than words can: it leaks" if found else "no leak of the tone into L can be seen"
    return Result(f"Leak: {attribute} from L", lines, f"{says} (zero {zero:.0f} %, {commonest:.0%} the commonest).")


def likeliest_values(
    examiner: Examiner, items: Sequence[Item], attribute: str, values: Sequence[str], view: View
) -> list[str]:
    """For each item the value of the attribute whose answer is likeliest."""
    choices = [[item.saying(with_value(item, attribute, value)) for value in values] for item in items]
    return [values[index] for index in examiner.likeliest(choices, view)]


def words_from_tone(examiner: Examiner, material: Material, *, among: int = AMONG) -> Result:
    """The words from P alone: written, and chosen among others."""
    items = material.words
    groups = [item.group for item in items]
    references = [words(item.answer) for item in items]
    answers = examiner.answers([item.asked for item in items], P_ONLY)
    # A hallucinated answer may have more errors than the reference has words: none of its words is right, not fewer.
    right = [max(0, len(ref) - word_errors(ref, words(a))) for ref, a in zip(references, answers, strict=True)]
    lengths = [len(reference) for reference in references]
    written = line("words right from P alone (100 - WER), %", right, groups, wholes=lengths)
    chosen = _chosen(examiner, items, min(among, len({item.answer for item in items})))
    lines = [written, chosen]
    leaks = [one for one in lines if one.low > (one.zero or 0) + LEAK_MARGIN]
    says = "P tells of the words: it leaks" if leaks else "no leak of the words into P can be seen"
    return Result("Leak: words from P", lines, f"{says}.")


def _chosen(examiner: Examiner, items: Sequence[Item], among: int) -> Line:
    """How often the right transcript gains most likelihood from P, of so many."""
    texts = list(dict.fromkeys(item.answer for item in items))
    # A quarter of the items: each costs 2 · `among` forward passes, more than all that the other diagnostics ask of it.
    some = list(items)[: max(10, len(items) // 4)]
    right = []
    for item in some:
        rng = random.Random(f"{examiner.seed}/{item.speech.audio!s}")
        others = rng.sample([text for text in texts if text != item.answer], among - 1)
        conversations = [item.saying(text) for text in (item.answer, *others)]
        with_p = examiner.nats(conversations, P_ONLY)
        without = examiner.nats(conversations, NOTHING)
        # The gain over hearing nothing: by likelihood alone, the shortest and plainest sentence would always win.
        gains = [b - a for (a, _), (b, _) in zip(with_p, without, strict=True)]
        right.append(gains[0] > max(gains[1:], default=0.0))
    label = f"the right transcript among {among} from P alone, %"
    return line(label, right, [item.group for item in some], zero=100 / among)
