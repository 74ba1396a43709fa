"""An LLM is tried before it is trusted: a few tokens, read in each of the ways that dualslm reads (ours).

P and L are embeddings without token ids, a reply goes on from a cache, and prompts of a batch are padded. A model of
transformers may leave any of these out without a word: Gemma 3n and Gemma 4 look ids up in every layer, recurrent
models keep states of their own, and some forget that a prompt is padded. Such an LLM would answer, and wrongly.

Dimensions: B prompts, T tokens, D width of the LLM, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dualslm.errors import DualSLMError

if TYPE_CHECKING:
    from dualslm.model.llm import FrozenLM

PROBE_TOKENS = 8
SAME_WORK = 1e-3  # greatest distance of logits that come from the same numbers in the same order
# The same numbers in another order, in 32 and in fewer bits: bfloat16 and quantized layers round, and a router of
# experts may turn a rounding into another expert.
OTHER_ORDER, OTHER_ORDER_ROUNDED = 1e-2, 0.25
FORGOTTEN = 0.5  # of the distance that the last token has without any context: then some of the context is lost
DO = "choose an LLM that reads embeddings and keeps keys and values, such as Qwen 2.5 and 3, Llama, Mistral or Gemma 3"


@torch.no_grad()
def probe(llm: FrozenLM) -> None:
    """Tries an LLM on a few tokens.

    Args:
        llm: the frozen LLM, whole and not sharded.

    Raises:
        DualSLMError: what it does otherwise than an LLM here must.
    """
    kind = llm.model.config.model_type
    try:
        fault = _fault(llm)
    except torch.OutOfMemoryError:  # this is no fault of the LLM's kind
        raise
    except (
        AssertionError,
        AttributeError,
        LookupError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        got = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise DualSLMError(
            f"an LLM of type {kind!r} cannot be run on embeddings and a cache", got=got, do=DO
        ) from error
    if fault is not None:
        what, distance = fault
        raise DualSLMError(f"an LLM of type {kind!r} {what}", got=f"logits {distance:.0%} away", do=DO)


def _fault(llm: FrozenLM) -> tuple[str, float] | None:
    """What the LLM does wrongly, and how far its logits are from right ones."""
    exact = llm.dtype == torch.float32 and llm.identity is None
    vocabulary = llm.input_embeddings.weight.shape[0]
    ids_T = torch.linspace(0.1 * vocabulary, 0.9 * vocabulary, PROBE_TOKENS, device=llm.device).long()
    embeds_TD = llm.embed(ids_T)
    middle = PROBE_TOKENS // 2
    soft_TD = embeds_TD.clone()
    soft_TD[middle] = embeds_TD.mean(0)

    by_ids_TV = llm.model(input_ids=ids_T[None], use_cache=False).logits[0]
    plain_TV = llm(embeds_TD[None])[0]
    if (distance := _distance(plain_TV, by_ids_TV)) > SAME_WORK:
        return "reads token ids beside its embeddings, and P and L have none", distance

    soft_TV = llm(soft_TD[None])[0]
    context_free_V = llm(soft_TD[None, -1:])[0, -1]
    loose = OTHER_ORDER if exact else OTHER_ORDER_ROUNDED
    loose = min(loose, max(OTHER_ORDER, FORGOTTEN * _distance(context_free_V, soft_TV[-1])))
    if (distance := _distance(soft_TV[:middle], plain_TV[:middle])) > loose:
        return "looks ahead, so that no prefix can be kept", distance
    if not soft_TV.isfinite().all() or _distance(soft_TV[middle:], plain_TV[middle:]) == 0:
        return "does not hear an embedding that is no token's", 0.0

    read = llm.prefill([soft_TD[:-1]])
    cached_V = llm(soft_TD[None, -1:], cache=read.cache)[0, -1]
    if (distance := _distance(cached_V, soft_TV[-1])) > loose:
        return "goes on from a cache otherwise than without one", distance

    if llm.keeps_every_position:  # a prompt goes on from what another one left: several tokens at once
        read = llm.prefill([soft_TD[:middle]])
        continued_V = llm(soft_TD[None, middle:], cache=read.cache)[0, -1]
        if (distance := _distance(continued_V, soft_TV[-1])) > loose:
            return "reads several tokens after a cache otherwise than without one", distance

    padded = llm.prefill([soft_TD, soft_TD[middle:]])
    alone_V = llm(soft_TD[None, middle:])[0, -1]
    if (distance := _distance(padded.logits_BV, torch.stack([soft_TV[-1], alone_V]))) > loose:
        return "reads a prompt that is padded otherwise than alone", distance
    return None


def _distance(some: Tensor, right: Tensor) -> float:
    """The distance of logits from right ones, as a share of how far those are from their mean over the vocabulary."""
    some, right = (logits.float() - logits.float().mean(-1, keepdim=True) for logits in (some, right))
    distance = float((some - right).norm() / right.norm().clamp_min(1e-20))
    return distance if distance == distance else float("inf")  # not a number: as far as can be
