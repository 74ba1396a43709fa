"""Rotary positions that depend on the length of the whole prompt: LongRoPE and dynamic NTK (ours).

Past its original length such an LLM turns the keys of every position, the first ones too, by other angles. Keys that
were kept belong to a shorter prompt then, and rows of a batch would be read by the longest of them. So no prompts share
anything, and where the angles change the whole prompt is read again: once with LongRoPE, which has two sets of angles
(Phi 3, 3.5 and 4 mini), and at every token with dynamic NTK, which has one for each length.

Dimensions: B prompts, T tokens, D width of the LLM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel

from dualslm.errors import DualSLMError


@dataclass(frozen=True)
class LengthRope:
    """How the positions of an LLM depend on the length of the whole.

    Attributes:
        original: the longest prompt whose positions do not.
        dynamic: there are angles for each longer length, not one set for all.
    """

    original: int
    dynamic: bool

    def read(
        self,
        model: PreTrainedModel,
        read: Callable[[Tensor, Tensor | None, Tensor | None, DynamicCache | None], Tensor],
        embeds_BTD: Tensor,
        mask_BT: Tensor | None,
        keep_BT: Tensor | None,
        cache: DynamicCache | None,
    ) -> Tensor:
        """Logits as a reading of the whole from its beginning would give them; see `FrozenLM.forward`.

        Args:
            model: the LLM.
            read: reads embeddings with a mask, positions whose logits are wanted, and a cache.
            embeds_BTD: what comes after the cache.
            mask_BT: 1 for tokens, 0 for left padding, cache included; None when nothing is padded.
            keep_BT: true where logits are wanted; None for all.
            cache: what came before; it keeps what it has read as embeddings too, to be read again.

        Raises:
            DualSLMError: a padded batch past the original length.
        """
        new = embeds_BTD.shape[1]
        before = 0 if cache is None else int(cache.get_seq_length())
        length = before + new
        if mask_BT is not None and length > self.original:
            got = f"{len(mask_BT)} of up to {length} positions, where up to {self.original} do not"
            do = "read long prompts one at a time: a lower loop.max_tokens, or a batch of one"
            raise DualSLMError("the prompts of a batch would move each other's positions", got=got, do=do)
        _forget_longest(model)
        if cache is None:
            return read(embeds_BTD, mask_BT, keep_BT, None)
        read_BTD = torch.cat([getattr(cache, "read_BTD", embeds_BTD[:, :0]), embeds_BTD], dim=1).detach()
        vars(cache)["read_BTD"] = read_BTD
        if not before or length <= self.original or (before > self.original and not self.dynamic):
            return read(embeds_BTD, mask_BT, keep_BT, cache)
        fresh = DynamicCache(config=model.config)
        logits = read(read_BTD, None, None if keep_BT is None else F.pad(keep_BT, (before, 0)), fresh)
        cache.layers = fresh.layers
        return logits[:, -new:] if keep_BT is None else logits


def length_rope(model: PreTrainedModel) -> LengthRope | None:
    """How the positions of a model depend on the length of the whole; None where they do not."""
    found = list(_kinds(model))
    if not found:
        return None
    return LengthRope(min(original for original, _ in found), any(dynamic for _, dynamic in found))


def _kinds(model: nn.Module) -> Iterator[tuple[int, bool]]:
    for part in _rotary(model):
        by_layer = part.rope_type if isinstance(part.rope_type, dict) else {None: part.rope_type}
        for layer, kind in by_layer.items():
            if "dynamic" in kind:
                yield int(part.original_max_seq_len), True
            elif kind == "longrope":
                settings = part.config.rope_parameters if layer is None else part.config.rope_parameters[layer]
                yield int(settings["original_max_position_embeddings"]), False


def _rotary(model: nn.Module) -> Iterator[Any]:
    return (part for part in model.modules() if hasattr(part, "rope_type"))


def _forget_longest(model: nn.Module) -> None:
    """Lets dynamic NTK work out its angles anew: transformers keeps those of the longest prompt that it has read."""
    for part in _rotary(model):
        layers = part.rope_type if isinstance(part.rope_type, dict) else [None]
        for prefix in (f"{layer}_" if layer else "" for layer in layers):
            longest = getattr(part, f"{prefix}max_seq_len_cached", part.max_seq_len_cached)
            if int(longest) > int(part.original_max_seq_len):
                current = getattr(part, f"{prefix}inv_freq")
                original = getattr(part, f"{prefix}original_inv_freq").to(current.device)
                part.register_buffer(f"{prefix}inv_freq", original.clone(), persistent=False)
                setattr(part, f"{prefix}max_seq_len_cached", part.original_max_seq_len)
