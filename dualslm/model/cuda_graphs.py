"""Decoding at the speed of the memory: a static cache, and each step one CUDA graph (ours).

A new token's step has a thousand small kernels, which a GPU finishes sooner than a CPU can start them. A static cache
(transformers' StaticCache) gives every step the same shapes and addresses, so that transformers' own compiled call
records the step once and then replays it as one graph. On a CPU the layers run as they are.

What was decoded is put back in the growing cache that was given, which therefore looks as it does without graphs.

Dimensions: B prompts, T tokens read, R size of the static cache, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

MIN_CACHE_TOKENS = 512  # sizes are powers of two from here on, so that few graphs serve all conversations
TOKENS_AHEAD = 256  # a reply that becomes longer moves into a larger static cache when it comes to that
IDLE_CACHES = 4  # that nobody uses and are kept; one for a 7 B LLM and 4,096 tokens has 0.2 GB

Step: TypeAlias = Callable[[Tensor], Tensor]
"""The tokens (B,) that were drawn → logits (B, V) for the next ones."""


class GraphDecoder:
    """Graphs of one LLM's decoding steps. A static cache serves one batch at a time, and is used again afterwards.

    Args:
        model: whose cache keeps every position as it was.
        call: carries out the model; its own compiled call on a GPU, and the model itself on a CPU, unless given.
    """

    def __init__(self, model: PreTrainedModel, call: Callable[..., Any] | None = None) -> None:
        self.model = model
        self.call = call or (model if model.device.type == "cpu" else model.get_compiled_call(None))
        self.free: list[tuple[tuple[int, int], StaticCache]] = []  # with batch size and length

    @contextmanager
    def steps(self, cache: DynamicCache, mask_BT: Tensor, max_new_tokens: int) -> Iterator[Step]:
        """Gives the step from token to token; afterwards all that was read stands in the cache.

        Args:
            cache: keys and values of the prompts.
            mask_BT: 1 where a prompt has a token, 0 where it is padded on the left.
            max_new_tokens: most tokens that are decoded.
        """
        decode = StaticDecode(self, cache, mask_BT, max_new_tokens)
        try:
            yield decode.step
        finally:
            decode.release()

    def take(self, batch: int, size: int) -> StaticCache:
        """A static cache of a size: one that is free, or a new one."""
        index = next((index for index, (key, _) in enumerate(self.free) if key == (batch, size)), None)
        return StaticCache(self.model.config, max_cache_len=size) if index is None else self.free.pop(index)[1]

    def give_back(self, static: StaticCache, batch: int, size: int) -> None:
        """Frees a static cache for the next batch; of those that are free the oldest is given up."""
        self.free = [*self.free, ((batch, size), static)][-IDLE_CACHES:]


class StaticDecode:
    """Decoding in a static cache, and in a larger one when that is full; until the release the given cache rests.

    Args: see `GraphDecoder.steps`.

    Attributes:
        mask_BT: 1 where the cache has a token of a prompt.
    """

    def __init__(self, decoder: GraphDecoder, cache: DynamicCache, mask_BT: Tensor, max_new_tokens: int) -> None:
        self.decoder = decoder
        self.cache = cache
        self.mask_BT = mask_BT
        self.ahead = min(max_new_tokens, TOKENS_AHEAD)
        self.position_B1 = mask_BT.sum(1, keepdim=True)
        self.static: StaticCache | None = None
        self.size = 0
        self.decoded = 0
        self.mask_BR = mask_BT
        self._enter()

    def step(self, ids_B: Tensor) -> Tensor:
        """See `Step`."""
        if self.mask_BT.shape[1] + self.decoded == self.size:
            self.release()
            self._enter()
        if self.mask_BT.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        out = self.decoder.call(
            input_ids=ids_B[:, None],
            attention_mask=self.mask_BR,
            position_ids=self.position_B1,
            past_key_values=self.static,
            use_cache=True,
        )
        self.position_B1 = self.position_B1 + 1
        self.decoded += 1
        logits_BV: Tensor = out.logits[:, -1]
        return logits_BV

    def _enter(self) -> None:
        """Copies what was read into a static cache with space for the tokens to come."""
        batch, read = self.mask_BT.shape
        self.size = max(MIN_CACHE_TOKENS, 1 << (read + self.ahead - 1).bit_length())
        self.decoded = 0
        self.static = self.decoder.take(batch, self.size)
        for static, layer in zip(self.static.layers, self.cache.layers, strict=True):
            if not static.is_initialized:
                static.lazy_initialization(layer.keys, layer.values)
            length = layer.keys.shape[-2]
            static.keys[:, :, :length] = layer.keys  # what an earlier batch left behind it is masked and never seen
            static.values[:, :, :length] = layer.values
            static.cumulative_length.fill_(length)
        ahead_BR = self.mask_BT.new_ones(batch, self.size - read)
        self.mask_BR = torch.cat([self.mask_BT, ahead_BR], dim=1)  # the causal mask hides what is yet to come

    def release(self) -> None:
        """Adds what was decoded to the cache and frees the static cache; nothing happens when it is free already."""
        if self.static is None:
            return
        static_cache = self.static
        self.static = None
        batch, read = self.mask_BT.shape
        end = read + self.decoded
        for static, layer in zip(static_cache.layers, self.cache.layers, strict=True):
            layer.update(static.keys[:, :, read:end].clone(), static.values[:, :, read:end].clone())
        self.mask_BT = self.mask_BR[:, :end]
        self.decoder.give_back(static_cache, batch, self.size)
