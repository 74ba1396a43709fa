"""The frozen LLM's layers in fewer bits, computed twice, or spread: the adapters' gradient stays what it was."""

from __future__ import annotations

import copy
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from support.factory import FAMILIES, save_llm
from torch import Tensor, nn

from dualslm.errors import DualSLMError
from dualslm.model.execution import activation_checkpointing, compile_layers, decoder_layers, read_only
from dualslm.model.llm import FrozenLM
from dualslm.recipe import Quantize
from dualslm.tiny import WEIGHTS

LLM = str(WEIGHTS / "llm")


def gradient(model: FrozenLM, embeds_BTD: Tensor) -> Tensor:
    """Of what every position's logits sum to."""
    leaf = embeds_BTD.clone().requires_grad_()
    model(leaf).float().logsumexp(-1).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize(("kind", "alike"), [("int8", 0.999), ("nf4", 0.9)])
def test_a_quantized_llm_passes_nearly_the_same_gradient(kind: Quantize, alike: float) -> None:
    pytest.importorskip("bitsandbytes", reason="pip install 'dualslm[quantized]'")
    whole, small = FrozenLM.from_pretrained(LLM), FrozenLM.from_pretrained(LLM, quantize=kind)
    ids = torch.tensor([whole.tokenizer("My dog ran away in the park this morning.")["input_ids"]])
    one, two = (gradient(model, whole.embed(ids)).flatten() for model in (whole, small))
    assert torch.cosine_similarity(one, two, dim=0) > alike
    layers = [sum(w.nbytes for layer in decoder_layers(m.model) for w in layer.parameters()) for m in (whole, small)]
    assert layers[1] < layers[0] / 3
    small.prefill([whole.embed(ids[0])])  # no gradient wanted: the weights stay as they are
    assert torch.cosine_similarity(two, gradient(small, whole.embed(ids)).flatten(), dim=0) > 0.999


def test_without_bitsandbytes_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DualSLMError, match="cannot quantize the LLM"):
        FrozenLM.from_pretrained(LLM, quantize="nf4")


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_computed_twice_give_the_same_gradient(family: str, tmp_path: Path) -> None:
    model = FrozenLM.from_pretrained(str(save_llm(tmp_path, family)))
    if not model.keeps_every_position:
        pytest.skip(f"{family} reads no prefix apart")
    embeds_BTD = model.embed(torch.arange(20).reshape(2, 10))
    read = [model.prefill(list(embeds_BTD[:, :4])).cache for _ in range(2)]
    found = []
    for cache in read:
        leaf = embeds_BTD[:, 4:].clone().requires_grad_()
        model(leaf, torch.ones(2, 10, dtype=torch.long), cache=read_only(cache)).float().logsumexp(-1).sum().backward()
        found.append(leaf.grad)
        activation_checkpointing(model.model)
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_compiling_is_done_once_for_all_layers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else layers after the eighth would run as they are: PyTorch compiles no code oftener than that."""
    model = FrozenLM.from_pretrained(str(save_llm(tmp_path)))
    layers = model.model.model.layers
    for place in range(len(layers), 12):
        layers.append(copy.deepcopy(layers[0]))
        layers[place].self_attn.layer_idx = place
    model.model.config.num_hidden_layers = 12
    model.model.config.layer_types = ["full_attention"] * 12
    embeds_BTD = model.embed(torch.arange(24).reshape(2, 12))
    plain = gradient(model, embeds_BTD)
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_layers(model.model)
    read = model.prefill(list(embeds_BTD[:, :4]))
    assert model.prefill(list(embeds_BTD[:, 4:]), read).mask_BT.shape == (2, 12)
    torch.testing.assert_close(gradient(model, embeds_BTD), plain)
    assert gradient(model, embeds_BTD[:, :9]).shape == (2, 9, plain.shape[-1])
    counted = torch._dynamo.utils.counters
    assert 2 <= counted["stats"]["unique_graphs"] <= 8
    assert not counted["unimplemented"]


def test_layers_that_cannot_be_told_apart_are_one_line() -> None:
    with pytest.raises(DualSLMError, match="cannot be told apart"):
        decoder_layers(nn.Linear(2, 2))
