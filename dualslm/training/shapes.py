"""Sizes of encoders and LLMs, and the FLOPs that follow from them; nothing is loaded or downloaded (ours).

A FLOP count is of matrix products alone, a multiplication and an addition each, as PyTorch's `FlopCounterMode`
counts them (agreement to 2 %: tested). Attention is counted in full: kernels that skip the masked half do less.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dualslm.errors import DualSLMError


@dataclass(frozen=True)
class EncoderShape:
    """A Whisper encoder.

    Attributes:
        width: width of its layers.
        layers: number of its layers.
        ffn: inner width of its feed-forward layers.
        mels: number of mel bands that it reads.
        window: number of frames in its window, at 50 a second.
    """

    width: int
    layers: int
    ffn: int
    mels: int
    window: int = 1500

    @property
    def weights(self) -> int:
        """Number of weights in its matrices."""
        layer = 4 * self.width**2 + 2 * self.width * self.ffn
        return self.layers * layer + 3 * self.width * (self.mels + self.width) + self.window * self.width

    def flops(self) -> float:
        """FLOPs of encoding one window."""
        layer = 2 * self.window * (4 * self.width**2 + 2 * self.width * self.ffn)
        attention = 4 * self.window**2 * self.width
        # Two convolutions of width 3; the second halves the rate, so the first one runs at two positions per frame.
        convolutions = 2 * 3 * self.width * (2 * self.window * self.mels + self.window * self.width)
        return self.layers * (layer + attention) + convolutions


@dataclass(frozen=True)
class LLMShape:
    """A decoder-only LLM with gated feed-forward layers.

    Attributes:
        width: width of its layers.
        layers: number of its layers.
        heads: number of query heads.
        kv_heads: number of key and value heads, of which several query heads share one.
        head_width: width of a head.
        ffn: inner width of its feed-forward layers.
        vocabulary: number of tokens.
        tied: whether the output head is the table of input embeddings.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    ffn: int
    vocabulary: int
    tied: bool = False

    @property
    def body(self) -> int:
        """Number of weights in the layers' matrices."""
        attention = 2 * self.width * self.head_width * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.width * self.ffn)

    @property
    def head(self) -> int:
        """Number of weights in the output head."""
        return self.width * self.vocabulary

    @property
    def weights(self) -> int:
        """Number of all weights."""
        return self.body + self.head * (1 if self.tied else 2)

    def forward(self, tokens: float, keys: float) -> float:
        """FLOPs of reading a number of tokens that attend to a number of keys each, without the output head."""
        return 2 * self.body * tokens + 4 * self.layers * self.heads * self.head_width * tokens * keys

    def backward(self, tokens: float, keys: float) -> float:
        """FLOPs of the gradient towards the input embeddings, without the output head."""
        # No weight learns, so each needs one product and not two; the products of attention have two inputs each.
        return 2 * self.body * tokens + 8 * self.layers * self.heads * self.head_width * tokens * keys


KNOWN_ENCODERS: Mapping[str, EncoderShape] = MappingProxyType(
    {
        "openai/whisper-tiny": EncoderShape(384, 4, 1536, 80),
        "openai/whisper-base": EncoderShape(512, 6, 2048, 80),
        "openai/whisper-small": EncoderShape(768, 12, 3072, 80),
        "openai/whisper-medium": EncoderShape(1024, 24, 4096, 80),
        "openai/whisper-large-v2": EncoderShape(1280, 32, 5120, 80),
        "openai/whisper-large-v3": EncoderShape(1280, 32, 5120, 128),
    }
)
KNOWN_LLMS: Mapping[str, LLMShape] = MappingProxyType(
    {
        "Qwen/Qwen2.5-0.5B-Instruct": LLMShape(896, 24, 14, 2, 64, 4864, 151936, tied=True),
        "Qwen/Qwen2.5-1.5B-Instruct": LLMShape(1536, 28, 12, 2, 128, 8960, 151936, tied=True),
        "Qwen/Qwen2.5-3B-Instruct": LLMShape(2048, 36, 16, 2, 128, 11008, 151936, tied=True),
        "Qwen/Qwen2.5-7B-Instruct": LLMShape(3584, 28, 28, 4, 128, 18944, 152064),
        "meta-llama/Llama-3.1-8B-Instruct": LLMShape(4096, 32, 32, 8, 128, 14336, 128256),
        "meta-llama/Llama-3.2-1B-Instruct": LLMShape(2048, 16, 32, 8, 64, 8192, 128256, tied=True),
        "meta-llama/Llama-3.2-3B-Instruct": LLMShape(3072, 28, 24, 8, 128, 8192, 128256, tied=True),
    }
)


def encoder_shape(name: str) -> EncoderShape:
    """The sizes of an encoder.

    Args:
        name: hub id or folder; what is not known here is read from its configuration (`_config`).

    Raises:
        DualSLMError: no configuration is there.
    """
    if (known := KNOWN_ENCODERS.get(name.removesuffix(".en"))) is not None:
        return known
    config = _config(name, "encoder")
    return EncoderShape(
        config["d_model"],
        config["encoder_layers"],
        config["encoder_ffn_dim"],
        config["num_mel_bins"],
        config.get("max_source_positions", 1500),
    )


def llm_shape(name: str) -> LLMShape:
    """The sizes of an LLM.

    Args:
        name: hub id or folder; what is not known here is read from its configuration (`_config`).

    Raises:
        DualSLMError: no configuration is there.
    """
    if (known := KNOWN_LLMS.get(name)) is not None:
        return known
    config = _config(name, "LLM")
    heads = config["num_attention_heads"]
    return LLMShape(
        config["hidden_size"],
        config["num_hidden_layers"],
        heads,
        config.get("num_key_value_heads") or heads,
        config.get("head_dim") or config["hidden_size"] // heads,
        config["intermediate_size"],
        config["vocab_size"],
        bool(config.get("tie_word_embeddings", False)),
    )


def _config(name: str, part: str) -> dict[str, Any]:
    """The configuration of a model in a folder, or of one that was downloaded before.

    Raises:
        DualSLMError: neither is there.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    folder = Path(name) / "config.json"
    try:
        cached = None if folder.exists() else try_to_load_from_cache(name, "config.json")
        found: dict[str, Any] = json.loads((Path(cached) if isinstance(cached, str) else folder).read_text())
    except (OSError, HFValidationError) as error:
        raise DualSLMError(
            f"the sizes of the {part} {name!r} are not known here",
            got="no config.json in a folder or in the hub's cache",
            do=f"give its folder, or the hub id of one that was downloaded: hf download {name} config.json",
        ) from error
    return found
