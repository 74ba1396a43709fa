"""Leak cells: what a channel should not know (paper Tables I and III, the columns that they leave out).

Tone from L alone is held against its proper zero: words tell of emotion too, so the zero is what the LLM makes of
the transcript, or the commonest value where that is more. Words from P alone are counted in two ways: as words
written down, and as the right transcript among others, which finds what is known and cannot be written.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from dualslm.conversation import L_ONLY, NORMAL, NOTHING, P_ONLY, TRANSCRIPT, View
from dualslm.evaluation.diagnostics.base import Examiner, Line, Result, line
from dualslm.evaluation.diagnostics.items import Item, Material, with_value
from dualslm.evaluation.metrics import word_errors, words

AMONG = 100  # transcripts to choose from


def tone_from_words(desk: Examiner, material: Material) -> Result:
    """An attribute from L alone against the commonest value and the LLM that reads the transcript."""
    attribute = material.attribute
    items, values = material.about(attribute), material.choices(attribute)
    groups = [item.group for item in items]
    truth = [item.speech.labels[attribute] for item in items]
    told = {view: heard(desk, items, attribute, values, view) for view in (L_ONLY, P_ONLY, NORMAL, TRANSCRIPT)}
    commonest = max(truth.count(value) for value in values) / len(truth)
    right = {view: [a == b for a, b in zip(told[view], truth, strict=True)] for view in told}
    zero = 100 * max(commonest, sum(right[TRANSCRIPT]) / len(truth))
    labels = {L_ONLY: "L alone", P_ONLY: "P alone", NORMAL: "P and L", TRANSCRIPT: "the LLM reading the transcript"}
    lines = [
        line(f"{attribute} from {labels[view]}, %", right[view], groups, zero=zero if view == L_ONLY else None)
        for view in (L_ONLY, P_ONLY, NORMAL, TRANSCRIPT)
    ]
    found = lines[0].low > zero
    says = "L tells more of the tone than words can: it leaks" if found else "no leak of the tone into L can be seen"
    return Result(f"Leak: {attribute} from L", lines, f"{says} (zero {zero:.0f} %, {commonest:.0%} the commonest).")


def heard(desk: Examiner, items: Sequence[Item], attribute: str, values: Sequence[str], view: View) -> list[str]:
    """The value whose answer is likeliest, of each item."""
    choices = [[item.saying(with_value(item, attribute, value)) for value in values] for item in items]
    return [values[place] for place in desk.likeliest(choices, view)]


def words_from_tone(desk: Examiner, material: Material, *, among: int = AMONG) -> Result:
    """The words from P alone: written down, and chosen among others."""
    items = material.words
    groups = [item.group for item in items]
    pairs = [
        (words(item.answer), words(answer))
        for item, answer in zip(items, desk.answers([item.asked for item in items], P_ONLY), strict=True)
    ]
    right = [max(0, len(said) - word_errors(said, got)) for said, got in pairs]
    written = line("words right from P alone (100 - WER), %", right, groups, wholes=[len(said) for said, _ in pairs])
    chosen = _chosen(desk, items, min(among, len({item.answer for item in items})))
    lines = [written, chosen]
    leaks = [one for one in lines if one.low > (one.zero or 0) + 1]
    says = "P tells of the words: it leaks" if leaks else "no leak of the words into P can be seen"
    return Result("Leak: words from P", lines, f"{says}.")


def _chosen(desk: Examiner, items: Sequence[Item], among: int) -> Line:
    """How often the right transcript gains most from P, of so many, over what it is worth with nothing heard."""
    texts = list(dict.fromkeys(item.answer for item in items))
    some = list(items)[: max(10, len(items) // 4)]
    right = []
    for item in some:
        rng = random.Random(f"{desk.seed}/{item.speech.audio!s}")
        others = rng.sample([text for text in texts if text != item.answer], among - 1)
        conversations = [item.saying(text) for text in (item.answer, *others)]
        gains = [
            b - a
            for (a, _), (b, _) in zip(desk.nats(conversations, P_ONLY), desk.nats(conversations, NOTHING), strict=True)
        ]
        right.append(gains[0] > max(gains[1:], default=0.0))
    label = f"the right transcript among {among} from P alone, %"
    return line(label, right, [item.group for item in some], zero=100 / among)
