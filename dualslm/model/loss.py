"""The next-token loss of rows of embeddings (paper §IV-C), and the gradient-free prefix (ours).

System text and history stand before everything that learns, so no gradient passes through them: they are read
once without gradient, and what follows attends to their keys and values. Rows cut from one talk begin alike;
they share one reading of the longest. Both give the plain path's numbers (tested to 1e-5 in float32).

Dimensions: B rows, T tokens, D width of the LLM, R readings, K positions with a target, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dualslm.errors import DualSLMError
from dualslm.model.execution import kept
from dualslm.model.inputs import IGNORE_INDEX, PromptEmbeds
from dualslm.model.llm import FrozenLM, pad_left

NEVER = 1.0  # a prefix spares less than all work
WORTH = 0.05  # share of the positions' work that a prefix must spare to be used; measured: docs/benchmarks.md


@dataclass(frozen=True)
class Loss:
    """Next-token loss of a batch of prompts.

    Attributes:
        nll_B: the summed negative log-likelihood of each prompt's target tokens, in nats.
        tokens_B: how many target tokens each has.
    """

    nll_B: Tensor
    tokens_B: Tensor

    @property
    def mean(self) -> Tensor:
        """The loss per target token over the batch."""
        return self.nll_B.sum() / self.tokens_B.sum()


def next_token_loss(llm: FrozenLM, rows: Sequence[PromptEmbeds], *, worth: float = WORTH) -> Loss:
    """The loss of the rows' targets, with logits only where a target is.

    Args:
        llm: the frozen LLM.
        rows: from `dualslm.fill.rows`.
        worth: share of the work that a prefix must spare to be used: 0 always uses it, 1 never.

    Raises:
        DualSLMError: no row has a target.
    """
    labels_BT, padding_BT = pad_left([row.labels_T for row in rows])
    labels_BT = labels_BT.masked_fill(padding_BT == 0, IGNORE_INDEX)
    if not bool((labels_BT != IGNORE_INDEX).any()):
        raise DualSLMError("nothing to learn in this batch", got="no target token", do='render with supervise="last"')
    readings, owners = share([row.prefix for row in rows])
    spares = any(readings) and spared(rows, readings) >= worth and llm.keeps_every_position
    return _after_prefix(llm, rows, readings, owners) if spares else _plain(llm, rows, labels_BT)


def spared(rows: Sequence[PromptEmbeds], readings: Sequence[tuple[int, ...]]) -> float:
    """The share of a plain step's work that the prefix spares: forward and backward cost about the same."""
    everything = 2 * sum(len(row.embeds_TD) for row in rows)
    return (2 * sum(len(row.prefix) for row in rows) - sum(map(len, readings))) / everything


def share(prefixes: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """The prefixes that no other one begins with, and for each row the one that holds its own."""
    readings: list[tuple[int, ...]] = []
    places: dict[tuple[int, ...], int] = {}
    for prefix in sorted(set(prefixes), reverse=True):  # a longer one comes before those that it begins with
        if not readings or readings[-1][: len(prefix)] != prefix:
            readings.append(prefix)
        places[prefix] = len(readings) - 1
    return readings, [places[prefix] for prefix in prefixes]


def _plain(llm: FrozenLM, rows: Sequence[PromptEmbeds], labels_BT: Tensor) -> Loss:
    embeds_BTD, mask_BT = pad_left([row.embeds_TD for row in rows])
    wanted_BT = labels_BT[:, 1:] != IGNORE_INDEX
    keep_BT = F.pad(wanted_BT, (0, 1))
    logits_KV = llm(embeds_BTD, None if bool(mask_BT.all()) else mask_BT, keep_BT=keep_BT)
    return _loss(logits_KV, labels_BT[:, 1:], wanted_BT)


def _after_prefix(
    llm: FrozenLM, rows: Sequence[PromptEmbeds], readings: Sequence[tuple[int, ...]], owners: Sequence[int]
) -> Loss:
    """Reads every prefix once without gradient, then what follows it in each row."""
    longest = [
        next(row for row, own in zip(rows, owners, strict=True) if own == number and row.prefix == reading)
        for number, reading in enumerate(readings)
    ]
    read = llm.prefill([row.embeds_TD[: len(row.prefix)].detach() for row in longest])
    owner_B = torch.tensor(owners, device=llm.device)
    read.cache.batch_select_indices(owner_B)
    before_BT = _known(read.mask_BT[owner_B], [len(row.prefix) for row in rows])
    embeds_BTD, after_BT = pad_left([row.embeds_TD[len(row.prefix) :] for row in rows])
    labels_BT, _ = pad_left([row.labels_T[len(row.prefix) :] for row in rows])
    labels_BT = labels_BT.masked_fill(after_BT == 0, IGNORE_INDEX)
    wanted_BT = labels_BT[:, 1:] != IGNORE_INDEX
    mask_BT = torch.cat([before_BT, after_BT], 1)
    logits_KV = llm(embeds_BTD, mask_BT, keep_BT=F.pad(wanted_BT, (0, 1)), cache=kept(read.cache))
    return _loss(logits_KV, labels_BT[:, 1:], wanted_BT)


def _known(mask_BT: Tensor, lengths: Sequence[int]) -> Tensor:
    """The mask of shared readings with, in each row, only as many first positions as are its own."""
    place_BT = mask_BT.cumsum(1) * mask_BT
    return ((place_BT > 0) & (place_BT <= torch.tensor(lengths, device=mask_BT.device)[:, None])).to(mask_BT.dtype)


def _loss(logits_KV: Tensor, next_BT: Tensor, wanted_BT: Tensor) -> Loss:
    nll_K = F.cross_entropy(logits_KV.float(), next_BT[wanted_BT], reduction="none")
    nll_B = nll_K.new_zeros(len(next_BT)).index_add(0, wanted_BT.nonzero()[:, 0], nll_K)
    return Loss(nll_B, wanted_BT.sum(1))
