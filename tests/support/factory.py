"""Small random frozen parts, of real architectures, saved as their users would have them on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from dualslm.model.inputs import IGNORE_INDEX, PromptEmbeds
from dualslm.model.llm import FrozenLM

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
CORPUS = [
    "You are a kind listener. Answer in one sentence.",
    "I lost my umbrella at the station and now it rains.",
    "The speaker sounds sad, and talks slowly in a low voice.",
    "Write down what is said: <|user|> <|assistant|> hello, good morning!",
]
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
FAMILIES: dict[str, dict[str, object]] = {
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "llama": {"model_type": "llama"},
    "mistral": {"model_type": "mistral", "sliding_window": 64},
    "gemma": {"model_type": "gemma", "head_dim": 8},
    "gemma2": {"model_type": "gemma2", "head_dim": 8},
    "phi": {"model_type": "phi3"},
    "smollm": {"model_type": "llama", "tie_word_embeddings": True, "num_attention_heads": 8},
}
SLIDING = {"head_dim": 8, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
BY_LAYER = {**SLIDING, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 400, "num_kv_shared_layers": 0}
LONG = {"rope_theta": 1e4, "original_max_position_embeddings": 64}
UNUSUAL: dict[str, dict[str, object]] = {  # LLMs that do not read as the others do
    "gemma3n": {
        "model_type": "gemma3n_text",
        **BY_LAYER,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0, 0.0],
        "intermediate_size": [64, 64],
        "altup_num_inputs": 2,
    },
    "gemma4": {"model_type": "gemma4_text", **BY_LAYER, "global_head_dim": 8},
    "falcon_mamba": {"model_type": "falcon_mamba", "state_size": 8},
    "mamba2": {
        "model_type": "mamba2",
        "state_size": 8,
        "num_heads": 8,
        "head_dim": 8,
        "expand": 2,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "rwkv": {"model_type": "rwkv", "attention_hidden_size": 32},
    "minimax": {
        "model_type": "minimax",
        "head_dim": 8,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "layer_types": ["linear_attention", "full_attention"],
        "block_size": 8,
    },
    "longrope": {
        "model_type": "phi3",
        "original_max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [8.0] * 4, **LONG},
    },
    "dynamic": {
        "model_type": "llama",
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 8.0},
    },
    "gpt_oss": {"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2, **SLIDING},
    "gemma3": {"model_type": "gemma3_text", **SLIDING},
}


def tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A ByteLevel BPE with the special tokens that the templates use."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = template
    return fast


def llm_config(family: str, vocab: int) -> PretrainedConfig:
    """The configuration of a small model of a family."""
    settings = {**SMALL, **{**FAMILIES, **UNUSUAL}[family], "vocab_size": vocab}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return AutoConfig.for_model(str(settings.pop("model_type")), **settings, **ids)


def save_llm(folder: Path, family: str = "qwen2", seed: int = 0) -> Path:
    """A random causal LM of a family with tokenizer and chat template."""
    torch.manual_seed(seed)
    words = tokenizer(GEMMA if family.startswith("gemma") else CHATML)
    model = AutoModelForCausalLM.from_config(llm_config(family, len(words)))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)  # random replies that vary, not one token for ever
            elif family in UNUSUAL and not weight.any():
                weight.add_(1)  # norms and scales that begin at zero would hide what the layers do
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def save_encoder(folder: Path, *, width: int = 32, window_s: int = 4, seed: int = 0) -> Path:
    """A random Whisper encoder with a short window."""
    torch.manual_seed(seed)
    config = WhisperConfig(
        d_model=width,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=2 * width,
        max_source_positions=50 * window_s,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=width,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    WhisperEncoder(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80, chunk_length=window_s).save_pretrained(folder)
    return folder


Maker = Callable[..., Path]


def prompt_of(llm: FrozenLM, ids: list[int]) -> PromptEmbeds:
    """A prompt of token ids, as the LLM reads it."""
    labels_T = torch.full((len(ids),), IGNORE_INDEX)
    return PromptEmbeds(llm.embed(torch.tensor(ids)), ids, labels_T)
