"""Fingerprints: frozen parts are recognized by them, in whichever dtype they were stored or loaded (ours)."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def fingerprint(module: nn.Module) -> str:
    """A quick identity of frozen weights: their names and shapes, and the ends of each, rounded to bfloat16.

    Rounding makes it the same whichever dtype they were loaded in. 256 values at either end of each tensor
    tell models apart in milliseconds, where hashing 15 GB would take half a minute. A quantized LLM has none ("").

    A module that states `published_in` is rounded to that dtype first: fp32 → bf16 is not always fp32 → fp16 → bf16,
    so a file in fp32 and one in fp16 of the same encoder would else be two encoders.
    """
    if (identity := getattr(module, "identity", None)) is not None:
        return str(identity)
    return of_weights(module, getattr(module, "published_in", None))


def of_weights(module: nn.Module, first: torch.dtype | None = None) -> str:
    """The fingerprint of a module's weights as they are now.

    Args:
        module: whose weights are hashed.
        first: the dtype that they are rounded to before bfloat16; none when None.
    """
    digest = hashlib.sha256()
    for key, value in sorted(module.named_parameters()):
        flat = value.detach().flatten()
        ends = torch.cat([flat[:256], flat[-256:]]).to("cpu")
        # weights in bf16 have lost what fp16 would keep, and fp16 would lose their small values
        if first is not None and ends.dtype != torch.bfloat16:
            ends = ends.to(first)
        digest.update(f"{key} {tuple(value.shape)}".encode())
        digest.update(ends.to(torch.bfloat16).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of every weight and buffer of a module (of its own shards): equal before and after, or one moved."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        local = value.to_local() if hasattr(value, "to_local") else value
        digest.update(local.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
