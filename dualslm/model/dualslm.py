"""DualSLM = frozen encoder + two adapters + frozen LLM: fill slots, loss, reply, stream (paper eq. 3, Fig. 2).

The model sees prompts made of token ids and slots (`prompt.py`); which source a channel has, and whether it
learns in this example, was settled there. A slot that does not learn is detached, so that examples of both kinds
share a batch.

Dimensions: B prompts, T tokens, D width of the LLM, M soft-prompt tokens, L linguistic embeddings.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, Unpack, cast, overload

import torch
from torch import Tensor, nn

from dualslm.audio import Window, frame_count, load
from dualslm.conversation import NORMAL, Channel, Conversation, Said, Speech, View, are_messages
from dualslm.model import checkpoint
from dualslm.model.adapters import LinguisticAdapter, ParalinguisticAdapter, both_adapters
from dualslm.model.checkpoint import UNSTATED, UNTRAINED
from dualslm.model.embedding_only import embedding_only
from dualslm.model.encoder import Frames, SpeechEncoder, strict_load
from dualslm.model.execution import resolve_device
from dualslm.model.frozen_files import Kind, Record
from dualslm.model.generation import GREEDY, GenerationSettings, ReplyOptions, ReplyStreamer
from dualslm.model.inputs import Hear, SlotLengths, fill, readable
from dualslm.model.llm import FrozenLM
from dualslm.model.loss import MIN_SAVED_SHARE, Loss, next_token_loss
from dualslm.model.nearest import Aligned
from dualslm.model.reasoning import answer, opens_in_thought
from dualslm.prompt import Prompt, render
from dualslm.recipe import Quantize

One = TypeVar("One", bound=Said)


class DualSLM(nn.Module):
    """A frozen chat LLM that hears what is said and how it is said.

    Args:
        encoder: the frozen speech encoder.
        llm: the frozen LLM.
        paralinguistic: arguments of `ParalinguisticAdapter` beyond the two widths and the encoder's depth.
        linguistic: arguments of `LinguisticAdapter` beyond the two widths.

    Raises:
        DualSLMError: widths that do not fit.
    """

    def __init__(
        self,
        encoder: SpeechEncoder,
        llm: FrozenLM,
        *,
        paralinguistic: Mapping[str, Any] | None = None,
        linguistic: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.llm = encoder, llm
        self.settings = {"paralinguistic": dict(paralinguistic or {}), "linguistic": dict(linguistic or {})}
        scale = float(llm.some_embeddings().std())  # a fresh embedding is as long as a token's: see ScaledLinear
        self.adapters = both_adapters(encoder.width, llm.width, encoder.depth, scale, **self.settings)
        if self.ling.skip:
            with torch.no_grad():
                # L begins in silence, which is the middle of all tokens; in many LLMs it lies far from zero.
                self.ling.middle_D.copy_(llm.some_embeddings().mean(0))
                self.ling.project.bias.copy_(self.ling.middle_D / scale)
        self.adapters.to(llm.device)
        self.every_layer = self.para.mix is not None
        self.layer = self.para.layer
        self.recipe: Mapping[str, Any] = {}
        self.metrics: Mapping[str, Any] = {}
        self.aligned = Aligned()  # what is read by nearest token and word, without asking the LLM
        self.generation = GREEDY  # how replies are drawn unless they are asked for otherwise
        self.limits = UNTRAINED  # what it can and cannot understand, in words that follow "this model"

    @property
    def para(self) -> ParalinguisticAdapter:
        """The paralinguistic adapter (eq. 4)."""
        part = self.adapters["para"]
        assert isinstance(part, ParalinguisticAdapter)
        return part

    @property
    def ling(self) -> LinguisticAdapter:
        """The linguistic adapter (eq. 5)."""
        part = self.adapters["ling"]
        assert isinstance(part, LinguisticAdapter)
        return part

    @cached_property
    def frozen_files(self) -> Mapping[Kind, Record]:
        """Every file of the frozen parts, by hash; those of a large LLM take half a minute, once."""
        return checkpoint.record_parts(self.encoder, self.llm)

    # ------------------------------------------------------------------ recordings to embeddings

    def hear(self, clips: Sequence[Speech]) -> Frames:
        """Decodes and encodes recordings.

        Raises:
            DualSLMError: a recording that cannot be used.
        """
        waves = [load(_audio(clip), clip.rate) for clip in clips]
        return self.encoder.encode(waves, every_layer=self.every_layer, layer=self.layer)

    def adapt(self, channel: Channel, frames: Frames, detached: bool = False) -> list[Tensor]:
        """One adapter's embeddings (T, D) of each recording, without padding, in the LLM's dtype and on its device.

        Args:
            channel: channel of the adapter.
            frames: frames of the recordings.
            detached: as in evaluation, whatever mode the adapter is in: without dropout, and without a gradient.
        """
        adapter = self.adapters[channel]
        if detached and (adapter.training or torch.is_grad_enabled()):
            training = adapter.training
            adapter.eval()
            try:
                with torch.no_grad():
                    return self.adapt(channel, frames, detached)
            finally:
                adapter.train(training)
        lengths_B = frames.lengths_B.to(self.llm.device)
        if channel == "para":
            return list(self.para(frames.layers_NBTD.to(self.llm.device), lengths_B).to(self.llm.dtype))
        out_BLD = self.ling(frames.last_BTD.to(self.llm.device), lengths_B).to(self.llm.dtype)
        valid = [self.ling.lengths(length) for length in frames.lengths_B.tolist()]
        embeds = [row_LD[:length] for row_LD, length in zip(out_BLD, valid, strict=True)]
        return [self.ling.spoken(embeds_LD) for embeds_LD in embeds] if self.ling.skip else embeds

    def embed(self, prompts: Sequence[Prompt], hear: Hear | None = None) -> list[Tensor]:
        """Prompts → their input embeddings, each (T, D) in the LLM's dtype, slots filled.

        Args:
            prompts: from `dualslm.prompt.render`.
            hear: gives the frames of recordings, for example from a cache; `self.hear` when None.
        """
        return list(readable([one.embeds_TD for one in fill(prompts, self.llm, self.adapt, hear or self.hear)]))

    def frames(self, speech: Speech) -> int:
        """The number of encoder frames of a recording; nothing is encoded for it."""
        return frame_count(len(load(_audio(speech), speech.rate)))

    @property
    def slot_lengths(self) -> SlotLengths:
        """The number of embeddings that a recording becomes in each channel; of L at most, where silence is skipped."""
        return SlotLengths(self.para.tokens, self.ling.stack)

    # ------------------------------------------------------------------ learning

    def forward(
        self, prompts: Sequence[Prompt], hear: Hear | None = None, *, min_saved_share: float = MIN_SAVED_SHARE
    ) -> Loss:
        """The next-token loss of the prompts' labels; see `dualslm.model.loss.next_token_loss`."""
        filled = fill(prompts, self.llm, self.adapt, hear or self.hear)
        return next_token_loss(self.llm, filled, min_saved_share=min_saved_share)

    # ------------------------------------------------------------------ replies

    @overload
    def reply(self, said: Said, **options: Unpack[ReplyOptions]) -> str: ...

    @overload
    def reply(self, said: list[One], **options: Unpack[ReplyOptions]) -> list[str]: ...

    def reply(
        self,
        said: Said | list[One],
        *,
        view: View | str = NORMAL,
        system: str | None = None,
        generation: GenerationSettings | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> str | list[str]:
        """The LLM's reply to a recording or a conversation, or its replies to several; its chains of thought are cut.

        Several at once are answered in one batch; the company in a batch does not change a reply.

        Args:
            said: a recording (path, bytes of a file, 16 kHz samples, `Speech`), a `Conversation`, or a list of chat
                messages as OpenAI's clients write them; or a list of any of these, for a list of replies.
            view: sources of the two channels of spoken turns, a `View` or for example "speech,none".
            system: system text, where `said` brings none.
            generation: settings of the reply; the checkpoint's own unless given (greedy, at most 256 tokens). What
                follows overrides them.
            max_new_tokens: length at which the reply is cut off, in tokens.
            temperature: 0 takes the likeliest token each time.
            top_p: draws from the likeliest tokens that together have this probability.
            seed: seed of the draw.

        Raises:
            DualSLMError: a recording that cannot be used, or a conversation with nothing to answer.
        """
        several = isinstance(said, list) and not are_messages(said)
        conversations = [Conversation.of(one, system) for one in cast("list[Said]", said if several else [said])]
        prompts = [render(conversation, self.llm.tokenizer, view) for conversation in conversations]
        settings = (generation or self.generation).changed(
            max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed
        )
        texts = self.generate(prompts, generation=settings)
        thinks = (opens_in_thought(self.llm.tokenizer, prompt) for prompt in prompts)
        replies = [answer(text, opened) for text, opened in zip(texts, thinks, strict=True)]
        return replies if several else replies[0]

    def generate(
        self, prompts: Sequence[Prompt], *, hear: Hear | None = None, generation: GenerationSettings | None = None
    ) -> list[str]:
        """The replies to rendered prompts, for example with frames from a cache.

        Args:
            prompts: from `dualslm.prompt.render`.
            hear: gives the frames of recordings; `self.hear` when None.
            generation: settings of the replies; the checkpoint's own unless given.
        """
        with torch.no_grad():
            return [reply.text for reply in self.llm.generate(self.embed(prompts, hear), generation or self.generation)]

    def stream(
        self,
        said: Said,
        *,
        view: View | str = NORMAL,
        system: str | None = None,
        generation: GenerationSettings | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Iterator[str]:
        """The reply in pieces as they come; joined they equal `reply`, whose arguments it takes.

        No piece splits a character.
        """
        settings = (generation or self.generation).changed(
            max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed
        )
        prompt = render(Conversation.of(said, system), self.llm.tokenizer, view)
        with torch.no_grad():
            read = self.llm.prefill(self.embed([prompt]))
        streamer = ReplyStreamer(self.llm.tokenizer, opens_in_thought(self.llm.tokenizer, prompt))
        for (token,) in self.llm.decode(read, settings):
            if token is not None and (piece := streamer.add(token)):
                yield piece
        if rest := streamer.rest():
            yield rest

    # ------------------------------------------------------------------ keeping

    @classmethod
    def from_parts(
        cls,
        encoder: str,
        llm: str,
        *,
        paralinguistic: Mapping[str, Any] | None = None,
        linguistic: Mapping[str, Any] | None = None,
        window: Window = "full",
        quantize: Quantize | None = None,
        dtype: torch.dtype | None = None,
        device: str | None = None,
    ) -> DualSLM:
        """Fresh, untrained adapters between any encoder and any LLM, from hub ids or folders.

        Args:
            encoder: hub id or folder of a Whisper model.
            llm: hub id or folder of a causal LM.
            paralinguistic: arguments of `ParalinguisticAdapter`.
            linguistic: arguments of `LinguisticAdapter`.
            window: what the encoder pads clips to; see `dualslm.model.encoder.Window`.
            quantize: load the LLM's layers in fewer bits, "int8" or "nf4".
            dtype: of the frozen trunk; bfloat16 on a GPU and float32 on a CPU unless given. Never float16.
            device: the GPU where there is one unless given.
        """
        where, trunk = resolve_device(device, dtype)
        return cls(
            SpeechEncoder.from_pretrained(checkpoint.absolute(encoder), dtype=trunk, device=where, window=window),
            FrozenLM.from_pretrained(checkpoint.absolute(llm), dtype=trunk, device=where, quantize=quantize),
            paralinguistic=paralinguistic,
            linguistic=linguistic,
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        encoder: str | None = None,
        llm: str | None = None,
        quantize: Quantize | None = None,
        dtype: torch.dtype | None = None,
        device: str | None = None,
        cuda_graphs: bool = False,
        load_llm: bool = True,
        verify: bool = False,
    ) -> DualSLM:
        """Loads adapters and the frozen parts that their card names.

        Args:
            name: a folder that `save_pretrained` wrote, a hub id, or "pocket" for the shipped pocket model.
            revision: of the adapters on the hub.
            encoder: hub id or folder of the same encoder elsewhere, for example a local copy.
            llm: hub id or folder of the same LLM elsewhere.
            quantize: load the LLM's layers in fewer bits, "int8" or "nf4".
            dtype: of the frozen trunk; bfloat16 on a GPU and float32 on a CPU unless given. Never float16.
            device: the GPU where there is one unless given.
            cuda_graphs: replay decoding steps as CUDA graphs: quicker tokens on a GPU, after a slow start; for servers.
            load_llm: False loads the LLM's token embeddings alone, for an LLM that runs elsewhere.
            verify: compare every byte of the frozen parts with the card's record, and not some of each tensor alone.

        Raises:
            DualSLMError: no checkpoint there, weights that do not fit, or other frozen parts than it names.
        """
        where, trunk = resolve_device(device, dtype)
        folder = checkpoint.find(name, revision=revision)
        card = checkpoint.read_card(folder)
        speech_encoder = SpeechEncoder.from_pretrained(
            encoder or card.encoder,
            revision=None if encoder else card.encoder_revision,
            dtype=trunk,
            device=where,
            window=card.window,
        )
        named = llm or card.llm
        pinned = None if llm else card.llm_revision
        if load_llm:
            frozen = FrozenLM.from_pretrained(named, revision=pinned, dtype=trunk, device=where, quantize=quantize)
        else:
            frozen = embedding_only(named, revision=pinned, dtype=trunk, device=where)
        checkpoint.check_parts(card, speech_encoder, frozen, verify=verify, llm_here=load_llm)
        weights = checkpoint.read_weights(folder, where)
        settings = {"paralinguistic": card.paralinguistic, "linguistic": card.linguistic}
        with torch.device("meta"):  # a card may ask for any size: memory is taken once the weights are of that size
            shell = both_adapters(speech_encoder.width, frozen.width, speech_encoder.depth, 1.0, **settings)
        strict_load(shell, weights, what=f"the adapters in {folder}")
        model = cls(speech_encoder, frozen, **settings)
        strict_load(model.adapters, weights, what=f"the adapters in {folder}")
        # In float32 whatever the trunk is: at the paper's learning rate of 5e-6 a step of AdamW would round to nothing
        # in most bfloat16 weights, and training that goes on from here would quietly stand still.
        model.adapters.float().eval()
        model.recipe, model.metrics, model.aligned = card.recipe, card.metrics, Aligned.of(card.aligned)
        model.limits = card.limits or UNSTATED
        model.generation = checkpoint.generation_of(card)
        if cuda_graphs:
            frozen.enable_cuda_graphs()
        return model

    def load_adapters(self, name: str | os.PathLike[str], *, revision: str | None = None) -> None:
        """Goes on from trained adapters: their weights replace this model's own.

        Args:
            name: a folder that `save_pretrained` wrote, or a hub id.
            revision: of the adapters on the hub.

        Raises:
            DualSLMError: no checkpoint there, adapters of other shapes, or between other frozen parts.
        """
        folder = checkpoint.find(name, revision=revision)
        card = checkpoint.read_card(folder)
        checkpoint.check_parts(card, self.encoder, self.llm)
        checkpoint.check_build(card, self, name)
        weights = checkpoint.read_weights(folder, str(self.llm.device))
        strict_load(self.adapters, weights, what=f"the adapters in {name}")
        self.adapters.float()  # as in `from_pretrained`
        self.aligned = Aligned.of(card.aligned)

    def save_pretrained(self, folder: str | os.PathLike[str], **card: Any) -> Path:
        """Saves the adapters and their card; the frozen parts are named, not copied.

        Args:
            folder: made where it is missing.
            **card: fields of `Card` to state otherwise, for example `license="apache-2.0"` or `encoder="./encoder"`.
        """
        return self._save(folder, None, card)

    def _save(self, folder: str | os.PathLike[str], repo: str | None, card: Mapping[str, Any]) -> Path:
        stated = checkpoint.card_of(self)
        return checkpoint.write(folder, replace(stated, **card), self.adapters, repo=repo)

    def push_to_hub(self, repo: str, *, private: bool = False, token: str | None = None, **card: Any) -> str:
        """Uploads what `save_pretrained` writes, with a page that says how to use it; returns the commit's address."""
        with tempfile.TemporaryDirectory() as folder:
            return checkpoint.upload(self._save(folder, repo, card), repo, private=private, token=token)


def _audio(clip: Speech) -> Any:
    assert clip.audio is not None, "render() refuses a speech source without a recording"
    return clip.audio
