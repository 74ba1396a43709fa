"""Sizes of encoders and LLMs, and the FLOPs that follow from them; nothing is loaded or downloaded (ours).

A FLOP count is of matrix products alone, a multiplication and an addition each, as PyTorch's `FlopCounterMode`
counts them (agreement to 2 %: tested). Attention is counted in full: kernels that skip the masked half do less.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dualslm.errors import DualSLMError
from dualslm.files import open_regular
from dualslm.training import gguf
from dualslm.training.counted import Layers, layers

SPECTRUM_BINS = 201  # of Whisper's spectra, over 25 ms at 16 kHz
# Decoders whose feed-forward layers are two matrices and not three, by the types of transformers.
NOT_GATED = frozenset(
    "bloom codegen falcon gpt2 gpt_bigcode gpt_neo gpt_neox gptj mpt opt persimmon phi starcoder2".split()  # noqa: SIM905
)
# Types whose layers have the weights of `LLMShape.body` (agreement to 1 %: tested); those of others are counted.
PLAIN = frozenset(
    "bloom gemma gemma2 gemma3_text gpt2 gpt_neo gptj granite llama mistral mpt olmo olmo2 opt phi phi3 qwen2 "  # noqa: SIM905
    "qwen2_5_omni_text qwen2_5_vl_text qwen2_vl_text qwen3 smollm3".split()
)
FFN_KEYS = ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner", "ffn_config")
NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")


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

    def flops(self, frames: int | None = None) -> float:
        """FLOPs of encoding one window of a number of frames, the whole window unless given."""
        frames = self.window if frames is None else frames
        layer = 2 * frames * (4 * self.width**2 + 2 * self.width * self.ffn)
        attention = 4 * frames**2 * self.width
        # Two convolutions of width 3; the second halves the rate, so the first one runs at two positions per frame.
        convolutions = 2 * 3 * self.width * (2 * frames * self.mels + frames * self.width)
        return self.layers * (layer + attention) + convolutions

    def mel_flops(self, frames: int) -> float:
        """FLOPs of the mel filters of a window, two columns for each frame."""
        return 2.0 * self.mels * SPECTRUM_BINS * 2 * frames


@dataclass(frozen=True)
class LLMShape:
    """A decoder-only LLM.

    Attributes:
        width: width of its layers.
        layers: number of its layers.
        heads: number of query heads.
        kv_heads: number of key and value heads, of which several query heads share one.
        head_width: width of a head.
        ffn: inner width of its feed-forward layers.
        vocabulary: number of tokens.
        tied: whether the output head is the table of input embeddings.
        gated: whether the feed-forward layers have three matrices, as nearly all have, and not two.
        counted: weights of layers that the sizes above do not give.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    ffn: int
    vocabulary: int
    tied: bool = False
    gated: bool = True
    counted: Layers | None = None

    @property
    def body(self) -> int:
        """Number of weights in the layers' matrices; of a mixture's experts, those that a token is sent to."""
        if self.counted is not None:
            return self.counted.used
        attention = 2 * self.width * self.head_width * (self.heads + self.kv_heads)
        return self.layers * (attention + (3 if self.gated else 2) * self.width * self.ffn)

    @property
    def head(self) -> int:
        """Number of weights in the output head."""
        return self.width * self.vocabulary

    @property
    def stored(self) -> int:
        """Number of weights in the layers, used or not."""
        return self.body if self.counted is None else self.counted.stored

    @property
    def weights(self) -> int:
        """Number of all weights."""
        return self.stored + self.head * (1 if self.tied else 2)

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
        "pocket:encoder": EncoderShape(512, 6, 2048, 80),  # whisper-base
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
        "pocket:llm": LLMShape(576, 30, 9, 3, 64, 1536, 49152, tied=True),  # SmolLM2-135M-Instruct
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
    keys = ("d_model", "encoder_layers", "encoder_ffn_dim", "num_mel_bins")
    wrong = f"the sizes of the encoder {name!r} cannot be told"
    width, layers, ffn, mels = _sizes(wrong, config, keys, "name a Whisper encoder")
    return EncoderShape(width, layers, ffn, mels, config.get("max_source_positions", 1500))


def llm_shape(name: str) -> LLMShape:
    """The sizes of an LLM.

    Args:
        name: hub id or folder; what is not known here is read from its configuration (`_config`).

    Raises:
        DualSLMError: no configuration is there.
    """
    if (known := KNOWN_LLMS.get(name)) is not None:
        return known
    if name.endswith(".gguf"):
        return _gguf_shape(name)
    found = _config(name, "LLM")
    counted = None
    if found.get("model_type") not in PLAIN or not all(key in found for key in (*NEEDED, "vocab_size")):
        # Nested, differently spelled, or without what is its family's default: transformers knows.
        found, counted = _read_by_transformers(name, found)
    wrong, do = f"the sizes of the LLM {name!r} cannot be told", "mend its config.json, or download it again"
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    width, layers, heads, ffn, vocabulary = _sizes(wrong, found, keys, do)
    more = {
        key: found.get(key) or default
        for key, default in (("num_key_value_heads", heads), ("head_dim", width // heads))
    }
    kv_heads, head_width = _sizes(wrong, more, tuple(more), do)
    tied = bool(found.get("tie_word_embeddings", False))
    gated = found.get("model_type") not in NOT_GATED
    return LLMShape(width, layers, heads, kv_heads, head_width, ffn, vocabulary, tied, gated, counted)


def _sizes(wrong: str, config: Mapping[str, Any], keys: Sequence[str], do: str) -> list[int]:
    """Fields of a configuration that must be whole numbers above 0."""
    for key in keys:
        size = config.get(key)
        if not isinstance(size, int) or size < 1:
            got = f"{key} {json.dumps(size)[:60]}" if key in config else f"no {key}"
            raise DualSLMError(wrong, got=f"{got} in its config.json", do=do)
    return [config[key] for key in keys]


def _read_by_transformers(name: str, raw: Mapping[str, Any]) -> tuple[dict[str, Any], Layers | None]:
    """The fields of a configuration of any family, as transformers reads it, and the weights of uncommon layers.

    Raises:
        DualSLMError: transformers does not know it, or it is no decoder with attention.
    """
    from transformers import AutoConfig  # only here: the sizes of most LLMs are known without it

    wrong = f"the sizes of the LLM {name!r} cannot be told"
    do = "name an LLM with attention that transformers knows"
    try:
        kind = str(raw.get("model_type"))
        fields = {key: value for key, value in raw.items() if key not in ("model_type", "transformers_version")}
        config: Any = AutoConfig.for_model(kind, **fields).get_text_config(decoder=True)
        found: dict[str, Any] = {
            key: getattr(config, key, None) for key in (*NEEDED, "vocab_size", "head_dim", "model_type")
        }
        # Tying is a setting of the whole model where a text model is nested in it.
        found["tie_word_embeddings"] = raw.get("tie_word_embeddings", getattr(config, "tie_word_embeddings", False))
        widths = [getattr(config, key, None) for key in FFN_KEYS]
    except (KeyError, ValueError, TypeError, AttributeError, OSError) as error:
        # Behind the first sentence transformers lists every type that it knows.
        got = str(error).strip().splitlines()[0].partition(". Should contain")[0]
        raise DualSLMError(wrong, got=got[:120], do=do) from error
    if missing := [key for key in ("hidden_size", "num_hidden_layers", "num_attention_heads") if not found[key]]:
        raise DualSLMError(wrong, got=f"no {missing[0]} in a config of type {kind!r}", do=do)
    # Where nothing is stated it is four times the width: GPT-2 and its kind.
    found["intermediate_size"] = next((width for width in widths if isinstance(width, int)), 4 * config.hidden_size)
    return found, None if found["model_type"] in PLAIN else layers(name, config)


def _gguf_shape(name: str) -> LLMShape:
    """The sizes in a GGUF file: a path, or org/repo:file.gguf of a file that was downloaded, or of a known LLM.

    Raises:
        DualSLMError: the file is not here, or not a GGUF file of a decoder with attention.
    """
    from huggingface_hub import try_to_load_from_cache

    path = Path(name)
    repo, colon, file = name.rpartition(":")
    if colon and not path.exists():
        cached = try_to_load_from_cache(repo, file)
        if not isinstance(cached, str):
            original = re.sub("[-_]gguf$", "", repo, flags=re.IGNORECASE)
            if original in KNOWN_LLMS:
                return KNOWN_LLMS[original]
            do = f"download it: hf download {repo} {file}"
            raise DualSLMError(f"the sizes of the LLM {name!r} are not known here", got="no such file", do=do)
        path = Path(cached)
    with open_regular(path, "the LLM", "give the path of a .gguf file, or org/repo:file.gguf") as opened:
        try:
            known, tensors = gguf.header(opened)
            family = known["general.architecture"]
            if known.get(f"{family}.expert_count"):
                raise ValueError("a mixture of experts; plan the folder that it was made of")
            at = {key.removeprefix(f"{family}."): value for key, value in known.items()}
            heads = _most(at["attention.head_count"])
            return LLMShape(
                at["embedding_length"],
                at["block_count"],
                heads,
                _most(at.get("attention.head_count_kv", heads)),
                at.get("attention.key_length", at["embedding_length"] // heads),
                _most(at["feed_forward_length"]),
                known["tokenizer.ggml.tokens"],
                "output.weight" not in tensors,
                "blk.0.ffn_gate.weight" in tensors,
            )
        except (KeyError, ValueError, TypeError, struct.error) as error:
            do = "give a GGUF file of an LLM with attention"
            raise DualSLMError(f"cannot tell the sizes of the LLM {name!r}", got=str(error), do=do) from error


def _most(value: Any) -> int:
    """A size that some files give for each layer: the largest."""
    return int(max(value)) if isinstance(value, list) else int(value)


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
        path = Path(cached) if isinstance(cached, str) else folder
        text = path.read_bytes()
    except (OSError, HFValidationError) as error:
        raise DualSLMError(
            f"the sizes of the {part} {name!r} are not known here",
            got="no config.json in a folder or in the hub's cache",
            do=f"give its folder, or the hub id of one that was downloaded: hf download {name} config.json",
        ) from error
    try:
        found: Any = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        do = "mend it, save it as UTF-8, or download it again"
        raise DualSLMError(
            f"the sizes of the {part} {name!r} cannot be told", got="no JSON object in config.json", do=do
        )
    return found
