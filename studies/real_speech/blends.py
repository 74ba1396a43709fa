"""Teaches the study's LLM to read several words in one place, as a soft prompt gives them; no recording is heard.

An adapter's embedding of a voice is a blend: something of "male", much of "angry", a little of "fearful". A small LLM
that has read captions as text alone takes such a blend for noise (the page says how much is lost). So, for a while,
captions come as blends of the words of their labels, with noise upon them, beside talks in plain text.

Dimensions: B prompts, T tokens, M embeddings of a blend, D width of the LLM.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2ForCausalLM

from dualslm.conversation import Channel, Conversation, Speech, Turn, View
from dualslm.model.encoder import Frames
from dualslm.model.inputs import rows
from dualslm.model.llm import FrozenLM
from dualslm.prompt import Prompt, render
from studies.real_speech.wording import EMOTIONS

LR, WARM_UP = 7e-4, 10
BATCH = 24
PLAIN = 0.3  # share of talks in text alone
LENGTHS = (1, 1, 2, 4, 4, 8, 16)  # embeddings of a blend
DOUBT = 0.45  # the most that goes to other values of an attribute
NOISE = 1.2  # the most noise, in lengths of a word
VALUES = {"gender": ("male", "female"), "emotion": EMOTIONS}


def teach(model: Qwen2ForCausalLM, llm: FrozenLM, draw: object, steps: int, seed: int = 0) -> None:
    """Some hundred steps on blends.

    Args:
        model: that learns; its embedding table stays.
        llm: the same model and its tokenizer.
        draw: gives a talk and its view from random numbers (`mind.example`).
        steps: of the optimizer.
        seed: of every draw.
    """
    learns = [weight for name, weight in model.model.named_parameters() if "embed_tokens" not in name]
    for weight in learns:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(learns, lr=LR, betas=(0.9, 0.95), weight_decay=0.05)
    blender, recent = _Blender(llm, random.Random(f"blends/{seed}")), 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * min((step + 1) / WARM_UP, 1.05 - step / steps)
        prompts = [_prompt(llm, random.Random(f"blends/{seed}/{step}/{row}"), draw) for row in range(BATCH)]
        loss = _loss(model, llm, prompts, blender)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learns, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent = 0.95 * recent + 0.05 * float(loss.detach()) if step else float(loss.detach())
        if (step + 1) % 20 == 0:
            print(f"blends {step + 1}/{steps}  loss {recent:.4f}", file=sys.stderr, flush=True)


def _prompt(llm: FrozenLM, rng: random.Random, draw: object) -> Prompt:
    """A talk whose caption, where the view has one, is a blend."""
    conversation, view = draw(rng)  # type: ignore[operator]
    if view.para == "text" and rng.random() >= PLAIN:
        clip = conversation.turns[0].speeches[0]
        conversation.turns[0] = Turn("user", (replace(clip, audio=str(rng.random())),))
        view = View("speech", view.ling)
    return render(Conversation(conversation.system, conversation.turns), llm.tokenizer, view, supervise="all")


class _Blender:
    """Stands for encoder and adapter: the "frames" of a clip are its place in the batch."""

    def __init__(self, llm: FrozenLM, rng: random.Random) -> None:
        self.llm, self.rng = llm, rng
        self.clips: Sequence[Speech] = ()
        self.word = lru_cache(None)(self._word)

    def hear(self, clips: Sequence[Speech]) -> Frames:
        self.clips = clips
        return Frames(torch.zeros(1, len(clips), len(clips), 1), torch.arange(1, len(clips) + 1))

    def adapt(self, channel: Channel, frames: Frames) -> list[Tensor]:
        assert channel == "para"
        return [self._blend(self.clips[place - 1]) for place in frames.lengths_B.tolist()]

    def _blend(self, clip: Speech) -> Tensor:
        """The words of all labels in one, some of them in doubt, the same in each embedding but for noise (M, D)."""
        generator = torch.Generator().manual_seed(self.rng.getrandbits(60))
        total_D = torch.zeros(self.llm.width)
        for name, value in clip.labels.items():
            doubt, other = self.rng.uniform(0, DOUBT), self.rng.choice(VALUES[name])
            total_D = total_D + (1 - doubt) * self.word(value) + doubt * self.word(other)
        length = float(self.word("male").norm())
        total_D = total_D * self.rng.uniform(0.6, 1.3)
        tokens = self.rng.choice(LENGTHS)
        shared_D, own_MD = (
            torch.randn(*shape, generator=generator) * length / self.llm.width**0.5 * self.rng.uniform(0, NOISE)
            for shape in ((self.llm.width,), (tokens, self.llm.width))
        )
        return total_D + 0.5 * shared_D + own_MD

    def _word(self, word: str) -> Tensor:
        ids = self.llm.tokenizer.encode(f" {word}", add_special_tokens=False)
        return self.llm.embed(torch.tensor(ids)).detach().mean(0)


def _loss(model: Qwen2ForCausalLM, llm: FrozenLM, prompts: Sequence[Prompt], blender: _Blender) -> Tensor:
    """Next-token loss of the answers; rows are padded on the right."""
    filled = rows(prompts, llm, blender.adapt, blender.hear)
    embeds_BTD = pad_sequence([row.embeds_TD for row in filled], batch_first=True).detach()
    labels_BT = pad_sequence([row.labels_T for row in filled], batch_first=True, padding_value=-1)
    hidden_BTD = model.model(inputs_embeds=embeds_BTD, use_cache=False).last_hidden_state
    wanted_BT = labels_BT[:, 1:] >= 0
    return F.cross_entropy(model.lm_head(hidden_BTD[:, :-1][wanted_BT]), labels_BT[:, 1:][wanted_BT])


def load(folder: Path) -> FrozenLM:
    """The LLM of a folder in single precision."""
    return FrozenLM.from_pretrained(str(folder), dtype=torch.float32, device="cpu")
