"""Prompts → input embeddings, with P and L where their slots are (paper eq. 3, Fig. 2).

`prompt.py` decides where P and L stand; `splice` puts their embeddings there, in training, in a conversation and on a
server alike: text is embedded by the LLM's own table, a slot takes what an adapter made of its recording, and the
pieces are joined in order.

`fill` is what training calls: it also encodes the recordings and runs the adapters, each recording once, however many
prompts of a batch it stands in.

Dimensions: T positions of a prompt, D width of the LLM.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from dualslm.conversation import Channel, Speech
from dualslm.errors import BrokenModelError
from dualslm.model.encoder import Frames
from dualslm.model.llm import FrozenLM
from dualslm.prompt import Prompt, Slot, Text

Hear: TypeAlias = Callable[[Sequence[Speech]], Frames]
"""Recordings → their encoder frames."""
Adapt: TypeAlias = Callable[..., list[Tensor]]
"""Channel and frames → its embeddings (T, D) of each recording, without padding; a third True: as in evaluation."""
Key: TypeAlias = int | tuple[Channel, Hashable, int]
"""What stands at a position: a token id, or channel, recording and index within the slot."""

TOO_LARGE = 1e18  # for an embedding: an LLM squares each value, and float32 ends at 3e38
IGNORE_INDEX = -100  # the label of a position that carries no loss, as in PyTorch


@dataclass(frozen=True)
class PromptEmbeds:
    """One prompt as the LLM reads it.

    Attributes:
        embeds_TD: input embeddings, in the LLM's dtype.
        keys: what stands at each position; equal keys stand for equal embeddings.
        labels_T: token ids to be predicted at their positions, `IGNORE_INDEX` elsewhere.
        fixed: number of first positions on which neither a gradient nor the loss depends.
        salt: prompts of different salts share nothing that was read.
        reuse: whether what was read before may be reused at all; what is read now is kept either way.
        client: whose prompt it is: those of clients with fewer replies under way are read first.
    """

    embeds_TD: Tensor
    keys: Sequence[Key]
    labels_T: Tensor
    fixed: int = 0
    salt: str = ""
    reuse: bool = True
    client: str = ""

    @property
    def token_ids(self) -> list[int] | None:
        """The prompt as token ids; None where a slot stands in it."""
        ids = [key for key in self.keys if isinstance(key, int)]
        return ids if len(ids) == len(self.keys) else None

    @property
    def salted_keys(self) -> list[Hashable]:
        """The keys, the first one with the salt: prompts of different salts have no beginning in common."""
        return [(self.salt, self.keys[0]), *self.keys[1:]]

    def without(self, span: range) -> PromptEmbeds:
        """The same prompt without some of its positions."""
        rest = [position for position in range(len(self.keys)) if position not in span]
        return PromptEmbeds(self.embeds_TD[rest], [self.keys[position] for position in rest], self.labels_T[rest])


@dataclass(frozen=True)
class SlotLengths:
    """The number of embeddings that a recording becomes in each channel.

    Attributes:
        para: m, the soft-prompt embeddings of P.
        stack: k, the frames in one embedding of L.
    """

    para: int
    stack: int

    def ling(self, frames: int) -> int:
        """Embeddings of L for so many frames; the last group may be short."""
        return -(-frames // self.stack)

    def slot(self, slot: Slot, prompt: Prompt, frames: Callable[[Speech], int]) -> int:
        """The embeddings of one slot of a prompt; `frames` gives the number of encoder frames of a recording."""
        return self.para if slot.channel == "para" else self.ling(frames(prompt.clips[slot.clip]))

    def prompt(self, prompt: Prompt, frames: Callable[[Speech], int]) -> int:
        """The positions that a prompt takes, before anything is encoded."""
        return sum(
            self.slot(segment, prompt, frames) if isinstance(segment, Slot) else len(segment.ids)
            for segment in prompt.segments
        )


def splice(
    prompts: Sequence[Prompt],
    llm: FrozenLM,
    slot_embeds: Callable[[Slot, Speech], Tensor],
    name: Callable[[Speech], Hashable],
) -> list[PromptEmbeds]:
    """Joins the text of each prompt and the embeddings of its slots, in order.

    Args:
        prompts: from `dualslm.prompt.render`.
        llm: the frozen LLM, whose token embeddings stand for the text.
        slot_embeds: gives the embeddings (T, D) of one recording in the slot's channel.
        name: gives the name of a recording in the keys: equal names, equal embeddings.
    """
    texts = [segment for prompt in prompts for segment in prompt.segments if isinstance(segment, Text)]
    ids = llm.known([token for text in texts for token in text.ids])
    ids_T = torch.tensor(ids, dtype=torch.long, device=llm.device)
    text_embeds = iter(llm.embed(ids_T).split([len(text.ids) for text in texts]))  # one look-up for the whole batch
    spliced = []
    for prompt in prompts:
        embeds: list[Tensor] = []
        keys: list[Key] = []
        labels: list[int] = []
        fixed: int | None = None  # the first position that learns or is learnt from ends the fixed prefix
        for segment in prompt.segments:
            if isinstance(segment, Text):
                if segment.loss and fixed is None:
                    fixed = max(0, len(keys) - 1)  # the position in front of a label predicts it
                embeds.append(next(text_embeds))
                keys += segment.ids
                labels += segment.ids if segment.loss else [IGNORE_INDEX] * len(segment.ids)
            else:
                speech = prompt.clips[segment.clip]
                slot_TD = slot_embeds(segment, speech)
                if not segment.detached and fixed is None:
                    fixed = len(keys)
                embeds.append(slot_TD.detach() if segment.detached else slot_TD)
                keys += [(segment.channel, name(speech), index) for index in range(len(slot_TD))]
                labels += [IGNORE_INDEX] * len(slot_TD)
        labels_T = torch.tensor(labels, dtype=torch.long, device=llm.device)
        spliced.append(PromptEmbeds(torch.cat(embeds), keys, labels_T, len(keys) if fixed is None else fixed))
    return spliced


def readable(embeds: Sequence[Tensor]) -> Sequence[Tensor]:
    """What an adapter made of some recordings, where an LLM can read it.

    Raises:
        BrokenModelError: a value is none, or too large; the reply would be an empty one, or nonsense.
    """
    # NaN is neither less nor more
    if not all(bool((one.abs() < TOO_LARGE).all()) for one in embeds):
        do = "use adapters as their training saved them, made for this encoder and this LLM"
        raise BrokenModelError("the adapters make no embeddings of this", got="values that no LLM can read", do=do)
    return embeds


def fill(prompts: Sequence[Prompt], llm: FrozenLM, adapt: Adapt, hear: Hear) -> list[PromptEmbeds]:
    """Encodes the recordings of some prompts, runs the adapters and splices what they give.

    Args:
        prompts: from `dualslm.prompt.render`.
        llm: the frozen LLM.
        adapt: one adapter's embeddings of each recording.
        hear: gives the frames of recordings.
    """
    # A detached slot is what the adapter gives in evaluation, without dropout: what does not learn is quite frozen.
    wanted: dict[tuple[Channel, bool], dict[int, Speech]] = defaultdict(dict)
    clips: dict[int, Speech] = {}
    for prompt in prompts:
        for segment in prompt.segments:
            if isinstance(segment, Slot):
                speech = prompt.clips[segment.clip]
                wanted[segment.channel, segment.detached][id(speech)] = clips[id(speech)] = speech
    slots: dict[tuple[Channel, bool, int], Tensor] = {}
    if clips:
        frames = hear(list(clips.values())).to(llm.device)
        row = {key: index for index, key in enumerate(clips)}
        for channel, detached in sorted(wanted):  # in one order, so that dropout draws the same for the same prompts
            asked = wanted[channel, detached]
            own = frames.pick([row[key] for key in asked])
            made = adapt(channel, own, True) if detached else adapt(channel, own)
            slots |= {(channel, detached, key): embeds_TD for key, embeds_TD in zip(asked, made, strict=True)}
    return splice(prompts, llm, lambda slot, speech: slots[slot.channel, slot.detached, id(speech)], id)
