"""Sizes of LLMs of all families: plain layers by a formula, others counted, and what is no LLM refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from dualslm.errors import DualSLMError
from dualslm.training import counted, shapes

SMALL = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 512,
    "vocab_size": 500,
}
OWN_NAMES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 256, "n_layer": 2, "n_head": 8, "n_positions": 8},
    "gptj": {"n_embd": 256, "n_layer": 2, "n_head": 8, "rotary_dim": 8},
    "gpt_neo": {"hidden_size": 256, "num_layers": 2, "num_heads": 8, "attention_types": [[["global", "local"], 1]]},
    "mpt": {"d_model": 256, "n_layers": 2, "n_heads": 8},
    "bloom": {"hidden_size": 256, "n_layer": 2, "n_head": 8},
    "opt": {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8, "ffn_dim": 512},
}
EXPERTS = {"num_experts_per_tok": 2}


def shape(folder: Path, **config: Any) -> shapes.LLMShape:
    (folder / "config.json").write_text(json.dumps(config))
    return shapes.llm_shape(str(folder))


# Those of a model that sees are built with it alone; their layers are Qwen 2's.
@pytest.mark.parametrize("kind", sorted(kind for kind in shapes.PLAIN if not kind.startswith("qwen2_")))
def test_the_formula_gives_the_weights_of_plain_layers(tmp_path: Path, kind: str) -> None:
    fields = OWN_NAMES.get(kind, {**SMALL, "head_dim": 32, "pad_token_id": 0})
    found = shape(tmp_path, model_type=kind, **{"vocab_size": 500, **fields})
    config = AutoConfig.for_model(kind, **{"vocab_size": 500, **fields})
    assert found.counted is None
    assert found.body == pytest.approx(counted.layers(kind, config).used, rel=0.015)


@pytest.mark.parametrize(
    ("fields", "experts"),
    [
        ({"model_type": "mixtral", "num_local_experts": 8}, 512),
        ({"model_type": "qwen3_moe", "num_experts": 16, "moe_intermediate_size": 64, "head_dim": 32}, 64),
        ({"model_type": "gpt_oss", "num_local_experts": 4, "head_dim": 32}, 512),
    ],
)
def test_of_a_mixture_all_experts_are_stored_and_few_are_used(
    tmp_path: Path, fields: dict[str, Any], experts: int
) -> None:
    found = shape(tmp_path, **SMALL, **EXPERTS, **fields)
    number = fields.get("num_experts") or fields["num_local_experts"]
    one = 2 * 3 * 256 * experts  # in two layers of three matrices
    attention = 2 * 2 * 256 * 32 * (8 + 4)
    assert found.body == pytest.approx(attention + 2 * one, rel=0.02)
    assert found.stored == pytest.approx(attention + number * one, rel=0.02)
    assert found.weights == found.stored + 2 * 256 * 500


def test_heads_that_share_their_keys_are_counted(tmp_path: Path) -> None:
    fields = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 500}
    found = shape(tmp_path, model_type="falcon", multi_query=True, new_decoder_architecture=False, **fields)
    # One head of keys and values for all eight of queries.
    assert found.body == pytest.approx(2 * (2 * 256 * 32 * (8 + 1) + 2 * 256 * 1024), rel=0.01)


LLAMA = {**SMALL, "model_type": "llama"}


@pytest.mark.parametrize(
    ("raw", "got"),
    [
        ({**LLAMA, "hidden_size": "256"}, 'hidden_size "256"'),
        ({**LLAMA, "hidden_size": None}, "hidden_size null"),
        ({**LLAMA, "num_attention_heads": 0}, "num_attention_heads 0"),
        ({**LLAMA, "num_key_value_heads": [4, 8]}, "num_key_value_heads [4, 8]"),
        ({"model_type": "t5"}, "transformers makes no causal LM"),
        ({"model_type": "brandnew"}, "Unrecognized model identifier: brandnew;"),
        ([1], "no JSON object"),
    ],
)
def test_a_config_without_sizes_is_one_line(tmp_path: Path, raw: Any, got: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(DualSLMError) as caught:
        shapes.llm_shape(str(tmp_path))
    assert got in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b'{"model_type": "llama",', json.dumps(LLAMA).encode("utf-16"), b"[" * 100_000])
def test_a_config_that_is_no_json_is_not_said_to_be_missing(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "config.json").write_bytes(data)
    for sizes in (shapes.llm_shape, shapes.encoder_shape):
        with pytest.raises(DualSLMError, match=r"no JSON object in config\.json"):
            sizes(str(tmp_path))


@pytest.mark.parametrize("raw", [{}, {"model_type": "bert", "d_model": 8}, {"d_model": "8"}])
def test_an_encoder_of_another_kind_is_one_line(tmp_path: Path, raw: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(DualSLMError, match=r"the sizes of the encoder .* cannot be told"):
        shapes.encoder_shape(str(tmp_path))
