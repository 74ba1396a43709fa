"""Groups of frames and those beside them: what the linguistic adapter may see of its neighbours (ours).

Dimensions: B clips, L groups of frames, K numbers of a group, H width between L's linear layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BESIDE = 2  # neighbouring groups on either side that a convolution of L sees: 0.2 s at 10 Hz


class GroupConvolution(nn.Module):
    """A residual layer in which each group of frames sees those beside it: norm → convolution → GELU → linear.

    It begins as the identity, so that an adapter that was trained without it can go on with it.

    Args:
        width: of a group's vector.
        dropout: of what the layer adds.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.beside = nn.Linear((2 * BESIDE + 1) * width, width // 2)
        self.back = nn.Linear(width // 2, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.back.weight)
        nn.init.zeros_(self.back.bias)

    def forward(self, x_BLH: Tensor, outside_BL: Tensor) -> Tensor:
        """Groups and which of them are padding → groups (B, L, H)."""
        normed_BLH = self.norm(x_BLH).masked_fill(outside_BL[..., None], 0.0)
        out_BLH: Tensor = x_BLH + self.dropout(self.back(F.gelu(self.beside(neighbours(normed_BLH, BESIDE)))))
        return out_BLH


def neighbours(x_BLK: Tensor, count: int) -> Tensor:
    """Every group beside its neighbours (B, L, (2 count + 1) K), zeros beyond the ends."""
    if not count:
        return x_BLK
    padded_BLK = F.pad(x_BLK, (0, 0, count, count))
    groups = x_BLK.shape[1]
    return torch.cat([padded_BLK[:, shift : shift + groups] for shift in range(2 * count + 1)], -1)
