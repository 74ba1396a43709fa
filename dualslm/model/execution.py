"""How the frozen LLM's layers are carried out: quantized, checkpointed, compiled, or sharded over processes.

Each is one line of a recipe, and none changes what is learnt beyond rounding (tested); only quantizing changes
the LLM itself. All act on the decoder layers alone: embedding table, norms and output head stay as they are. Where and
in which dtype the frozen parts are carried out is `resolve_device`.
"""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from transformers import BitsAndBytesConfig, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from dualslm.errors import DualSLMError
from dualslm.recipe import Quantize


def quantization_of(kind: Quantize, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` needs to load an LLM's layers in fewer bits: "int8" (LLM.int8) or "nf4" (QLoRA's).

    Gradients pass through the quantized layers to the adapters.

    Raises:
        DualSLMError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise DualSLMError(
            "cannot quantize the LLM", got="no bitsandbytes", do="pip install 'dualslm[quantized]', or leave it whole"
        )
    if kind == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": config, "device_map": {"": device}}


def keep_unpacked(model: nn.Module) -> None:
    """Leaves 4-bit weights as they are stored, on CPUs too.

    Where a CPU has AVX512-BF16, bitsandbytes (0.50) packs them anew at the first call without a gradient, such as ours
    for prefixes, and a gradient through packed weights fails or is wrong (tested).
    """
    for part in model.modules():
        if hasattr(part, "support_avx512bf16_for_cpu"):
            setattr(part, "support_avx512bf16_for_cpu", False)  # noqa: B010 - no field that is known here


def attention_kernels(device: torch.device) -> AbstractContextManager[None]:
    """Keeps to kernels of attention that need no plan for each new shape, as cuDNN's does: every prompt is one."""
    if device.type != "cuda":
        return nullcontext()
    chosen: AbstractContextManager[None] = sdpa_kernel(
        [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    )
    return chosen


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers of any causal LM of transformers.

    Raises:
        DualSLMError: it marks none.
    """
    found: list[nn.Module] = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    if not found:
        raise DualSLMError(
            "this LLM's layers cannot be told apart",
            got=type(model).__name__,
            do="leave out loop.activation_checkpointing, loop.compile and loop.fsdp",
        )
    return found


def activation_checkpointing(model: nn.Module) -> None:
    """Lets each layer forget its activations and compute them again for the gradient: less memory, more work.

    A layer is called again with the cache it was given, so the cache must not grow: see `ReadOnlyLayer`.
    """
    for layer in decoder_layers(model):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def compile_layers(model: nn.Module) -> None:
    """Compiles norms and feed-forward blocks of each layer; all are alike, so the first step alone is slow.

    Attention is a fused kernel already. It knows its place in the cache, so that it, and a layer as a whole, would be
    compiled anew for each layer, and after eight of them no more.
    """
    for layer in decoder_layers(model):
        for part in layer.children():
            if not hasattr(part, "layer_idx"):
                part.compile(dynamic=True)


def shard_fully(model: nn.Module) -> None:
    """Spreads the layers' weights over all processes (FSDP): each is gathered when it is needed.

    Every process must then call the model equally often.
    """
    from torch.distributed.fsdp import fully_shard

    layers = decoder_layers(model)
    for layer in layers:
        fully_shard(layer)
    inner = {weight for layer in layers for weight in layer.parameters()}
    fully_shard(model, ignored_params=set(model.parameters()) - inner)


class ReadOnlyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of what was read before, which a layer sees and leaves as they are."""

    def __init__(self, read: DynamicLayer) -> None:
        super().__init__()
        self.lazy_initialization(read.keys, read.values)
        self.keys, self.values = read.keys, read.values

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What was read, then what is new."""
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


def read_only(cache: DynamicCache) -> DynamicCache:
    """The cache with layers that are read and never grow."""
    cache.layers = [ReadOnlyLayer(layer) for layer in cache.layers]
    return cache


def resolve_device(device: str | None, dtype: torch.dtype | None = None) -> tuple[str, torch.dtype]:
    """Where the frozen parts go and in which dtype: the GPU where there is one, bfloat16 there, float32 on a CPU.

    Raises:
        DualSLMError: a GPU that is not there, or float16.
    """
    if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
        raise DualSLMError("PyTorch sees no GPU", got=f"device {device}", do="give cpu, or install PyTorch for CUDA")
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if dtype == torch.float16:
        raise DualSLMError(
            "float16 overflows in many LLMs", got="dtype float16", do="use torch.bfloat16 or torch.float32"
        )
    return where, dtype or (torch.float32 if where.startswith("cpu") else torch.bfloat16)
