"""Word error rates: normalizers, alignment, chat preambles and runaway answers (paper §IV-B; docs/evaluation.md).

`raw` keeps letters of any script, their marks, digits and apostrophes in lower case; `whisper` is Whisper's normalizer
as the package `whisper-normalizer` ships it: the English one on English, the basic one, which keeps accents, on any
other language. A rate is the errors of all utterances over the reference words of all utterances; where a script is
written without spaces, characters are counted instead of words (`counting`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any, NamedTuple

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


# Thai, Lao, Tibetan, Burmese and Khmer; Japanese kana; Chinese characters, and those that repeat or stand for a zero.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"
    "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
FOREIGN = 0.05  # share of references with a letter beyond a-z, above which a set is not English, which has a few cafés


# What is written in two ways and said in one: an apostrophe that is a letter, Turkish's capital dotted i, which Python
# makes two letters of, and the stroke that stretches an Arabic word on the page.
SAME = str.maketrans({"\u02bc": "'", "\u0130": "i", "\u0640": None})


class Edits(NamedTuple):
    """The fewest edits that turn the reference into the hypothesis, by kind."""

    substitutions: int
    deletions: int
    insertions: int


def words(text: str) -> list[str]:
    """Lower-case words without punctuation, for word error rates on plain English."""
    return _letters(text, "'_")


def raw(text: str) -> list[str]:
    """Lower-case words of which only letters, digits and apostrophes are left."""
    return _letters(text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"), "'")


def _letters(text: str, more: str) -> list[str]:
    """Lower-case words of letters with their marks, digits and `more`."""
    # Composed: an accent that is typed apart is no other letter.
    plain = unicodedata.normalize("NFC", text.translate(SAME).lower())
    if plain.isascii():
        return re.sub(rf"[^a-z0-9{more}]", " ", plain).split()
    letters = []
    for letter in plain:
        kind = unicodedata.category(letter)
        # Marks are vowels in Hindi and Thai. Joiners and soft hyphens (Cf) have no width and end no word.
        letters.append(letter if kind[0] in "LMN" or letter in more else "" if kind == "Cf" else " ")
    return "".join(letters).split()


def whisper(text: str) -> list[str]:
    """Words after Whisper's English normalizer."""
    return _whisper()(text).split()


def basic(text: str) -> list[str]:
    """Words after Whisper's normalizer for other languages than English, with all marks."""
    # Without joiners and soft hyphens, which have no width and end no word.
    text = text.translate(SAME)
    return _basic()("".join(letter for letter in text if unicodedata.category(letter) != "Cf")).split()


NORMALISERS = ("raw", "whisper")


@dataclass(frozen=True)
class Counting:
    """How the references of a set are written, and so what is counted.

    Attributes:
        characters: count characters instead of words.
        english: let `whisper` be the English normalizer.
    """

    characters: bool = False
    english: bool = True

    @property
    def rate(self) -> str:
        """Short name of the rate."""
        return "cer" if self.characters else "wer"

    def tokens(self, name: str, text: str) -> list[str]:
        """What is counted of a text: its words, or its characters without spaces.

        Args:
            name: one of `NORMALISERS`.
            text: the text.
        """
        found = raw(text) if name == "raw" else whisper(text) if self.english else basic(text)
        return list("".join(found)) if self.characters else found

    def errors(self, truth: str, answer: str) -> tuple[float, float]:
        """Errors of an answer, of so many words or characters of the truth (raw)."""
        reference = self.tokens("raw", truth)
        return float(sum(edits(reference, self.tokens("raw", answer)))), float(len(reference))

    def errors_of(self, row: Mapping[str, Any]) -> tuple[float, float]:
        """The same of a prediction."""
        return self.errors(row["truth"], row["answer"])


def counting(references: Sequence[str]) -> Counting:
    """What to count: characters where there are more of scripts without spaces than there are words of others."""
    unspaced = sum(len(UNSPACED.findall(text)) for text in references)
    spaced = sum(len(raw(UNSPACED.sub(" ", text))) for text in references)
    composed = [unicodedata.normalize("NFC", text) for text in references]
    foreign = sum(any(letter.isalpha() and not letter.isascii() for letter in text) for text in composed)
    return Counting(unspaced > spaced, foreign <= FOREIGN * len(references))


def normaliser() -> str:
    """Name and version of the package behind `whisper`."""
    # For the report: rates compare only under one version of the package's rules.
    _whisper()
    return f"{PACKAGE} {version(PACKAGE)} (EnglishTextNormalizer; other languages BasicTextNormalizer with marks)"


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
def _basic() -> Callable[[str], str]:
    _whisper()  # for its error, where the package is missing
    from whisper_normalizer.basic import BasicTextNormalizer

    normalise: Callable[[str], str] = BasicTextNormalizer(preserve_marks=True)
    return normalise


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
