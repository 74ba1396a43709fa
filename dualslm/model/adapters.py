"""The two adapters, the only parts that learn (paper §III-A).

`ParalinguisticAdapter` is eq. 4: transformer layer → adaptive pooling to m frames → linear.
`LinguisticAdapter` is eq. 5: concatenate every k frames → linear → ReLU → linear.

Neither sees padding: attention is masked, pooling runs over each clip's own frames, and frames beyond a
clip's length are zeroed before they are stacked.

Dimensions: N encoder layers, B clips, T frames, S encoder width (d_s), M soft-prompt tokens, L groups of k
frames, K frames in a group times S, D width of the LLM (d_llm).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualslm.errors import DualSLMError
from dualslm.prompt import SlotLengths


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
            the paper, unless given.
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
        if d_speech % heads:
            raise DualSLMError(
                "the paralinguistic adapter's heads do not divide the encoder's width",
                got=f"{heads} heads for a width of {d_speech}",
                do="set model.paralinguistic.heads to a divisor",
            )
        if layer is not None and layer >= depth:
            raise DualSLMError(
                "the encoder has no such layer",
                got=f"layer {layer} of {depth}",
                do=f"set model.paralinguistic.layer below {depth}",
            )
        self.tokens = tokens
        self.layer = layer
        self.deviations = deviations
        self.every_layer = mix or layer is not None  # whether it reads more than the encoder's output
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
        first_NS = torch.zeros(self.centre_NS.shape, dtype=torch.float64)
        second_NS = torch.zeros(self.centre_NS.shape, dtype=torch.float64)
        count = 0
        for clip_NTS in clips:
            x_NTS = self._chosen(clip_NTS).double().cpu()
            first_NS += x_NTS.sum(1)
            second_NS += x_NTS.square().sum(1)
            count += x_NTS.shape[1]
        mean_NS = first_NS / count
        self.centre_NS.copy_(mean_NS)
        self.spread_NS.copy_((second_NS / count - mean_NS.square()).clamp_min(1e-12).sqrt())

    def _chosen(self, layers: Tensor) -> Tensor:
        """The layers (N, ..., S) that are read."""
        if self.mix is not None:
            return layers
        return layers[-1 if self.layer is None else self.layer].unsqueeze(0)

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

    Args:
        d_speech: encoder width d_s.
        d_llm: width of the LLM's input embeddings.
        stack: k, the frames in one embedding (paper §IV-C: 5, so 10 Hz).
        hidden: width between the two linear layers (SLAM-ASR, which the paper follows: 2048).
        scale: the spread of the LLM's token embeddings; see `ScaledLinear`.
    """

    def __init__(self, d_speech: int, d_llm: int, *, stack: int = 5, hidden: int = 2048, scale: float = 1.0) -> None:
        super().__init__()
        self.stack = stack
        self.widen = nn.Linear(stack * d_speech, hidden)
        self.project = ScaledLinear(hidden, d_llm, scale)

    def lengths(self, frames: int) -> int:
        """Embeddings that so many frames become: the last group may be short."""
        return SlotLengths(0, self.stack).ling(frames)

    def forward(self, frames_BTS: Tensor, lengths_B: Tensor) -> Tensor:
        """Frames and how many are valid → embeddings (B, L, D), of which `lengths(n)` are valid."""
        frames_BTS = frames_BTS.float()
        outside_BT = torch.arange(frames_BTS.shape[1], device=frames_BTS.device) >= lengths_B[:, None]
        frames_BTS = frames_BTS.masked_fill(outside_BT[..., None], 0.0)
        # The last group of a clip is short by up to k - 1 frames; they are zeros, in a batch and alone.
        short = -frames_BTS.shape[1] % self.stack
        grouped_BLK = F.pad(frames_BTS, (0, 0, 0, short)).unflatten(1, (-1, self.stack)).flatten(2)
        out: Tensor = self.project(F.relu(self.widen(grouped_BLK)))
        return out


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
