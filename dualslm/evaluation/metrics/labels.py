"""Accuracy of labels: WA, UA, weighted and macro F1, the confusion matrix and the majority line (paper §IV-B).

WA is the overall accuracy, UA the mean of the recalls of the classes, WF1 and macro F1 the means of their F1 with
and without the classes' sizes as weights: scikit-learn's `accuracy_score`, `balanced_accuracy_score` and `f1_score`
with `labels=` the classes that occur (tested). An answer without a label counts as wrong and belongs to no class.

Dimensions: N items, L labels; a confusion matrix is (L, L + 1), gold by heard, the last column for no label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from dualslm.evaluation.metrics.bootstrap import Floats, Statistic, figure
from dualslm.evaluation.metrics.figure import Figure


def counts(gold: Sequence[str], heard: Sequence[str | None], labels: Sequence[str]) -> Floats:
    """Each item as a confusion matrix of its own, flat: (N, L * (L + 1)).

    Args:
        gold: the true labels, each one of `labels`.
        heard: what was answered; anything that is no label counts as none.
        labels: all classes.
    """
    place = {label: index for index, label in enumerate(labels)}
    width = len(labels) + 1
    out = np.zeros((len(gold), len(labels) * width))
    for item, (wanted, got) in enumerate(zip(gold, heard, strict=True)):
        out[item, place[wanted] * width + place.get(got or "", len(labels))] = 1
    return out


def matrix(flat: Floats) -> Floats:
    """Flat confusion matrices (..., L * (L + 1)) as (..., L, L + 1)."""
    size = round((flat.shape[-1] + 0.25) ** 0.5 - 0.5)
    return flat.reshape(*flat.shape[:-1], size, size + 1)


def wa(flat: Floats) -> Floats:
    """Overall accuracy in percent."""
    right, _, truly = _parts(flat)
    out: Floats = 100 * right.sum(-1) / truly.sum(-1)
    return out


def ua(flat: Floats) -> Floats:
    """Mean recall, in percent, of the classes that occur."""
    right, _, truly = _parts(flat)
    return _mean(right / np.maximum(truly, 1), np.sign(truly))


def macro_f1(flat: Floats) -> Floats:
    """Mean F1, in percent, of the classes that occur."""
    _, _, truly = _parts(flat)
    return _mean(_f1(flat), np.sign(truly))


def wf1(flat: Floats) -> Floats:
    """F1 in percent, classes weighted by how often they occur."""
    _, _, truly = _parts(flat)
    return _mean(_f1(flat), truly)


MEASURES: Mapping[str, Statistic] = {"wa": wa, "ua": ua, "wf1": wf1, "macro_f1": macro_f1}


def measure(gold: Sequence[str], heard: Sequence[str | None], clusters: Sequence[str], seed: int) -> dict[str, Figure]:
    """All four measures with their intervals."""
    each = counts(gold, heard, sorted(set(gold)))
    return {name: figure(each, clusters, statistic, seed=seed) for name, statistic in MEASURES.items()}


def commonest(gold: Sequence[str]) -> str:
    """The label of the majority line; of several the first by name."""
    often = Counter(gold)
    return min(often, key=lambda label: (-often[label], label))


def _parts(flat: Floats) -> tuple[Floats, Floats, Floats]:
    """Right, heard and true of each class, (..., L)."""
    whole = matrix(flat)
    return np.diagonal(whole, axis1=-2, axis2=-1), whole.sum(-2)[..., :-1], whole.sum(-1)


def _f1(flat: Floats) -> Floats:
    right, heard, truly = _parts(flat)
    out: Floats = 2 * right / np.maximum(heard + truly, 1)
    return out


def _mean(values: Floats, weights: Floats) -> Floats:
    out: Floats = 100 * (values * weights).sum(-1) / weights.sum(-1)
    return out
