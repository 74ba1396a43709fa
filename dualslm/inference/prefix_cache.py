"""Keys and values of prompts that were read, for later prompts that begin alike (ours).

Every position has a key that says what stands there: a token id, or an embedding of a recording. The next prompt,
however it was rendered, shares its first keys with what was read; only the rest is read. So a template that writes
earlier turns otherwise once later ones have come costs work and never correctness: reading with a cached prefix equals
reading anew (tested to 1e-4 in float32).

Dimensions: B = 1 prompt, H heads, T positions, D width of a head.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import TypeAlias

from torch import Tensor

KeysValues: TypeAlias = list[tuple[Tensor, Tensor]]
"""Attention keys and values (B, H, T, D) of each layer."""

PREFIX_CACHE_BYTES = 512 * 2**20  # of keys and values: 9,000 positions of a 7 B LLM
MAX_ENTRIES = 256  # all are searched for a prompt's beginning; with a small LLM thousands would fit into the bytes
MIN_SHARED_TOKENS = 8  # a shorter common beginning is read again


class PrefixCache:
    """What an LLM has read; what was not used for longest is dropped first.

    Args:
        max_bytes: of keys and values that are kept, of at most `MAX_ENTRIES` prompts.

    Attributes:
        tokens: number of positions that are kept.
    """

    def __init__(self, max_bytes: int = PREFIX_CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self.tokens = 0
        self._entries: OrderedDict[int, tuple[list[Hashable], KeysValues]] = OrderedDict()
        self._next = 0

    def shared(self, keys: Sequence[Hashable]) -> tuple[int, KeysValues]:
        """The longest beginning of a prompt that was read before.

        Returns:
            Its length in positions, at most all but the last one, whose logits are needed; and keys and values.
        """
        longest = 0
        found = -1
        for entry, (known, _) in self._entries.items():
            length = common_length(known, keys)
            if length > longest:
                longest = length
                found = entry
        longest = min(longest, len(keys) - 1)
        if longest < MIN_SHARED_TOKENS:
            return 0, []
        self._entries.move_to_end(found)
        return longest, [(k[..., :longest, :], v[..., :longest, :]) for k, v in self._entries[found][1]]

    def keep(self, keys: Sequence[Hashable], read: KeysValues) -> None:
        """Keeps what was read of one prompt and its reply.

        It takes the place of entries that it begins with; nothing happens where a longer entry begins with it.
        """
        for entry, (known, _) in list(self._entries.items()):
            common = common_length(known, keys)
            if common == len(keys):
                self._entries.move_to_end(entry)
                return
            if common == len(known):
                self._drop(entry)
        self._entries[self._next] = ([*keys], read)
        self._next += 1
        self.tokens += len(keys)
        _, read = next(iter(self._entries.values()))
        per_token = sum(k.nbytes + v.nbytes for k, v in read) // max(1, read[0][0].shape[2])
        while len(self._entries) > MAX_ENTRIES or (len(self._entries) > 1 and per_token * self.tokens > self.max_bytes):
            self._drop(next(iter(self._entries)))

    def _drop(self, entry: int) -> None:
        self.tokens -= len(self._entries.pop(entry)[0])


def common_length(known: Sequence[Hashable], keys: Sequence[Hashable]) -> int:
    """The number of first positions at which two prompts have the same."""
    both = enumerate(zip(known, keys, strict=False))
    return next((index for index, (one, other) in both if one != other), min(len(known), len(keys)))
