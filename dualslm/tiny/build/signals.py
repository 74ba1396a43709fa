"""Batched signal processing for training the small encoder, on the device where the clips are (ours).

The log-mel equals that of `WhisperFeatureExtractor` (a test says so), without its round trip through numpy.
Reverberation and noise are those of `effects`, drawn anew for every batch. Prosody is estimated from clean clips.

Dimensions: B clips, N samples of a full window, T encoder frames (50 Hz), M mel bins, F mel frames (100 Hz),
L lags. Randomness comes from torch's global generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

RATE = 16_000  # Hz
SAMPLES_PER_FRAME = 320
PITCH_WINDOW = 640  # samples (40 ms): three periods of the lowest voice
LOWEST_HZ = 66.0  # below the lowest pitch of a low voice
HIGHEST_HZ = 420.0  # above the highest pitch of a high voice
VOICED = 0.55  # of perfect periodicity
FIRST_PEAK = 0.88  # the first peak this near to the best one is the period, not a multiple of it


def log_mel(waves_BN: Tensor, extractor: WhisperFeatureExtractor) -> Tensor:
    """Whisper's log-mel spectrogram (B, M, F) of clips that are already padded to the window."""
    window = torch.hann_window(extractor.n_fft, device=waves_BN.device)
    stft = torch.stft(waves_BN, extractor.n_fft, extractor.hop_length, window=window, return_complex=True)
    filters = torch.as_tensor(extractor.mel_filters, dtype=torch.float32, device=waves_BN.device)
    log_BMF = (filters.T @ stft[..., :-1].abs().square()).clamp(min=1e-10).log10()
    return (log_BMF.maximum(log_BMF.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


def augment(waves_BN: Tensor, lengths_B: Tensor, share: float = 0.5) -> Tensor:
    """Adds reverberation (T60 0.1-0.4 s) and noise (15-35 dB below) to a share of the clips, at the same level.

    Args:
        waves_BN: clips, padded with zeros.
        lengths_B: samples of each clip without padding.
        share: share of the clips that are changed.
    """
    # All clips are computed and some chosen: on a GPU that is quicker than to gather the chosen ones first.
    batch, samples = waves_BN.shape
    inside_BN = torch.arange(samples, device=waves_BN.device) < lengths_B[:, None]
    loudness_B1 = _rms(waves_BN, lengths_B)
    reverberant_BN = _reverberate(waves_BN) * inside_BN
    reverberant_BN = reverberant_BN * loudness_B1 / _rms(reverberant_BN, lengths_B)
    hiss_BN = _colored_noise(waves_BN) * inside_BN
    snr_B1 = 15 + 20 * torch.rand(batch, 1, device=waves_BN.device)  # dB
    hiss_BN = hiss_BN * loudness_B1 / _rms(hiss_BN, lengths_B) * 10 ** (-snr_B1 / 20)
    chosen_B1 = torch.rand(batch, 1, device=waves_BN.device) < share
    return torch.where(chosen_B1, reverberant_BN + hiss_BN, waves_BN)


def _reverberate(waves_BN: Tensor) -> Tensor:
    batch, samples = waves_BN.shape
    device = waves_BN.device
    tail = int(0.4 * RATE)
    t60_B1 = 0.1 + 0.3 * torch.rand(batch, 1, device=device)  # seconds
    decay_BL = 10 ** (-3 * torch.arange(tail, device=device) / (t60_B1 * RATE))
    echoes_BL = torch.randn(batch, tail, device=device) * decay_BL
    wet_B1 = 0.2 + 0.4 * torch.rand(batch, 1, device=device)
    echoes_BL = wet_B1 * echoes_BL / echoes_BL.norm(dim=1, keepdim=True)
    echoes_BL[:, 0] = 1.0  # the direct sound
    size = samples + tail  # room for the tail of the last sample: the convolution must not wrap around
    spectrum = torch.fft.rfft(waves_BN, size) * torch.fft.rfft(echoes_BL, size)
    reverberant_BN: Tensor = torch.fft.irfft(spectrum, size)
    return reverberant_BN[:, :samples]


def _colored_noise(waves_BN: Tensor) -> Tensor:
    """Noise from white to brownish: its amplitude falls as frequency to the power 0 to -1 above 100 Hz."""
    batch, samples = waves_BN.shape
    spectrum = torch.fft.rfft(torch.randn_like(waves_BN))
    hz = torch.linspace(0, RATE / 2, spectrum.shape[1], device=waves_BN.device).clamp(min=100)
    slope_B1 = torch.rand(batch, 1, device=waves_BN.device)
    hiss_BN: Tensor = torch.fft.irfft(spectrum * (hz / 100) ** -slope_B1, samples)
    return hiss_BN


def _rms(waves_BN: Tensor, lengths_B: Tensor) -> Tensor:
    return (waves_BN.square().sum(1) / lengths_B).sqrt()[:, None] + 1e-9


def mask_mel(mel_BMF: Tensor, lengths_B: Tensor, share: float = 0.5) -> Tensor:
    """SpecAugment on a share of the clips: masks one band of up to 8 mel bins and two spans of up to 120 ms."""
    batch, bins, frames = mel_BMF.shape
    device = mel_BMF.device
    # Masked bins get the clip's own floor, which is what silence looks like after Whisper's normalization.
    floor_B11 = mel_BMF.amin((1, 2), keepdim=True)

    def span(size: int, widest: int, end_B: Tensor) -> Tensor:
        width_B1 = torch.rand(batch, 1, device=device) * widest
        start_B1 = torch.rand(batch, 1, device=device) * (end_B[:, None] - width_B1).clamp(min=0)
        index = torch.arange(size, device=device)
        return (index >= start_B1) & (index < start_B1 + width_B1)

    ends_B = lengths_B / (SAMPLES_PER_FRAME // 2)  # in mel frames, of which an encoder frame has two
    hidden_BMF = span(bins, 8, torch.full_like(ends_B, bins))[:, :, None]
    for _ in range(2):
        hidden_BMF = hidden_BMF | span(frames, 12, ends_B)[:, None, :]
    chosen_B11 = torch.rand(batch, 1, 1, device=device) < share
    return torch.where(hidden_BMF & chosen_B11, floor_B11, mel_BMF)


@dataclass(frozen=True)
class Prosody:
    """The prosody of clean clips, frame by frame.

    Attributes:
        octaves_BT: log2 of the fundamental over `LOWEST_HZ`; without meaning where unvoiced.
        voiced_BT: whether the frame is periodic and audible.
        energy_BT: log10 of the frame's mean power, at least -9.
    """

    octaves_BT: Tensor
    voiced_BT: Tensor
    energy_BT: Tensor


def prosody(waves_BN: Tensor) -> Prosody:
    """Estimates prosody by normalized autocorrelation (Boersma, 1993), 40 ms around each frame's centre."""
    edge = (PITCH_WINDOW - SAMPLES_PER_FRAME) // 2
    padded_BN = torch.nn.functional.pad(waves_BN, (edge, edge))
    frames_BTN = padded_BN.unfold(1, PITCH_WINDOW, SAMPLES_PER_FRAME)
    energy_BT = frames_BTN.square().mean(2).clamp(min=1e-9).log10()
    window_N = torch.hann_window(PITCH_WINDOW, device=waves_BN.device)
    shortest = int(RATE / HIGHEST_HZ)  # lags in samples
    longest = math.ceil(RATE / LOWEST_HZ)
    # Divided by the window's own autocorrelation: a windowed frame would else favor short lags (Boersma's eq. 9).
    similar_BTL = _autocorrelation(frames_BTN * window_N)[..., : longest + 2]
    similar_BTL = similar_BTL / _autocorrelation(window_N)[: longest + 2]
    similar_BTL = similar_BTL / similar_BTL[..., :1].clamp(min=1e-12)
    inner_BTL = similar_BTL[..., shortest : longest + 1]
    peak_BTL = (inner_BTL >= similar_BTL[..., shortest - 1 : longest]) & (
        inner_BTL >= similar_BTL[..., shortest + 1 : longest + 2]
    )
    height_BTL = torch.where(peak_BTL, inner_BTL, 0.0)
    best_BT = height_BTL.amax(2)
    period_BT = shortest + (height_BTL >= FIRST_PEAK * best_BT[..., None]).float().argmax(2)
    audible_BT = energy_BT > energy_BT.amax(1, keepdim=True) - 3.0  # within 30 dB of the loudest frame
    return Prosody((RATE / period_BT / LOWEST_HZ).log2(), (best_BT > VOICED) & audible_BT, energy_BT)


def _autocorrelation(frames: Tensor) -> Tensor:
    size = 2 * frames.shape[-1]  # twice the frame: without padding, lags would wrap around
    similar: Tensor = torch.fft.irfft(torch.fft.rfft(frames, size).abs().square(), size)
    return similar
