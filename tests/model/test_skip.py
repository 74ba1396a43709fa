"""L without its silent groups: the same in a batch, in a session, in training and alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.factory import save_encoder, save_llm

from dualslm.conversation import L_ONLY, Conversation, Speech
from dualslm.inference.audio_cache import AudioCache
from dualslm.inference.session import Session
from dualslm.model.dualslm import DualSLM
from dualslm.model.generation import GenerationSettings
from dualslm.prompt import render

SHORT = GenerationSettings(max_new_tokens=8)


def clip(seconds: float, seed: int) -> Speech:
    wave = 0.1 * np.random.default_rng(seed).standard_normal(int(16_000 * seconds))
    return Speech(wave.astype(np.float32), transcript="I lost my umbrella.")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DualSLM:
    folder = tmp_path_factory.mktemp("parts")
    encoder, llm = save_encoder(folder / "encoder"), save_llm(folder / "llm")
    torch.manual_seed(1)
    made = DualSLM.from_parts(str(encoder), str(llm), linguistic={"hidden": 64, "skip": True}, window="clip").eval()
    with torch.no_grad():  # some groups loud and some silent, as after alignment
        made.ling.project.weight.mul_(0.5)
    return made


def test_silent_groups_take_no_positions(model: DualSLM) -> None:
    speech = clip(3.0, 1)
    prompt = render(Conversation().user(speech), model.llm.tokenizer, L_ONLY)
    (whole,) = AudioCache(model).embed([prompt])
    left = sum(isinstance(key, tuple) for key in whole.keys)
    assert 1 <= left < model.ling.lengths(model.frames(speech))
    assert len(whole.keys) == len(whole.embeds_TD) <= model.slot_lengths.prompt(prompt, model.frames)


def test_the_company_changes_nothing(model: DualSLM) -> None:
    prompts = [render(Conversation().user(clip(0.6 + n, n)), model.llm.tokenizer) for n in range(3)]
    for together, prompt in zip(model.embed(prompts), prompts, strict=True):
        (alone,) = model.embed([prompt])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_a_session_replies_as_from_scratch(model: DualSLM) -> None:
    session = Session(model, Conversation("Be kind."), generation=SHORT)
    for seed in range(3):
        reply = session.reply(clip(0.7 + 0.4 * seed, seed))
        asked = session.conversation.copy()
        asked.turns.pop()
        assert reply == model.reply(asked, generation=SHORT)
    assert session.times is not None
    assert session.times.reused > session.times.positions / 2


def test_what_is_left_learns(model: DualSLM) -> None:
    conversation = Conversation().user(clip(2.0, 4)).assistant("So sorry.")
    prompts = [render(conversation, model.llm.tokenizer, supervise="last")]
    model.adapters.zero_grad()
    model(prompts).mean.backward()
    gradient = model.ling.project.weight.grad
    assert gradient is not None
    assert float(gradient.abs().sum()) > 0


def test_it_is_saved_with_its_middle_and_its_window(model: DualSLM, tmp_path: Path) -> None:
    again = DualSLM.from_pretrained(model.save_pretrained(tmp_path / "adapters"))
    assert again.encoder.window == "clip"
    assert torch.equal(again.ling.middle_D, model.ling.middle_D)
    assert again.reply(clip(1.0, 5), generation=SHORT) == model.reply(clip(1.0, 5), generation=SHORT)
