"""The frozen encoder: parity with transformers, padding, windows, strict loading."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.factory import save_encoder, save_llm
from transformers import AutoFeatureExtractor, WhisperModel

from dualslm.audio import frame_count, load
from dualslm.errors import DualSLMError
from dualslm.model.encoder import SpeechEncoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> SpeechEncoder:
    return SpeechEncoder.from_pretrained(str(folder))


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


@pytest.mark.parametrize("samples", [1, 319, 320, 321, 16_000, 63_999, 64_000])
def test_one_frame_for_each_20_ms(encoder: SpeechEncoder, samples: int) -> None:
    frames = encoder.encode([noise(samples)])
    assert frames.lengths_B.tolist() == [frame_count(samples)]
    assert frames.last_BTD.shape == (1, frame_count(samples), encoder.width)


def test_spectrograms_are_those_of_the_feature_extractor(encoder: SpeechEncoder) -> None:
    waves = [noise(samples, seed) for seed, samples in enumerate((1, 400, 16_000, 33_333, encoder.window_samples))]
    waves.append(np.zeros(8_000, np.float32))
    theirs = encoder.features(waves, sampling_rate=16_000, return_tensors="pt").input_features
    ours = encoder.log_mel(waves)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_the_company_in_a_batch_changes_nothing(encoder: SpeechEncoder) -> None:
    waves = [noise(n, n) for n in (500, 20_000, 150_000, 64_000, 3)]
    together = encoder.encode(waves, every_layer=True)
    for row, wave in enumerate(waves):
        alone = encoder.encode([wave], every_layer=True)
        length = int(alone.lengths_B[0])
        torch.testing.assert_close(together.layers_NBTD[:, row, :length], alone.layers_NBTD[:, 0], atol=1e-5, rtol=0)
        assert not together.layers_NBTD[:, row, length:].any()


def test_every_layer_ends_with_the_output(encoder: SpeechEncoder) -> None:
    frames = encoder.encode([noise(9_000)], every_layer=True)
    assert len(frames.layers_NBTD) == encoder.depth
    torch.testing.assert_close(frames.last_BTD, encoder.encode([noise(9_000)]).last_BTD, atol=1e-5, rtol=0)


def test_long_audio_is_windows_joined_and_says_so(encoder: SpeechEncoder, caplog: pytest.LogCaptureFixture) -> None:
    wave = noise(2 * encoder.window_samples + 5_000)
    with caplog.at_level(logging.WARNING, logger="dualslm"):
        whole = encoder.encode([wave])
    assert "3 windows" in caplog.text
    parts = [wave[: encoder.window_samples], wave[encoder.window_samples : 2 * encoder.window_samples]]
    parts.append(wave[2 * encoder.window_samples :])
    apart = torch.cat([encoder.encode([part]).last_BTD for part in parts], dim=1)
    torch.testing.assert_close(whole.last_BTD, apart, atol=1e-5, rtol=0)


def test_training_mode_never_reaches_it(encoder: SpeechEncoder) -> None:
    encoder.train()
    assert not any(part.training for part in encoder.modules())
    assert not any(weight.requires_grad for weight in encoder.parameters())


def test_real_whisper_equals_transformers(shared: Path) -> None:
    name = str(shared / "weights" / "whisper-tiny.en")
    ours = SpeechEncoder.from_pretrained(name)
    theirs = WhisperModel.from_pretrained(name, dtype=torch.float32).get_encoder().eval()
    extract = AutoFeatureExtractor.from_pretrained(name)
    clips = sorted((shared / "data" / "librispeech").rglob("*.flac"))[:3]
    clips += sorted((shared / "data" / "ravdess").rglob("*.flac"))[:3]
    clips += sorted((shared / "data" / "fsdd").rglob("*.wav"))[:3]
    waves = [load(clip) for clip in clips]
    frames = ours.encode(waves)
    for row, wave in enumerate(waves):
        mel = extract(wave, sampling_rate=16_000, return_tensors="pt").input_features
        with torch.no_grad():
            expected = theirs(mel).last_hidden_state[0, : frame_count(len(wave))]
        torch.testing.assert_close(frames.last_BTD[row, : len(expected)], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_loading_is_strict(folder: Path, tmp_path: Path, damage: str) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    if damage == "missing":
        del state["layers.1.fc1.bias"]
    elif damage == "unexpected":
        state["layers.9.fc1.bias"] = torch.zeros(3)
    else:
        state["layers.1.fc1.bias"] = torch.zeros(3)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DualSLMError, match=r"layers\.[19]\.fc1\.bias"):
        SpeechEncoder.from_pretrained(str(tmp_path))


def test_an_llm_is_not_an_encoder(tmp_path: Path) -> None:
    with pytest.raises(DualSLMError, match="model_type 'qwen2'"):
        SpeechEncoder.from_pretrained(str(save_llm(tmp_path)))


def test_nothing_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DualSLMError, match="cannot find the encoder") as caught:
        SpeechEncoder.from_pretrained(str(tmp_path / "nowhere"))
    assert "\n" not in str(caught.value)


def test_samples_in_any_memory_are_heard_the_same(encoder: SpeechEncoder, recwarn: pytest.WarningsRecorder) -> None:
    wave = noise(8_000)
    backwards, frozen = wave[::-1].copy()[::-1], np.frombuffer(wave.tobytes(), np.float32)
    assert torch.equal(encoder.log_mel([backwards]), encoder.log_mel([wave]))
    assert torch.equal(encoder.log_mel([frozen]), encoder.log_mel([wave]))
    assert not recwarn.list


def test_by_the_rule_clip_a_short_clip_has_a_short_window(tmp_path: Path) -> None:
    encoder = SpeechEncoder.from_pretrained(str(save_encoder(tmp_path)), window="clip")
    sizes = [encoder.window_of(samples) for samples in (1, 32_000, 32_001, 47_000, 64_000, 10**6)]
    assert sizes == [32_000, 32_000, 48_000, 48_000, encoder.window_samples, encoder.window_samples]
    waves = [noise(n, n) for n in (20_000, 40_000, 31_999, 150_000)]
    together = encoder.encode(waves, layer=1)
    assert len(together.layers_NBTD) == 2
    for row, wave in enumerate(waves):
        alone = encoder.encode([wave], every_layer=True)
        length = int(alone.lengths_B[0])
        both = torch.stack([alone.layers_NBTD[1, 0], alone.layers_NBTD[-1, 0]])
        torch.testing.assert_close(together.layers_NBTD[:, row, :length], both, atol=1e-5, rtol=0)


def test_a_window_is_the_whole_encoder_of_so_many_positions(tmp_path: Path) -> None:
    """By the rule "clip" the frames are those of an encoder that was made for that window."""
    encoder = SpeechEncoder.from_pretrained(str(save_encoder(tmp_path)), window="clip")
    wave = noise(30_000)
    mel = encoder.log_mel([wave], 32_000)
    found = encoder.encode([wave]).last_BTD
    theirs = encoder.whisper
    theirs.embed_positions = torch.nn.Embedding.from_pretrained(theirs.embed_positions.weight[:100])
    theirs.config.max_source_positions = 100
    wanted = theirs(mel).last_hidden_state[:, : frame_count(len(wave))]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_an_unknown_window_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DualSLMError, match="no such window: got 'short'"):
        SpeechEncoder.from_pretrained(str(save_encoder(tmp_path)), window="short")  # type: ignore[arg-type]
