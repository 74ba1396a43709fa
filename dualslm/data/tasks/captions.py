"""Captions: how something is said, in words, for the text source of P (paper §III-C, ERR).

A caption is built from the attributes of a recording; an unknown attribute is left out, never made up. Layout and
wording vary, so that an adapter does not learn one phrasing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dualslm.data.tasks.attributes import ATTRIBUTES

PERSONS: Mapping[str, Sequence[str]] = {"male": ("man", "male speaker"), "female": ("woman", "female speaker")}
MANNERS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "pitch": {
        "low": ("in a low voice", "at a low pitch"),
        "normal": ("in a voice of normal pitch", "at a normal pitch"),
        "high": ("in a high voice", "at a high pitch"),
    },
    "tempo": {
        "slow": ("slowly", "at a slow pace"),
        "normal": ("at a normal pace", "at an ordinary speed"),
        "fast": ("fast", "at a quick pace"),
    },
    "energy": {
        "low": ("quietly", "with little energy"),
        "normal": ("at a normal volume", "with normal energy"),
        "high": ("loudly", "with much energy"),
    },
}
Values = Mapping[str, str]  # values by attribute, in our spelling


def caption(
    labels: Mapping[str, Any], rng: random.Random | None = None, choices: Mapping[str, Any] | None = None
) -> str | None:
    """A description of how something is said.

    Args:
        labels: labels of a recording; those that are not `ATTRIBUTES`, or have no value, are ignored.
        rng: random numbers for layout, order and wording; None gives the plain form in a fixed order.
        choices: choices of the recording, where its corpus has values of its own.

    Returns:
        The caption without brackets; None where no attribute is known.
    """
    clip = {"labels": labels, "choices": choices}
    known = {name: value for name, one in ATTRIBUTES.items() if (value := one.value(clip)) is not None}
    if not known:
        return None
    if rng is None:
        return _plain(known)
    # The order of the draws is part of every caption: another one would change the captions of every seed.
    names = list(known)
    rng.shuffle(names)
    return rng.choice(LAYOUTS)({name: known[name] for name in names}, rng)


def _plain(values: Values, rng: random.Random | None = None) -> str:
    """For example: female, low pitch, slow tempo, sad."""
    bare = ("gender", "emotion")  # their values say by themselves which attribute they are of
    return ", ".join(value if name in bare else f"{value} {name}" for name, value in values.items())


def _list(values: Values, rng: random.Random) -> str:
    """For example: emotion: sad; pitch: low."""
    return rng.choice(("; ", ", ")).join(f"{name}: {value}" for name, value in values.items())


def _sentence(values: Values, rng: random.Random) -> str:
    """For example: a sad woman speaking slowly and in a low voice."""
    person = rng.choice(PERSONS.get(values.get("gender", ""), ("speaker", "person")))
    emotion = values.get("emotion", "")
    first = (emotion or person)[0]
    manners = _manners(values, rng)
    start = f"{'an' if first in 'aeiou' else 'a'} {emotion} {person}".replace("  ", " ")
    return f"{start} speaking {_joined(manners)}" if manners else start


def _spoken(values: Values, rng: random.Random) -> str:
    """For example: spoken slowly, in a low voice, sounding sad, by a woman."""
    pieces = _manners(values, rng)
    if "emotion" in values:
        pieces.append(f"{rng.choice(('sounding', 'in a tone that is'))} {values['emotion']}")
    if "gender" in values:
        pieces.append(f"by a {rng.choice(PERSONS.get(values['gender'], (values['gender'] + ' speaker',)))}")
    return "spoken " + ", ".join(pieces)


def _manners(values: Values, rng: random.Random) -> list[str]:
    """Adverbs for pitch, tempo and energy, in the order of the values."""
    found = []
    for name, value in values.items():
        if name in MANNERS:
            # A corpus with values of its own has no adverbs here.
            found.append(rng.choice(MANNERS[name].get(value, (f"with {value} {name}",))))
    return found


def _joined(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


LAYOUTS: Sequence[Callable[[Values, random.Random], str]] = (_plain, _list, _sentence, _spoken)
