"""Word error rates: normalizers, alignment, chat preambles and runaway answers (paper §IV-B; docs/evaluation.md).

`raw` keeps letters, digits and apostrophes in lower case; `whisper` is Whisper's English normalizer as the package
`whisper-normalizer` ships it. A rate is the errors of all utterances over the reference words of all utterances.
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
RUNAWAY = 2  # an answer of more than so many times the reference's words is a runaway, such as a loop
# Chat models wrap what they transcribe. The colon or comma at the end is required, so that "The man saw the text."
# is left whole.
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
    """The fewest edits that turn the reference into the hypothesis, by kind."""

    substitutions: int
    deletions: int
    insertions: int


def words(text: str) -> list[str]:
    """Lower-case words without punctuation, for word error rates on plain English."""
    return re.sub(r"[^\w\s']", " ", text.lower()).split()


def raw(text: str) -> list[str]:
    """Lower-case words of which only [a-z0-9'] is kept."""
    plain = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return re.sub(r"[^a-z0-9']", " ", plain).split()


def whisper(text: str) -> list[str]:
    """Words after Whisper's English normalizer."""
    return _whisper()(text).split()


NORMALISERS: Mapping[str, Callable[[str], list[str]]] = {"raw": raw, "whisper": whisper}


def normaliser() -> str:
    """Name and version of the package behind `whisper`."""
    # For the report: rates compare only under one version of the package's rules.
    _whisper()
    return f"{PACKAGE} {version(PACKAGE)} (EnglishTextNormalizer)"


def unwrapped(text: str) -> str:
    """The text without a chat preamble such as "Sure! Here is the transcript:" and the quotes that come with it."""
    bare = PREAMBLE.sub("", text, count=1)
    return bare.strip().strip(QUOTES) if bare != text else text


def edits(reference: Sequence[str], hypothesis: Sequence[str]) -> Edits:
    """The fewest substitutions, deletions and insertions that turn the reference into the hypothesis."""
    # Levenshtein's table, one row at a time: row[j] is the cheapest way from the first i words of the reference to
    # the first j of the hypothesis, as (cost, substitutions, deletions, insertions).
    row = [(j, 0, 0, j) for j in range(len(hypothesis) + 1)]
    for i, wanted in enumerate(reference, 1):
        diagonal = row[0]
        row[0] = (i, 0, i, 0)
        for j, got in enumerate(hypothesis, 1):
            differs = int(wanted != got)
            substituted = (diagonal[0] + differs, diagonal[1] + differs, diagonal[2], diagonal[3])
            deleted = (row[j][0] + 1, row[j][1], row[j][2] + 1, row[j][3])
            inserted = (row[j - 1][0] + 1, row[j - 1][1], row[j - 1][2], row[j - 1][3] + 1)
            diagonal = row[j]
            # `min` takes the first of equal costs. The order decides the counts by kind, never their sum.
            row[j] = min(substituted, deleted, inserted, key=lambda way: way[0])
    return Edits(*row[-1][1:])


def word_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """The fewest edits that turn the reference into the hypothesis."""
    return sum(edits(reference, hypothesis))


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str], *, seed: int = 0) -> Figure:
    """Errors per hundred reference words, with a bootstrap interval over utterances.

    Args:
        references: true text of each utterance.
        hypotheses: transcribed text of each utterance.
        seed: seed of the resamples.
    """
    pairs = [
        (words(reference), words(hypothesis)) for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]
    counts = np.array([(word_errors(reference, hypothesis), len(reference)) for reference, hypothesis in pairs])
    # Clusters are sorted by name: padded numbers keep the utterances in their order, whatever their count.
    return figure(counts, [f"{index:09}" for index in range(len(pairs))], seed=seed)


def require_whisper() -> None:
    """Checks that Whisper's normalizer is installed, before the work begins whose result needs it.

    Raises:
        DualSLMError: the packages of the extra `eval` are missing.
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
