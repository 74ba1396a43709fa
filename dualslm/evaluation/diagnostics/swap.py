"""Source swap and style contrast: P of one recording with L of another (`Speech.in_the_tone_of`).

After a swap the answer about the voice should follow P, the transcript L, and a reply should be the one that fits
these words in that tone. A reply that changes has yet to change more than drawing it twice would change it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from dualslm.conversation import NORMAL, ORACLE, Speech
from dualslm.evaluation.diagnostics.base import Examiner, Result, line
from dualslm.evaluation.diagnostics.items import Item, Material
from dualslm.evaluation.diagnostics.leaks import heard
from dualslm.evaluation.metrics import word_errors, words

HEAT = 0.7  # temperature of the replies that are drawn


def source_swap(desk: Examiner, material: Material) -> Result:
    """Whether the answer about the voice follows P, and the transcript L."""
    attribute = material.attribute
    items, values = material.about(attribute), material.choices(attribute)
    pairs = _with_others(items, desk.seed, attribute)
    mixed = [item.spoken(item.speech.in_the_tone_of(other)) for item, other in pairs]
    told = heard(desk, mixed, attribute, values, NORMAL)
    groups = [item.group for item, _ in pairs]
    follows_p = [got == other.labels[attribute] for got, (_, other) in zip(told, pairs, strict=True)]
    follows_l = [got == item.speech.labels[attribute] for got, (item, _) in zip(told, pairs, strict=True)]
    lines = [
        line(f"{attribute} as in the recording that P is from, %", follows_p, groups, zero=100 / len(values)),
        line(f"{attribute} as in the recording that L is from, %", follows_l, groups, zero=100 / len(values)),
    ]
    spoken = _with_others(material.words, desk.seed, attribute)
    for label, conversations in {
        "as recorded": [item.asked for item, _ in spoken],
        "with another's P": [item.spoken(item.speech.in_the_tone_of(other)).asked for item, other in spoken],
    }.items():
        said = [
            (words(item.answer), words(a))
            for (item, _), a in zip(spoken, desk.answers(conversations, NORMAL), strict=True)
        ]
        errors, lengths = [word_errors(a, b) for a, b in said], [len(a) for a, _ in said]
        lines.append(line(f"word errors, {label}, %", errors, [item.group for item, _ in spoken], wholes=lengths))
    good = lines[0].low > lines[1].high and lines[3].low <= lines[2].high
    says = "Tone follows P and words follow L" if good else "It is not shown that each follows its source"
    return Result("Source swap: P of one recording, L of another", lines, f"{says}.")


def style_contrast(desk: Examiner, material: Material) -> Result:
    """The same words in another tone: does the reply change, the right way, and more than by chance?"""
    attribute = material.attribute or "emotion"
    known = [item for item in material.replies if item.speech.transcript and item.speech.caption]
    pairs = [
        (item, item.spoken(item.speech.in_the_tone_of(other)))
        for item, other in _with_others(known, desk.seed, attribute)
    ]
    groups = [item.group for item, _ in pairs]
    own, other = [item for item, _ in pairs], [mixed for _, mixed in pairs]
    replies = [desk.answers([item.asked for item in side], NORMAL) for side in (own, other)]
    fitting = [desk.answers([item.asked for item in side], ORACLE) for side in (own, other)]
    told = [place for place in range(len(pairs)) if fitting[0][place] != fitting[1][place]]
    choices = [[other[place].saying(fitting[side][place]) for side in (1, 0)] for place in told]
    right = [place == 0 for place in desk.likeliest(choices, NORMAL)] if told else []
    drawn = [
        desk.answers([item.asked for item in side], NORMAL, heat=HEAT, seed=seed)
        for side, seed in ((own, 1), (own, 2), (other, 3))
    ]
    noise = [_apart(a, b) for a, b in zip(drawn[0], drawn[1], strict=True)]
    moved = [_apart(a, b) for a, b in zip(drawn[0], drawn[2], strict=True)]
    gain = [a - b for a, b in zip(moved, noise, strict=True)]
    lines = [
        line("replies that change with the tone, %", [a != b for a, b in zip(*replies, strict=True)], groups),
        line("words apart in two tones, drawn twice, %", moved, groups),
        line("words apart in one tone, drawn twice, %", noise, groups),
        line("apart by tone beyond by chance, points", gain, groups),
    ]
    if told:
        label = "the reply that fits the new tone is the likelier one, %"
        lines.append(line(label, right, [groups[place] for place in told], zero=50.0))
    sure = lines[3].low > 0 and bool(told) and lines[-1].low > 50
    says = "The reply follows the tone" if sure else "It is not shown that the reply follows the tone"
    return Result("Style contrast: the same words in another tone", lines, f"{says}.")


def _with_others(items: Sequence[Item], seed: int, attribute: str) -> list[tuple[Item, Speech]]:
    """Each item with a recording of another tone and other words."""
    found = []
    for item in items:
        value = item.speech.labels.get(attribute)
        others = [
            other.speech
            for other in items
            if value is not None
            and other.speech.labels.get(attribute) not in (None, value)
            and other.speech.transcript != item.speech.transcript
        ]
        if others:
            found.append((item, random.Random(f"{seed}/{item.speech.audio!s}/{item.answer}").choice(others)))
    return found


def _apart(one: str, other: str) -> float:
    """The share of words that differ."""
    a, b = words(one), words(other)
    return min(1.0, word_errors(a, b) / max(1, len(a), len(b)))
