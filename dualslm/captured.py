"""Decoding at the speed of the memory: keys and values in one place, each step one captured graph (ours).

A new token's step has a thousand small kernels, which a GPU finishes sooner than a CPU can start them. Keys and
values of a fixed room (transformers' StaticCache) give every step the same shapes and addresses, so that
transformers' own compiled call captures it once and starts it as one. On a CPU the layers run as they are.

What was decoded is put back in the cache that was given, which therefore grows as it does without capturing.

Dimensions: B prompts, T tokens read, R room of the static cache, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

SMALLEST_ROOM = 512  # tokens; rooms are powers of two, so that few graphs serve all talks

Step: TypeAlias = Callable[[Tensor], Tensor]
"""The tokens (B,) that were drawn → logits (B, V) for the next ones."""


class Captured:
    """Captured steps of one LLM. A room is one talk's at a time, and the next one's when it is left.

    Args:
        model: whose cache keeps every position as it was.
        call: carries out the model; its own compiled call on a GPU, and the model itself on a CPU, unless given.
    """

    def __init__(self, model: PreTrainedModel, call: Callable[..., Any] | None = None) -> None:
        self.model = model
        self.call = call or (model if model.device.type == "cpu" else model.get_compiled_call(None))
        self.free: defaultdict[tuple[int, int], list[StaticCache]] = defaultdict(list)

    @contextmanager
    def steps(self, cache: DynamicCache, mask_BT: Tensor, most: int) -> Iterator[Step]:
        """Gives the step from token to token; when it is left, what was read stands in the cache.

        Args:
            cache: keys and values of the prompts.
            mask_BT: 1 where a prompt has a token, 0 where it is padded on the left.
            most: tokens that are decoded at most.
        """
        (batch, read), device = mask_BT.shape, mask_BT.device
        key = batch, max(SMALLEST_ROOM, 1 << (read + most - 1).bit_length())
        rooms = self.free[key].pop() if self.free[key] else StaticCache(self.model.config, max_cache_len=key[1])
        _move_in(rooms, cache)
        ahead_BR = torch.ones(batch, key[1] - read, dtype=mask_BT.dtype, device=device)
        mask_BR = torch.cat([mask_BT, ahead_BR], dim=1)  # the causal mask hides what is yet to come
        place_B1 = mask_BT.sum(1, keepdim=True)
        done = 0

        def step(ids_B: Tensor) -> Tensor:
            nonlocal place_B1, done
            if device.type == "cuda":
                torch.compiler.cudagraph_mark_step_begin()
            out = self.call(
                input_ids=ids_B[:, None],
                attention_mask=mask_BR,
                position_ids=place_B1,
                past_key_values=rooms,
                use_cache=True,
            )
            place_B1, done = place_B1 + 1, done + 1
            logits_BV: Tensor = out.logits[:, -1]
            return logits_BV

        try:
            yield step
        finally:
            _move_out(rooms, cache, read, done)
            self.free[key].append(rooms)


def _move_in(rooms: StaticCache, cache: DynamicCache) -> None:
    """Puts what was read at the front of the rooms; what a talk before left behind it is never seen."""
    for room, layer in zip(rooms.layers, cache.layers, strict=True):
        if not room.is_initialized:
            room.lazy_initialization(layer.keys, layer.values)
        read = layer.keys.shape[-2]
        room.keys[:, :, :read], room.values[:, :, :read] = layer.keys, layer.values
        room.cumulative_length.fill_(read)


def _move_out(rooms: StaticCache, cache: DynamicCache, read: int, done: int) -> None:
    """Adds what was decoded to the cache."""
    for room, layer in zip(rooms.layers, cache.layers, strict=True):
        layer.update(room.keys[:, :, read : read + done].clone(), room.values[:, :, read : read + done].clone())
