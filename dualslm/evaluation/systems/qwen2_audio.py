"""Qwen2-Audio in process, through transformers: the paper's rival in Tables II, III and IV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dualslm.audio import SAMPLE_RATE, load
from dualslm.chat_template import format_of
from dualslm.conversation import Conversation, Part, Reply, Speech, View
from dualslm.errors import DualSLMError
from dualslm.evaluation.systems.item import Item, transcript_unless_asked

MAX_SECONDS = 30  # its encoder takes no more, and its processor cuts off the rest without a warning


class Qwen2Audio:
    """One model with its processor; greedy.

    Args:
        source: hub id or folder.
        device: "cpu" or "cuda".
        dtype: dtype of the weights.
        name: name in reports.
        max_new_tokens: greatest length of an answer in tokens.

    Raises:
        DualSLMError: no Qwen2-Audio there.
    """

    def __init__(
        self, source: str, *, device: str, dtype: torch.dtype, name: str = "qwen2-audio", max_new_tokens: int = 128
    ) -> None:
        from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

        try:
            self.processor: Any = AutoProcessor.from_pretrained(source, trust_remote_code=False)
            # Safetensors alone: a hub id may be anybody's, and unpickling runs what is in it.
            model: Any = Qwen2AudioForConditionalGeneration.from_pretrained(
                source, dtype=dtype, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, RuntimeError) as error:
            got = str(error).strip().splitlines()[0]
            raise DualSLMError(
                f"cannot load Qwen2-Audio from {source!r}", got=got, do="give its hub id or folder"
            ) from error
        self.model = model.to(device).eval()
        # Generation goes on from the last position, which padding on the right would fill in all rows but the longest.
        self.processor.tokenizer.padding_side = "left"
        self.controls = format_of(self.processor.tokenizer).controls
        self.source = source
        self.name = name
        self.max_new_tokens = max_new_tokens

    @property
    def about(self) -> Mapping[str, Any]:
        """The model and its decoding."""
        decoding = {"max_new_tokens": self.max_new_tokens, "greedy": True}
        return {"kind": "qwen2-audio", "model": self.source, "decoding": decoding}

    def views(self, item: Item) -> Sequence[None]:
        """It knows no views."""
        return (None,)

    def unfit(self, item: Item) -> str | None:
        """It must have the recording, and take all of it in."""
        if not item.speech.audio:
            return "no recording"
        texts = [item.conversation.system or "", *_texts(item.conversation, item.speech)]
        # Its processor reads a control token in any text as one, and would look for a recording that is not there.
        if any(self.controls.pattern.search(text) for text in texts):
            return "spells out a control token"
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
        clips = [clip for item in items for clip in _audio_parts(item.conversation, item.speech)]
        waves = [load(clip.audio) for clip in clips]  # type: ignore[arg-type]
        inputs = self.processor(text=texts, audio=waves, sampling_rate=SAMPLE_RATE, return_tensors="pt", padding=True)
        inputs = inputs.to(self.model.device)
        # The processor gives float32 features, which an encoder in bfloat16 refuses.
        inputs["input_features"] = inputs["input_features"].to(self.model.dtype)
        ids_BT = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        new_BT = ids_BT[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(new_BT, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        # A reply without an end token was cut off. A configuration names one such token, several or none.
        eos = self.model.generation_config.eos_token_id
        end_tokens = set(eos) if isinstance(eos, list) else {eos}
        ended = [not end_tokens.isdisjoint(ids) for ids in new_BT.tolist()]
        return [Reply(str(text).strip(), end) for text, end in zip(texts, ended, strict=True)]


def messages(conversation: Conversation, asked: Speech) -> list[dict[str, Any]]:
    """A conversation as its chat template reads it; earlier recordings as transcripts where they have one."""
    out: list[dict[str, Any]] = [{"role": "system", "content": conversation.system}] if conversation.system else []
    for turn in conversation.turns:
        parts = [_part(part, asked) for part in turn.parts]
        # Users' recordings alone are given as audio (`_audio_parts`): of an assistant's turn the text remains.
        if turn.role == "assistant":
            out.append({"role": "assistant", "content": "\n".join(part.get("text", "") for part in parts)})
        else:
            out.append({"role": "user", "content": parts})
    return out


def _part(part: Part, asked: Speech) -> dict[str, Any]:
    shown = transcript_unless_asked(part, asked)
    if isinstance(shown, str):
        return {"type": "text", "text": shown}
    return {"type": "audio", "audio_url": str(shown.audio)}


def _texts(conversation: Conversation, asked: Speech) -> list[str]:
    shown = [transcript_unless_asked(part, asked) for turn in conversation.turns for part in turn.parts]
    return [part for part in shown if isinstance(part, str)]


def _audio_parts(conversation: Conversation, asked: Speech) -> list[Speech]:
    """The recordings that `messages` gives as audio, in order: the processor matches them by order alone."""
    clips = [clip for turn in conversation.turns if turn.role == "user" for clip in turn.speeches]
    return [clip for clip in clips if transcript_unless_asked(clip, asked) is clip]
