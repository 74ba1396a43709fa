"""Which tokens of the LLM a transcript is aligned with: the tokenizer's own, or commoner ones where those are rare.

L can say no token that it has not heard often enough. Of LibriSpeech's words whose token the training transcripts held
30 times or more an aligned L read 89 %, of those with fewer than 10 a quarter, and of those without any none (15 h of
speech, whisper-base, SmolLM2; docs/pocket.md). The vocabulary of an LLM has tens of thousands of tokens, and speech
recognizers learn a few thousand. So rare tokens are spelled by commoner ones (" knuckle" as " kn" "uck" "le"), all of
which are the LLM's. The vocabulary is cut down as that of a unigram tokenizer (Kudo 2018), by turns of counting the
likeliest spellings and of dropping the tokens that they seldom use.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dualslm.chat_template import plain_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORD = re.compile(r"\s?[^\W_]+(?:['\u2019][^\W_]+)*")  # with the space before it, as most tokens of an LLM have one
MAX_PIECE = 16  # characters; few tokens are longer, and the search is quadratic in it
ROUNDS = 8  # of counting; the vocabulary stops shrinking after five or six


class Spelling:
    """The tokens that alignment tells apart, and how a transcript is written with them.

    Args:
        tokenizer: of the LLM.
        transcripts: all transcripts to learn from.
        min_count: tokens that the transcripts hold fewer times are spelled by others; with 0 the tokenizer decides.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, transcripts: Iterable[str], min_count: int = 0) -> None:
        self.tokenizer = tokenizer
        self.pieces: Mapping[str, float] = {}
        self.id_of: Mapping[str, int] = {}
        texts = Counter(transcripts)
        if min_count:
            self.id_of = _spoken_pieces(tokenizer)
            words = Counter[str]()
            for text, count in texts.items():
                for word in WORD.findall(text):
                    words[word] += count
            self.pieces = common_pieces(words, self.id_of, min_count)
        ids = {token for text in texts for token in self.ids(text)}
        self.tokens_V: Tensor = torch.tensor(sorted(ids), dtype=torch.long)
        """The distinct tokens (V), sorted."""

    def ids(self, text: str) -> list[int]:
        """The tokens of a transcript that are spoken: those with a letter or a digit."""
        if not self.pieces:
            return list(_spoken_ids(self.tokenizer, text))
        ids: list[int] = []
        for word in WORD.findall(text):
            spelled = spell(word, self.pieces)
            # A word in letters that no piece holds stays as the tokenizer has it.
            ids += _spoken_ids(self.tokenizer, word) if spelled is None else [self.id_of[one] for one in spelled]
        return ids


@lru_cache(maxsize=65536)
def _spoken_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(token for token in plain_ids(tokenizer, text) if any(map(str.isalnum, tokenizer.decode([token]))))


def _spoken_pieces(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokens that are whole characters, at least one of them spoken, by their text."""
    found: dict[str, int] = {}
    special = set(tokenizer.all_special_ids)
    for token in range(len(tokenizer)):
        text = tokenizer.decode([token])
        if token not in special and len(text) <= MAX_PIECE and WORD.fullmatch(text):
            found.setdefault(text, token)
    return found


def common_pieces(words: Mapping[str, int], known: Iterable[str], min_count: int) -> dict[str, float]:
    """The pieces that spell words and are used often enough, with the cost of each in nats.

    Args:
        words: how often each word stands in the transcripts.
        known: pieces that may be used.
        min_count: times that a piece is used at least; single characters stay however rare they are.

    Returns:
        The negative logarithm of each piece's share.
    """
    allowed = set(known)
    found = Counter[str]()
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + MAX_PIECE) + 1):
                if word[start:end] in allowed:
                    found[word[start:end]] += count
    # At first every piece counts in every word that holds it; longer ones more, as they say more of the word. What is
    # rare even so goes at once: while it spells its word, the pieces that are to take its place look unused.
    uses = Counter({one: count * len(one) for one, count in found.items() if count >= min_count or _is_letter(one)})
    for turn in range(ROUNDS):
        pieces = _costs(uses)
        uses = Counter(dict.fromkeys((piece for piece in pieces if _is_letter(piece)), 1))
        for word, count in words.items():
            for piece in spell(word, pieces) or ():
                uses[piece] += count
        # Little by little: what rare pieces leave makes others common.
        least = min_count * (turn + 1) / ROUNDS
        uses = Counter({piece: count for piece, count in uses.items() if count >= least or _is_letter(piece)})
    return _costs(uses)


def _is_letter(piece: str) -> bool:
    return len(piece.strip()) == 1


def _costs(uses: Mapping[str, int]) -> dict[str, float]:
    total = sum(uses.values())
    return {piece: math.log(total / count) for piece, count in uses.items()}


def spell(word: str, pieces: Mapping[str, float]) -> list[str] | None:
    """The cheapest spelling of a word by pieces (Viterbi's search); None where there is none."""
    best: list[tuple[float, int]] = [(0.0, 0)]  # cost of the first characters, and where their last piece begins
    for end in range(1, len(word) + 1):
        ways = [
            (best[start][0] + pieces[word[start:end]], start)
            for start in range(max(0, end - MAX_PIECE), end)
            if word[start:end] in pieces
        ]
        best.append(min(ways, default=(math.inf, 0)))
    if math.isinf(best[-1][0]):
        return None
    out: list[str] = []
    end = len(word)
    while end:
        start = best[end][1]
        out.append(word[start:end])
        end = start
    return out[::-1]
