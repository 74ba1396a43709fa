"""The next-token loss of prompts (paper §IV-C), token log-probabilities, and the gradient-free prefix (ours).

System text and history stand before everything that learns, so no gradient passes through them: they are read once
without gradient, and what follows attends to their keys and values. Prompts cut from one conversation begin alike;
they share one reading of the longest beginning. Both give the plain path's numbers (tested to 1e-5 in float32).

Dimensions: B prompts, T positions, D width of the LLM, P prefixes that are read, K positions with a label,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dualslm.errors import DualSLMError
from dualslm.model.execution import read_only
from dualslm.model.inputs import IGNORE_INDEX, Key, PromptEmbeds
from dualslm.model.llm import FrozenLM, pad_left

MIN_SAVED_SHARE = 0.05  # of a step's work, which a shared prefix must save to be used; measured: docs/benchmarks.md
NEVER_SHARE = 1.0  # no prefix saves all of a step's work


@dataclass(frozen=True)
class Loss:
    """Next-token loss of a batch of prompts.

    Attributes:
        nll_B: the summed negative log-likelihood of each prompt's labels, in nats.
        tokens_B: the number of labels of each prompt.
    """

    nll_B: Tensor
    tokens_B: Tensor

    @property
    def mean(self) -> Tensor:
        """The loss per label over the batch."""
        return self.nll_B.sum() / self.tokens_B.sum()


def next_token_loss(
    llm: FrozenLM, prompts: Sequence[PromptEmbeds], *, min_saved_share: float = MIN_SAVED_SHARE
) -> Loss:
    """The loss of the prompts' labels.

    Args:
        llm: the frozen LLM.
        prompts: from `dualslm.model.inputs.fill`.
        min_saved_share: share of the work that a common prefix must save to be used: 0 always uses it, 1 never.

    Raises:
        DualSLMError: no prompt has a label.
    """
    if not any(bool((prompt.labels_T != IGNORE_INDEX).any()) for prompt in prompts):
        raise DualSLMError("nothing to learn in this batch", got="no label", do='render with supervise="last"')
    prefixes, read_from = share_prefixes(numbered_prefixes(prompts))
    shares = any(prefixes) and saved_share(prompts, prefixes) >= min_saved_share and llm.keeps_every_position
    logits_KV, labels_BT = (
        _logits_after_prefixes(llm, prompts, prefixes, read_from) if shares else label_logits(llm, prompts)
    )
    # Summed by prompt and divided by nobody yet: the trainer divides by the labels of all processes, so that a loss
    # depends neither on their number nor on the parts that a batch is gone through in.
    has_label_BT = labels_BT != IGNORE_INDEX
    nll_K = F.cross_entropy(logits_KV.float(), labels_BT[has_label_BT], reduction="none")
    nll_B = nll_K.new_zeros(len(prompts)).index_add(0, has_label_BT.nonzero()[:, 0], nll_K)
    return Loss(nll_B, has_label_BT.sum(1))


def label_logits(llm: FrozenLM, prompts: Sequence[PromptEmbeds]) -> tuple[Tensor, Tensor]:
    """What the LLM predicts where a label is, and the labels.

    Returns:
        Logits (K, V), row by row, and labels (B, T - 1) as they follow each position, `IGNORE_INDEX` where none is.
    """
    embeds_BTD, mask_BT = pad_left([prompt.embeds_TD for prompt in prompts])
    labels_BT = _next_labels(prompts)
    # The output head is the dearest part of a step: it sees the positions in front of a label alone.
    keep_BT = F.pad(labels_BT != IGNORE_INDEX, (0, 1))
    return llm(embeds_BTD, None if bool(mask_BT.all()) else mask_BT, keep_BT=keep_BT), labels_BT


@torch.no_grad()
def label_log_probs(llm: FrozenLM, prompts: Sequence[PromptEmbeds]) -> list[tuple[Tensor, Tensor]]:
    """For each prompt the log-probabilities (K, V) before each of its labels, in nats, and the labels (K)."""
    logits_KV, labels_BT = label_logits(llm, prompts)
    has_label_BT = labels_BT != IGNORE_INDEX
    counts = has_label_BT.sum(1).tolist()
    log_probs = logits_KV.float().log_softmax(-1).split(counts)
    return list(zip(log_probs, labels_BT[has_label_BT].split(counts), strict=True))


# ---------------------------------------------------------------------- prefixes that prompts share


def numbered_prefixes(prompts: Sequence[PromptEmbeds]) -> list[tuple[int, ...]]:
    """The fixed prefix of each prompt as numbers: token ids, and numbers below zero for embeddings of slots."""
    numbers: dict[Key, int] = {}
    return [
        tuple(
            key if isinstance(key, int) else numbers.setdefault(key, -1 - len(numbers))
            for key in prompt.keys[: prompt.fixed]
        )
        for prompt in prompts
    ]


def share_prefixes(prefixes: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """Leaves out prefixes that a longer one begins with.

    Returns:
        The prefixes that are read, and for each prompt the index of the one that begins with its own.
    """
    longest: list[tuple[int, ...]] = []
    read_index: dict[tuple[int, ...], int] = {}
    for prefix in sorted(set(prefixes), reverse=True):  # a longer one comes before those that it begins with
        if not longest or longest[-1][: len(prefix)] != prefix:
            longest.append(prefix)
        read_index[prefix] = len(longest) - 1
    return longest, [read_index[prefix] for prefix in prefixes]


def saved_share(prompts: Sequence[PromptEmbeds], prefixes: Sequence[tuple[int, ...]]) -> float:
    """The share of a plain step's work that shared prefixes save; a backward pass costs about what a forward does."""
    plain = 2 * sum(len(prompt.keys) for prompt in prompts)
    return (2 * sum(prompt.fixed for prompt in prompts) - sum(map(len, prefixes))) / plain


def _logits_after_prefixes(
    llm: FrozenLM, prompts: Sequence[PromptEmbeds], prefixes: Sequence[tuple[int, ...]], read_from: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """As `label_logits`, with every prefix read once without gradient and then only what follows it in each prompt."""
    holders = [
        next(
            prompt
            for prompt, read in zip(prompts, read_from, strict=True)
            if read == index and prompt.fixed == len(prefix)
        )
        for index, prefix in enumerate(prefixes)
    ]
    read = llm.prefill([holder.embeds_TD[: holder.fixed].detach() for holder in holders])
    read_B = torch.tensor(read_from, device=llm.device)
    read.cache.batch_select_indices(read_B)
    # A prompt with a shorter prefix than the one that is read sees only its own first positions of what was read.
    position_BT = read.mask_BT[read_B].cumsum(1) * read.mask_BT[read_B]
    fixed_B1 = torch.tensor([prompt.fixed for prompt in prompts], device=llm.device)[:, None]
    before_BT = ((position_BT > 0) & (position_BT <= fixed_B1)).to(read.mask_BT.dtype)
    embeds_BTD, after_BT = pad_left([prompt.embeds_TD[prompt.fixed :] for prompt in prompts])
    labels_BT = _next_labels(prompts, skip_fixed=True)
    logits_KV = llm(
        embeds_BTD,
        torch.cat([before_BT, after_BT], 1),
        keep_BT=F.pad(labels_BT != IGNORE_INDEX, (0, 1)),
        cache=read_only(read.cache),
    )
    return logits_KV, labels_BT


def _next_labels(prompts: Sequence[PromptEmbeds], *, skip_fixed: bool = False) -> Tensor:
    """The label that follows each position (B, T - 1), padded on the left."""
    labels_BT, padding_BT = pad_left([prompt.labels_T[prompt.fixed if skip_fixed else 0 :] for prompt in prompts])
    return labels_BT.masked_fill(padding_BT == 0, IGNORE_INDEX)[:, 1:]
