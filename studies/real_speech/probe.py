"""The yardstick: a linear classifier on the frozen encoder's frames, mean and deviation of one layer over a clip.

Fitted to the clean clips of the speakers that the adapters learn from, read on the same held-out clips.

Dimensions: C clips, N layers, S twice the encoder's width, K classes.
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


def measure(learnt: Sequence[Path], reported: Sequence[Path], hear: Hear) -> dict[str, Any]:
    """Figures by attribute and layer, such as "emotion, layer 3"."""
    found: dict[str, Any] = {}
    for name, choices in CHOICES.items():
        (x_CNS, y_C), (test_CNS, truth_C) = (_pooled(some, name, choices, hear) for some in (learnt, reported))
        for layer in range(x_CNS.shape[1]):
            told_C = _fit_and_tell(x_CNS[:, layer], y_C, test_CNS[:, layer], len(choices))
            found[f"{name}, layer {layer}"] = asdict(share((told_C == truth_C).tolist()))
    return found


def _pooled(manifests: Sequence[Path], name: str, choices: Sequence[str], hear: Hear) -> tuple[Tensor, Tensor]:
    rows, labels = [], []
    for conversation, clip in questions(manifests, name):
        frames_NTS = hear(conversation.turns[0].speeches).layers_NBTD[:, 0].float()
        rows.append(torch.cat([frames_NTS.mean(1), frames_NTS.std(1)], dim=-1))
        labels.append(choices.index(clip["labels"][name]))
    return torch.stack(rows), torch.tensor(labels)


def _fit_and_tell(x_CS: Tensor, y_C: Tensor, test_CS: Tensor, classes: int) -> Tensor:
    mean_S, spread_S = x_CS.mean(0), x_CS.std(0) + 1e-6
    x_CS, test_CS = ((some - mean_S).div(spread_S).double() for some in (x_CS, test_CS))
    weight_SK = torch.zeros(x_CS.shape[1], classes, dtype=torch.float64, requires_grad=True)
    bias_K = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([weight_SK, bias_K], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        value = F.cross_entropy(x_CS @ weight_SK + bias_K, y_C) + PENALTY * weight_SK.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(loss)  # type: ignore[no-untyped-call, arg-type]
    return (test_CS @ weight_SK + bias_K).argmax(1)
