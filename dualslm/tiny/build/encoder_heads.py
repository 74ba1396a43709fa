"""The small encoder with its pretraining heads and their losses (ours; the heads are dropped after training).

- words: CTC over the world's spoken words, from the last layer: what the linguistic adapter will need;
- letters: CTC over characters, from the middle layer: helps with voices of the test set;
- spectrum: the log-mel of the clean clip, two mel frames for each encoder frame, from the last layer. It needs no
  labels, and keeps what a pure transcription model would lose;
- prosody: pitch (in twelfths of an octave, or unvoiced) and energy of each frame of the clean clip, without labels;
- style: the five attributes, from the mean and deviation of the last layer. This head does use labels, at a small
  weight. OpenAI's Whisper never saw such labels, so a tone that is easy to read here says nothing about Whisper.

Dimensions: B clips, T encoder frames, F mel frames (2T), M mel bins, D width, S symbols of a target, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from dualslm.tiny.build.probes import pool
from dualslm.tiny.build.signals import HIGHEST_HZ, LOWEST_HZ, Prosody
from dualslm.tiny.style import ATTRIBUTES

LETTERS = " abcdefghijklmnopqrstuvwxyz'"
STEPS_PER_OCTAVE = 12
PITCH_CLASSES = 2 + int(STEPS_PER_OCTAVE * torch.tensor(HIGHEST_HZ / LOWEST_HZ).log2())  # and unvoiced, class 0
# Chosen so that no head's gradient outweighs that of the words.
WEIGHTS: Mapping[str, float] = MappingProxyType(
    {"words": 1.0, "letters": 0.3, "spectrum": 1.0, "pitch": 0.3, "energy": 0.3, "style": 0.2}
)


def encoder_config(mels: int = 80, frames: int = 400) -> WhisperConfig:
    """The small encoder: Whisper's architecture, 256 wide, 4 layers, an 8 s window."""
    return WhisperConfig(
        num_mel_bins=mels,
        d_model=256,
        encoder_layers=4,
        encoder_attention_heads=4,
        encoder_ffn_dim=1024,
        max_source_positions=frames,
        dropout=0.1,
        # A Whisper config must describe a decoder too, which we neither train nor ship.
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=256,
    )


@dataclass(frozen=True)
class HiddenStates:
    """The two layers that the heads read.

    Attributes:
        middle_BTD: output of the layer half-way through the encoder.
        last_BTD: output of the encoder.
    """

    middle_BTD: Tensor
    last_BTD: Tensor


@dataclass(frozen=True)
class EncoderLabels:
    """The labels of a batch of clips.

    Attributes:
        frames_B: number of valid encoder frames of each clip.
        words_BS: word numbers from 1; 0 is padding.
        letters_BS: letter numbers from 1; 0 is padding.
        styles_BA: class number of each attribute, in the order of `ATTRIBUTES`.
        mel_BMF: log-mel of the clean clips.
        prosody: prosody of the clean clips.
    """

    frames_B: Tensor
    words_BS: Tensor
    letters_BS: Tensor
    styles_BA: Tensor
    mel_BMF: Tensor
    prosody: Prosody


class EncoderForPretraining(nn.Module):
    """The encoder with its heads.

    Args:
        config: configuration of the encoder.
        vocabulary: classes of the word head from 1 on; its class 0 is CTC's blank.
    """

    def __init__(self, config: WhisperConfig, vocabulary: Sequence[str]) -> None:
        super().__init__()
        width = config.d_model
        self.encoder = WhisperEncoder(config)
        self.words = nn.Linear(width, len(vocabulary) + 1)
        self.letters = nn.Linear(width, len(LETTERS) + 1)
        self.spectrum = nn.Linear(width, 2 * config.num_mel_bins)
        self.pitch = nn.Linear(width, PITCH_CLASSES)
        self.energy = nn.Linear(width, 1)
        self.style = nn.ModuleDict({name: nn.Linear(2 * width, len(values)) for name, values in ATTRIBUTES.items()})

    def forward(self, mel_BMF: Tensor) -> HiddenStates:
        """Encodes log-mels of full windows."""
        out = self.encoder(mel_BMF, output_hidden_states=True)
        return HiddenStates(out.hidden_states[len(out.hidden_states) // 2], out.last_hidden_state)

    def losses(self, hidden: HiddenStates, labels: EncoderLabels) -> dict[str, Tensor]:
        """The unweighted loss of each head, a mean over the batch."""
        last_BTD = hidden.last_BTD
        frames_B = labels.frames_B
        valid_BT = torch.arange(last_BTD.shape[1], device=last_BTD.device) < frames_B[:, None]
        # An encoder frame lasts two mel frames: the spectrum head predicts both.
        pairs_BTM = labels.mel_BMF.transpose(1, 2).reshape(*last_BTD.shape[:2], -1)
        pitch_BT = pitch_classes(labels.prosody)
        energy_BT = self.energy(last_BTD).float().squeeze(-1)
        pooled_BD = pool(last_BTD.float(), frames_B)
        # In single precision, whatever the autocast: log-softmax over hundreds of words loses too much in bfloat16.
        style = [
            functional.cross_entropy(head(pooled_BD).float(), labels.styles_BA[:, column])
            for column, head in enumerate(self.style.values())
        ]
        return {
            "words": ctc(self.words(last_BTD), frames_B, labels.words_BS),
            "letters": ctc(self.letters(hidden.middle_BTD), frames_B, labels.letters_BS),
            "spectrum": 10 * (self.spectrum(last_BTD).float() - pairs_BTM).square()[valid_BT].mean(),
            "pitch": functional.cross_entropy(self.pitch(last_BTD).float()[valid_BT], pitch_BT[valid_BT]),
            "energy": (energy_BT - labels.prosody.energy_BT)[valid_BT].square().mean(),
            "style": torch.stack(style).mean(),
        }


def total(losses: Mapping[str, Tensor]) -> Tensor:
    """The weighted sum."""
    return torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum()


def pitch_classes(prosody: Prosody) -> Tensor:
    """Class of each frame (B, T): 0 unvoiced, then twelfths of an octave above `LOWEST_HZ`."""
    step_BT = (prosody.octaves_BT * STEPS_PER_OCTAVE).long().clamp(0, PITCH_CLASSES - 2)
    return torch.where(prosody.voiced_BT, 1 + step_BT, 0)


def ctc(logits_BTV: Tensor, frames_B: Tensor, labels_BS: Tensor) -> Tensor:
    """CTC loss of each symbol; class 0 is the blank, and the padding of the labels."""
    log_probs_TBV = logits_BTV.float().log_softmax(2).transpose(0, 1)
    lengths_B = (labels_BS > 0).sum(1)
    # A clip with fewer frames than symbols has an infinite loss: it is left out instead of spoiling the batch.
    return functional.ctc_loss(log_probs_TBV, labels_BS, frames_B, lengths_B, zero_infinity=True)


def greedy_ctc(logits_BTV: Tensor, frames_B: Tensor, symbols: Sequence[str]) -> list[list[str]]:
    """Greedy CTC decoding: the best class of each frame, repeats merged, blanks dropped."""
    decoded = []
    for best_T, frames in zip(logits_BTV.argmax(2).cpu(), frames_B.tolist(), strict=True):
        merged = torch.unique_consecutive(best_T[:frames]).tolist()
        decoded.append([symbols[number - 1] for number in merged if number])
    return decoded
