"""Qwen2-Audio in process, through transformers: the paper's rival in Tables II, III and IV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dualslm.audio import SAMPLE_RATE, load
from dualslm.conversation import Conversation, Part, Reply, Speech, View
from dualslm.errors import DualSLMError
from dualslm.evaluation.systems.item import Item, given

MAX_SECONDS = 30  # its encoder hears no more, and its processor cuts off the rest without a word


class Qwen2Audio:
    """One model with its processor; greedy.

    Args:
        source: hub id or folder.
        device: "cpu" or "cuda".
        dtype: of the weights.
        name: as reports call it.
        longest: tokens of an answer.

    Raises:
        DualSLMError: no Qwen2-Audio there.
    """

    def __init__(
        self, source: str, *, device: str, dtype: torch.dtype, name: str = "qwen2-audio", longest: int = 128
    ) -> None:
        from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

        try:
            self.processor: Any = AutoProcessor.from_pretrained(source)
            model: Any = Qwen2AudioForConditionalGeneration.from_pretrained(source, dtype=dtype, use_safetensors=True)
        except (OSError, ValueError, RuntimeError) as error:
            got = str(error).strip().splitlines()[0]
            raise DualSLMError(
                f"cannot load Qwen2-Audio from {source!r}", got=got, do="give its hub id or folder"
            ) from error
        self.model = model.to(device).eval()
        self.processor.tokenizer.padding_side = "left"
        self.source, self.name, self.longest = source, name, longest

    @property
    def about(self) -> Mapping[str, Any]:
        """The model and its decoding."""
        return {
            "kind": "qwen2-audio",
            "model": self.source,
            "decoding": {"max_new_tokens": self.longest, "greedy": True},
        }

    def views(self, item: Item) -> Sequence[None]:
        """It has one way of hearing."""
        return (None,)

    def unfit(self, item: Item) -> str | None:
        """It must have the recording, and hear all of it."""
        if not item.speech.audio:
            return "no recording"
        return "longer than 30 s" if (item.seconds or 0) > MAX_SECONDS else None

    @torch.no_grad()
    def answer(self, items: Sequence[Item], view: View | None) -> list[Reply]:
        """Replies of one batch."""
        texts = [
            self.processor.apply_chat_template(
                messages(item.conversation, item.speech), add_generation_prompt=True, tokenize=False
            )
            for item in items
        ]
        waves = [load(clip.audio) for item in items for clip in _heard(item.conversation, item.speech)]  # type: ignore[arg-type]
        read = self.processor(text=texts, audio=waves, sampling_rate=SAMPLE_RATE, return_tensors="pt", padding=True)
        read = read.to(self.model.device)
        read["input_features"] = read["input_features"].to(self.model.dtype)
        ids_BT = self.model.generate(**read, max_new_tokens=self.longest, do_sample=False)[
            :, read["input_ids"].shape[1] :
        ]
        stops = self._stops()
        said = self.processor.batch_decode(ids_BT, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        ended = [any(int(token) in stops for token in ids) for ids in ids_BT]
        return [Reply(str(text).strip(), end) for text, end in zip(said, ended, strict=True)]

    def _stops(self) -> frozenset[int]:
        eos = self.model.generation_config.eos_token_id
        return frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])


def messages(conversation: Conversation, heard: Speech) -> list[dict[str, Any]]:
    """A talk in the form that its chat template reads; earlier spoken turns as transcripts where there are any."""
    said: list[dict[str, Any]] = [{"role": "system", "content": conversation.system}] if conversation.system else []
    for turn in conversation.turns:
        parts = [_part(part, heard) for part in turn.parts]
        if turn.role == "assistant":
            said.append({"role": "assistant", "content": "\n".join(part.get("text", "") for part in parts)})
        else:
            said.append({"role": "user", "content": parts})
    return said


def _part(part: Part, heard: Speech) -> dict[str, Any]:
    got = given(part, heard)
    return {"type": "text", "text": got} if isinstance(got, str) else {"type": "audio", "audio_url": str(got.audio)}


def _heard(conversation: Conversation, heard: Speech) -> list[Speech]:
    """The recordings that `messages` gives as audio, in order."""
    clips = [clip for turn in conversation.turns if turn.role == "user" for clip in turn.speeches]
    return [clip for clip in clips if given(clip, heard) is clip]
