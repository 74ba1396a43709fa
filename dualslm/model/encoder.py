"""The frozen speech encoder: audio → frames at 50 Hz (paper eq. 2, §IV-C).

Whisper sees a fixed window (30 s for OpenAI's models). A clip is padded to the window, encoded, and only its valid
frames are kept; a longer clip is cut in windows that are encoded apart and joined. So neither padding nor the other
clips of a batch change anything.

By the window rule "clip" a clip is padded to the smallest of `CLIP_WINDOW_S` that holds it, and the table of positions
is cut to it (ours): a short clip costs a fifth of the work or less. The frames differ from those of the full window, so
adapters must learn from frames of the rule that they are used with; card and cache state it.

Dimensions: N encoder layers kept, B clips, W windows, T frames, D encoder width (d_s), M mel bins.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from dualslm.audio import HOP, SAMPLE_RATE, SAMPLES_PER_FRAME, Window, frame_count, layers_kept, window_for, windows
from dualslm.errors import DualSLMError
from dualslm.model.configuration import first_line, read_config
from dualslm.model.fingerprint import fingerprint, of_weights
from dualslm.model.frozen_files import encoder_key, tensors_in, weight_files
from dualslm.pocket.parts import resolve

log = logging.getLogger("dualslm")

MAX_FFT = 4096  # samples; Whisper's is 400
WINDOWS_AT_ONCE = 16  # bounds the memory of one forward pass, whatever the caller's batch


@dataclass(frozen=True)
class Frames:
    """Encoder frames of some clips.

    Attributes:
        layers_NBTD: the layers that were kept, the last layer last, zero beyond each clip's length.
        lengths_B: valid frames of each clip.
    """

    layers_NBTD: Tensor
    lengths_B: Tensor

    @property
    def last_BTD(self) -> Tensor:
        """The encoder's output, which the paper's adapters read."""
        return self.layers_NBTD[-1]

    def to(self, device: torch.device) -> Frames:
        """The same on a device."""
        return Frames(self.layers_NBTD.to(device), self.lengths_B.to(device))

    def pick(self, rows: Sequence[int]) -> Frames:
        """The frames of some of the clips, cut to the longest of them."""
        if [*rows] == [*range(len(self.lengths_B))]:
            return self
        index = torch.as_tensor(rows, device=self.lengths_B.device)
        lengths_B = self.lengths_B[index]
        return Frames(self.layers_NBTD[:, index, : int(lengths_B.max())], lengths_B)

    @staticmethod
    def stack(clips: Sequence[Tensor]) -> Frames:
        """Batches the (N, T, D) frames of single clips."""
        lengths_B = torch.tensor([clip.shape[1] for clip in clips], device=clips[0].device)
        padded_BTND = pad_sequence([clip.transpose(0, 1) for clip in clips], batch_first=True)
        return Frames(padded_BTND.permute(2, 0, 1, 3), lengths_B)


class SpeechEncoder(nn.Module):
    """A Whisper encoder whose weights never change.

    `published_in` is the dtype that its weights are rounded to for its fingerprint: OpenAI published Whisper in fp16,
    and the hub's files hold it in fp32 or fp16.

    Args:
        whisper: the transformers module.
        features: its feature extractor, which fixes the mel bins and the window.
        name: the hub id or folder it came from.
        revision: the hub revision it came from.
        window: see `Window`.

    Raises:
        DualSLMError: parts that do not belong together, or an unknown window rule.
    """

    def __init__(
        self,
        whisper: WhisperEncoder,
        features: WhisperFeatureExtractor,
        *,
        name: str = "",
        revision: str | None = None,
        window: Window = "full",
    ) -> None:
        super().__init__()
        self.published_in = torch.float16
        if window not in get_args(Window):
            raise DualSLMError("the encoder has no such window", got=repr(window), do='give "full" or "clip"')
        self.window: Window = window
        self.whisper = whisper.eval().requires_grad_(False)
        self.features = features
        self.name, self.revision = name, revision
        self.identity: str | None = None  # the fingerprint of the file that it came from
        self.former_identity: str | None = None  # the same by the rule of the last version
        self.window_samples: int = whisper.config.max_source_positions * SAMPLES_PER_FRAME
        _check_parts(whisper.config, features, self.window_samples)

    @property
    def width(self) -> int:
        """d_s, the width of a frame."""
        return int(self.whisper.config.d_model)

    @property
    def depth(self) -> int:
        """How many layers `encode(..., every_layer=True)` keeps: the convolutions and each block."""
        return int(self.whisper.config.encoder_layers) + 1

    def train(self, mode: bool = True) -> SpeechEncoder:
        """Stays in evaluation mode: dropout must not wake up in a frozen part."""
        return super().train(False)

    @torch.no_grad()
    def encode(
        self, waves: Sequence[NDArray[np.float32]], *, every_layer: bool = False, layer: int | None = None
    ) -> Frames:
        """Encodes clips of 16 kHz mono samples, each (samples,), of any lengths.

        Args:
            waves: at least one clip of at least one sample.
            every_layer: keep every layer, not the last alone.
            layer: index of a layer that is kept beside the last one, counted from the convolutions as 0.

        Returns:
            Frames in the encoder's dtype, `frame_count(samples)` of them for each clip; N is 1, 2 or `depth`.
        """
        layers = layers_kept(self.depth, every_layer=every_layer, layer=layer)
        pieces = [windows(wave, self.window_samples) for wave in waves]
        for wave, cut in zip(waves, pieces, strict=True):
            if len(cut) > 1:
                seconds = len(wave) / SAMPLE_RATE
                window = self.window_samples / SAMPLE_RATE
                log.warning("a clip of %.1f s is encoded in %d windows of %.0f s", seconds, len(cut), window)
        flat = [piece for cut in pieces for piece in cut]
        by_window: dict[int, list[int]] = {}  # indices of the pieces that share a window are encoded together
        for index, piece in enumerate(flat):
            by_window.setdefault(self.window_of(len(piece)), []).append(index)
        encoded: dict[int, Tensor] = {}
        for window_samples, indices in by_window.items():
            for start in range(0, len(indices), WINDOWS_AT_ONCE):
                some = indices[start : start + WINDOWS_AT_ONCE]
                frames = self._encode_windows([flat[index] for index in some], window_samples, layers)
                encoded.update(zip(some, frames, strict=True))
        joined = []
        first = 0
        for cut in pieces:
            joined.append(torch.cat([encoded[index] for index in range(first, first + len(cut))], dim=1))
            first += len(cut)
        return Frames.stack(joined)

    def window_of(self, samples: int) -> int:
        """The samples of the window that a clip of so many samples is encoded in."""
        return window_for(samples, self.window_samples, self.window)

    def _encode_windows(
        self, waves: Sequence[NDArray[np.float32]], window_samples: int, layers: Sequence[int]
    ) -> list[Tensor]:
        """The valid frames (N, T, D) of clips that fit in one window each."""
        whisper = self.whisper
        mel_WMT = self.log_mel(waves, window_samples).to(whisper.conv1.weight)
        x_WTD = F.gelu(whisper.conv2(F.gelu(whisper.conv1(mel_WMT)))).transpose(1, 2)
        # transformers' own forward wants the full window, so its layers are called one by one here.
        x_WTD = x_WTD + whisper.embed_positions.weight[: window_samples // SAMPLES_PER_FRAME]
        states = [x_WTD]
        for layer in whisper.layers:
            states.append(layer(states[-1], None))
        states[-1] = whisper.layer_norm(states[-1])
        layers_NWTD = torch.stack([states[layer] for layer in layers])
        return [layers_NWTD[:, row, : frame_count(len(wave))] for row, wave in enumerate(waves)]

    def log_mel(self, waves: Sequence[NDArray[np.float32]], window_samples: int | None = None) -> Tensor:
        """Log-mel spectrograms (W, M, T) of clips of at most a window, on the encoder's device, in float32.

        What the feature extractor gives (tested), which pads on the CPU and brings its result back there: as long as
        half of Whisper-large-v3's own work on a GPU.
        """
        device = self.whisper.conv1.weight.device
        settings = self.features
        samples_WS = torch.zeros(len(waves), window_samples or self.window_samples, device=device)
        for row_S, wave in zip(samples_WS, waves, strict=True):
            row_S[: len(wave)] = torch.from_numpy(np.array(wave, np.float32)).to(device)
        window = torch.hann_window(settings.n_fft, device=device)
        bins_WFT = torch.stft(samples_WS, settings.n_fft, settings.hop_length, window=window, return_complex=True)
        filters_FM = torch.from_numpy(settings.mel_filters).to(device, torch.float32)
        # Whisper drops the last frame, clamps to 8 decades below the window's loudest bin, and scales to about ±1.
        power_WMT = filters_FM.T @ (bins_WFT[..., :-1].abs() ** 2).contiguous()
        log_WMT = power_WMT.clamp(min=1e-10).log10()
        log_WMT = torch.maximum(log_WMT, log_WMT.amax((1, 2), keepdim=True) - 8.0)
        return (log_WMT + 4.0) / 4.0

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        window: Window = "full",
    ) -> SpeechEncoder:
        """Loads the encoder of a full checkpoint or of an encoder-only one, from the hub or a folder.

        Raises:
            DualSLMError: nothing there, another kind of model, or weights that do not match it key for key.
        """
        found = resolve(name)
        config = load_config(found, revision, "encoder")
        if config.model_type not in ENCODERS:
            raise DualSLMError(
                f"{name} is not a speech encoder that we know",
                got=f"model_type {config.model_type!r}",
                do=f"choose a model of type {', '.join(ENCODERS)}, or add one in dualslm/model/encoder.py",
            )
        encoder = ENCODERS[config.model_type](found, revision, config, dtype, device, window)
        encoder.name = name  # as it was given: the path of a pocket part holds on this machine alone
        return encoder


def _load_whisper(
    name: str, revision: str | None, config: WhisperConfig, dtype: torch.dtype, device: str, window: Window
) -> SpeechEncoder:
    try:
        if config.encoder_attention_heads < 1:  # of which transformers makes a module that fails at its first clip
            raise ValueError(f"{config.encoder_attention_heads} attention heads")
        with torch.device("meta"):  # no random weights are drawn only to be replaced
            whisper = WhisperEncoder(config)
    except Exception as error:  # sizes that no encoder has
        do = "use the config.json of the same checkpoint"
        raise DualSLMError(f"cannot build the encoder of {name}", got=first_line(error), do=do) from error
    strict_load(whisper, _encoder_tensors(name, revision), what=f"the encoder weights of {name}")
    try:
        features = WhisperFeatureExtractor.from_pretrained(name, revision=revision, trust_remote_code=False)
    except Exception as error:  # as above all
        do = "use the preprocessor_config.json of the same checkpoint"
        raise DualSLMError(f"cannot read the feature extractor of {name}", got=first_line(error), do=do) from error
    encoder = SpeechEncoder(whisper, features, name=name, revision=revision, window=window)
    # before the weights are cast: rounded twice they would not tell that they are those of a file in fp16
    encoder.identity = fingerprint(encoder)
    encoder.former_identity = of_weights(encoder)
    encoder.whisper.to(device=device, dtype=dtype)
    return encoder


def _encoder_tensors(name: str, revision: str | None) -> dict[str, Tensor]:
    """Reads the encoder's tensors only; `WhisperEncoder.from_pretrained` on a full checkpoint would
    silently keep random weights (its keys carry a prefix that it does not strip).
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(name, revision):
        with tensors_in(file) as shard:
            for key in shard.keys():  # noqa: SIM118 - safe_open is not a dict
                if (bare := encoder_key(key)) is not None:
                    tensors[bare] = shard.get_tensor(key)
    return tensors


def load_config(name: str, revision: str | None, what: str) -> Any:
    """The transformers configuration of a hub id or folder.

    Raises:
        DualSLMError: nothing there, or nothing that transformers knows.
    """
    try:
        return read_config(name, revision)
    except Exception as error:  # transformers reads whatever is in the folder, and fails at it in its own ways
        raise DualSLMError(
            f"cannot find the {what} {name!r}",
            got=first_line(error),
            do="give a hub id that you can reach, or a folder with config.json and model.safetensors",
        ) from error


def strict_load(module: nn.Module, state: dict[str, Tensor], *, what: str) -> None:
    """Puts a state dict in a module, key for key and shape for shape.

    Raises:
        DualSLMError: a missing key, an unexpected key or another shape; the first few are named.
    """
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items()}
    faults = [f"{key} missing" for key in wanted.keys() - given.keys()]
    faults += [f"{key} unexpected" for key in given.keys() - wanted.keys()]
    both = wanted.keys() & given.keys()
    faults += [f"{key} is {given[key]}, not {wanted[key]}" for key in both if wanted[key] != given[key]]
    # whole numbers in place of others: torch would refuse to load some, and load the rest
    kinds = {key: value.is_floating_point() for key, value in module.state_dict().items()}
    faults += [f"{key} is of {state[key].dtype}" for key in both if state[key].is_floating_point() != kinds[key]]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise DualSLMError(
            f"{what} do not fit",
            got="; ".join(sorted(faults)[:3]) + more,
            do="use the checkpoint that this model was made for",
        )
    module.load_state_dict(state, strict=True, assign=True)


def _check_parts(config: WhisperConfig, features: WhisperFeatureExtractor, window_samples: int) -> None:
    if (features.hop_length, features.sampling_rate) != (HOP, SAMPLE_RATE) or not 0 < features.n_fft <= MAX_FFT:
        raise DualSLMError(
            "the feature extractor is none of Whisper's",
            got=f"steps of {features.hop_length}, windows of {features.n_fft}, {features.sampling_rate} Hz",
            do=f"use the preprocessor_config.json of the same checkpoint, with steps of {HOP} at {SAMPLE_RATE} Hz",
        )
    if features.feature_size != config.num_mel_bins or features.n_samples != window_samples:
        raise DualSLMError(
            "the feature extractor does not belong to the encoder",
            got=f"{features.feature_size} mel bins and {features.n_samples} samples for an encoder of "
            f"{config.num_mel_bins} and {window_samples}",
            do="use the preprocessor_config.json of the same checkpoint",
        )


Loader = Callable[[str, "str | None", WhisperConfig, torch.dtype, str, Window], SpeechEncoder]
ENCODERS: dict[str, Loader] = {"whisper": _load_whisper}
