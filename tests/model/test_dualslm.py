"""The whole: frozen stays frozen, batch = one by one, stream = whole, cache = prefill, text = the base LLM."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.factory import FAMILIES, save_encoder, save_llm

from dualslm.conversation import Channel, Conversation, Said, Speech, View
from dualslm.errors import DualSLMError
from dualslm.model.dualslm import DualSLM
from dualslm.model.fingerprint import weights_hash
from dualslm.model.generation import GenerationSettings
from dualslm.prompt import Text, render

SHORT = GenerationSettings(max_new_tokens=12)


def clip(seconds: float, seed: int = 0) -> Speech:
    wave = 0.1 * np.random.default_rng(seed).standard_normal(int(16_000 * seconds))
    return Speech(wave.astype(np.float32), transcript="I lost my umbrella.", caption="sad, slow")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_encoder(tmp_path_factory.mktemp("encoder")))


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request: pytest.FixtureRequest, encoder: str, tmp_path_factory: pytest.TempPathFactory) -> DualSLM:
    llm = save_llm(tmp_path_factory.mktemp(request.param), request.param)
    torch.manual_seed(1)
    fresh = DualSLM.from_parts(encoder, str(llm), linguistic={"hidden": 64}, paralinguistic={"tokens": 4})
    return fresh.eval()


def test_text_alone_is_the_base_llm_bit_for_bit(model: DualSLM) -> None:
    conversation = Conversation("Answer kindly.").user("hello").assistant("hi").user("I lost my umbrella!")
    prompt = render(conversation, model.llm.tokenizer)
    ids = torch.tensor([[token for segment in prompt.segments if isinstance(segment, Text) for token in segment.ids]])
    with torch.no_grad():
        ours = model.llm(model.embed([prompt])[0][None])
        base = model.llm.model(input_ids=ids).logits
    assert torch.equal(ours, base)


def test_training_moves_the_adapters_and_nothing_else(model: DualSLM) -> None:
    before = weights_hash(model.encoder), weights_hash(model.llm)
    adapters = weights_hash(model.adapters)
    model.train()
    optimizer = torch.optim.AdamW(model.adapters.parameters(), lr=1e-4)
    conversation = Conversation("Answer kindly.").user(clip(1.0)).assistant("So sorry.")
    for _ in range(2):
        model([render(conversation, model.llm.tokenizer, supervise="last")]).mean.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    assert (weights_hash(model.encoder), weights_hash(model.llm)) == before
    assert weights_hash(model.adapters) != adapters


def test_a_batch_of_eight_equals_one_by_one(model: DualSLM) -> None:
    conversations = [Conversation().user(clip(0.1 + 0.7 * n, n), "what is this?" * (n % 3)) for n in range(7)]
    conversations.append(Conversation("Be kind.").user("only text"))
    prompts = [render(conversation, model.llm.tokenizer) for conversation in conversations]
    together = model.llm.prefill(model.embed(prompts)).logits_BV
    for row, prompt in enumerate(prompts):
        alone = model.llm.prefill(model.embed([prompt])).logits_BV[0]
        torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=0)


def test_stream_joined_is_the_reply(model: DualSLM) -> None:
    conversation = Conversation("Be kind.").user(clip(1.5))
    pieces = list(model.stream(conversation, generation=SHORT))
    assert "".join(pieces) == model.reply(conversation, generation=SHORT) != ""
    drawn = GenerationSettings(max_new_tokens=12, temperature=1.5, top_p=0.9, seed=3)
    assert "".join(model.stream(conversation, generation=drawn)) == model.reply(conversation, generation=drawn)


def test_reading_in_two_goes_equals_reading_at_once(model: DualSLM) -> None:
    prompts = [render(Conversation("Be kind.").user(clip(s)), model.llm.tokenizer) for s in (0.5, 2.0)]
    rows = model.embed(prompts)
    whole = model.llm.prefill(rows)
    first = model.llm.prefill([row[:9] for row in rows])
    # the shorter remainder is padded in the middle of its row: masked, and skipped in the positions
    second = model.llm.prefill([row[9:] for row in rows], first)
    torch.testing.assert_close(second.logits_BV, whole.logits_BV, atol=1e-4, rtol=0)


def test_frozen_slots_get_no_gradient(model: DualSLM) -> None:
    conversation = Conversation().user(clip(1.0)).assistant("So sorry.")
    cases: tuple[tuple[Channel, torch.nn.Module], ...] = (("ling", model.para), ("para", model.ling))
    for learns, still in cases:
        model.adapters.zero_grad()
        model([render(conversation, model.llm.tokenizer, supervise="last", learns=frozenset([learns]))]).mean.backward()
        assert all(weight.grad is None for weight in still.parameters())
        moving = model.ling if still is model.para else model.para
        assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in moving.parameters())


def test_loss_is_that_of_the_reply_tokens(model: DualSLM) -> None:
    conversations = [
        Conversation("Be kind.").user(clip(1.0, 5)).assistant("So sorry."),
        Conversation().user("a").assistant("b"),
    ]
    prompts = [render(conversation, model.llm.tokenizer, supervise="last") for conversation in conversations]
    loss = model(prompts)
    for row, prompt in enumerate(prompts):
        embeds = model.embed([prompt])[0]
        target = [
            token for segment in prompt.segments if isinstance(segment, Text) and segment.loss for token in segment.ids
        ]
        log_chances = model.llm(embeds[None])[0].log_softmax(-1)[-len(target) - 1 : -1]
        nll = -log_chances[torch.arange(len(target)), target].sum()
        assert int(loss.tokens_B[row]) == len(target)
        torch.testing.assert_close(loss.nll_B[row], nll, atol=1e-4, rtol=1e-5)


def test_a_view_may_be_written_as_on_the_command_line(model: DualSLM) -> None:
    conversation = Conversation().user(clip(0.5))
    generation = GenerationSettings(4)
    assert model.reply(conversation, view="none,speech", generation=generation) == model.reply(
        conversation, view=View("none", "speech"), generation=generation
    )
    with pytest.raises(DualSLMError, match="a view is two sources"):
        model.reply(conversation, view="speech")


def test_views_and_swap_change_what_is_heard(model: DualSLM) -> None:
    a, b = clip(1.0, 1), clip(2.0, 2)

    def lengths(conversation: Conversation, view: View) -> int:
        return len(model.embed([render(conversation, model.llm.tokenizer, view)])[0])

    empty = lengths(Conversation().user(a), View("none", "none"))
    assert lengths(Conversation().user(a), View("speech", "none")) == empty + 4
    assert lengths(Conversation().user(a), View("none", "speech")) == empty + 10
    swapped = model.embed([render(Conversation().user(a.in_the_tone_of(b)), model.llm.tokenizer)])[0]
    p_of_b = model.embed([render(Conversation().user(b), model.llm.tokenizer, View("speech", "none"))])[0]
    l_of_a = model.embed([render(Conversation().user(a), model.llm.tokenizer, View("none", "speech"))])[0]
    start = next(i for i in range(len(l_of_a)) if not torch.equal(l_of_a[i], p_of_b[i]))
    torch.testing.assert_close(swapped[start : start + 4], p_of_b[start : start + 4], atol=1e-5, rtol=0)
    torch.testing.assert_close(swapped[start + 4 :], l_of_a[start:], atol=1e-5, rtol=0)


def test_saved_and_loaded_is_the_same(model: DualSLM, tmp_path: Path) -> None:
    folder = model.save_pretrained(tmp_path / "adapters")
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "adapters.safetensors",
        "config.json",
    ]
    again = DualSLM.from_pretrained(folder)
    assert weights_hash(again.adapters) == weights_hash(model.adapters)
    assert again.reply(clip(1.0), generation=SHORT) == model.reply(clip(1.0), generation=SHORT)
    other = save_llm(tmp_path / "other", seed=9)
    with pytest.raises(DualSLMError, match="is not the LLM that these adapters were trained with"):
        DualSLM.from_pretrained(folder, llm=str(other))


def test_a_card_of_the_last_version_is_read_and_named(
    model: DualSLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = model.save_pretrained(tmp_path / "adapters")
    card = (folder / "config.json").read_text()
    (folder / "config.json").write_text(card.replace("encoder_fingerprint", "encoder_print"))
    again = DualSLM.from_pretrained(folder)
    assert weights_hash(again.adapters) == weights_hash(model.adapters)
    assert "encoder_print is now encoder_fingerprint" in caplog.text


def test_a_batch_without_targets_says_so(model: DualSLM) -> None:
    with pytest.raises(DualSLMError, match="nothing to learn"):
        model([render(Conversation().user("hello"), model.llm.tokenizer)])


def test_float16_is_refused(encoder: str, tmp_path: Path) -> None:
    with pytest.raises(DualSLMError, match="float16 overflows"):
        DualSLM.from_parts(encoder, str(tmp_path), dtype=torch.float16)


def test_a_reply_takes_settings_messages_and_several_at_once(model: DualSLM) -> None:
    """As a user of transformers and of OpenAI's clients guesses it."""
    speech = clip(0.8, 3)
    alone = model.reply(speech, max_new_tokens=12)
    assert alone == model.reply(speech, generation=SHORT)
    assert model.reply([speech, clip(0.4, 4)], max_new_tokens=12)[0] == alone
    drawn = model.reply(speech, max_new_tokens=8, temperature=1.5, seed=3)
    assert drawn == model.reply(speech, generation=GenerationSettings(8, temperature=1.5, seed=3))
    assert drawn != alone
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "audio", "audio": speech.audio}, {"type": "text", "text": "Hm?"}]},
    ]
    asked = Conversation("Be kind.").user(speech, "Hm?")
    assert model.reply(messages, max_new_tokens=8) == model.reply(asked, max_new_tokens=8)
    assert "".join(model.stream(messages, max_new_tokens=8)) == model.reply(asked, max_new_tokens=8)
    several: list[Said] = [messages, asked]
    assert model.reply(several, max_new_tokens=8)[0] == model.reply(asked, max_new_tokens=8)


def test_the_signature_of_reply_explains_itself() -> None:
    names = list(inspect.signature(DualSLM.reply).parameters)
    assert names[1:] == [
        "said", "view", "system", "generation", "max_new_tokens", "temperature", "top_p", "seed",
    ]  # fmt: skip
    described = inspect.getdoc(DualSLM.reply) or ""
    assert all(f"{name}: " in described for name in names[1:])
