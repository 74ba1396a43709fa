"""Rare tokens spelled by commoner ones: the cheapest spelling, nothing lost, and every piece common."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping

import pytest
from support import factory
from transformers import PreTrainedTokenizerBase

from dualslm.training.spelling import Spelling, common_pieces, spell

TEXTS = [" the bread and the rice", " the thread of the read bread", " a ride and a rice", " I read it, don't you?"] * 3


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return factory.tokenizer()


def spellings(word: str, pieces: Mapping[str, float]) -> Iterator[list[str]]:
    """Every way to write a word with pieces."""
    if not word:
        yield []
    for end in range(1, len(word) + 1):
        if word[:end] in pieces:
            yield from ([word[:end], *rest] for rest in spellings(word[end:], pieces))


def test_a_spelling_is_the_cheapest_of_all() -> None:
    rng = random.Random(0)
    for _ in range(200):
        known = {"".join(rng.choices("abc", k=rng.randint(1, 3))) for _ in range(8)}
        pieces = {piece: rng.uniform(0.5, 9.0) for piece in known}
        word = "".join(rng.choices("abc", k=rng.randint(1, 9)))
        costs = [sum(pieces[piece] for piece in way) for way in spellings(word, pieces)]
        found = spell(word, pieces)
        assert (found is None) == (not costs)
        if found is not None:
            assert "".join(found) == word
            assert sum(pieces[piece] for piece in found) == pytest.approx(min(costs))


def test_every_piece_is_used_often_or_is_one_letter() -> None:
    words = Counter({" bread": 3, " thread": 3, " read": 9, " b": 6, " th": 7, " rare": 1})
    known = {" bread", " thread", " read", " b", " th", "read", " r", *" breadth", *"abcdefghijklmnopqrstuvwxyz"}
    pieces = common_pieces(words, known, 5)
    uses = Counter(piece for word, count in words.items() for piece in (spell(word, pieces) or ()) * count)
    assert spell(" bread", pieces) == [" b", "read"]
    assert spell(" thread", pieces) == [" th", "read"]
    assert spell(" read", pieces) == [" read"]
    assert all(count >= 5 or len(piece.strip()) == 1 for piece, count in uses.items())
    assert all(math.isfinite(cost) and cost >= 0 for cost in pieces.values())


def test_a_spelled_transcript_says_the_same_words(tokenizer: PreTrainedTokenizerBase) -> None:
    spelling = Spelling(tokenizer, TEXTS, min_count=4)
    for text in TEXTS:
        said = tokenizer.decode(spelling.ids(text))
        assert [char for char in said if char.isalnum()] == [char for char in text if char.isalnum()]
    assert spelling.tokens_V.tolist() == sorted({token for text in TEXTS for token in spelling.ids(text)})


def test_what_no_piece_can_spell_stays_as_the_tokenizer_has_it(tokenizer: PreTrainedTokenizerBase) -> None:
    spelling = Spelling(tokenizer, [" the bread"], min_count=1)
    plain = Spelling(tokenizer, [" the bread"])
    del spelling.pieces["e"]  # type: ignore[attr-defined]
    assert spelling.ids(" bee") == plain.ids(" bee") != []


def test_without_a_count_the_tokenizer_decides(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer.encode(" the bread", add_special_tokens=False)
    spoken = [token for token in ids if any(map(str.isalnum, tokenizer.decode([token])))]
    assert Spelling(tokenizer, TEXTS).ids(" the bread") == spoken
