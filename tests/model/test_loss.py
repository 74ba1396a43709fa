"""Every short cut of a training step gives the plain path's loss and gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.factory import FAMILIES, save_encoder, save_llm
from torch import Tensor

from dualslm.conversation import Conversation, Speech, View
from dualslm.model.dualslm import DualSLM
from dualslm.model.inputs import IGNORE_INDEX, fill
from dualslm.model.llm import pad_left
from dualslm.model.loss import Loss, numbered_prefixes, share_prefixes
from dualslm.prompt import Prompt, render

ALWAYS, NEVER = 0.0, 2.0


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_encoder(tmp_path_factory.mktemp("encoder")))


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request: pytest.FixtureRequest, encoder: str, tmp_path_factory: pytest.TempPathFactory) -> DualSLM:
    llm = save_llm(tmp_path_factory.mktemp(request.param), request.param)
    torch.manual_seed(1)
    settings = {"tokens": 4, "dropout": 0.0}
    return DualSLM.from_parts(encoder, str(llm), linguistic={"hidden": 64}, paralinguistic=settings)


def clip(seconds: float, seed: int) -> Speech:
    wave = 0.1 * np.random.default_rng(seed).standard_normal(int(16_000 * seconds))
    return Speech(wave.astype(np.float32), transcript="I lost my umbrella.", caption="sad, slow")


def prompts(model: DualSLM) -> list[Prompt]:
    """Samples cut from one talk, typed and spoken, others beside them, ERR views, and no history at all."""
    earlier = clip(0.7, 9)
    first = Conversation("You are a kind listener.").user("hello").assistant("good morning!")
    later = first.copy().user(earlier).assistant("It rains.")
    found = []
    for number, (conversation, seconds) in enumerate([(first, 0.5), (later, 1.1), (first, 0.9), (Conversation(), 0.6)]):
        whole = conversation.copy().user(clip(seconds, number)).assistant("I lost my umbrella at the station.")
        for view, learns in ((View(), {"para", "ling"}), (View("text", "speech"), {"ling"}), (View(), {"para"})):
            found.append(
                render(whole, model.llm.tokenizer, view, learns=frozenset(learns), supervise="last")  # type: ignore[arg-type]
            )
    asked = Conversation("Answer.").user(clip(0.8, 5), "low or high?").assistant("It is low.").user("sad?")
    found.append(render(asked.assistant("It is sad."), model.llm.tokenizer, supervise="all"))
    return found


@pytest.mark.parametrize(("still", "other"), [("para", "ling"), ("ling", "para")])
def test_the_adapter_that_does_not_learn_runs_as_in_evaluation(
    encoder: str, tmp_path: Path, still: str, other: str
) -> None:
    settings = {"hidden": 64, "dropout": 0.5, "mask": 0.3}
    llm = str(save_llm(tmp_path))
    model = DualSLM.from_parts(encoder, llm, linguistic=settings, paralinguistic={"tokens": 4, "dropout": 0.5})
    whole = Conversation().user(clip(1.1, 0)).assistant("I lost my umbrella.")

    def embedded(learns: str) -> dict[str, Tensor]:
        prompt = render(whole, model.llm.tokenizer, learns=frozenset({learns}), supervise="last")  # type: ignore[arg-type]
        (filled,) = fill([prompt], model.llm, model.adapt, model.hear)
        rows: dict[str, list[int]] = {channel: [] for channel in ("para", "ling")}
        for position, key in enumerate(filled.keys):
            if isinstance(key, tuple):
                rows[key[0]].append(position)
        return {channel: filled.embeds_TD[some] for channel, some in rows.items()}

    model.eval()
    evaluated = embedded(other)
    model.train()
    taught = embedded(other)
    assert torch.equal(taught[still], evaluated[still])
    taught[still].sum().backward(retain_graph=True)
    assert all(weight.grad is None or not weight.grad.any() for weight in model.adapters[still].parameters())
    assert not torch.equal(taught[other], evaluated[other]), "the one that learns keeps its dropout"
    taught[other].sum().backward()
    assert any(weight.grad is not None and bool(weight.grad.any()) for weight in model.adapters[other].parameters())
    assert model.adapters[still].training, "the mode is as it was"


def learnt(model: DualSLM, loss: Loss) -> list[Tensor]:
    model.zero_grad()
    loss.nll_B.sum().backward()
    return [weight.grad.clone() for weight in model.adapters.parameters() if weight.grad is not None]


def assert_equal(model: DualSLM, one: Loss, other: Loss) -> None:
    torch.testing.assert_close(one.nll_B, other.nll_B, atol=1e-4, rtol=1e-5)
    assert torch.equal(one.tokens_B, other.tokens_B)
    for a, b in zip(learnt(model, one), learnt(model, other), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * float(b.abs().max()) + 1e-6, rtol=1e-4)


def test_the_shared_prefix_changes_nothing(model: DualSLM) -> None:
    some = prompts(model)
    filled = fill(some, model.llm, model.adapt, model.hear)
    readings, _ = share_prefixes(numbered_prefixes(filled))
    assert len(readings) < len(some)
    assert_equal(model, model(some, min_saved_share=ALWAYS), model(some, min_saved_share=NEVER))


def test_logits_at_targets_alone_change_nothing(model: DualSLM) -> None:
    some = prompts(model)

    def everywhere() -> Loss:
        filled = fill(some, model.llm, model.adapt, model.hear)
        embeds_BTD, mask_BT = pad_left([row.embeds_TD for row in filled])
        labels_BT = pad_left([row.labels_T for row in filled])[0].masked_fill(mask_BT == 0, IGNORE_INDEX)[:, 1:]
        chances_BTV = model.llm(embeds_BTD, mask_BT)[:, :-1].log_softmax(-1)
        own_BT = chances_BTV.gather(-1, labels_BT.clamp_min(0)[..., None])[..., 0]
        wanted_BT = labels_BT != IGNORE_INDEX
        return Loss(-(own_BT * wanted_BT).sum(1), wanted_BT.sum(1))

    assert_equal(model, model(some, min_saved_share=NEVER), everywhere())


def test_cached_frames_change_nothing(model: DualSLM) -> None:
    some = prompts(model)
    clips = {id(one): one for prompt in some for one in prompt.clips}
    frames = model.hear(list(clips.values()))
    place = {key: number for number, key in enumerate(clips)}
    cached = model(some, lambda asked: frames.pick([place[id(one)] for one in asked]))
    assert_equal(model, cached, model(some))


def test_one_reading_serves_all_that_begin_like_it() -> None:
    prefixes: list[tuple[int, ...]] = [(1, 2), (1, 2, 3), (), (1, 4), (1, 2), (1,)]
    readings, owners = share_prefixes(prefixes)
    assert readings == [(1, 4), (1, 2, 3)]
    for prefix, owner in zip(prefixes, owners, strict=True):
        assert readings[owner][: len(prefix)] == prefix


def test_windows_of_attention_keep_to_the_plain_path(encoder: str, tmp_path: Path) -> None:
    """A sliding window drops old keys, so its rows cannot share a reading."""
    model = DualSLM.from_parts(encoder, str(save_llm(tmp_path / "llm", "mistral"))).eval()
    assert not model.llm.keeps_every_position
    some = prompts(model)
    assert torch.equal(model(some, min_saved_share=ALWAYS).nll_B, model(some, min_saved_share=NEVER).nll_B)
