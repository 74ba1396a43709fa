"""`dualslm plan`: its FLOPs are PyTorch's, its counts the manifest's, and it loads nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.trainkit import make
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from dualslm.cli.main import main
from dualslm.errors import DualSLMError
from dualslm.model.adapters import LinguisticAdapter, ParalinguisticAdapter
from dualslm.model.group_convolution import BESIDE
from dualslm.model.inputs import IGNORE_INDEX, PromptEmbeds
from dualslm.model.llm import FrozenLM
from dualslm.model.loss import next_token_loss
from dualslm.recipe import Recipe, load
from dualslm.training import estimate, shapes
from dualslm.training.align import MAX_NEGATIVES

LLM = shapes.LLMShape(width=128, layers=3, heads=4, kv_heads=2, head_width=32, ffn=352, vocabulary=900)
ENCODER = shapes.EncoderShape(width=64, layers=2, ffn=256, mels=80, window=200)
LENGTHS = estimate.Lengths(context=60, seconds=2.0, after=5, reply=12)


def llm() -> FrozenLM:
    from support.factory import tokenizer

    config = Qwen2Config(
        vocab_size=LLM.vocabulary,
        hidden_size=LLM.width,
        intermediate_size=LLM.ffn,
        num_hidden_layers=LLM.layers,
        num_attention_heads=LLM.heads,
        num_key_value_heads=LLM.kv_heads,
        attn_implementation="eager",
    )
    return FrozenLM(Qwen2ForCausalLM(config), tokenizer())


def recipe_with(root: Path, para: dict[str, Any], ling: dict[str, Any]) -> Recipe:
    recipe = load(root / "recipes" / "paper-qwen.toml", ["model.paralinguistic.dropout=0.0"])
    model = replace(
        recipe.model,
        paralinguistic=replace(recipe.model.paralinguistic, **para),
        linguistic=replace(recipe.model.linguistic, **ling),
    )
    return replace(recipe, model=model)


@pytest.mark.parametrize(
    ("para_keys", "ling_keys"),
    [
        ({}, {}),
        ({"deviations": True}, {"around": 1}),
        ({"layers": 0, "deviations": True}, {"layers": 2, "around": 1}),
        ({}, {"convolutions": 2}),
    ],
    ids=["paper", "neighbours", "layers", "convolutions"],
)
def test_flops_of_a_step_are_those_that_pytorch_counts(
    root: Path, para_keys: dict[str, Any], ling_keys: dict[str, Any]
) -> None:
    recipe = recipe_with(root, {"feedforward": 256, **para_keys}, {"hidden": 96, **ling_keys})
    para = ParalinguisticAdapter(64, 128, dropout=0.0, **para_keys)
    ling = LinguisticAdapter(64, 128, hidden=96, **ling_keys)
    model = llm()
    frames = torch.randn(1, 1, 100, 64)
    lengths = torch.tensor([100])
    before = torch.randn(60, 128)
    after = torch.randn(5 + 12, 128)
    labels = torch.full((60 + 16 + 20 + 17,), IGNORE_INDEX)
    labels[-12:] = 7
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        slots = [para(frames, lengths)[0], ling(frames[-1], lengths)[0]]
        prompt = PromptEmbeds(torch.cat([before, *slots, after]), range(len(labels)), labels, fixed=60)
        next_token_loss(model, [prompt], min_saved_share=0.0).nll_B.sum().backward()
    counted = counter.get_total_flops()
    assert estimate.sample_cost(recipe, ENCODER, LLM, LENGTHS).total == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize(
    "keys",
    [{}, {"around": 1}, {"layers": 1}, {"convolutions": 2}],
    ids=["paper", "neighbours", "layer", "convolutions"],
)
def test_flops_of_aligning_are_those_that_pytorch_counts(root: Path, keys: dict[str, Any]) -> None:
    recipe = recipe_with(root, {}, {"hidden": 96, **keys})
    ling = LinguisticAdapter(64, 128, hidden=96, **keys)
    tokens = torch.randn(LLM.vocabulary, 128)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        (ling(torch.randn(1, 100, 64), torch.tensor([100])) @ tokens.T).sum().backward()
    cost = estimate.sample_cost(recipe, ENCODER, LLM, LENGTHS, aligned="ling")
    assert cost.total == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert estimate.ALIGNMENT_CLASSES == MAX_NEGATIVES
    assert estimate.GROUPS_CONVOLVED == 2 * BESIDE + 1


@pytest.mark.parametrize("keys", [{}, {"around": 2}, {"layers": 1, "around": 1}, {"convolutions": 1}])
def test_the_weights_of_l_are_counted(keys: dict[str, Any], root: Path) -> None:
    learnt = sum(one.numel() for one in LinguisticAdapter(64, 128, hidden=96, **keys).parameters() if one.dim() > 1)
    recipe = recipe_with(root, {}, {"hidden": 96, **keys})
    assert estimate._ling_work(recipe.model.linguistic, ENCODER, LLM, 0.0).weights == learnt


def test_flops_of_the_encoder_are_those_that_pytorch_counts() -> None:
    config = WhisperConfig(
        num_mel_bins=80,
        d_model=64,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=256,
        max_source_positions=200,
    )
    encoder = WhisperEncoder._from_config(config, attn_implementation="eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(torch.randn(1, 80, 400))
    assert ENCODER.flops() == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_known_sizes_give_the_models_own_numbers_of_weights() -> None:
    assert shapes.KNOWN_LLMS["Qwen/Qwen2.5-7B-Instruct"].weights == pytest.approx(7.62e9, rel=0.005)
    assert shapes.KNOWN_LLMS["Qwen/Qwen2.5-0.5B-Instruct"].weights == pytest.approx(0.494e9, rel=0.005)
    assert shapes.KNOWN_LLMS["meta-llama/Llama-3.1-8B-Instruct"].weights == pytest.approx(8.03e9, rel=0.005)
    assert shapes.KNOWN_ENCODERS["openai/whisper-large-v3"].weights == pytest.approx(0.637e9, rel=0.01)


def test_the_pocket_parts_are_planned_before_they_are_fetched() -> None:
    assert shapes.encoder_shape("pocket:encoder") == shapes.KNOWN_ENCODERS["openai/whisper-base"]
    assert shapes.llm_shape("pocket:llm").weights == pytest.approx(134.5e6, rel=0.001)


def test_counts_come_from_the_manifest(tmp_path: Path) -> None:
    recipe = make(tmp_path)
    found = estimate.estimate(recipe)
    assert not found.assumed
    assert found.examples == {"linguistic": 12, "paralinguistic": 12}
    assert found.steps == {"joint": 7, "disentangle": 7}


def test_a_manifest_that_is_not_there_yet_is_named(tmp_path: Path) -> None:
    recipe = make(tmp_path)
    more = replace(recipe, data=replace(recipe.data, train=(*recipe.data.train, "yet.targets.jsonl")))
    found = estimate.estimate(more)
    assert found.examples == estimate.estimate(recipe).examples
    title = str(next(estimate.tables(more, found, {})).title)
    assert title.endswith("yet.targets.jsonl is not here yet")


def test_weights_of_manifests_count(tmp_path: Path) -> None:
    recipe = make(tmp_path)
    weighted = replace(recipe, data=replace(recipe.data, weights=(2.5,)))
    assert estimate.estimate(weighted).examples == {"linguistic": 30, "paralinguistic": 30}
    assert estimate.estimate(weighted).encoder_flops == estimate.estimate(recipe).encoder_flops


@pytest.mark.parametrize("name", ["paper-qwen", "paper-qwen-24gb", "paper-llama", "small", "tiny"])
def test_every_shipped_recipe_is_planned_without_torch(root: Path, name: str) -> None:
    code = (
        "import sys; from dualslm.cli.main import main; "
        f"status = main(['plan', {str(root / 'recipes' / f'{name}.toml')!r}]); "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "memory on the card" in done.stdout


def test_the_recipe_for_small_cards_is_the_papers_and_fits_them(root: Path) -> None:
    whole, small = (load(root / "recipes" / f"{name}.toml") for name in ("paper-qwen", "paper-qwen-24gb"))
    own = replace(small.loop, max_tokens=whole.loop.max_tokens, activation_checkpointing=False)
    assert replace(small, model=replace(small.model, quantize=None), loop=own) == whole
    tight = replace(small, loop=replace(small.loop, max_tokens=2048))
    assert estimate.estimate(small).memory_bytes < 0.75 * 24e9
    assert estimate.estimate(tight).memory_bytes < 0.75 * 16e9


def test_json_and_a_card(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "plan", str(root / "recipes" / "paper-qwen.toml"), "--card", "H100"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["hours"]) == ["H100"]
    assert found["flops"] > 1e18


def test_mistakes_are_one_line(root: Path, tmp_path: Path) -> None:
    recipe = load(root / "recipes" / "paper-qwen.toml")
    with pytest.raises(DualSLMError, match="unknown card"):
        list(estimate.hours(estimate.estimate(recipe), "abacus"))
    with pytest.raises(DualSLMError, match="sizes of the LLM"):
        estimate.estimate(replace(recipe, model=replace(recipe.model, llm=str(tmp_path))))
