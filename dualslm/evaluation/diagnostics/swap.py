"""Source swap and style contrast: P of one recording with L of another (`Speech.in_the_tone_of`).

After a swap the answer about the voice should follow P, and the transcript L. A reply should be the one that fits
these words in that tone, and it should change more than a reply that is drawn twice changes anyway.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from dualslm.conversation import NORMAL, ORACLE, Conversation, Speech
from dualslm.evaluation.diagnostics.base import Examiner, Line, Result, line
from dualslm.evaluation.diagnostics.items import Item, Material
from dualslm.evaluation.diagnostics.leaks import likeliest_values
from dualslm.evaluation.metrics.wer import word_errors, words

TEMPERATURE = 0.7  # of the replies that are drawn


def source_swap(examiner: Examiner, material: Material) -> Result:
    """Whether the answer about the voice follows P, and the transcript L."""
    attribute = material.attribute
    items = material.about(attribute)
    values = material.choices(attribute)
    pairs = _with_others(items, examiner.seed, attribute)
    mixed = [item.spoken(item.speech.in_the_tone_of(other)) for item, other in pairs]
    answers = likeliest_values(examiner, mixed, attribute, values, NORMAL)
    groups = [item.group for item, _ in pairs]
    follows_p = [answer == other.labels[attribute] for answer, (_, other) in zip(answers, pairs, strict=True)]
    follows_l = [answer == item.speech.labels[attribute] for answer, (item, _) in zip(answers, pairs, strict=True)]
    tone_p = line(f"{attribute} as in the recording that P is from, %", follows_p, groups, zero=100 / len(values))
    tone_l = line(f"{attribute} as in the recording that L is from, %", follows_l, groups, zero=100 / len(values))
    spoken = _with_others(material.words, examiner.seed, attribute)
    # The model's own errors on the same recordings are the zero: no transcript is right to the last word anyway.
    plain = _word_errors_line(examiner, "as recorded", spoken, [item.asked for item, _ in spoken])
    swapped = [item.spoken(item.speech.in_the_tone_of(other)).asked for item, other in spoken]
    other_p = _word_errors_line(examiner, "with another's P", spoken, swapped)
    good = tone_p.low > tone_l.high and other_p.low <= plain.high
    says = "Tone follows P and words follow L" if good else "It is not shown that each follows its source"
    lines = [tone_p, tone_l, plain, other_p]
    return Result("Source swap: P of one recording, L of another", lines, f"{says}.")


def style_contrast(examiner: Examiner, material: Material) -> Result:
    """The same words in another tone: does the reply change, the right way, and more than by chance?"""
    attribute = material.attribute or "emotion"
    known = [item for item in material.replies if item.speech.transcript and item.speech.caption]
    pairs = _with_others(known, examiner.seed, attribute)
    own = [item for item, _ in pairs]
    other = [item.spoken(item.speech.in_the_tone_of(speech)) for item, speech in pairs]
    own_asked = [item.asked for item in own]
    other_asked = [item.asked for item in other]
    groups = [item.group for item in own]
    changed = _differ(examiner.answers(own_asked, NORMAL), examiner.answers(other_asked, NORMAL))
    # What fits is what the LLM answers to the styled transcript, as training targets are written (paper §III-B). Where
    # that is the same in both tones, nothing has to change.
    own_fitting = examiner.answers(own_asked, ORACLE)
    other_fitting = examiner.answers(other_asked, ORACLE)
    differing = [index for index, differs in enumerate(_differ(own_fitting, other_fitting)) if differs]
    choices = [[other[i].saying(other_fitting[i]), other[i].saying(own_fitting[i])] for i in differing]
    right = [index == 0 for index in examiner.likeliest(choices, NORMAL)] if differing else []
    # Greedy replies agree with themselves. Drawn twice, they differ in one tone too: only what is beyond that is tone.
    first, again = (examiner.answers(own_asked, NORMAL, temperature=TEMPERATURE, seed=seed) for seed in (1, 2))
    toned = examiner.answers(other_asked, NORMAL, temperature=TEMPERATURE, seed=3)
    noise = [_apart(a, b) for a, b in zip(first, again, strict=True)]
    moved = [_apart(a, b) for a, b in zip(first, toned, strict=True)]
    gain = line("apart by tone beyond by chance, points", [a - b for a, b in zip(moved, noise, strict=True)], groups)
    lines = [
        line("replies that change with the tone, %", changed, groups),
        line("words apart in two tones, drawn twice, %", moved, groups),
        line("words apart in one tone, drawn twice, %", noise, groups),
        gain,
    ]
    follows = False
    if differing:
        label = "the reply that fits the new tone is the likelier one, %"
        likelier = line(label, right, [groups[index] for index in differing], zero=50.0)
        lines.append(likelier)
        follows = gain.low > 0 and likelier.low > 50
    says = "The reply follows the tone" if follows else "It is not shown that the reply follows the tone"
    return Result("Style contrast: the same words in another tone", lines, f"{says}.")


def _with_others(items: Sequence[Item], seed: int, attribute: str) -> list[tuple[Item, Speech]]:
    """Each item with a recording of another tone and other words; items without such a recording are left out."""
    # Other words too: were they the same, nobody could see whether a transcript follows P or L.
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


def _word_errors_line(
    examiner: Examiner, label: str, spoken: Sequence[tuple[Item, Speech]], conversations: Sequence[Conversation]
) -> Line:
    """Word errors of the transcripts that the model writes of conversations."""
    references = [words(item.answer) for item, _ in spoken]
    answers = examiner.answers(conversations, NORMAL)
    errors = [word_errors(reference, words(answer)) for reference, answer in zip(references, answers, strict=True)]
    groups = [item.group for item, _ in spoken]
    return line(f"word errors, {label}, %", errors, groups, wholes=[len(reference) for reference in references])


def _differ(first: Sequence[str], second: Sequence[str]) -> list[bool]:
    return [a != b for a, b in zip(first, second, strict=True)]


def _apart(one: str, other: str) -> float:
    """The share of words that differ."""
    a = words(one)
    b = words(other)
    return min(1.0, word_errors(a, b) / max(1, len(a), len(b)))
