"""Recordings → their embeddings of both channels, each recording encoded once (ours).

A recording is known by the hash of its samples, whatever it came as: a path, the bytes of a file or an array. What
the adapters made of it is kept, so that a conversation whose turns are read again, in another view or by another
request, never runs the encoder twice. In the keys of a prompt a recording is named by that hash.

Dimensions: M embeddings of P, L embeddings of L, D width of the LLM.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dualslm.audio import FRAMES_PER_SECOND, frame_count, load
from dualslm.conversation import Channel, Speech
from dualslm.model.inputs import PromptEmbeds, readable, splice
from dualslm.prompt import Prompt, Slot

if TYPE_CHECKING:
    from dualslm.model.dualslm import DualSLM

AUDIO_CACHE_BYTES = 256 * 2**20  # of embeddings: some 70 minutes of speech beside a 7 B LLM in bfloat16


@dataclass(frozen=True)
class ClipInfo:
    """What is known of a recording without encoding it: the hash of its samples, and its encoder frames."""

    digest: str
    frames: int


class AudioCache:
    """Encodes recordings and keeps what both adapters made of them. For one thread at a time.

    Args:
        model: its encoder and adapters, which must not learn meanwhile.
        max_bytes: of embeddings that are kept; what was not used for longest is dropped first.

    Attributes:
        encoded: number of recordings that went through the encoder.
    """

    def __init__(self, model: DualSLM, max_bytes: int = AUDIO_CACHE_BYTES) -> None:
        self.model = model
        self.max_bytes = max_bytes
        self.encoded = 0
        self._kept: OrderedDict[str, Mapping[Channel, Tensor]] = OrderedDict()
        self._infos: WeakKeyDictionary[Speech, ClipInfo] = WeakKeyDictionary()

    @torch.no_grad()
    def embed(self, prompts: Sequence[Prompt]) -> list[PromptEmbeds]:
        """Prompts as the LLM reads them; recordings that are new are encoded together.

        Raises:
            DualSLMError: a recording that cannot be used.
        """
        slots = [
            prompt.clips[segment.clip] for prompt in prompts for segment in prompt.segments if isinstance(segment, Slot)
        ]
        known = self._encoded(slots)
        spliced = splice(
            prompts, self.model.llm, lambda slot, speech: known[self.digest(speech)][slot.channel], self.digest
        )
        self._drop_oldest()
        return spliced

    def missing(self, prompt: Prompt) -> list[Speech]:
        """The recordings of a prompt that would be encoded now, each once."""
        slots = (segment for segment in prompt.segments if isinstance(segment, Slot))
        asked = {self.digest(speech): speech for speech in (prompt.clips[slot.clip] for slot in slots)}
        return [speech for digest, speech in asked.items() if digest not in self._kept]

    @torch.no_grad()
    def encode(self, speeches: Sequence[Speech]) -> None:
        """Encodes recordings ahead of the prompts in which they stand."""
        self._encoded(speeches)
        self._drop_oldest()

    def seconds(self, speech: Speech) -> float:
        """The length of a recording in s."""
        return self._info(speech).frames / FRAMES_PER_SECOND

    def length(self, prompt: Prompt) -> int:
        """The positions that a prompt takes; nothing is encoded for it."""
        return self.model.slot_lengths.prompt(prompt, lambda speech: self._info(speech).frames)

    def digest(self, speech: Speech) -> str:
        """The hash that a recording is known by."""
        return self._info(speech).digest

    def _info(self, speech: Speech) -> ClipInfo:
        known = self._infos.get(speech)
        if known is None:
            assert speech.audio is not None, "render() refuses a speech source without a recording"
            samples = load(speech.audio, speech.rate)
            known = ClipInfo(blake2b(samples.tobytes(), digest_size=16).hexdigest(), frame_count(len(samples)))
            self._infos[speech] = known
        return known

    def _encoded(self, speeches: Sequence[Speech]) -> dict[str, Mapping[Channel, Tensor]]:
        """Both channels of each recording, because the encoder's work is the same for one."""
        asked = {self.digest(speech): speech for speech in speeches}
        new = {digest: speech for digest, speech in asked.items() if digest not in self._kept}
        if new:
            frames = self.model.hear(list(new.values()))
            both = zip(self.model.adapt("para", frames), self.model.adapt("ling", frames), strict=True)
            for digest, (para_MD, ling_LD) in zip(new, map(readable, both), strict=True):
                # copies, because a view would keep the whole batch
                self._kept[digest] = {"para": para_MD.clone(), "ling": ling_LD.clone()}
            self.encoded += len(new)
        for digest in asked:
            self._kept.move_to_end(digest)
        return {digest: self._kept[digest] for digest in asked}

    def _drop_oldest(self) -> None:
        size = sum(value.nbytes for both in self._kept.values() for value in both.values())
        while size > self.max_bytes and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            size -= sum(value.nbytes for value in oldest.values())
