"""Recordings → their embeddings of both channels, each recording encoded once (ours).

A recording is known by the hash of its samples, whatever it came as: a path, the bytes of a file or an array. What
the adapters made of it is kept, so that a talk whose turns are read again, in another view or by another request,
never runs the encoder twice. Beside the embeddings of a prompt stands a mark for each position: equal marks stand
for equal embeddings.

Dimensions: T tokens of a prompt, D width of the LLM.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dualslm.audio import frame_count, load
from dualslm.conversation import Channel, Speech
from dualslm.prompt import Prompt, Slot

if TYPE_CHECKING:
    from dualslm.audio import Samples
    from dualslm.model.dualslm import DualSLM

Key: TypeAlias = int | tuple[Channel, str, int]
"""A token id, or an embedding: its channel, its recording and its place."""

ROOM = 256 * 2**20  # bytes of embeddings that are kept: some 70 minutes of speech beside a 7 B LLM in bfloat16


@dataclass(frozen=True)
class PromptEmbeds:
    """A prompt as the LLM reads it.

    Attributes:
        embeds_TD: in the LLM's dtype.
        marks: one for each position.
    """

    embeds_TD: Tensor
    keys: Sequence[Key]


@dataclass(frozen=True)
class ClipInfo:
    """What is known of a recording without encoding it."""

    digest: str
    frames: int


class AudioCache:
    """Hears recordings and remembers them. For one thread at a time.

    Args:
        model: its encoder and adapters, which must not learn meanwhile.
        room: bytes of embeddings to keep; what was not used for longest is forgotten first.

    Attributes:
        encoded: how many recordings went through the encoder.
    """

    def __init__(self, model: DualSLM, room: int = ROOM) -> None:
        self.model, self.room = model, room
        self.encoded = 0
        self._kept: OrderedDict[str, Mapping[Channel, Tensor]] = OrderedDict()
        self._infos: WeakKeyDictionary[Speech, ClipInfo] = WeakKeyDictionary()

    @torch.no_grad()
    def rows(self, prompts: Sequence[Prompt]) -> list[PromptEmbeds]:
        """The embeddings of some prompts; recordings that are new are encoded together.

        Raises:
            DualSLMError: a recording that cannot be used.
        """
        slots = [(prompt, one) for prompt in prompts for one in prompt.segments if isinstance(one, Slot)]
        heard = self._hear([prompt.clips[slot.clip] for prompt, slot in slots])
        rows = [PromptEmbeds(*self._row(prompt, heard)) for prompt in prompts]
        self._forget()
        return rows

    def length(self, prompt: Prompt) -> int:
        """How many positions a prompt takes; nothing is encoded for it."""
        return sum(
            self._slot_length(segment.channel, prompt.clips[segment.clip])
            if isinstance(segment, Slot)
            else len(segment.ids)
            for segment in prompt.segments
        )

    def digest(self, speech: Speech) -> str:
        """What a recording is known by."""
        return self._info(speech).digest

    def _slot_length(self, channel: Channel, speech: Speech) -> int:
        return self.model.para.tokens if channel == "para" else self.model.ling.lengths(self._info(speech).frames)

    def _info(self, speech: Speech) -> ClipInfo:
        known = self._infos.get(speech)
        if known is None:
            samples = _samples(speech)
            known = ClipInfo(blake2b(samples.tobytes(), digest_size=16).hexdigest(), frame_count(len(samples)))
            self._infos[speech] = known
        return known

    def _hear(self, speeches: Sequence[Speech]) -> dict[str, Mapping[Channel, Tensor]]:
        """Both channels of each recording: the encoder's work is the same for one."""
        asked = {self.digest(speech): speech for speech in speeches}
        new = {digest: speech for digest, speech in asked.items() if digest not in self._kept}
        if new:
            waves = [_samples(speech) for speech in new.values()]
            frames = self.model.encoder.encode(waves, every_layer=self.model.every_layer)
            both = zip(self.model.adapt("para", frames), self.model.adapt("ling", frames), strict=True)
            for digest, (para_MD, ling_LD) in zip(new, both, strict=True):
                # copies, because a view would keep the whole batch
                self._kept[digest] = {"para": para_MD.clone(), "ling": ling_LD.clone()}
            self.encoded += len(new)
        for digest in asked:
            self._kept.move_to_end(digest)
        return {digest: self._kept[digest] for digest in asked}

    def _row(self, prompt: Prompt, heard: Mapping[str, Mapping[Channel, Tensor]]) -> tuple[Tensor, list[Key]]:
        pieces, keys = zip(*self._pieces(prompt, heard), strict=True)
        return torch.cat(pieces), [mark for some in keys for mark in some]

    def _pieces(
        self, prompt: Prompt, heard: Mapping[str, Mapping[Channel, Tensor]]
    ) -> Iterator[tuple[Tensor, list[Key]]]:
        llm = self.model.llm
        for segment in prompt.segments:
            if isinstance(segment, Slot):
                digest = self.digest(prompt.clips[segment.clip])
                value_TD = heard[digest][segment.channel]
                yield value_TD, [(segment.channel, digest, place) for place in range(len(value_TD))]
            else:
                yield llm.embed(torch.tensor(segment.ids, dtype=torch.long, device=llm.device)), [*segment.ids]

    def _forget(self) -> None:
        size = sum(value.nbytes for both in self._kept.values() for value in both.values())
        while size > self.room and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            size -= sum(value.nbytes for value in oldest.values())


def _samples(speech: Speech) -> Samples:
    assert speech.audio is not None, "render() refuses a speech source without a recording"
    return load(speech.audio, speech.rate)
