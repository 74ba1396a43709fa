"""Word error rates: normalisers, alignment, chat preambles and runaway answers (paper §IV-B; docs/evaluation.md).

`raw` keeps letters, digits and apostrophes in lower case; `whisper` is Whisper's English normaliser, once, as the
package `whisper-normalizer` keeps it. Rates are errors over reference words of all utterances together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import NamedTuple

import numpy as np

from dualslm.errors import DualSLMError
from dualslm.evaluation.metrics.bootstrap import figure
from dualslm.evaluation.metrics.figure import Figure

PACKAGE = "whisper-normalizer"
RUNAWAY = 2  # an answer of more than so many times the reference's words has run away
PREAMBLE = re.compile(
    r"^\s*((sure|certainly|of course|okay|ok|yes)\b[\s,.!]*)?"
    r"((here|this|that)( is|'s|\N{RIGHT SINGLE QUOTATION MARK}s) )?"
    r"((the|a|your) )?((speaker|user|person|audio|recording|speech|man|woman) (says|said|is saying)"
    r"|((exact|verbatim|full|requested) )?(transcript|transcription|transcribed text|text|spoken words)"
    r"( of [\w' ]+)?( is| reads)?)\s*[:,]\s*",
    re.IGNORECASE,
)
QUOTES = "\"'`\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}\N{LEFT SINGLE QUOTATION MARK}"


class Edits(NamedTuple):
    """What turns the reference into what was heard, at the fewest."""

    substitutions: int
    deletions: int
    insertions: int


def words(text: str) -> list[str]:
    """Lower-case words without punctuation, for word error rates on plain English."""
    return re.sub(r"[^\w\s']", " ", text.lower()).split()


def raw(text: str) -> list[str]:
    """Lower case, only [a-z0-9'] kept."""
    plain = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return re.sub(r"[^a-z0-9']", " ", plain).split()


def whisper(text: str) -> list[str]:
    """Whisper's English normaliser."""
    return _whisper()(text).split()


NORMALISERS: Mapping[str, Callable[[str], list[str]]] = {"raw": raw, "whisper": whisper}


def normaliser() -> str:
    """Name and version of the package behind `whisper`."""
    _whisper()
    return f"{PACKAGE} {version(PACKAGE)} (EnglishTextNormalizer)"


def unwrapped(text: str) -> str:
    """Without a chat preamble such as "Sure! Here is the transcript:" and the quotes that come with it."""
    bare = PREAMBLE.sub("", text, count=1)
    return bare.strip().strip(QUOTES) if bare != text else text


def edits(reference: Sequence[str], heard: Sequence[str]) -> Edits:
    """Substitutions, deletions and insertions, at the fewest; of equal ways the one with fewer substitutions last."""
    row = [(j, 0, 0, j) for j in range(len(heard) + 1)]  # cost, substitutions, deletions, insertions
    for i, wanted in enumerate(reference, 1):
        diagonal, row[0] = row[0], (i, 0, i, 0)
        for j, got in enumerate(heard, 1):
            other = int(wanted != got)
            change = (diagonal[0] + other, diagonal[1] + other, diagonal[2], diagonal[3])
            lost = (row[j][0] + 1, row[j][1], row[j][2] + 1, row[j][3])
            added = (row[j - 1][0] + 1, row[j - 1][1], row[j - 1][2], row[j - 1][3] + 1)
            diagonal, row[j] = row[j], min(change, lost, added, key=lambda way: way[0])
    return Edits(*row[-1][1:])


def word_errors(reference: Sequence[str], heard: Sequence[str]) -> int:
    """Substitutions, deletions and insertions that turn one word sequence into the other, at the fewest."""
    return sum(edits(reference, heard))


def word_error_rate(references: Sequence[str], heard: Sequence[str], *, seed: int = 0) -> Figure:
    """Errors per hundred reference words, with a bootstrap interval over utterances."""
    pairs = [(words(a), words(b)) for a, b in zip(references, heard, strict=True)]
    counts = np.array([(word_errors(a, b), len(a)) for a, b in pairs])
    return figure(counts, [f"{index:09}" for index in range(len(pairs))], seed=seed)


def require_whisper() -> None:
    """Refuses to begin where Whisper's normaliser is not there at the end.

    Raises:
        DualSLMError: the extra `eval` is missing.
    """
    _whisper()


@cache
def _whisper() -> Callable[[str], str]:
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise DualSLMError(
            "Whisper-normalised word error rates need the extra packages of `eval`",
            got=str(error),
            do="pip install 'dualslm[eval]'",
        ) from error
    normalise: Callable[[str], str] = EnglishTextNormalizer()
    return normalise
