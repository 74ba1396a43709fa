"""Pieces of a reply: joined they are its text, and none splits a character."""

from __future__ import annotations

import random

import pytest
from factory import tokenizer as small_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from templates import spaced
from transformers import PreTrainedTokenizerFast

from dualslm.decoding import Pieces, text_of


@pytest.mark.parametrize(
    "tokenizer", [spaced("first"), spaced("always"), small_tokenizer()], ids=["first", "always", "bytes"]
)
@given(st.text(st.sampled_from("ab é日😀\n  ."), max_size=60), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_pieces_of_any_text_are_its_text(tokenizer: PreTrainedTokenizerFast, text: str, rng: random.Random) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    for special in rng.sample(tokenizer.all_special_ids, 1) * rng.randrange(3):
        ids.insert(rng.randint(0, len(ids)), special)
    pieces = Pieces(tokenizer)
    joined = "".join([*map(pieces.add, ids), pieces.rest()])
    assert joined == text_of(tokenizer, ids)


def test_bytes_that_never_become_a_character_are_shown_at_the_end() -> None:
    tokenizer = small_tokenizer()
    pieces = Pieces(tokenizer)
    whole = tokenizer.encode("ok 😀", add_special_tokens=False)
    shown = "".join(pieces.add(token) for token in whole[:-1])
    assert shown == "ok "
    assert "\N{REPLACEMENT CHARACTER}" in pieces.rest()
