"""Weights of an LLM whose layers are unlike the common ones, counted by building it without any memory (ours).

Mixtures of experts, heads that share keys in ways of their own, layers of several kinds: no formula fits them all. So
transformers builds the model on PyTorch's meta device, where tensors have shapes alone, and its weights are summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from dualslm.errors import DualSLMError

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_USED = ("num_experts_per_tok", "moe_top_k", "moe_topk", "moe_k")


class Layers(NamedTuple):
    """Weights of the layers.

    Attributes:
        stored: all of them, with tables that a layer looks up in.
        used: those that a token is multiplied with; of a mixture's experts the few that it is sent to.
    """

    stored: int
    used: int


def layers(name: str, config: Any) -> Layers:
    """Counts the weights of an LLM, without the input embeddings and the output head.

    Args:
        name: its name, for errors.
        config: its configuration, as transformers reads it.

    Raises:
        DualSLMError: transformers has no causal LM of that kind, or nobody says how many experts are used.
    """
    import torch  # only here: the common LLMs are planned without it
    from transformers import AutoModelForCausalLM

    wrong = f"the sizes of the LLM {name!r} cannot be told"
    kind = config.model_type
    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (KeyError, ValueError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        do = "name a causal LM that transformers knows"
        got = f"transformers makes no causal LM of its config of type {kind!r}"
        raise DualSLMError(wrong, got=got, do=do) from error
    outer = {id(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part}
    tables = {id(part.weight) for part in model.modules() if isinstance(part, torch.nn.Embedding)}
    stored = looked_up = expert = 0
    for path, weight in model.named_parameters():
        if id(weight) not in outer:
            stored += weight.numel()
            looked_up += weight.numel() if id(weight) in tables else 0
            expert += weight.numel() if ".experts." in path else 0
    if not expert:
        return Layers(stored, stored - looked_up)
    total, used = _number(config, EXPERTS), _number(config, EXPERTS_USED)
    if not total or not used:
        got = f"experts, and not how many of them a token is sent to, in a config of type {kind!r}"
        raise DualSLMError(wrong, got=got, do="name an LLM whose config says it, or one without experts")
    return Layers(stored, stored - looked_up - expert + expert * used // total)


def _number(config: Any, names: Sequence[str]) -> int | None:
    """The first of several fields that is stated."""
    found = (getattr(config, name, None) for name in names)
    return next((number for number in found if isinstance(number, int)), None)
