"""Aligned adapters are read by direction: words by nearest token, a voice by nearest word, silence as nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.aligned import TONE, VALUES, WORD, aligned_model

from dualslm.conversation import Speech
from dualslm.model.dualslm import DualSLM
from dualslm.model.nearest import Aligned, compare_with_words, nearest_tokens, read_tone, read_words, tone_embedding

SPEECH = Speech(np.zeros(16000, np.float32))


@pytest.fixture(params=[False, True])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> DualSLM:
    return aligned_model(tmp_path, skip=request.param)


def test_l_is_read_by_direction_and_silence_is_no_token(model: DualSLM) -> None:
    words = model.llm.tokenizer
    said = words(" I lost my lost umbrella", add_special_tokens=False)["input_ids"]
    tokens_V = torch.tensor(sorted({*said, *range(40, 90)}))
    exact = model.llm.embed(torch.tensor(said))
    middle = model.ling.middle_D if model.ling.skip else torch.zeros(exact.shape[1])
    # Each token twice as drawn-out speech is, with silence after it.
    groups = torch.stack([row for embed in exact for row in (embed, embed, middle)])
    assert nearest_tokens(model, groups, tokens_V) == said
    assert nearest_tokens(model, middle[None], tokens_V) == []
    # A token said twice with silence between is two tokens.
    twice = torch.stack([exact[0], middle, exact[0]])
    assert nearest_tokens(model, twice, tokens_V) == [said[0]] * 2


def test_p_is_read_by_its_nearest_word(model: DualSLM) -> None:
    words = {name: torch.stack([tone_embedding(model, name, one) for one in own]) for name, own in VALUES.items()}
    embeds_BMD = (words["gender"][1] + words["tempo"][0]).expand(1, 2, -1) / model.para.project.scale
    logits = {name: logits_BV[0] for name, (_, logits_BV) in compare_with_words(model, embeds_BMD, VALUES).items()}
    assert int(logits["gender"].argmax()) == 1
    assert int(logits["tempo"].argmax()) == 0


def test_a_recording_is_read_whole(model: DualSLM) -> None:
    assert read_words(model, model.hear([SPEECH])) == WORD
    shares = read_tone(model, model.hear([SPEECH]), VALUES)
    assert {name: max(own, key=own.__getitem__) for name, own in shares.items()} == TONE
    assert all(sum(own.values()) == pytest.approx(1.0) for own in shares.values())
    assert read_tone(model, model.hear([SPEECH]), {}) == {}


def test_what_is_aligned_is_kept_with_the_adapters(model: DualSLM, tmp_path: Path) -> None:
    again = DualSLM.from_pretrained(model.save_pretrained(tmp_path / "saved"))
    assert again.aligned == model.aligned
    model.aligned = Aligned()
    assert not DualSLM.from_pretrained(model.save_pretrained(tmp_path / "asked")).aligned


def test_training_that_goes_on_from_16_bit_adapters_is_in_32_and_knows_what_is_aligned(
    model: DualSLM, tmp_path: Path
) -> None:
    model.adapters.half()
    saved = model.save_pretrained(tmp_path / "half")
    other = DualSLM.from_parts(
        str(tmp_path / "encoder"),
        str(tmp_path / "llm"),
        paralinguistic={"tokens": 2},
        linguistic={"skip": model.ling.skip},
    )
    other.load_adapters(saved)
    assert {weight.dtype for weight in other.adapters.state_dict().values()} == {torch.float32}
    assert other.aligned == model.aligned


@pytest.mark.parametrize(
    "found",
    [
        {"words": 1},
        {"word": True},
        {"attributes": ["gender"]},
        {"attributes": {"gender": "female"}},
        {"attributes": {"gender": ["female"]}},
        {"attributes": {"gender": ["female", 5]}},
    ],
)
def test_a_card_that_says_anything_else_is_refused(found: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="aligned"):
        Aligned.of(found)
