"""An LLM of the tests' as a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dualslm.model.llm import FrozenLM

gguf = pytest.importorskip("gguf", reason="pip install 'dualslm[gguf]'")
LAYER = {  # transformers' name → GGUF's
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def as_gguf(llm: FrozenLM, file: Path) -> Path:
    """Writes a Qwen2 model and its byte-level BPE tokenizer as llama.cpp's tools do, in float32."""
    config, tokenizer = llm.model.config, llm.tokenizer
    writer = gguf.GGUFWriter(str(file), "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    # one for each row of the table, as llama.cpp holds them against each other
    tokens = [tokenizer.convert_ids_to_tokens(index) or f"[PAD{index}]" for index in range(config.vocab_size)]
    special = set(tokenizer.all_special_ids) | {3, 4, 5, 6}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if index in special else 1 for index in range(len(tokens))])
    merges = tokenizer.backend_tokenizer.to_str()
    writer.add_token_merges([" ".join(pair) for pair in json.loads(merges)["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for key, value in llm.model.state_dict().items():
        if key == "lm_head.weight":  # tied
            continue
        name = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}.get(key)
        if name is None:
            _, _, number, rest = key.split(".", 3)
            stem, _, kind = rest.rpartition(".")
            name = f"blk.{number}.{LAYER[stem]}.{kind}"
        writer.add_tensor(name, value.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
