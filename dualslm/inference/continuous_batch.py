"""The LLM in this process: replies of many talks drawn together, each as if it were alone (ours).

A continuous batch. A talk joins between two steps, its prompt read on its own from where it differs from what was
read before (`Pasts`); it leaves when its reply ends, without the others waiting. Keys and values of all talks lie in
one cache, padded on the left, where a mask and positions of its own keep every talk to itself: batched replies equal
those alone (tested; greedy to the token, logits to 1e-4 in float32).

An LLM whose cache forgets, as one with a sliding window, takes one talk at a time. Where the LLM's steps are to be
captured (`captured.py`), they are while one talk is alone.

Dimensions: B talks, H heads, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import DynamicCache

from dualslm.inference.audio_cache import PromptEmbeds
from dualslm.model.cuda_graphs import StaticDecode
from dualslm.model.generation import GenerationSettings, Sampler
from dualslm.model.llm import FrozenLM, Prefilled

KeysValues: TypeAlias = list[tuple[Tensor, Tensor]]
"""Keys and values (B, H, T, D) of each layer."""

ROOM = 512 * 2**20  # bytes of keys and values that are kept of ended replies: 9,000 positions of a 7 B LLM
WORTH = 8  # positions; a shorter common beginning is read again


@dataclass(eq=False)
class ActiveRequest:
    """One talk in the batch.

    Attributes:
        marks: of its prompt and of the tokens drawn.
        positions: of its prompt.
        reused: how many of them had been read before.
        left: tokens that may still be drawn.
    """

    keys: list[Hashable]
    positions: int
    reused: int
    left: int
    draw: Sampler
    logits_V: Tensor


class Pasts:
    """Keys and values of talks that were answered; what was not used for longest is forgotten first.

    Args:
        room: bytes to keep.
    """

    def __init__(self, room: int = ROOM) -> None:
        self.room = room
        self.positions = 0
        self._kept: OrderedDict[int, tuple[list[Hashable], KeysValues]] = OrderedDict()
        self._next = 0

    def shared(self, keys: Sequence[Hashable]) -> tuple[int, KeysValues]:
        """The longest beginning of a prompt that is known, and its keys and values; the last position never is."""
        best, place = 0, -1
        for key, (known, _) in self._kept.items():
            both = enumerate(zip(known, keys, strict=False))
            same = next((at for at, (ours, theirs) in both if ours != theirs), min(len(known), len(keys)))
            best, place = max((best, place), (same, key))
        best = min(best, len(keys) - 1)
        if best < WORTH:
            return 0, []
        self._kept.move_to_end(place)
        return best, [(keys[..., :best, :], values[..., :best, :]) for keys, values in self._kept[place][1]]

    def keep(self, keys: Sequence[Hashable], read: KeysValues) -> None:
        """Keeps one talk, in place of what it began with, unless it is known with what followed."""
        for key, (known, _) in list(self._kept.items()):
            if known[: len(keys)] == [*keys]:
                self._kept.move_to_end(key)
                return
            if known == [*keys[: len(known)]]:
                self._drop(key)
        self._kept[self._next] = ([*keys], read)
        self._next, self.positions = self._next + 1, self.positions + len(keys)
        while len(self._kept) > 1 and self._size() > self.room:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: int) -> None:
        self.positions -= len(self._kept.pop(key)[0])

    def _size(self) -> int:
        _, read = next(iter(self._kept.values()))
        each = sum(keys.nbytes + values.nbytes for keys, values in read) // max(1, read[0][0].shape[2])
        return each * self.positions


@dataclass
class ContinuousBatch:
    """The talks that are being answered. For one thread at a time.

    Attributes:
        llm: the frozen LLM.
        size: most talks at once.
        pasts: what was read before.
        seats: the talks, in the order of their rows.
    """

    llm: FrozenLM
    size: int
    pasts: Pasts = field(default_factory=Pasts)
    requests: list[ActiveRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.size = self.size if self.llm.keeps_every_position else 1
        self._cache = DynamicCache(config=self.llm.model.config)
        self._mask_BT = torch.zeros(0, 0, dtype=torch.long, device=self.llm.device)
        self._stay: StaticDecode | None = None  # of a talk that is alone

    @torch.no_grad()
    def join(self, prompt: PromptEmbeds, how: GenerationSettings) -> ActiveRequest:
        """Reads a prompt and gives it a seat."""
        assert len(self.requests) < self.size, "the batch is full"
        self._settle()
        keys: list[Hashable] = list(prompt.keys)
        keep, known = self.pasts.shared(keys) if self.llm.keeps_every_position else (0, [])
        read = self.llm.prefill([prompt.embeds_TD[keep:]], _prefilled(self.llm, keep, known))
        draw = Sampler(how, self.llm.device)
        request = ActiveRequest(keys, len(keys), keep, how.max_new_tokens, draw, read.logits_BV[0])
        if self.requests:
            self._add(read)
        else:
            self._cache, self._mask_BT = read.cache, read.mask_BT
        self.requests.append(request)
        return request

    @torch.no_grad()
    def step(self) -> list[tuple[ActiveRequest, int | None]]:
        """Draws the next token of every talk; None, and for talks of full length the last token, end the talk."""
        told: list[tuple[ActiveRequest, int | None]] = []
        going, ids = [], []
        for request, token in zip(self.requests, self._drawn(), strict=True):
            request.left -= 1
            ended = token in self.llm.stops
            told.append((request, None if ended else token))
            if not ended and request.left:
                going.append(request)
                ids.append(token)
        self._keep_only(going)
        if going:
            self._read(ids)
        return told

    def _drawn(self) -> list[int]:
        """The next token of each: all likeliest ones at once, for each look at a number waits for the device."""
        if not self.requests:
            return []
        likeliest: list[int] = torch.stack([request.logits_V for request in self.requests]).argmax(-1).tolist()
        return [
            token if request.draw.greedy else int(request.draw(request.logits_V[None])[0])
            for request, token in zip(self.requests, likeliest, strict=True)
        ]

    def leave(self, request: ActiveRequest) -> None:
        """Takes a talk out before its reply has ended; nothing happens where it has left already."""
        if request in self.requests:
            self._keep_only([one for one in self.requests if one is not request])

    def clear(self) -> None:
        """Forgets the talks that are being answered."""
        self.requests = []
        self._cache = DynamicCache(config=self.llm.model.config)
        self._stay = None

    def _read(self, ids: Sequence[int]) -> None:
        ids_B = torch.tensor(ids, device=self.llm.device)
        alone = len(ids) == 1 and self.llm.captured is not None
        logits_BV = self._captured(ids_B) if alone else self._together(ids_B)
        for request, token, logits_V in zip(self.requests, ids, logits_BV, strict=True):
            request.keys.append(token)
            request.logits_V = logits_V

    def _together(self, ids_B: Tensor) -> Tensor:
        self._mask_BT = torch.cat([self._mask_BT, torch.ones_like(self._mask_BT[:, :1])], dim=1)
        padded = any(len(request.keys) + 1 < self._mask_BT.shape[1] for request in self.requests)
        mask = self._mask_BT if padded else None
        logits_BV: Tensor = self.llm(self.llm.embed(ids_B[:, None]), mask, cache=self._cache)[:, -1]
        return logits_BV

    def _captured(self, ids_B: Tensor) -> Tensor:
        """A talk alone: its keys and values are in a room of their own until others come or it ends."""
        assert self.llm.captured is not None
        if self._stay is None:
            self._stay = StaticDecode(self.llm.captured, self._cache, self._mask_BT, self.requests[0].left)
        return self._stay.step(ids_B).clone()  # the next step writes over what a graph gave

    def _settle(self) -> None:
        """Puts what captured steps read into the cache."""
        if self._stay is not None:
            self._stay.leave()
            self._mask_BT, self._stay = self._stay.mask_BT, None

    def _add(self, read: Prefilled) -> None:
        """One more row; the shorter of the two is padded on the left."""
        most = max(self._mask_BT.shape[1], read.mask_BT.shape[1])
        both = zip(_layers(self._cache), _layers(read.cache), strict=True)
        self._cache = _cache_of(
            self.llm,
            [tuple(torch.cat([_padded(a, most), _padded(b, most)]) for a, b in zip(*one, strict=True)) for one in both],
        )
        masks = [_padded(mask_BT[..., None], most)[..., 0] for mask_BT in (self._mask_BT, read.mask_BT)]
        self._mask_BT = torch.cat(masks)

    def _keep_only(self, going: Sequence[ActiveRequest]) -> None:
        """Removes the other rows, whose keys and values are kept for later, and padding that nobody needs."""
        if len(going) == len(self.requests):
            return
        self._settle()
        for row, request in enumerate(self.requests):
            if request not in going and self.llm.keeps_every_position:
                length = len(request.keys)
                read = [
                    (keys[row : row + 1, :, -length:].clone(), values[row : row + 1, :, -length:].clone())
                    for keys, values in _layers(self._cache)
                ]
                self.pasts.keep(request.keys, read)
        rows = [row for row, request in enumerate(self.requests) if request in going]
        self.requests = list(going)
        if not going:
            self.clear()
            return
        mask_BT = self._mask_BT[rows]
        first = int(mask_BT.any(0).long().argmax())
        self._mask_BT = mask_BT[:, first:]
        kept = [(keys[rows][:, :, first:], values[rows][:, :, first:]) for keys, values in _layers(self._cache)]
        self._cache = _cache_of(self.llm, kept)


def _layers(cache: DynamicCache) -> Iterator[tuple[Tensor, Tensor]]:
    return ((layer.keys, layer.values) for layer in cache.layers)


def _cache_of(llm: FrozenLM, read: Sequence[tuple[Tensor, ...]]) -> DynamicCache:
    cache = DynamicCache(config=llm.model.config)
    for place, (keys, values) in enumerate(read):
        cache.update(keys, values, place)
    return cache


def _prefilled(llm: FrozenLM, keep: int, known: KeysValues) -> Prefilled | None:
    if not keep:
        return None
    none_BV = torch.empty(1, 0, device=llm.device)
    return Prefilled(none_BV, _cache_of(llm, known), torch.ones(1, keep, dtype=torch.long, device=llm.device))


def _padded(some_BHTD: Tensor, length: int) -> Tensor:
    """Zeros in front, up to a length of the second last dimension."""
    return torch.nn.functional.pad(some_BHTD, (0, 0, length - some_BHTD.shape[-2], 0))
