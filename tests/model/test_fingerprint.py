"""Fingerprints are of the weights as published: the same from fp32 and fp16 files, in any dtype they are loaded in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.factory import save_encoder, save_llm

from dualslm.errors import DualSLMError
from dualslm.model.checkpoint import check_fingerprint, read_card
from dualslm.model.encoder import SpeechEncoder
from dualslm.model.fingerprint import fingerprint, of_weights
from dualslm.model.llm import FrozenLM
from dualslm.tiny import ADAPTERS


def in_dtype(folder: Path, dtype: torch.dtype) -> None:
    file = folder / "model.safetensors"
    save_file({key: value.to(dtype) for key, value in load_file(file).items()}, file, metadata={"format": "pt"})


def test_rounding_twice_is_not_rounding_once() -> None:
    """Why encoders go through fp16 first: this number lies just above the middle of two in bf16; fp16 drops that."""
    value = torch.tensor(1 + 2**-8 + 2**-20)
    assert value.bfloat16() != value.half().bfloat16()


def test_an_encoder_in_fp32_and_in_fp16_is_one(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path)
    in_dtype(folder, torch.float32)
    whole = SpeechEncoder.from_pretrained(str(folder))
    former = of_weights(whole)
    in_dtype(folder, torch.float16)
    half = SpeechEncoder.from_pretrained(str(folder))
    assert fingerprint(whole) == fingerprint(half)
    assert of_weights(half) != former, "or this test shows nothing"
    # a card of the last version states what its file in fp32 gave then
    check_fingerprint(whole, former, part="encoder", name="it")
    with pytest.raises(DualSLMError, match="is not the encoder"):
        check_fingerprint(half, former, part="encoder", name="it")


def test_the_dtype_that_it_runs_in_changes_nothing(tmp_path: Path) -> None:
    folder = str(save_encoder(tmp_path))
    prints = {
        fingerprint(SpeechEncoder.from_pretrained(folder, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)
    }
    assert len(prints) == 1


def test_another_encoder_has_another(tmp_path: Path) -> None:
    one, other = (save_encoder(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    assert fingerprint(SpeechEncoder.from_pretrained(str(one))) != fingerprint(
        SpeechEncoder.from_pretrained(str(other))
    )


def test_an_llm_keeps_the_rule_of_before(tmp_path: Path) -> None:
    llm = FrozenLM.from_pretrained(str(save_llm(tmp_path)))
    assert fingerprint(llm) == of_weights(llm)


def test_the_shipped_fingerprints_hold() -> None:
    card = read_card(ADAPTERS)
    assert fingerprint(SpeechEncoder.from_pretrained(card.encoder)) == card.encoder_fingerprint
    assert fingerprint(FrozenLM.from_pretrained(card.llm)) == card.llm_fingerprint
