"""How others train a speech adapter for a frozen LLM: one optimizer step of each, on given shapes.

`qwen2_audio` and `voxtral` are transformers' own classes with only their projectors trained. `slam` and `ultravox`
follow the published recipes of SLAM-ASR and of Ultravox, with the same encoder and LLM as ours. All start from
log-mels, as their training loops do, and compute the loss as their classes do. A batch that does not fit the memory
goes through the model in parts, whose gradients are summed.

Dimensions: B samples, M mel bins, F mel frames, L embeddings of speech, T tokens, S width of the encoder, D width of
the LLM, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    LlamaConfig,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    WhisperConfig,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

AUDIO_TOKEN = 3  # an id of the random vocabulary that stands for audio in a prompt


@dataclass(frozen=True)
class Shape:
    """Sizes of an encoder and an LLM.

    Attributes:
        d_speech, speech_layers, speech_heads, speech_ffn, mels: sizes of the Whisper encoder.
        d_llm, layers, heads, kv_heads, ffn, vocabulary: sizes of the LLM.
        hidden: width between the two linear layers of an adapter of stacked frames.
        family: family of the LLM, "qwen2" or "llama".
    """

    d_speech: int
    speech_layers: int
    speech_heads: int
    speech_ffn: int
    mels: int
    d_llm: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    hidden: int
    family: str = "qwen2"

    def whisper(self) -> WhisperConfig:
        """The encoder's configuration: a window of 30 s."""
        return WhisperConfig(
            num_mel_bins=self.mels,
            d_model=self.d_speech,
            encoder_layers=self.speech_layers,
            encoder_attention_heads=self.speech_heads,
            encoder_ffn_dim=self.speech_ffn,
            decoder_layers=1,  # the decoder, which a configuration must have and nobody builds
            decoder_attention_heads=self.speech_heads,
            decoder_ffn_dim=self.speech_ffn,
            vocab_size=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )

    def qwen(self) -> Qwen2Config:
        """The LLM's configuration."""
        return Qwen2Config(**self._llm(), tie_word_embeddings=False)

    def llama(self) -> LlamaConfig:
        """The same sizes as a Llama."""
        return LlamaConfig(**self._llm(), tie_word_embeddings=False)

    def llm(self) -> Qwen2Config | LlamaConfig:
        """The LLM's configuration in its family."""
        return self.qwen() if self.family == "qwen2" else self.llama()

    def _llm(self) -> dict[str, Any]:
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.d_llm,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.d_llm // self.heads,
            "max_position_embeddings": 4096,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }

    def audio(self) -> dict[str, Any]:
        """The encoder's sizes as the audio configurations of transformers name them."""
        return {
            "num_mel_bins": self.mels,
            "encoder_layers": self.speech_layers,
            "encoder_attention_heads": self.speech_heads,
            "encoder_ffn_dim": self.speech_ffn,
            "d_model": self.d_speech,
        }


@dataclass(frozen=True)
class Work:
    """One batch: every sample has these lengths.

    Attributes:
        name: name of the workload.
        samples: number of samples of the batch.
        context: number of tokens before the speech.
        seconds: length of the speech, in s.
        reply: number of tokens with a label.
        branches: number of samples that share one context.
    """

    name: str
    samples: int
    context: int
    seconds: float
    reply: int
    branches: int


class Step(Protocol):
    """One optimizer step, which returns its loss."""

    def __call__(self, at_once: int | None = None) -> Tensor:
        """Does the step.

        Args:
            at_once: number of samples that go through the model at once; all unless given.
        """


def accumulated(loss: Callable[[slice], Tensor], adamw: torch.optim.AdamW, samples: int) -> Step:
    """An optimizer step on the loss of some samples.

    Args:
        loss: function that gives the mean loss of a part of the samples. All samples have as many labels, so that
            the mean of the parts is the mean of all.
        adamw: optimizer of the trained weights.
        samples: number of all samples.
    """

    def step(at_once: int | None = None) -> Tensor:
        adamw.zero_grad()
        size = at_once or samples
        shares: list[Tensor] = []
        for start in range(0, samples, size):
            part = slice(start, min(start + size, samples))
            share = loss(part) * ((part.stop - part.start) / samples)
            share.backward()
            shares.append(share.detach())
        adamw.step()
        return torch.stack(shares).sum()

    return step


@contextmanager
def built(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Models that are made in this block are on the device and in the dtype from the start, with random weights."""
    # Made on the CPU in float32 and moved, an 8 B model would need 32 GB of it.
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def qwen2_audio_model(shape: Shape, device: str, dtype: torch.dtype) -> Any:
    """The class of transformers at these sizes, its projector trainable."""
    config = Qwen2AudioConfig(
        audio_config={**shape.audio(), "model_type": "qwen2_audio_encoder", "max_source_positions": 1500},
        text_config=shape.llm().to_dict(),
        audio_token_index=AUDIO_TOKEN,
    )
    with built(device, dtype):
        return _frozen(Qwen2AudioForConditionalGeneration(config), dtype, trained="multi_modal_projector")


def qwen2_audio(shape: Shape, work: Work, device: str, dtype: torch.dtype, model: Any = None) -> Step:
    """Qwen2-Audio: 30 s through the encoder, 25 tokens a second, logits everywhere."""
    model = model or qwen2_audio_model(shape, device, dtype)
    frames = round(100 * work.seconds)
    ids_BT, labels_BT = _prompt(shape, work, round(25 * work.seconds), device)
    mask_BF = (torch.arange(3000, device=device) < frames).long().expand(work.samples, -1)
    mel_BMF = _mel(shape, work, 3000, device, dtype)

    def loss(part: slice) -> Any:
        return model(
            input_ids=ids_BT[part],
            input_features=mel_BMF[part],
            feature_attention_mask=mask_BF[part],
            attention_mask=torch.ones_like(ids_BT[part]),
            labels=labels_BT[part],
        ).loss

    return accumulated(loss, _adamw(model), work.samples)


def voxtral(shape: Shape, work: Work, device: str, dtype: torch.dtype) -> Step:
    """Voxtral: 30 s through the encoder, always 375 tokens, logits everywhere."""
    config = VoxtralConfig(
        audio_config={
            "num_mel_bins": shape.mels,
            "num_hidden_layers": shape.speech_layers,
            "num_attention_heads": shape.speech_heads,
            "intermediate_size": shape.speech_ffn,
            "hidden_size": shape.d_speech,
            "head_dim": shape.d_speech // shape.speech_heads,
            "max_source_positions": 1500,
            "model_type": "voxtral_encoder",
        },
        text_config={**shape.llama().to_dict(), "model_type": "llama"},
        audio_token_id=AUDIO_TOKEN,
    )
    with built(device, dtype):
        model = _frozen(VoxtralForConditionalGeneration(config), dtype, trained="multi_modal_projector")
    tokens = 1500 * shape.d_speech // config.audio_config.intermediate_size
    ids_BT, labels_BT = _prompt(shape, work, tokens, device)
    mel_BMF = _mel(shape, work, 3000, device, dtype)

    def loss(part: slice) -> Any:
        return model(
            input_ids=ids_BT[part],
            input_features=mel_BMF[part],
            attention_mask=torch.ones_like(ids_BT[part]),
            labels=labels_BT[part],
        ).loss

    return accumulated(loss, _adamw(model), work.samples)


def slam(shape: Shape, work: Work, device: str, dtype: torch.dtype) -> Step:
    """SLAM-ASR: 30 s through the encoder, every 5 frames one of 300 embeddings, logits everywhere."""
    return _stacked(shape, work, device, dtype, frames=1500, stack=5)


def ultravox(shape: Shape, work: Work, device: str, dtype: torch.dtype) -> Step:
    """Ultravox: the live encoder on unpadded mel, 8 frames to an embedding (6.25 a second), logits everywhere."""
    return _stacked(shape, work, device, dtype, frames=round(50 * work.seconds), stack=8)


def _stacked(shape: Shape, work: Work, device: str, dtype: torch.dtype, *, frames: int, stack: int) -> Step:
    with built(device, dtype):
        encoder = _frozen(WhisperEncoder(shape.whisper()), dtype)
        llm = _frozen(Qwen2ForCausalLM(shape.qwen()), dtype)
    with torch.device(device):
        adapter = nn.Sequential(
            nn.Linear(stack * shape.d_speech, shape.hidden), nn.ReLU(), nn.Linear(shape.hidden, shape.d_llm)
        )
    tokens = frames // stack
    ids_BT, labels_BT = _prompt(shape, work, tokens, device)
    mel_BMF = _mel(shape, work, 2 * frames, device, dtype)

    def loss(part: slice) -> Tensor:
        with torch.no_grad():
            frames_BFS = _whisper(encoder, mel_BMF[part])
        grouped_BLS = frames_BFS[:, : tokens * stack].unflatten(1, (tokens, stack)).flatten(2)
        embeds_BTD = llm.get_input_embeddings()(ids_BT[part])
        start = work.context
        speech_BLD = adapter(grouped_BLS.float()).to(dtype)
        filled_BTD = torch.cat([embeds_BTD[:, :start], speech_BLD, embeds_BTD[:, start + tokens :]], 1)
        # Logits everywhere and then most of them dropped: so do these recipes, whose loss is the model's own.
        logits_BTV = llm(inputs_embeds=filled_BTD, attention_mask=torch.ones_like(ids_BT[part])).logits
        return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), labels_BT[part, 1:].flatten())

    return accumulated(loss, torch.optim.AdamW(adapter.parameters(), lr=1e-4), work.samples)


def _whisper(encoder: WhisperEncoder, mel_BMF: Tensor) -> Tensor:
    """The encoder on a mel of any length; that of transformers accepts 30 s alone."""
    x_BDF = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel_BMF))))
    x_BFD = x_BDF.transpose(1, 2) + encoder.embed_positions.weight[: x_BDF.shape[2]]
    for layer in encoder.layers:
        out = layer(x_BFD, None)  # a tuple or a tensor, by the version of transformers
        x_BFD = out[0] if isinstance(out, tuple) else out
    result: Tensor = encoder.layer_norm(x_BFD)
    return result


def _prompt(shape: Shape, work: Work, speech: int, device: str) -> tuple[Tensor, Tensor]:
    """Random ids with a stretch of audio tokens, and labels on the reply alone."""
    torch.manual_seed(0)
    length = work.context + speech + work.reply
    ids_BT = torch.randint(4, shape.vocabulary, (work.samples, length), device=device)
    ids_BT[:, work.context : work.context + speech] = AUDIO_TOKEN
    labels_BT = ids_BT.clone()
    labels_BT[:, : work.context + speech] = -100
    return ids_BT, labels_BT


def _mel(shape: Shape, work: Work, frames: int, device: str, dtype: torch.dtype) -> Tensor:
    return torch.randn(work.samples, shape.mels, frames, device=device, dtype=dtype)


def _frozen(model: nn.Module, dtype: torch.dtype, *, trained: str = "") -> Any:
    """The model in evaluation mode with all weights frozen, except those whose name has `trained` in it."""
    model = model.to(dtype)
    for name, weight in model.named_parameters():
        weight.requires_grad_(bool(trained) and trained in name)
    return model.eval()


def _adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-4)
