"""Trains the study's LLM to read several words in one embedding, as a soft prompt gives them; without any recording.

An adapter's embedding of a voice is a blend: something of "male", much of "angry", a little of "fearful". A small LLM
that has read captions as text alone cannot read such a blend (the page says how much is lost). So it gets some hundred
steps in which captions are blends of the words of their labels, with noise, beside conversations in plain text.

Dimensions: B prompts, T tokens, M embeddings of a blend, D width of the LLM, K positions with a label, V
vocabulary.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2ForCausalLM

from dualslm.conversation import Channel, Conversation, Speech, Turn, View
from dualslm.model.encoder import Frames
from dualslm.model.inputs import IGNORE_INDEX, fill
from dualslm.model.llm import FrozenLM
from dualslm.prompt import Prompt, render
from studies.real_speech.wording import EMOTIONS

PEAK_LR = 7e-4
WARM_UP_STEPS = 10
BATCH = 24  # conversations
TEXT_SHARE = 0.3  # conversations in text alone
BLEND_LENGTHS = (1, 1, 2, 4, 4, 8, 16)  # embeddings
MAX_DOUBT = 0.45  # largest weight of another value of an attribute
MAX_NOISE = 1.2  # largest noise, in norms of a word's embedding
VALUES = {"gender": ("male", "female"), "emotion": EMOTIONS}


DrawExample: TypeAlias = Callable[[random.Random], tuple[Conversation, View]]


def teach(model: Qwen2ForCausalLM, llm: FrozenLM, draw: DrawExample, steps: int, seed: int = 0) -> None:
    """Trains an LLM on blends.

    Args:
        model: LLM to be trained, in place; its embedding table stays as it is.
        llm: the same model with its tokenizer.
        draw: function that draws a conversation and its view from random numbers (`llm.example`).
        steps: number of optimizer steps.
        seed: seed of every draw.
    """
    # The table stays fixed: blends are sums of its rows, and it is what the adapters are aligned with later.
    trained = [weight for name, weight in model.model.named_parameters() if "embed_tokens" not in name]
    for weight in trained:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.05)
    blender = _Blender(llm, random.Random(f"blends/{seed}"))
    recent = 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * min((step + 1) / WARM_UP_STEPS, 1.05 - step / steps)
        prompts = [_prompt(llm, random.Random(f"blends/{seed}/{step}/{row}"), draw) for row in range(BATCH)]
        loss = _loss(model, llm, prompts, blender)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent = 0.95 * recent + 0.05 * float(loss.detach()) if step else float(loss.detach())
        if (step + 1) % 20 == 0:
            print(f"blends {step + 1}/{steps}  loss {recent:.4f}", file=sys.stderr, flush=True)


def _prompt(llm: FrozenLM, rng: random.Random, draw: DrawExample) -> Prompt:
    """A conversation whose caption, where the view has one, is a blend."""
    conversation, view = draw(rng)
    if view.para == "text" and rng.random() >= TEXT_SHARE:
        clip = conversation.turns[0].speeches[0]
        # A name that no other clip has: recordings are told apart by it.
        conversation.turns[0] = Turn("user", (replace(clip, audio=str(rng.random())),))
        view = View("speech", view.ling)
    return render(Conversation(conversation.system, conversation.turns), llm.tokenizer, view, supervise="all")


class _Blender:
    """Takes the place of encoder and adapter: the "frames" of a clip only carry its number in the batch."""

    def __init__(self, llm: FrozenLM, rng: random.Random) -> None:
        self.llm = llm
        self.rng = rng
        self.clips: Sequence[Speech] = ()
        self.words: dict[str, Tensor] = {}

    def hear(self, clips: Sequence[Speech]) -> Frames:
        self.clips = clips
        # A clip's number stands in its length, because `fill` reorders frames and passes nothing else on.
        return Frames(torch.zeros(1, len(clips), len(clips), 1), torch.arange(1, len(clips) + 1))

    def adapt(self, channel: Channel, frames: Frames, detached: bool = False) -> list[Tensor]:
        assert channel == "para"
        return [self._blend(self.clips[number - 1]) for number in frames.lengths_B.tolist()]

    def _blend(self, clip: Speech) -> Tensor:
        """The sum of the words of all labels, some of them in doubt, with noise on each of its embeddings (M, D)."""
        generator = torch.Generator().manual_seed(self.rng.getrandbits(60))
        total_D = torch.zeros(self.llm.width)
        for name, value in clip.labels.items():
            doubt = self.rng.uniform(0, MAX_DOUBT)
            other = self.rng.choice(VALUES[name])
            total_D = total_D + (1 - doubt) * self._word(value) + doubt * self._word(other)
        total_D = total_D * self.rng.uniform(0.6, 1.3)
        embeddings = self.rng.choice(BLEND_LENGTHS)
        # Noise in norms of a word's embedding: one vector for all embeddings, and one for each.
        norm = float(self._word("male").norm())
        root = self.llm.width**0.5
        shared_D = torch.randn(self.llm.width, generator=generator) * norm / root * self.rng.uniform(0, MAX_NOISE)
        own_MD = torch.randn(embeddings, self.llm.width, generator=generator) * norm / root
        blend_MD: Tensor = total_D + 0.5 * shared_D + own_MD * self.rng.uniform(0, MAX_NOISE)
        return blend_MD

    def _word(self, word: str) -> Tensor:
        """The embedding (D,) of a word, the mean of its tokens."""
        if word not in self.words:
            ids = self.llm.tokenizer.encode(f" {word}", add_special_tokens=False)
            self.words[word] = self.llm.embed(torch.tensor(ids)).detach().mean(0)
        return self.words[word]


def _loss(model: Qwen2ForCausalLM, llm: FrozenLM, prompts: Sequence[Prompt], blender: _Blender) -> Tensor:
    """Next-token loss of the answers; rows are padded on the right, which causal attention does not see."""
    filled = fill(prompts, llm, blender.adapt, blender.hear)
    embeds_BTD = pad_sequence([row.embeds_TD for row in filled], batch_first=True).detach()
    labels_BT = pad_sequence([row.labels_T for row in filled], batch_first=True, padding_value=IGNORE_INDEX)
    hidden_BTD = model.model(inputs_embeds=embeds_BTD, use_cache=False).last_hidden_state
    labelled_BT = labels_BT[:, 1:] != IGNORE_INDEX
    logits_KV: Tensor = model.lm_head(hidden_BTD[:, :-1][labelled_BT])
    return F.cross_entropy(logits_KV, labels_BT[:, 1:][labelled_BT])
