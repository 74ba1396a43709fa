"""Decoding at the speed of the memory: keys and values in one place, each step one captured graph (ours).

A new token's step has a thousand small kernels, which a GPU finishes sooner than a CPU can start them. Keys and
values of a fixed room (transformers' StaticCache) give every step the same shapes and addresses, so that
transformers' own compiled call captures it once and starts it as one. On a CPU the layers run as they are.

What was decoded is put back in the cache that was given, which therefore grows as it does without capturing.

Dimensions: B prompts, T tokens read, R room of the static cache, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

SMALLEST_ROOM = 512  # tokens; rooms are powers of two, so that few graphs serve all talks
AHEAD = 256  # tokens; a reply that is longer moves into a larger room when it comes to that
KEPT = 4  # rooms that nobody is in; one for a 7 B LLM and 4,096 tokens has 0.2 GB

Step: TypeAlias = Callable[[Tensor], Tensor]
"""The tokens (B,) that were drawn → logits (B, V) for the next ones."""


class GraphDecoder:
    """Captured steps of one LLM. A room is one talk's at a time, and the next one's when it is left.

    Args:
        model: whose cache keeps every position as it was.
        call: carries out the model; its own compiled call on a GPU, and the model itself on a CPU, unless given.
    """

    def __init__(self, model: PreTrainedModel, call: Callable[..., Any] | None = None) -> None:
        self.model = model
        self.call = call or (model if model.device.type == "cpu" else model.get_compiled_call(None))
        self.free: list[tuple[tuple[int, int], StaticCache]] = []  # with their batch and size

    @contextmanager
    def steps(self, cache: DynamicCache, mask_BT: Tensor, most: int) -> Iterator[Step]:
        """Gives the step from token to token; when it is left, what was read stands in the cache.

        Args:
            cache: keys and values of the prompts.
            mask_BT: 1 where a prompt has a token, 0 where it is padded on the left.
            most: tokens that are decoded at most.
        """
        stay = StaticDecode(self, cache, mask_BT, most)
        try:
            yield stay.step
        finally:
            stay.leave()

    def enter(self, batch: int, size: int) -> StaticCache:
        """A room of a size: one that was left, or a new one."""
        place = next((place for place, (key, _) in enumerate(self.free) if key == (batch, size)), None)
        return StaticCache(self.model.config, max_cache_len=size) if place is None else self.free.pop(place)[1]

    def leave(self, room: StaticCache, batch: int, size: int) -> None:
        """Gives a room back; the one that was left longest ago is given up for it."""
        self.free = [*self.free, ((batch, size), room)][-KEPT:]


class StaticDecode:
    """Some talks in a room, and in a larger one when that is full; until they leave it, the cache stays as it was.

    Args: see `GraphDecoder.steps`.

    Attributes:
        mask_BT: 1 where the cache has a token of a prompt.
    """

    def __init__(self, captured: GraphDecoder, cache: DynamicCache, mask_BT: Tensor, most: int) -> None:
        self.captured, self.cache, self.mask_BT, self.ahead = captured, cache, mask_BT, min(most, AHEAD)
        self.place_B1 = mask_BT.sum(1, keepdim=True)
        self.room: StaticCache | None = None
        self.size, self.done, self.mask_BR = 0, 0, mask_BT
        self._enter()

    def step(self, ids_B: Tensor) -> Tensor:
        """See `Step`."""
        if self.mask_BT.shape[1] + self.done == self.size:
            self.leave()
            self._enter()
        if self.mask_BT.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        out = self.captured.call(
            input_ids=ids_B[:, None],
            attention_mask=self.mask_BR,
            position_ids=self.place_B1,
            past_key_values=self.room,
            use_cache=True,
        )
        self.place_B1, self.done = self.place_B1 + 1, self.done + 1
        logits_BV: Tensor = out.logits[:, -1]
        return logits_BV

    def _enter(self) -> None:
        batch, read = self.mask_BT.shape
        self.size, self.done = max(SMALLEST_ROOM, 1 << (read + self.ahead - 1).bit_length()), 0
        room = self.captured.enter(batch, self.size)
        _move_in(room, self.cache)
        ahead_BR = self.mask_BT.new_ones(batch, self.size - read)
        self.mask_BR = torch.cat([self.mask_BT, ahead_BR], dim=1)  # the causal mask hides what is yet to come
        self.room = room

    def leave(self) -> None:
        """Puts what was decoded into the cache; nothing happens where the room was left already."""
        if self.room is None:
            return
        room, self.room = self.room, None
        batch, read = self.mask_BT.shape
        _move_out(room, self.cache, read, self.done)
        self.mask_BT = self.mask_BR[:, : read + self.done]
        self.captured.leave(room, batch, self.size)


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
