"""A sentence → one of the choices: strict, lenient, and how many answers say nothing (docs/evaluation.md).

strict: exactly one of the choices, spelt as in the list, stands in the answer as a word of its own. lenient: other
words for a choice count too; one that is denied does not; of several, the one in the answer's slot ("the emotion
is X", "sounds X") is taken, and else none. Nothing is guessed: an answer that names no choice is `unparsed`, one
that names several, as an echo of the list does, `ambiguous`, and both are errors in every measure.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Literal, NamedTuple, TypeAlias

Status: TypeAlias = Literal["ok", "ambiguous", "unparsed"]
PROTOCOL = "choices/1"

SYNONYMS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "gender": (("male", "man", "boy", "gentleman", "masculine"), ("female", "woman", "girl", "lady", "feminine")),
    "pitch": (
        ("low", "deep", "low-pitched"),
        ("normal", "middle", "medium", "moderate", "average"),
        ("high", "high-pitched"),
    ),
    "tempo": (
        ("slow", "slowly"),
        ("normal", "steady", "medium", "moderate", "average"),
        ("fast", "quick", "quickly", "rapid", "rapidly", "high"),
    ),
    "energy": (
        ("low", "quiet", "quietly", "soft", "softly"),
        ("normal", "moderate", "medium", "average"),
        ("high", "loud", "loudly"),
    ),
    "emotion": (
        ("neutral", "no emotion", "no particular emotion", "calm"),
        ("happy", "joy", "joyful", "happiness", "cheerful", "glad"),
        ("sad", "sadness", "unhappy"),
        ("angry", "anger", "mad"),
        ("surprised", "surprise", "astonished"),
        ("fearful", "fear", "afraid", "scared", "frightened"),
        ("disgusted", "disgust"),
        ("contemptuous", "contempt"),
        ("friendly",),
        ("unfriendly",),
        ("excited", "excitement"),
        ("hopeful", "hope"),
    ),
}
"""Words for one value, by attribute: "low" is a value of pitch and of energy, and each is asked on its own."""

DENIAL = re.compile(
    r"\b(not|never|no|nor|neither|without|isn't|wasn't|doesn't|don't|cannot|can't|rather than|instead of)\b"
)
BREAK = re.compile(r"[.,;:!?]|\b(but|and is|it is|is instead)\b")
REACH = 3  # words that a denial reaches
SLOT = re.compile(
    r"\b(is|are|was|as|sounds?|sounding|seems?|feels?|feeling|be|answer|choose|say|expresses|conveys)\b|:"
)
FILLER = re.compile(
    r"(\s|[\"'*(]|\b(a|an|the|very|quite|rather|somewhat|clearly|most|likely|probably|of|being|like|in|to be)\b)*$"
)
LISTED = re.compile(r"^[\s,/]*\b(or|and)?\b[\s,/]*")


class Read(NamedTuple):
    """What an answer was read as."""

    choice: str | None
    status: Status


class Hit(NamedTuple):
    """A choice that an answer names, and where."""

    choice: str
    start: int
    end: int


def strict(answer: str, choices: Sequence[str]) -> Read:
    """The one choice that stands in the answer, spelt as in the list.

    Args:
        answer: of the model.
        choices: that it had.
    """
    table = {choice.lower(): choice for choice in choices}
    return _one({hit.choice for hit in _hits(plain(answer), table)})


def lenient(answer: str, choices: Sequence[str], attribute: str = "") -> Read:
    """The choice that the answer means.

    Args:
        answer: of the model.
        choices: that it had.
        attribute: whose other words count too; an attribute that is not known has none.
    """
    text = plain(answer)
    hits = [hit for hit in _hits(text, _words_for(tuple(choices), attribute)) if not _denied(text, hit)]
    named = {hit.choice for hit in hits}
    if len(named) > 1 and len(slots := _slotted(text, hits)) == 1:
        return Read(slots.pop(), "ok")
    return _one(named)


def plain(answer: str) -> str:
    """NFKC, lower case, without quotes and markdown."""
    text = unicodedata.normalize("NFKC", answer).lower()
    text = re.sub(r"[\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}]", "'", text)
    return re.sub(r"[*_`#\"\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}]", " ", text)


@cache
def _words_for(choices: tuple[str, ...], attribute: str) -> Mapping[str, str]:
    """Every word for a choice; a group of words that two choices share gives each only its own name."""
    table = {choice.lower(): choice for choice in choices}
    for group in SYNONYMS.get(attribute, ()):
        owners = {choice for word, choice in table.items() if word in group and word == choice.lower()}
        if len(owners) == 1:
            (owner,) = owners
            for word in group:
                table.setdefault(word, owner)
    return table


def _hits(text: str, table: Mapping[str, str]) -> Iterator[Hit]:
    """Every word for a choice, longest first, none inside another."""
    longest_first = sorted(table, key=len, reverse=True)
    pattern = r"(?<![\w-])(" + "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in longest_first) + r")(?![\w])"
    for found in re.finditer(pattern, text):
        yield Hit(table[" ".join(found[1].split())], found.start(), found.end())


def _denied(text: str, hit: Hit) -> bool:
    """Whether a denial stands at most `REACH` words before it in the same breath."""
    before = text[: hit.start]
    last = max((found.end() for found in DENIAL.finditer(before)), default=None)
    if last is None:
        return False
    between = before[last:]
    if between.split()[:1] in (["only"], ["just"]) or BREAK.search(between):
        return False
    return len(between.split()) < REACH


def _slotted(text: str, hits: Sequence[Hit]) -> set[str]:
    """The choices that stand in the answer's slot and not at the head of a list."""
    found = set()
    for hit in hits:
        before = FILLER.sub("", text[: hit.start])
        cue = [match.end() for match in SLOT.finditer(before)]
        after = text[hit.end :]
        follows = LISTED.match(after)
        listed = follows is not None and any(
            other.start == hit.end + follows.end() and follows.end() > 0 and follows[0].strip() for other in hits
        )
        if cue and cue[-1] == len(before) and not listed:
            found.add(hit.choice)
    return found


def _one(named: set[str]) -> Read:
    if len(named) == 1:
        return Read(next(iter(named)), "ok")
    return Read(None, "ambiguous" if named else "unparsed")
