"""Training the small encoder: every loss reaches it, and a killed run ends with the weights of a whole one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import WhisperConfig, WhisperFeatureExtractor

from dualslm.errors import DualSLMError
from dualslm.tiny.build import pretrain_encoder
from dualslm.tiny.build.encoder_heads import EncoderForPretraining, greedy_ctc
from dualslm.tiny.build.probes import linear_probe, pool
from dualslm.tiny.build.signals import augment, mask_mel, prosody
from dualslm.tiny.style import Style
from dualslm.tiny.voices import Job, voices

VOCABULARY = ("yes", "no", "maybe")


def small_config() -> WhisperConfig:
    return WhisperConfig(
        num_mel_bins=80,
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        max_source_positions=100,
        dropout=0.1,
    )


def tones(count: int = 4) -> pretrain_encoder.Clips:
    """Clips of one second: a tone for each, so that nothing here needs the synthesiser."""
    rng = np.random.default_rng(0)
    time_N = np.arange(16_000) / 16_000
    waves = [(8000 * np.sign(np.sin(2 * np.pi * (100 + 60 * i) * time_N))).astype(np.int16) for i in range(count)]
    return pretrain_encoder.Clips(
        jobs=[Job("yes no", Style(), voices("female")[0], i) for i in range(count)],
        pcm=torch.from_numpy(np.concatenate(waves)),
        starts_B=16_000 * torch.arange(count),
        lengths_B=torch.full((count,), 16_000),
        words_BS=torch.from_numpy(rng.integers(1, 4, (count, 2))),
        letters_BS=torch.from_numpy(rng.integers(1, 27, (count, 6))),
        styles_BA=torch.zeros(count, 5, dtype=torch.long),
    )


@pytest.fixture(autouse=True)
def short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    # A short window is quick, and checkpoints fall in the middle of the few steps below.
    monkeypatch.setattr(pretrain_encoder, "WINDOW_S", 2)
    monkeypatch.setattr(pretrain_encoder, "CHECKPOINT_EVERY", 2)


def train(checkpoint: Path, steps: int = 5) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = EncoderForPretraining(small_config(), VOCABULARY)
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=2)
    settings = {"utterances": 4, "steps": steps, "batch": 3, "seed": 0}
    pretrain_encoder._train(model, tones(), extractor, checkpoint, settings, resume=True)
    weights: dict[str, Tensor] = model.state_dict()
    return weights


def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tmp_path / "whole.pt")
    taken = 0
    step = pretrain_encoder._step

    def dies(*arguments: Any) -> dict[str, Tensor]:
        nonlocal taken
        taken += 1
        if taken == 4:  # after the checkpoint of step 2, so that a step is lost and done again
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(pretrain_encoder, "_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed.pt")
    monkeypatch.setattr(pretrain_encoder, "_step", step)
    again = train(tmp_path / "killed.pt")
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    assert not list(tmp_path.glob("*.part"))


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    train(tmp_path / "one.pt", steps=1)
    with pytest.raises(DualSLMError, match="belongs to another run"):
        train(tmp_path / "one.pt", steps=2)


def test_every_loss_is_finite_and_reaches_the_encoder() -> None:
    torch.manual_seed(0)
    model = EncoderForPretraining(small_config(), VOCABULARY)
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=2)
    for name, loss in pretrain_encoder._step(model, tones(), extractor, 3).items():
        assert torch.isfinite(loss), name
        (grad,) = torch.autograd.grad(loss, model.encoder.conv1.weight, retain_graph=True)
        assert grad.abs().sum() > 0, name


def test_prosody_finds_the_pitch_of_a_tone_and_no_pitch_in_noise() -> None:
    time_N = torch.arange(16_000) / 16_000
    hz_B = torch.tensor([85.0, 120.0, 200.0, 330.0])
    found = prosody((torch.sin(2 * torch.pi * hz_B[:, None] * time_N) > 0.9).float())
    inner = slice(3, -3)  # the first and last windows reach beyond the clip
    assert found.voiced_BT[:, inner].all()
    assert ((66 * 2 ** found.octaves_BT[:, inner]) / hz_B[:, None] - 1).abs().max() < 0.04
    assert prosody(torch.randn(1, 16_000)).voiced_BT.float().mean() < 0.1


def test_augmentation_changes_a_clip_but_neither_its_level_nor_what_follows_it() -> None:
    torch.manual_seed(0)
    waves_BN = torch.randn(6, 16_000)
    lengths_B = torch.full((6,), 12_000)
    waves_BN[:, 12_000:] = 0
    augmented_BN = augment(waves_BN, lengths_B, share=1.0)
    assert not torch.allclose(augmented_BN, waves_BN)
    assert (augmented_BN[:, 12_000:] == 0).all()
    assert (augmented_BN.norm(dim=1) / waves_BN.norm(dim=1) - 1).abs().max() < 0.1
    assert torch.equal(augment(waves_BN, lengths_B, share=0.0), waves_BN)


def test_masks_blank_a_part() -> None:
    torch.manual_seed(0)
    mel_BMF = torch.rand(8, 80, 200) + 1
    hidden_B = (mask_mel(mel_BMF, torch.full((8,), 32_000), share=1.0) != mel_BMF).float().mean((1, 2))
    assert 0 < hidden_B.mean() < 0.25


def test_greedy_decoding_merges_repeats_and_drops_blanks_and_padding() -> None:
    best = torch.tensor([[0, 1, 1, 0, 1, 2, 2, 3]])
    assert greedy_ctc(torch.nn.functional.one_hot(best, 4), torch.tensor([7]), VOCABULARY) == [["yes", "yes", "no"]]


def test_pooling_ignores_padding_and_a_probe_finds_a_linear_boundary() -> None:
    torch.manual_seed(0)
    frames_BTD = torch.randn(3, 9, 4)
    lengths_B = torch.tensor([9, 5, 1])
    longer_BTD = torch.cat([frames_BTD, torch.full((3, 4, 4), 7.0)], dim=1)
    assert torch.equal(pool(frames_BTD, lengths_B), pool(longer_BTD, lengths_B))
    x_BD = torch.randn(300, 5)
    y_B = (x_BD[:, 0] + x_BD[:, 1] > 0).long()
    assert (linear_probe(x_BD[:200], y_B[:200], x_BD[200:]) == y_B[200:]).float().mean() > 0.95
