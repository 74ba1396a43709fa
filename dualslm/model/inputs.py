"""Prompts → rows of input embeddings, slots filled (paper eq. 3).

Each recording is heard once and goes through each adapter once, however many prompts of a batch it stands in. A
frozen slot is a detached one, so that examples that teach different adapters share a batch.

Dimensions: T tokens of a prompt, D width of the LLM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from dualslm.conversation import Channel, Speech
from dualslm.model.encoder import Frames
from dualslm.model.llm import FrozenLM
from dualslm.prompt import Prompt, Slot, Text

Hear: TypeAlias = Callable[[Sequence[Speech]], Frames]
Adapt: TypeAlias = Callable[[Channel, Frames], list[Tensor]]
Filled: TypeAlias = Mapping[tuple[Channel, int], Tensor]

IGNORE_INDEX = -1  # a position whose token carries no loss


@dataclass(frozen=True)
class PromptEmbeds:
    """One prompt as the LLM reads it.

    Attributes:
        embeds_TD: in the LLM's dtype.
        targets_T: the ids to be learnt at their positions, `IGNORE_INDEX` elsewhere.
        prefix: what its first positions hold, one number each, as far as no gradient and no loss depends on them:
            equal numbers stand for equal embeddings within a batch.
    """

    embeds_TD: Tensor
    labels_T: Tensor
    prefix: tuple[int, ...]


def rows(prompts: Sequence[Prompt], llm: FrozenLM, adapt: Adapt, hear: Hear) -> list[PromptEmbeds]:
    """Fills the slots of some prompts.

    Args:
        prompts: rendered by `dualslm.prompt.render`.
        llm: whose token embeddings stand for the text.
        adapt: one adapter's embeddings of each clip, without padding.
        hear: gives the frames of recordings.
    """
    filled = _fill(prompts, adapt, hear, llm.device)
    texts = _embed_texts(llm, [s for prompt in prompts for s in prompt.segments if isinstance(s, Text)])
    names: dict[tuple[Channel, int, int], int] = {}
    found = []
    for prompt in prompts:
        embeds, targets = zip(*_pieces(prompt, filled, texts), strict=True)
        prefix = tuple(_prefix(prompt, filled, names))
        found.append(PromptEmbeds(torch.cat(embeds), torch.cat(targets).to(llm.device), prefix))
    return found


def _embed_texts(llm: FrozenLM, texts: Sequence[Text]) -> Iterator[tuple[Tensor, Tensor]]:
    """All text of a batch in one look-up: embeddings and targets of each, in order."""
    ids_T = torch.tensor([token for text in texts for token in text.ids], dtype=torch.long)
    learnt_T = torch.tensor([text.loss for text in texts for _ in text.ids], dtype=torch.bool)
    labels_T = ids_T.masked_fill(~learnt_T, IGNORE_INDEX)
    lengths = [len(text.ids) for text in texts]
    embeds_TD = llm.embed(ids_T.to(llm.device))
    return zip(embeds_TD.split(lengths), labels_T.split(lengths), strict=True)


def _fill(prompts: Sequence[Prompt], adapt: Adapt, hear: Hear, device: torch.device) -> Filled:
    """Runs each adapter once over the distinct recordings that it is asked for."""
    wanted: dict[Channel, dict[int, Speech]] = {"para": {}, "ling": {}}
    for prompt in prompts:
        for slot in prompt.segments:
            if isinstance(slot, Slot):
                clip = prompt.clips[slot.clip]
                wanted[slot.channel][id(clip)] = clip
    clips = list((wanted["para"] | wanted["ling"]).values())
    if not clips:
        return {}
    frames, row = hear(clips).to(device), {id(clip): index for index, clip in enumerate(clips)}
    filled: dict[tuple[Channel, int], Tensor] = {}
    for channel, asked in wanted.items():
        if asked:
            out = adapt(channel, frames.pick([row[key] for key in asked]))
            filled |= {(channel, key): value for key, value in zip(asked, out, strict=True)}
    return filled


def _pieces(prompt: Prompt, filled: Filled, texts: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    for segment in prompt.segments:
        if isinstance(segment, Text):
            yield next(texts)
        else:
            value_TD = filled[segment.channel, id(prompt.clips[segment.clip])]
            no_target_T = torch.full((len(value_TD),), IGNORE_INDEX)
            yield value_TD.detach() if segment.frozen else value_TD, no_target_T


def _prefix(prompt: Prompt, filled: Filled, names: dict[tuple[Channel, int, int], int]) -> list[int]:
    """Token ids, and numbers below zero for embeddings, up to the first that learns or is learnt from."""
    found: list[int] = []
    for segment in prompt.segments:
        if isinstance(segment, Text):
            if segment.loss:
                return found[:-1]  # the position in front of a target predicts it
            found += segment.ids
        elif not segment.frozen:
            return found
        else:
            key = (segment.channel, id(prompt.clips[segment.clip]))
            found += [names.setdefault((*key, step), -1 - len(names)) for step in range(len(filled[key]))]
    return found
