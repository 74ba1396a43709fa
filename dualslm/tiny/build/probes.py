"""Linear probes: what a linear classifier reads from features, as a measure of what an encoder keeps (ours).

Dimensions: B utterances, T frames, D features of a frame, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dualslm.tiny.style import ATTRIBUTES, Style

LBFGS_STEPS = 60
WEIGHT_DECAY = 1e-3  # on standardized features


def pool(frames_BTD: Tensor, lengths_B: Tensor) -> Tensor:
    """Mean and standard deviation over the valid frames: (B, 2D)."""
    valid_BT1 = (torch.arange(frames_BTD.shape[1], device=frames_BTD.device) < lengths_B[:, None])[..., None]
    count_B1 = lengths_B[:, None].to(frames_BTD.dtype)
    mean_BD = (frames_BTD * valid_BT1).sum(1) / count_B1
    spread_BTD = (frames_BTD - mean_BD[:, None]) * valid_BT1
    return torch.cat([mean_BD, (spread_BTD.square().sum(1) / count_B1 + 1e-8).sqrt()], dim=1)


def linear_probe(train_BD: Tensor, train_labels_B: Tensor, test_BD: Tensor) -> Tensor:
    """Fits a multinomial logistic regression and returns its predictions (B,) for the test features."""
    mean_D = train_BD.mean(0)
    std_D = train_BD.std(0) + 1e-6
    train_BD = (train_BD - mean_D) / std_D
    test_BD = (test_BD - mean_D) / std_D  # by the training set's statistics: the test set may not be looked at
    classes = int(train_labels_B.max()) + 1
    weight_DK = train_BD.new_zeros(train_BD.shape[1], classes, requires_grad=True)
    bias_K = train_BD.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_DK, bias_K], max_iter=LBFGS_STEPS, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(train_BD @ weight_DK + bias_K, train_labels_B)
        loss = loss + WEIGHT_DECAY * weight_DK.square().sum()
        torch.autograd.backward(loss)
        return float(loss.detach())

    with torch.enable_grad():  # callers that encode without gradients probe without them too
        optimizer.step(closure)
    return (test_BD @ weight_DK.detach() + bias_K.detach()).argmax(1)


def labels_of(styles: Sequence[Style], attribute: str) -> Tensor:
    """Class numbers (B,) of one attribute."""
    values = ATTRIBUTES[attribute]
    return torch.tensor([values.index(style.labels()[attribute]) for style in styles])


def probe_accuracies(
    train_BD: Tensor, train_styles: Sequence[Style], test_BD: Tensor, test_styles: Sequence[Style]
) -> Mapping[str, float]:
    """Accuracy (0 to 1) of one linear probe for each attribute, on features (B, D) of both sets."""
    found = {}
    for attribute in ATTRIBUTES:
        guess_B = linear_probe(train_BD, labels_of(train_styles, attribute).to(train_BD.device), test_BD)
        found[attribute] = float((guess_B.cpu() == labels_of(test_styles, attribute)).double().mean())
    return found
