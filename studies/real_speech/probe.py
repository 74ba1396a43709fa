"""The yardstick: a linear probe on the frozen encoder, on mean and deviation of one layer over a clip.

Fitted to the clean clips of the training speakers, and tested on the same clips as the adapters.

Dimensions: C clips, N layers, T frames, S width of the encoder (twice that where mean and deviation are joined), K
classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dualslm.evaluation.metrics.figure import share
from studies.real_speech.exam import CHOICES, Hear, questions

PENALTY = 0.02  # on the squared weights; between 0.01 and 0.03 nothing changed among the actors tuned with


def measure(training: Sequence[Path], reported: Sequence[Path], hear: Hear) -> dict[str, Any]:
    """Measures the accuracy of the probe.

    Args:
        training: manifests to fit to.
        reported: manifests to test on.
        hear: function that gives the frames of recordings, with every layer.

    Returns:
        Figures by attribute and layer, such as "emotion, layer 3".
    """
    found: dict[str, Any] = {}
    for name, choices in CHOICES.items():
        x_CNS, y_C = _pooled(training, name, choices, hear)
        test_CNS, truth_C = _pooled(reported, name, choices, hear)
        for layer in range(x_CNS.shape[1]):
            predicted_C = _predicted(x_CNS[:, layer], y_C, test_CNS[:, layer], len(choices))
            found[f"{name}, layer {layer}"] = asdict(share((predicted_C == truth_C).tolist()))
    return found


def _pooled(manifests: Sequence[Path], name: str, choices: Sequence[str], hear: Hear) -> tuple[Tensor, Tensor]:
    """Features (C, N, S) and labels (C,) of the clips of some manifests."""
    rows: list[Tensor] = []
    labels: list[int] = []
    for conversation, clip in questions(manifests, name):
        frames_NTS = hear(conversation.turns[0].speeches).layers_NBTD[:, 0].float()
        rows.append(torch.cat([frames_NTS.mean(1), frames_NTS.std(1)], dim=-1))
        labels.append(choices.index(clip["labels"][name]))
    return torch.stack(rows), torch.tensor(labels)


def _predicted(x_CS: Tensor, y_C: Tensor, test_CS: Tensor, classes: int) -> Tensor:
    """The classes (C,) of the test clips by a logistic regression on the training clips."""
    mean_S = x_CS.mean(0)
    spread_S = x_CS.std(0) + 1e-6
    # In double precision, so that L-BFGS converges to the same optimum on every machine.
    x_CS = (x_CS - mean_S).div(spread_S).double()
    test_CS = (test_CS - mean_S).div(spread_S).double()
    weight_SK = torch.zeros(x_CS.shape[1], classes, dtype=torch.float64, requires_grad=True)
    bias_K = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_SK, bias_K], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x_CS @ weight_SK + bias_K, y_C) + PENALTY * weight_SK.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return (test_CS @ weight_SK + bias_K).argmax(1)
