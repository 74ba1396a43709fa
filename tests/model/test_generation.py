"""Pieces of a reply: joined they are its text, and none splits a character."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.factory import tokenizer as small_tokenizer
from support.templates import spaced
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from dualslm.model.generation import GenerationSettings, Sampler, TextStreamer, text_of


@pytest.mark.parametrize(
    "tokenizer", [spaced("first"), spaced("always"), small_tokenizer()], ids=["first", "always", "bytes"]
)
@given(st.text(st.sampled_from("ab é日😀\n  ."), max_size=60), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_pieces_of_any_text_are_its_text(tokenizer: PreTrainedTokenizerFast, text: str, rng: random.Random) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    for special in rng.sample(tokenizer.all_special_ids, 1) * rng.randrange(3):
        ids.insert(rng.randint(0, len(ids)), special)
    pieces = TextStreamer(tokenizer)
    joined = "".join([*map(pieces.add, ids), pieces.rest()])
    assert joined == text_of(tokenizer, ids)


def test_bytes_that_never_become_a_character_are_shown_at_the_end() -> None:
    tokenizer = small_tokenizer()
    pieces = TextStreamer(tokenizer)
    whole = tokenizer.encode("ok 😀", add_special_tokens=False)
    shown = "".join(pieces.add(token) for token in whole[:-1])
    assert shown == "ok "
    assert "\N{REPLACEMENT CHARACTER}" in pieces.rest()


def test_a_byte_of_no_character_holds_nothing_back() -> None:
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁a", "▁word"]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    strip = decoders.Strip(" ", 1, 0)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    pieces = TextStreamer(tokenizer)
    bytes_ = [vocabulary[f"<0x{byte:02X}>"] for byte in [*"日".encode(), 0xE6]]
    shown = [pieces.add(token) for token in [vocabulary["▁a"], *bytes_, *[vocabulary["▁word"]] * 40]]
    assert shown[:5] == ["a", "", "", "日", ""]
    assert shown[6:] == [" word"] * 39
    assert pieces.rest() == ""


@pytest.mark.parametrize("temperature", [1e-4, 1e-5, 1e-40, 1e-300])
def test_a_temperature_near_zero_draws_the_likeliest(temperature: float) -> None:
    logits_BV = torch.tensor([[1.0, 30.0, -1e4], [1e4, 2.0, 3.0]])
    drawn = Sampler(GenerationSettings(temperature=temperature, top_p=0.9), torch.device("cpu"))(logits_BV)
    assert drawn.tolist() == [1, 0]
