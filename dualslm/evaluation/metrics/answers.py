"""A sentence → one of the choices: strict, lenient, and how many answers say nothing (docs/evaluation.md).

strict: exactly one of the choices, spelled as in the list, stands in the answer as a word of its own. lenient:
synonyms of a choice count too, and a choice that is denied ("not sad") does not. Where several remain, the one that
follows a cue ("the emotion is X", "sounds X") is taken, if there is exactly one. Nothing is guessed: an answer that
names no choice is `unparsed`, one that names several, for example by repeating the list, is `ambiguous`, and both
count as errors in every measure.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Literal, NamedTuple, TypeAlias

Status: TypeAlias = Literal["ok", "ambiguous", "unparsed"]
PROTOCOL = "choices/1"  # reports name it: raise the number with any change that reads an answer differently

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
"""Groups of synonyms by attribute: "low" is a value of pitch and of energy, and each attribute is asked on its own."""

DENIAL = re.compile(
    r"\b(not|never|no|nor|neither|without|isn't|wasn't|doesn't|don't|cannot|can't|rather than|instead of)\b"
)
# A denial ends at punctuation and at these words: in "not sad but happy" it does not reach "happy".
CLAUSE_END = re.compile(r"[.,;:!?]|\b(but|and is|it is|is instead)\b")
MAX_DENIED_DISTANCE = 3  # words: "not at all sad" is a denial, "not what I would have called sad" is none
CUE = re.compile(r"\b(is|are|was|as|sounds?|sounding|seems?|feels?|feeling|be|answer|choose|say|expresses|conveys)\b|:")
FILLER = re.compile(
    r"(\s|[\"'*(]|\b(a|an|the|very|quite|rather|somewhat|clearly|most|likely|probably|of|being|like|in|to be)\b)*$"
)
LIST_SEPARATOR = re.compile(r"^[\s,/]*\b(or|and)?\b[\s,/]*")


class Read(NamedTuple):
    """What an answer was read as: the choice, which is None unless the status is "ok"."""

    choice: str | None
    status: Status


class Mention(NamedTuple):
    """A choice that an answer names, and the characters from start to end that name it."""

    choice: str
    start: int
    end: int


def strict(answer: str, choices: Sequence[str]) -> Read:
    """The one choice that stands in the answer, spelled as in the list.

    Args:
        answer: text of the model.
        choices: values that the model could choose from.
    """
    spelled = {choice.lower(): choice for choice in choices}
    return _only({mention.choice for mention in _mentions(plain(answer), spelled)})


def lenient(answer: str, choices: Sequence[str], attribute: str = "") -> Read:
    """The choice that the answer means.

    Args:
        answer: text of the model.
        choices: values that the model could choose from.
        attribute: name of the attribute whose synonyms count too; an unknown one has no synonyms.
    """
    text = plain(answer)
    spelled = _with_synonyms(tuple(choices), attribute)
    mentions = [mention for mention in _mentions(text, spelled) if not _denied(text, mention)]
    named = {mention.choice for mention in mentions}
    if len(named) > 1 and len(cued := _cued(text, mentions)) == 1:
        return Read(cued.pop(), "ok")
    return _only(named)


def plain(answer: str) -> str:
    """The answer in NFKC and lower case, without quotation marks and Markdown."""
    text = unicodedata.normalize("NFKC", answer).lower()
    # Apostrophes stay, in one spelling: "isn't" is a denial.
    text = re.sub(r"[\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}]", "'", text)
    return re.sub(r"[*_`#\"\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}]", " ", text)


@cache
def _with_synonyms(choices: tuple[str, ...], attribute: str) -> Mapping[str, str]:
    """Every spelling of a choice, in lower case, with the choice that it means."""
    spelled = {choice.lower(): choice for choice in choices}
    for group in SYNONYMS.get(attribute, ()):
        # A group that two choices share ("cheerful" and "happy" as two labels) would make either mean the other.
        owners = {choice for word, choice in spelled.items() if word in group and word == choice.lower()}
        if len(owners) == 1:
            (owner,) = owners
            for word in group:
                spelled.setdefault(word, owner)
    return spelled


def _mentions(text: str, spelled: Mapping[str, str]) -> Iterator[Mention]:
    """Every mention of a choice, in the order of the text; none lies inside another."""
    # An alternation takes its first branch that fits: "dark red" has to stand before "red". "Male" must
    # not be found in "female", nor "neutral" in "non-neutral".
    longest_first = sorted(spelled, key=len, reverse=True)
    pattern = r"(?<![\w-])(" + "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in longest_first) + r")(?![\w])"
    for found in re.finditer(pattern, text):
        yield Mention(spelled[" ".join(found[1].split())], found.start(), found.end())


def _denied(text: str, mention: Mention) -> bool:
    """Whether a denial stands before it in the same clause, fewer than `MAX_DENIED_DISTANCE` words away."""
    before = text[: mention.start]
    last = max((found.end() for found in DENIAL.finditer(before)), default=None)
    if last is None:
        return False
    between = before[last:]
    if between.split()[:1] in (["only"], ["just"]) or CLAUSE_END.search(between):  # "not only sad" affirms it
        return False
    return len(between.split()) < MAX_DENIED_DISTANCE


def _cued(text: str, mentions: Sequence[Mention]) -> set[str]:
    """The choices that directly follow a cue such as "sounds", without those that open a list of choices."""
    starts = {mention.start for mention in mentions}
    found = set()
    for mention in mentions:
        before = FILLER.sub("", text[: mention.start])
        cue_ends = [cue.end() for cue in CUE.finditer(before)]
        # "The emotion is joy, anger or fear" repeats the choices: joy follows a cue, and yet is no answer.
        separator = LIST_SEPARATOR.match(text[mention.end :])
        opens_list = separator is not None and separator[0].strip() != "" and mention.end + separator.end() in starts
        if cue_ends and cue_ends[-1] == len(before) and not opens_list:
            found.add(mention.choice)
    return found


def _only(named: set[str]) -> Read:
    if len(named) == 1:
        return Read(next(iter(named)), "ok")
    return Read(None, "ambiguous" if named else "unparsed")
