"""What an LLM has read, and how much of it the next prompt can reuse (ours).

Keys and values of every position are kept with a mark that says what stood there. The next prompt, however it was
rendered, shares its first marks with what was read; the cache is cut behind them and only the rest is read. So a
template that writes earlier turns otherwise once later ones have come costs work and never correctness: reading
with a memory equals reading anew (tested to 1e-4 in float32).

Dimensions: B = 1 prompt, T tokens, D width of the LLM, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from dualslm.model.generation import GREEDY, GenerationSettings
from dualslm.model.llm import FrozenLM, Prefilled


class Memory:
    """The keys and values of one talk.

    An LLM whose cache forgets, as one with a sliding window, reads every prompt anew.

    Args:
        llm: the frozen LLM.

    Attributes:
        marks: what stands at the positions that were read or drawn.
    """

    def __init__(self, llm: FrozenLM) -> None:
        self.llm = llm
        self.keys: list[Hashable] = []
        self._cache: DynamicCache | None = None

    def shares(self, keys: Sequence[Hashable]) -> int:
        """How many first positions of a prompt have been read already."""
        if not self.llm.keeps_every_position:
            return 0
        known = self._known()
        both = zip(self.keys[:known], keys, strict=False)
        return next((place for place, (ours, theirs) in enumerate(both) if ours != theirs), min(known, len(keys)))

    def read(self, embeds_TD: Tensor, keys: Sequence[Hashable]) -> Prefilled:
        """Reads a prompt, as far as it is new; its last position always is, for the sake of its logits."""
        assert len(embeds_TD) == len(keys), (len(embeds_TD), len(keys))
        keep = min(self.shares(keys), len(keys) - 1)
        before = self._cut(keep)
        self.keys, self._cache = list(keys), before.cache if before else None
        read = self.llm.prefill([embeds_TD[keep:]], before)
        self._cache = read.cache
        return read

    def decode(self, read: Prefilled, how: GenerationSettings = GREEDY) -> Iterator[int]:
        """Yields the tokens of a reply and remembers them; may be left at any time."""
        for (token,) in self.llm.decode(read, how):
            if token is not None:
                self.keys.append(token)
                yield token

    def _known(self) -> int:
        """Positions whose keys all layers hold: a token is drawn before it is read, and reading can be broken off."""
        if self._cache is None or not all(layer.is_initialized for layer in self._cache.layers):
            return 0
        return min(len(self.keys), *(int(layer.get_seq_length()) for layer in self._cache.layers))

    def _cut(self, keep: int) -> Prefilled | None:
        """The cache of the first positions alone."""
        if not keep or self._cache is None:
            return None
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[..., :keep, :], layer.values[..., :keep, :]
        none_BV = torch.empty(1, 0, device=self.llm.device)
        mask_BT = torch.ones(1, keep, dtype=torch.long, device=self.llm.device)
        return Prefilled(none_BV, self._cache, mask_BT)
