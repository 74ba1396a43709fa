"""DualSLM = frozen encoder + two adapters + frozen LLM: fill slots, loss, reply, stream (paper eq. 3, Fig. 2).

The model sees prompts made of token ids and slots (`prompt.py`); which source a channel has, and whether it
learns in this example, was settled there. A frozen slot is a detached one, so that examples of both kinds
share a batch.

Dimensions: B prompts, T tokens, D width of the LLM, M soft-prompt tokens, L linguistic embeddings.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dualslm.audio import frame_count, load
from dualslm.conversation import Channel, Conversation, Speech, View
from dualslm.errors import DualSLMError
from dualslm.model import checkpoint
from dualslm.model.adapters import LinguisticAdapter, ParalinguisticAdapter
from dualslm.model.checkpoint import Card
from dualslm.model.embedding_only import embedding_only
from dualslm.model.encoder import Frames, SpeechEncoder, strict_load
from dualslm.model.generation import GREEDY, GenerationSettings, TextStreamer
from dualslm.model.inputs import Hear, rows
from dualslm.model.llm import FrozenLM
from dualslm.model.loss import WORTH, Loss, next_token_loss
from dualslm.prompt import Prompt, Slot, render
from dualslm.recipe import Quantize

Said: TypeAlias = str | os.PathLike[str] | bytes | NDArray[np.floating[Any]] | Speech | Conversation

NORMAL = View()


class DualSLM(nn.Module):
    """A frozen chat LLM that hears what is said and how it is said.

    Args:
        encoder: the frozen speech encoder.
        llm: the frozen LLM.
        paralinguistic: arguments of `ParalinguisticAdapter` beyond the two widths; its `mix` is a bool here.
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
        para_settings = dict(self.settings["paralinguistic"])
        mixed, layer = bool(para_settings.pop("mix", False)), para_settings.get("layer")
        self.every_layer = mixed or layer is not None
        if layer is not None and layer >= encoder.depth:
            got, do = f"layer {layer} of {encoder.depth}", f"set model.paralinguistic.layer below {encoder.depth}"
            raise DualSLMError("the encoder has no such layer", got=got, do=do)
        widths, scale = (encoder.width, llm.width), llm.embedding_std()
        mix = encoder.depth * mixed
        para = ParalinguisticAdapter(*widths, mix=mix, scale=scale, **para_settings)
        ling = LinguisticAdapter(*widths, scale=scale, **self.settings["linguistic"])
        self.adapters = nn.ModuleDict({"para": para, "ling": ling}).to(llm.device)
        self.recipe: Mapping[str, Any] = {}
        self.metrics: Mapping[str, Any] = {}

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

    # ------------------------------------------------------------------ hearing

    def hear(self, clips: Sequence[Speech]) -> Frames:
        """Decodes and encodes recordings.

        Raises:
            DualSLMError: a recording that cannot be used.
        """
        waves = [load(_audio(clip), clip.rate) for clip in clips]
        return self.encoder.encode(waves, every_layer=self.every_layer)

    def slot_length(self, slot: Slot, clips: Sequence[Speech]) -> int:
        """How many embeddings a slot becomes."""
        if slot.channel == "para":
            return self.para.tokens
        clip = clips[slot.clip]
        return self.ling.lengths(frame_count(len(load(_audio(clip), clip.rate))))

    def embed(self, prompts: Sequence[Prompt], hear: Hear | None = None) -> list[Tensor]:
        """Prompts → their input embeddings, each (T, D) in the LLM's dtype, slots filled.

        Args:
            prompts: rendered by `dualslm.prompt.render`.
            hear: gives the frames of recordings, for example from a cache; `self.hear` when None.
        """
        return [row.embeds_TD for row in rows(prompts, self.llm, self.adapt, hear or self.hear)]

    def adapt(self, channel: Channel, frames: Frames) -> list[Tensor]:
        """One adapter's embeddings of each clip, without padding, in the LLM's dtype and place."""
        lengths_B = frames.lengths_B.to(self.llm.device)
        if channel == "para":
            return list(self.para(frames.layers_NBTD.to(self.llm.device), lengths_B).to(self.llm.dtype))
        out_BLD = self.ling(frames.last_BTD.to(self.llm.device), lengths_B).to(self.llm.dtype)
        valid = [self.ling.lengths(length) for length in frames.lengths_B.tolist()]
        return [row_LD[:length] for row_LD, length in zip(out_BLD, valid, strict=True)]

    # ------------------------------------------------------------------ learning

    def forward(self, prompts: Sequence[Prompt], hear: Hear | None = None, *, worth: float = WORTH) -> Loss:
        """The next-token loss of the prompts' target tokens; see `dualslm.loss.next_token_loss`."""
        return next_token_loss(self.llm, rows(prompts, self.llm, self.adapt, hear or self.hear), worth=worth)

    # ------------------------------------------------------------------ answering

    def reply(
        self, said: Said, *, view: View | str = NORMAL, system: str | None = None, how: GenerationSettings = GREEDY
    ) -> str:
        """What the LLM answers to a recording or a talk.

        Args:
            said: a recording (path, bytes of a file, 16 kHz samples, Speech) or a Conversation.
            view: where the channels of its spoken turns come from, a View or for example "speech,none".
            system: the system text, where `said` is not a Conversation.
            how: decoding settings; greedy unless told otherwise.
        """
        return self.replies([said], view=view, system=system, how=how)[0]

    def replies(
        self,
        said: Sequence[Said],
        *,
        view: View | str = NORMAL,
        system: str | None = None,
        how: GenerationSettings = GREEDY,
    ) -> list[str]:
        """`reply` for many at once; the company in the batch does not change a reply."""
        talks = [self.as_talk(one, system) for one in said]
        prompts = [render(talk, self.llm.tokenizer, view) for talk in talks]
        return self.answer(prompts, how=how)

    def answer(
        self, prompts: Sequence[Prompt], *, hear: Hear | None = None, how: GenerationSettings = GREEDY
    ) -> list[str]:
        """Replies to rendered prompts, for example with cached frames."""
        with torch.no_grad():
            return self.llm.answer(self.embed(prompts, hear), how)

    def stream(
        self, said: Said, *, view: View | str = NORMAL, system: str | None = None, how: GenerationSettings = GREEDY
    ) -> Iterator[str]:
        """The reply in pieces as they come; joined they equal `reply`. No piece splits a character."""
        prompt = render(self.as_talk(said, system), self.llm.tokenizer, view)
        with torch.no_grad():
            read = self.llm.prefill(self.embed([prompt]))
        pieces = TextStreamer(self.llm.tokenizer)
        for (token,) in self.llm.decode(read, how):
            if token is not None and (piece := pieces.add(token)):
                yield piece
        if rest := pieces.rest():
            yield rest

    def as_talk(self, said: Said, system: str | None = None) -> Conversation:
        """Whatever was said, as a Conversation to be answered."""
        if isinstance(said, Conversation):
            return said
        return Conversation(system).user(said if isinstance(said, Speech) else Speech(said))

    # ------------------------------------------------------------------ keeping

    @classmethod
    def from_parts(
        cls,
        encoder: str,
        llm: str,
        *,
        paralinguistic: Mapping[str, Any] | None = None,
        linguistic: Mapping[str, Any] | None = None,
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
            quantize: load the LLM's layers in fewer bits, "int8" or "nf4".
            dtype: of the frozen trunk; bfloat16 on a GPU and float32 on a CPU unless given. Never float16.
            device: the GPU where there is one unless given.
        """
        where, trunk = place(device, dtype)
        return cls(
            SpeechEncoder.from_pretrained(_absolute(encoder), dtype=trunk, device=where),
            FrozenLM.from_pretrained(_absolute(llm), dtype=trunk, device=where, quantize=quantize),
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
        capture: bool = False,
        answers: bool = True,
    ) -> DualSLM:
        """Loads adapters and the frozen parts that their card names.

        Args:
            name: a folder that `save_pretrained` wrote, or a hub id.
            revision: of the adapters on the hub.
            encoder: another place of the same encoder, for example a local copy.
            llm: another place of the same LLM.
            quantize: load the LLM's layers in fewer bits, "int8" or "nf4".
            dtype: of the frozen trunk; bfloat16 on a GPU and float32 on a CPU unless given. Never float16.
            device: the GPU where there is one unless given.
            capture: decode with captured steps: quicker tokens on a GPU, after a slow start; for servers.
            answers: False loads no more of the LLM than its token embeddings, to hear for one that runs elsewhere.

        Raises:
            DualSLMError: no checkpoint there, weights that do not fit, or other frozen parts than it names.
        """
        where, trunk = place(device, dtype)
        folder = checkpoint.find(name, revision=revision)
        card = checkpoint.read_card(folder)
        ears = SpeechEncoder.from_pretrained(
            encoder or card.encoder,
            revision=None if encoder else card.encoder_revision,
            dtype=trunk,
            device=where,
        )
        checkpoint.check_fingerprint(ears, card.encoder_fingerprint, part="encoder", name=ears.name)
        named, pinned = llm or card.llm, None if llm else card.llm_revision
        if answers:
            mind = FrozenLM.from_pretrained(named, revision=pinned, dtype=trunk, device=where, quantize=quantize)
        else:
            mind = embedding_only(named, revision=pinned, dtype=trunk, device=where)
        checkpoint.check_fingerprint(mind, card.llm_fingerprint, part="LLM", name=mind.name)
        model = cls(ears, mind, paralinguistic=card.paralinguistic, linguistic=card.linguistic)
        strict_load(model.adapters, checkpoint.read_weights(folder, where), what=f"the adapters in {folder}")
        model.adapters.float().eval()
        model.recipe, model.metrics = card.recipe, card.metrics
        if capture:
            mind.capture()
        return model

    def load_adapters(self, name: str | os.PathLike[str], *, revision: str | None = None) -> None:
        """Goes on from trained adapters: their weights take the place of this model's own.

        Args:
            name: a folder that `save_pretrained` wrote, or a hub id.
            revision: of the adapters on the hub.

        Raises:
            DualSLMError: no checkpoint there, adapters of other shapes, or between other frozen parts.
        """
        folder = checkpoint.find(name, revision=revision)
        card = checkpoint.read_card(folder)
        checkpoint.check_fingerprint(self.encoder, card.encoder_fingerprint, part="encoder", name=self.encoder.name)
        checkpoint.check_fingerprint(self.llm, card.llm_fingerprint, part="LLM", name=self.llm.name)
        theirs = {"paralinguistic": card.paralinguistic, "linguistic": card.linguistic}
        if other := [line for part, own in self.settings.items() for line in _differences(part, theirs[part], own)]:
            do = "write their values in the recipe, or begin from fresh ones"
            raise DualSLMError(f"the adapters in {name} are of another build", got="; ".join(other), do=do)
        strict_load(
            self.adapters, checkpoint.read_weights(folder, str(self.llm.device)), what=f"the adapters in {name}"
        )

    def save_pretrained(self, folder: str | os.PathLike[str], **card: Any) -> Path:
        """Saves the adapters and their card; the frozen parts are named, not copied.

        Args:
            folder: made where it is missing.
            **card: fields of `Card` to state otherwise, for example `license="apache-2.0"` or `encoder="./encoder"`.
        """
        return self._save(folder, None, card)

    def _save(self, folder: str | os.PathLike[str], repo: str | None, card: Mapping[str, Any]) -> Path:
        stated = Card(
            encoder=self.encoder.name,
            llm=self.llm.name,
            encoder_revision=self.encoder.revision,
            llm_revision=self.llm.revision,
            encoder_fingerprint=checkpoint.fingerprint(self.encoder),
            llm_fingerprint=checkpoint.fingerprint(self.llm),
            recipe=self.recipe,
            metrics=self.metrics,
            paralinguistic=self.settings["paralinguistic"],
            linguistic=self.settings["linguistic"],
        )
        return checkpoint.write(folder, replace(stated, **card), self.adapters, repo=repo)

    def push_to_hub(self, repo: str, *, private: bool = False, token: str | None = None, **card: Any) -> str:
        """Uploads what `save_pretrained` writes, with a page that says how to use it; returns the commit's address."""
        with tempfile.TemporaryDirectory() as folder:
            return checkpoint.upload(self._save(folder, repo, card), repo, private=private, token=token)


def _audio(clip: Speech) -> Any:
    assert clip.audio is not None, "render() refuses a speech source without a recording"
    return clip.audio


ADAPTERS = {"paralinguistic": ParalinguisticAdapter, "linguistic": LinguisticAdapter}


def _differences(part: str, theirs: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    """What decides the build of an adapter and differs; a setting that is not stated is the one by default."""
    unset = {name: one.default for name, one in signature(ADAPTERS[part]).parameters.items()}
    for key in sorted({*theirs, *own} - {"dropout"}):
        one, other = ({**unset, **stated}.get(key) for stated in (theirs, own))
        if one != other:
            yield f"{part}.{key} {one}, not {other}"


def _absolute(name: str) -> str:
    """A folder by its full path, so that a card that names it holds wherever it is read from; a hub id as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def place(device: str | None, dtype: torch.dtype | None = None) -> tuple[str, torch.dtype]:
    """Where the frozen parts go and in which dtype: the GPU where there is one, bfloat16 there, float32 on a CPU.

    Raises:
        DualSLMError: a GPU that is not there, or float16.
    """
    if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
        raise DualSLMError("PyTorch sees no GPU", got=f"device {device}", do="give cpu, or install PyTorch for CUDA")
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if dtype == torch.float16:
        raise DualSLMError(
            "float16 overflows in many LLMs", got="dtype float16", do="use torch.bfloat16 or torch.float32"
        )
    return where, dtype or (torch.float32 if where.startswith("cpu") else torch.bfloat16)
