"""The two adapters, the only parts that learn (paper §III-A).

`ParalinguisticAdapter` is eq. 4: transformer layer → adaptive pooling to m frames → linear.
`LinguisticAdapter` is eq. 5: concatenate every k frames → linear → ReLU → linear.

Neither sees padding: attention is masked, pooling runs over each clip's own frames, and frames beyond a
clip's length are zeroed before they are stacked.

Dimensions: N encoder layers, B clips, T frames, S encoder width (d_s), M soft-prompt tokens, L groups of k
frames, K frames in a group times S, H width between L's linear layers, D width of the LLM (d_llm).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualslm.errors import DualSLMError
from dualslm.model.group_convolution import GroupConvolution, neighbours
from dualslm.model.inputs import SlotLengths

MAX_MASK_FRAMES = 15  # 0.3 s
SILENT = 0.5  # an embedding's distance from the middle of the tokens, in their deviations, up to which it says nothing
SAME_TOKEN = 0.6  # the cosine from which neighbouring embeddings are one token: at 0.8 some are said twice


class ScaledLinear(nn.Linear):
    """A linear layer whose output is multiplied by a constant: the spread of the LLM's token embeddings.

    The function is a plain linear layer's; what changes is how it learns. Token embeddings are small (a spread
    of 0.1 in the tiny LLM, 0.02 in many others). AdamW moves every weight by about the learning rate, so a
    plain layer soon gives embeddings many times longer than any token's, next to which what attention writes
    into the residual stream is little. (Measured on the tiny world: 35 times longer after 1,200 steps; exact
    word embeddings made 40 times longer cost its LLM 13 % word errors, at their own length none.) With the
    constant, weights are of ordinary size and the learning rate means what it means elsewhere.

    Args:
        d_in: width of the input.
        d_out: width of the output.
        scale: the constant.
    """

    scale: Tensor

    def __init__(self, d_in: int, d_out: int, scale: float) -> None:
        super().__init__(d_in, d_out)
        # Unit variance in gives unit variance out, which the constant turns into a token's own length.
        nn.init.normal_(self.weight, std=d_in**-0.5)
        nn.init.zeros_(self.bias)
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) → (..., d_out)."""
        return self.scale * super().forward(x)


class ParalinguisticAdapter(nn.Module):
    """Frames → m soft-prompt embeddings that tell how something is said (paper eq. 4).

    Args:
        d_speech: encoder width d_s.
        d_llm: width of the LLM's input embeddings.
        layers: transformer layers (paper §IV-C: 1); 0 pools what the encoder gives as it is.
        heads: attention heads (paper §IV-C: 8).
        dropout: paper §IV-C: 0.1.
        tokens: m, the embeddings a clip gets (assumed 16).
        feedforward: width of the feed-forward block; 4 d_s unless given (assumed).
        depth: number of the encoder's layers, the convolutions among them.
        layer: index of the encoder's layer that is read, counted from the convolutions as 0; the last one, as in
            the paper, unless given. The frames then hold that layer and the last one.
        mix: read a learned mix of all layers instead.
        standardize: give every channel of the frames mean 0 and deviation 1 over speech; see `calibrate`.
        deviations: keep each pooled stretch's standard deviation beside its mean (beyond the paper).
        scale: the spread of the LLM's token embeddings; see `ScaledLinear`.

    Raises:
        DualSLMError: heads do not divide d_speech, or the encoder has no such layer.
    """

    centre_NS: Tensor
    spread_NS: Tensor

    def __init__(
        self,
        d_speech: int,
        d_llm: int,
        *,
        layers: int = 1,
        heads: int = 8,
        dropout: float = 0.1,
        tokens: int = 16,
        feedforward: int | None = None,
        depth: int = 1,
        layer: int | None = None,
        mix: bool = False,
        standardize: bool = False,
        deviations: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        _check_heads("paralinguistic", heads, d_speech)
        if layer is not None and layer >= depth:
            raise DualSLMError(
                "the encoder has no such layer",
                got=f"layer {layer} of {depth}",
                do=f"set model.paralinguistic.layer below {depth}",
            )
        self.tokens = tokens
        self.layer = layer
        self.deviations = deviations
        self.mix = nn.Parameter(torch.zeros(depth)) if mix else None
        self.standardize = standardize
        if standardize:
            layers_read = depth if mix else 1
            self.register_buffer("centre_NS", torch.zeros(layers_read, d_speech))
            self.register_buffer("spread_NS", torch.ones(layers_read, d_speech))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                d_speech, heads, feedforward or 4 * d_speech, dropout, batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.project = ScaledLinear(d_speech * (2 if deviations else 1), d_llm, scale)

    def forward(self, layers_NBTS: Tensor, lengths_B: Tensor) -> Tensor:
        """Encoder layers (the last one last) and valid frames → embeddings (B, M, D)."""
        x_BTS = self._read(layers_NBTS)
        outside_BT = torch.arange(x_BTS.shape[1], device=x_BTS.device) >= lengths_B[:, None]
        # Without a mask attention stays in PyTorch's fused kernel, the quicker one.
        padding_BT = outside_BT if bool(outside_BT.any()) else None
        for layer in self.layers:
            x_BTS = layer(x_BTS, src_key_padding_mask=padding_BT)
        # The transformer's own biases reach padded frames; pooled, they would make a reply depend on its batch.
        x_BTS = x_BTS.masked_fill(outside_BT[..., None], 0.0)
        pool_BMT = pooling_weights(lengths_B, self.tokens, x_BTS.shape[1]).to(x_BTS)
        pooled_BMS = pool_BMT @ x_BTS
        if self.deviations:
            # The mean square less the squared mean can fall below 0 by rounding.
            variance_BMS = (pool_BMT @ x_BTS.square() - pooled_BMS.square()).clamp_min(0.0)
            pooled_BMS = torch.cat([pooled_BMS, (variance_BMS + 1e-5).sqrt()], dim=-1)
        out: Tensor = self.project(pooled_BMS)
        return out

    @torch.no_grad()
    def calibrate(self, clips: Iterable[Tensor]) -> None:
        """Measures each channel's mean and deviation, once, before training; they are kept with the weights.

        Whisper's channels differ in scale a hundredfold, and AdamW moves every weight alike, so that the few large
        ones would be all that is learnt from.

        Args:
            clips: the encoder's layers (N, T, S) of some recordings.
        """
        mean_NS, deviation_NS = moments(self._chosen(clip_NTS) for clip_NTS in clips)
        self.centre_NS.copy_(mean_NS)
        self.spread_NS.copy_(deviation_NS)

    def _chosen(self, layers: Tensor) -> Tensor:
        """The layers (N, ..., S) that are read."""
        if self.mix is not None:
            return layers
        return layers[-1 if self.layer is None else 0].unsqueeze(0)

    def _read(self, layers_NBTS: Tensor) -> Tensor:
        """One layer, or the learned mix: layers differ in scale, so each is normalised first."""
        x_NBTS = self._chosen(layers_NBTS).float()
        if self.standardize:
            x_NBTS = (x_NBTS - self.centre_NS[:, None, None]) / self.spread_NS[:, None, None]
        elif self.mix is not None or self.layer is not None:
            x_NBTS = F.layer_norm(x_NBTS, x_NBTS.shape[-1:])
        return x_NBTS[0] if self.mix is None else torch.einsum("n,nbts->bts", self.mix.softmax(0), x_NBTS)


class LinguisticAdapter(nn.Module):
    """Frames → embeddings at 50/k Hz that stand in for the words (paper eq. 5).

    Everything after `hidden` is beyond the paper and off by default.

    Args:
        d_speech: encoder width d_s.
        d_llm: width of the LLM's input embeddings.
        stack: k, the frames in one embedding (paper §IV-C: 5, so 10 Hz).
        hidden: width between the two linear layers (SLAM-ASR, which the paper follows: 2048).
        around: number of neighbouring groups on either side that are read with each group; a token is longer than one.
        layers: number of transformer layers over the groups, each with `heads` attention heads.
        convolutions: number of convolutions over the groups, between the two linear layers; see `GroupConvolution`.
        dropout: in these layers and convolutions, and of whole channels of the frames.
        mask: share of the frames that training hides, in stretches of up to `MAX_MASK_FRAMES`.
        standardize: give every channel of the frames mean 0 and deviation 1 over speech; see `calibrate`.
        skip: leave silent groups out of the prompt and merge neighbours that say the same; see `spoken`.
        scale: the spread of the LLM's token embeddings; see `ScaledLinear`.
    """

    mean_S: Tensor
    deviation_S: Tensor
    middle_D: Tensor

    def __init__(
        self,
        d_speech: int,
        d_llm: int,
        *,
        stack: int = 5,
        hidden: int = 2048,
        around: int = 0,
        layers: int = 0,
        heads: int = 8,
        convolutions: int = 0,
        dropout: float = 0.0,
        mask: float = 0.0,
        standardize: bool = False,
        skip: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if layers:
            _check_heads("linguistic", heads, d_speech)
        self.stack = stack
        self.around = around
        self.dropout = dropout
        self.mask = mask
        self.standardize = standardize
        self.skip = skip
        if skip:
            self.register_buffer("middle_D", torch.zeros(d_llm))
        if standardize:
            self.register_buffer("mean_S", torch.zeros(d_speech))
            self.register_buffer("deviation_S", torch.ones(d_speech))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                d_speech, heads, 4 * d_speech, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        width = (2 * around + 1) * stack * d_speech
        if layers:
            self.narrow = nn.Linear(width, d_speech)
            self.norm = nn.LayerNorm(d_speech)
        self.widen = nn.Linear(d_speech if layers else width, hidden)
        self.convolutions = nn.ModuleList(GroupConvolution(hidden, dropout) for _ in range(convolutions))
        self.project = ScaledLinear(hidden, d_llm, scale)

    def lengths(self, frames: int) -> int:
        """Embeddings that so many frames become: the last group may be short."""
        return SlotLengths(0, self.stack).ling(frames)

    def forward(self, frames_BTS: Tensor, lengths_B: Tensor) -> Tensor:
        """Frames and how many are valid → embeddings (B, L, D), of which `lengths(n)` are valid."""
        frames_BTS = frames_BTS.float()
        if self.standardize:
            frames_BTS = (frames_BTS - self.mean_S) / self.deviation_S
        outside_BT = torch.arange(frames_BTS.shape[1], device=frames_BTS.device) >= lengths_B[:, None]
        if self.training and self.mask:
            outside_BT = outside_BT | random_stretches(outside_BT.shape, self.mask).to(outside_BT.device)
        frames_BTS = frames_BTS.masked_fill(outside_BT[..., None], 0.0)
        if self.training and self.dropout:
            frames_BTS = F.dropout1d(frames_BTS.transpose(1, 2), self.dropout).transpose(1, 2)
        # The last group of a clip is short by up to k - 1 frames; they are zeros, in a batch and alone.
        short = -frames_BTS.shape[1] % self.stack
        grouped_BLK = F.pad(frames_BTS, (0, 0, 0, short)).unflatten(1, (-1, self.stack)).flatten(2)
        grouped_BLK = neighbours(grouped_BLK, self.around)
        outside_BL = torch.arange(grouped_BLK.shape[1], device=lengths_B.device) >= -(-lengths_B[:, None] // self.stack)
        if len(self.layers):
            grouped_BLK = self._in_context(grouped_BLK, outside_BL)
        x_BLH = F.relu(self.widen(grouped_BLK))
        for convolution in self.convolutions:
            x_BLH = convolution(x_BLH, outside_BL)
        out: Tensor = self.project(x_BLH)
        return out

    def _in_context(self, grouped_BLK: Tensor, outside_BL: Tensor) -> Tensor:
        """Every group with all others of its clip (B, L, S)."""
        x_BLS = self.narrow(grouped_BLK)
        padding_BL = outside_BL if bool(outside_BL.any()) else None
        for layer in self.layers:
            x_BLS = layer(x_BLS, src_key_padding_mask=padding_BL)
        out: Tensor = self.norm(x_BLS)
        return out

    def spoken(self, embeds_LD: Tensor) -> Tensor:
        """The embeddings of one clip that say something (R, D), at least one.

        Alignment leaves silence in the middle of all token embeddings (`middle_D`), and neighbours of one direction are
        one token drawn out: their mean stands for them. Between words an aligned adapter is silent most of the time,
        which no text that an LLM has read is. A clip in which all is silent keeps its loudest group.
        """
        away_LD = (embeds_LD.detach() - self.middle_D) / self.project.scale
        loudness_L = away_LD.square().mean(-1).sqrt()
        loud_L = loudness_L > SILENT
        loud_L[loudness_L.argmax()] = True
        direction_LD = F.normalize(away_LD, dim=-1)
        repeats_L = torch.zeros_like(loud_L)
        alike_L = (direction_LD[1:] * direction_LD[:-1]).sum(-1) > SAME_TOKEN
        repeats_L[1:] = loud_L[1:] & loud_L[:-1] & alike_L
        run_L = (loud_L & ~repeats_L).cumsum(0) - 1
        runs = int(run_L[-1]) + 1
        member_RL = (loud_L & (run_L == torch.arange(runs, device=run_L.device)[:, None])).to(embeds_LD)
        return member_RL / member_RL.sum(1, keepdim=True) @ embeds_LD

    @torch.no_grad()
    def calibrate(self, clips: Iterable[Tensor]) -> None:
        """Measures each channel's mean and deviation in the encoder's output, once, before training.

        Args:
            clips: the encoder's layers (N, T, S) of some recordings, the last one last.
        """
        mean_1S, deviation_1S = moments(clip_NTS[-1:] for clip_NTS in clips)
        self.mean_S.copy_(mean_1S[0])
        self.deviation_S.copy_(deviation_1S[0])


def _check_heads(name: str, heads: int, width: int) -> None:
    if width % heads:
        got, do = f"{heads} heads for a width of {width}", f"set model.{name}.heads to a divisor"
        raise DualSLMError(f"the {name} adapter's heads do not divide the encoder's width", got=got, do=do)


def pooling_weights(lengths_B: Tensor, tokens: int, frames: int) -> Tensor:
    """The matrix of adaptive average pooling over each clip's own frames.

    Token k of a clip of n frames averages the frames from floor(k n / m) to ceil((k + 1) n / m), as
    `torch.nn.AdaptiveAvgPool1d` does for a whole batch of one length.

    Args:
        lengths_B: n, the valid frames of each clip.
        tokens: m.
        frames: T, the padded length.

    Returns:
        Weights (B, M, T); each row sums to one and is zero beyond the clip.
    """
    k_M = torch.arange(tokens, device=lengths_B.device)
    n_B1 = lengths_B[:, None]
    start_BM = k_M * n_B1 // tokens
    end_BM = -(-(k_M + 1) * n_B1 // tokens)
    t_T = torch.arange(frames, device=lengths_B.device)
    inside_BMT = (t_T >= start_BM[..., None]) & (t_T < end_BM[..., None])
    return inside_BMT.float() / (end_BM - start_BM)[..., None]


def moments(clips: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and deviation (N, S) of every channel over the frames of some clips (N, T, S), in float64."""
    sum_NS = torch.zeros(1, dtype=torch.float64)
    squares_NS = torch.zeros(1, dtype=torch.float64)
    frames = 0
    for clip_NTS in clips:
        x_NTS = clip_NTS.double().cpu()
        sum_NS = sum_NS + x_NTS.sum(1)
        squares_NS = squares_NS + x_NTS.square().sum(1)
        frames += x_NTS.shape[1]
    mean_NS = sum_NS / frames
    return mean_NS, (squares_NS / frames - mean_NS.square()).clamp_min(1e-12).sqrt()


def random_stretches(shape: torch.Size, share: float) -> Tensor:
    """Which frames (B, T) training hides: stretches of 1 to `MAX_MASK_FRAMES` frames, about the share of all."""
    starts_BT = torch.rand(shape) < share / (MAX_MASK_FRAMES / 2 + 0.5)
    lengths_BT = torch.randint(1, MAX_MASK_FRAMES + 1, shape)
    frame_T = torch.arange(shape[1])
    ends_BT = torch.where(starts_BT, frame_T + lengths_BT, 0).cummax(1).values
    return ends_BT > frame_T


def both_adapters(
    d_speech: int,
    d_llm: int,
    depth: int,
    scale: float,
    *,
    paralinguistic: Mapping[str, Any],
    linguistic: Mapping[str, Any],
) -> nn.ModuleDict:
    """The two adapters with their settings, "para" and "ling"; see their arguments."""
    para = ParalinguisticAdapter(d_speech, d_llm, depth=depth, scale=scale, **paralinguistic)
    return nn.ModuleDict({"para": para, "ling": LinguisticAdapter(d_speech, d_llm, scale=scale, **linguistic)})


ADAPTERS: Mapping[str, type[nn.Module]] = {"paralinguistic": ParalinguisticAdapter, "linguistic": LinguisticAdapter}
TRAINING_ONLY = {"dropout", "mask"}  # settings that change neither weights nor what they compute afterwards


def build_differences(name: str, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """The settings that decide the build of an adapter and differ; one that is not stated has its default.

    Args:
        name: name of the adapter in `ADAPTERS`.
        saved: settings of the saved adapter.
        wanted: settings of the adapter that it is to become.
    """
    defaults = {key: parameter.default for key, parameter in signature(ADAPTERS[name]).parameters.items()}
    for key in sorted({*saved, *wanted} - TRAINING_ONLY):
        one = {**defaults, **saved}.get(key)
        other = {**defaults, **wanted}.get(key)
        if one != other:
            yield f"{name}.{key} {one}, not {other}"
