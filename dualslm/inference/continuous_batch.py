"""The LLM in this process: replies to many requests drawn together, each as if it were alone (ours).

A request joins between two steps; its prompt is read on its own, from where it differs from what was read before
(`PrefixCache`). It leaves when its reply ends, without the others waiting. Keys and values of all requests lie in one
cache, padded on the left, where a mask and positions of its own keep every request to itself: batched replies equal
those alone (tested; greedy to the token, logits to 1e-4 in float32).

An LLM whose cache drops keys, as one with a sliding window does, takes one request at a time. Where decoding steps are
CUDA graphs (`model/cuda_graphs.py`), they are replayed while one request is alone.

Dimensions: B requests, H heads, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from dualslm.inference.prefix_cache import KeysValues, PrefixCache
from dualslm.model.cuda_graphs import StaticDecode
from dualslm.model.generation import GenerationSettings, Sampler
from dualslm.model.inputs import PromptEmbeds
from dualslm.model.llm import FrozenLM, Prefilled


@dataclass(eq=False)
class ActiveRequest:
    """One request in the batch.

    Attributes:
        keys: what stands at each position that was read: its prompt, then tokens of its reply.
        positions: number of positions of its prompt.
        reused: number of them that had been read before.
        tokens_left: number of tokens that may still be drawn.
        sampler: draws its tokens.
        logits_V: for its next token.
        unread: the token that was drawn last and is not in the cache yet.
        logprobs: of the token that was drawn last and of the likeliest ones there; None where nobody asks.
    """

    keys: list[Hashable]
    positions: int
    reused: int
    tokens_left: int
    sampler: Sampler
    logits_V: Tensor
    unread: int | None = None
    logprobs: Logprobs | None = None


class Logprobs(NamedTuple):
    """Natural logarithms of probabilities at one position, before temperature and penalties.

    Attributes:
        token: of the token that was drawn.
        top: the likeliest tokens with theirs, the likeliest first.
    """

    token: float
    top: tuple[tuple[int, float], ...]


class RequestBatch(Protocol):
    """The requests that an LLM is answering: by PyTorch (`ContinuousBatch`) or by llama.cpp (`LlamaCppBatch`)."""

    requests: list[ActiveRequest]
    size: int

    @property
    def context(self) -> int | None:
        """Positions that prompt and reply may take together; None where it does not say."""

    @property
    def kept_positions(self) -> int:
        """Positions whose keys and values are kept."""

    def join(self, prompt: PromptEmbeds, generation: GenerationSettings) -> ActiveRequest:
        """Reads a prompt, as far as it is new, and adds it to the batch."""

    def step(self) -> list[tuple[ActiveRequest, int | None]]:
        """Draws the next token of every request, None for the end of its reply."""

    def leave(self, request: ActiveRequest) -> None:
        """Takes a request out before its reply has ended."""

    def clear(self) -> None:
        """Forgets the requests that are being answered."""


@dataclass
class ContinuousBatch:
    """The requests that are being answered. For one thread at a time.

    Attributes:
        llm: the frozen LLM.
        size: most requests at once; 1 for an LLM whose cache drops keys.
        prefix_cache: what was read before.
        requests: in the order of their rows.
    """

    llm: FrozenLM
    size: int
    prefix_cache: PrefixCache = field(default_factory=PrefixCache)
    requests: list[ActiveRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.size = self.size if self.llm.keeps_every_position else 1
        self._cache = DynamicCache(config=self.llm.model.config)
        self._mask_BT = torch.zeros(0, 0, dtype=torch.long, device=self.llm.device)
        self._static: StaticDecode | None = None  # of a request that is alone

    @property
    def context(self) -> int | None:
        """What the LLM was made for."""
        return self.llm.context

    @property
    def kept_positions(self) -> int:
        """Positions whose keys and values are kept of requests that have ended."""
        return self.prefix_cache.tokens

    @torch.no_grad()
    def join(self, prompt: PromptEmbeds, generation: GenerationSettings) -> ActiveRequest:
        """Reads a prompt, as far as it is new, and adds it to the batch."""
        assert len(self.requests) < self.size, "the batch is full"
        self._read_drawn()  # all rows must stand at the same position before one is added
        self._release_static()
        keys = prompt.salted_keys
        reused = 0
        known: KeysValues = []
        if self.llm.keeps_every_position and prompt.reuse:
            reused, known = self.prefix_cache.shared(keys)
        read = self.llm.prefill([prompt.embeds_TD[reused:]], _prefilled(self.llm, reused, known))
        sampler = Sampler(generation, self.llm.device)
        request = ActiveRequest(keys, len(keys), reused, generation.max_new_tokens, sampler, read.logits_BV[0])
        if self.requests:
            self._add_row(read)
        else:
            self._cache = read.cache
            self._mask_BT = read.mask_BT
        self.requests.append(request)
        return request

    @torch.no_grad()
    def step(self) -> list[tuple[ActiveRequest, int | None]]:
        """Draws the next token of every request.

        A request leaves the batch with its end-of-turn token, which is given as None, or with the last token that it
        may have.
        """
        self._read_drawn()
        drawn, going = draw(self.requests, self.llm.stops)
        self._keep_rows(going)
        return drawn

    def leave(self, request: ActiveRequest) -> None:
        """Takes a request out before its reply has ended; nothing happens when it has left already."""
        if request in self.requests:
            self._keep_rows([one for one in self.requests if one is not request])

    def clear(self) -> None:
        """Forgets the requests that are being answered."""
        self.requests = []
        self._cache = DynamicCache(config=self.llm.model.config)
        self._static = None

    # ------------------------------------------------------------------ one step

    def _read_drawn(self) -> None:
        """Reads the tokens that were drawn last, which gives the logits for the next ones."""
        ids = [request.unread for request in self.requests if request.unread is not None]
        if not ids:
            return
        assert len(ids) == len(self.requests), "a request that joins finds all others read"
        ids_B = torch.tensor(ids, device=self.llm.device)
        alone = len(ids) == 1 and self.llm.graph_decoder is not None
        logits_BV = self._read_in_static(ids_B) if alone else self._read_in_batch(ids_B)
        for request, token, logits_V in zip(self.requests, ids, logits_BV, strict=True):
            request.keys.append(token)
            request.logits_V = logits_V
            request.unread = None

    def _read_in_batch(self, ids_B: Tensor) -> Tensor:
        self._mask_BT = torch.cat([self._mask_BT, torch.ones_like(self._mask_BT[:, :1])], dim=1)
        padded = any(len(request.keys) + 1 < self._mask_BT.shape[1] for request in self.requests)
        mask_BT = self._mask_BT if padded else None
        logits_BV: Tensor = self.llm(self.llm.embed(ids_B[:, None]), mask_BT, cache=self._cache)[:, -1]
        return logits_BV

    def _read_in_static(self, ids_B: Tensor) -> Tensor:
        """A request alone: its keys and values stay in a static cache until others come or it ends."""
        assert self.llm.graph_decoder is not None
        if self._static is None:
            tokens_left = self.requests[0].tokens_left
            self._static = StaticDecode(self.llm.graph_decoder, self._cache, self._mask_BT, tokens_left)
        return self._static.step(ids_B).clone()  # the next step writes over what a graph gave

    def _release_static(self) -> None:
        if self._static is not None:
            self._static.release()
            self._mask_BT = self._static.mask_BT
            self._static = None

    # ------------------------------------------------------------------ rows of the cache

    def _add_row(self, read: Prefilled) -> None:
        """Adds one row; the shorter of the two caches is padded on the left."""
        length = max(self._mask_BT.shape[1], read.mask_BT.shape[1])
        layers = zip(_layers(self._cache), _layers(read.cache), strict=True)
        joined = [
            (
                torch.cat([_padded(keys, length), _padded(new_keys, length)]),
                torch.cat([_padded(values, length), _padded(new_values, length)]),
            )
            for (keys, values), (new_keys, new_values) in layers
        ]
        self._cache = _cache_of(self.llm, joined)
        masks = [_padded(mask_BT[..., None], length)[..., 0] for mask_BT in (self._mask_BT, read.mask_BT)]
        self._mask_BT = torch.cat(masks)

    def _keep_rows(self, going: Sequence[ActiveRequest]) -> None:
        """Removes the other rows, whose keys and values go to the prefix cache, and padding that no row needs."""
        if len(going) == len(self.requests):
            return
        self._release_static()
        for row, request in enumerate(self.requests):
            if request not in going and self.llm.keeps_every_position:
                length = len(request.keys)
                read = [
                    (keys[row : row + 1, :, -length:].clone(), values[row : row + 1, :, -length:].clone())
                    for keys, values in _layers(self._cache)
                ]
                self.prefix_cache.keep(request.keys, read)
        rows = [row for row, request in enumerate(self.requests) if request in going]
        self.requests = list(going)
        if not going:
            self.clear()
            return
        mask_BT = self._mask_BT[rows]
        first = int(mask_BT.any(0).long().argmax())
        self._mask_BT = mask_BT[:, first:]
        remaining = [(keys[rows][:, :, first:], values[rows][:, :, first:]) for keys, values in _layers(self._cache)]
        self._cache = _cache_of(self.llm, remaining)


def draw(
    requests: Sequence[ActiveRequest], stops: Collection[int]
) -> tuple[list[tuple[ActiveRequest, int | None]], list[ActiveRequest]]:
    """The next token of every request, None for the end of its reply, and the requests that go on."""
    drawn: list[tuple[ActiveRequest, int | None]] = []
    going = []
    for request, token in zip(requests, _sample(requests), strict=True):
        request.tokens_left -= 1
        ended = token in stops
        drawn.append((request, None if ended else token))
        # It is read at the next step: whoever waits for this token has it before that work begins.
        request.unread = None if ended else token
        if not ended and request.tokens_left:
            going.append(request)
    return drawn, going


def _sample(requests: Sequence[ActiveRequest]) -> list[int]:
    """The next token of each; all likeliest ones at once, because each look at a number waits for the device."""
    if not requests:
        return []
    likeliest: list[int] = torch.stack([request.logits_V for request in requests]).argmax(-1).tolist()
    tokens = [
        token if request.sampler.greedy else int(request.sampler(request.logits_V[None])[0])
        for request, token in zip(requests, likeliest, strict=True)
    ]
    for request, token in zip(requests, tokens, strict=True):
        if (number := request.sampler.generation.logprobs) is not None:
            request.logprobs = _logprobs(request.logits_V, token, number)
    return tokens


def _logprobs(logits_V: Tensor, token: int, number: int) -> Logprobs:
    logprobs_V = logits_V.float().log_softmax(-1)
    top = logprobs_V.topk(min(number, len(logprobs_V)))
    return Logprobs(float(logprobs_V[token]), tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True)))


def _layers(cache: DynamicCache) -> Iterator[tuple[Tensor, Tensor]]:
    return ((layer.keys, layer.values) for layer in cache.layers)


def _cache_of(llm: FrozenLM, read: KeysValues) -> DynamicCache:
    cache = DynamicCache(config=llm.model.config)
    for layer, (keys, values) in enumerate(read):
        cache.update(keys, values, layer)
    return cache


def _prefilled(llm: FrozenLM, length: int, known: KeysValues) -> Prefilled | None:
    """What was read before, as `FrozenLM.prefill` goes on from it."""
    if not length:
        return None
    no_logits_BV = torch.empty(1, 0, device=llm.device)
    mask_BT = torch.ones(1, length, dtype=torch.long, device=llm.device)
    return Prefilled(no_logits_BV, _cache_of(llm, known), mask_BT)


def _padded(some_BHTD: Tensor, length: int) -> Tensor:
    """Zeros in front, up to a length of the second last dimension."""
    return torch.nn.functional.pad(some_BHTD, (0, 0, length - some_BHTD.shape[-2], 0))
