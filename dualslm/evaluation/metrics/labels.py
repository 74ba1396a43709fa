"""Accuracy of labels: WA, UA, weighted and macro F1, the confusion matrix and the majority line (paper §IV-B).

WA is the overall accuracy, UA the mean of the recalls of the classes, WF1 and macro F1 the means of their F1 with
and without the classes' sizes as weights: scikit-learn's `accuracy_score`, `balanced_accuracy_score` and `f1_score`
with `labels=` the classes that occur (tested). An answer without a label counts as wrong and belongs to no class.

Dimensions: N items, L labels; a confusion matrix is (L, L + 1), true by predicted label, the last column for answers
without a label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from dualslm.evaluation.metrics.bootstrap import Floats, Statistic, figure
from dualslm.evaluation.metrics.figure import Figure


def counts(gold: Sequence[str], predicted: Sequence[str | None], labels: Sequence[str]) -> Floats:
    """Each item as a flat confusion matrix of its own, (N, L * (L + 1)), as `figure` takes counts.

    Args:
        gold: true label of each item, one of `labels`.
        predicted: predicted label of each item; None and whatever is not in `labels` count as no label.
        labels: all classes.
    """
    column = {label: index for index, label in enumerate(labels)}
    width = len(labels) + 1
    out = np.zeros((len(gold), len(labels) * width))
    for item, (wanted, got) in enumerate(zip(gold, predicted, strict=True)):
        out[item, column[wanted] * width + column.get(got or "", len(labels))] = 1
    return out


def matrix(flat: Floats) -> Floats:
    """Flat confusion matrices (..., L * (L + 1)) as (..., L, L + 1)."""
    # L is the positive root of L² + L = length.
    size = round((flat.shape[-1] + 0.25) ** 0.5 - 0.5)
    return flat.reshape(*flat.shape[:-1], size, size + 1)


def wa(flat: Floats) -> Floats:
    """Overall accuracy in percent."""
    right, _, true = _per_class(flat)
    out: Floats = 100 * right.sum(-1) / true.sum(-1)
    return out


def ua(flat: Floats) -> Floats:
    """Mean recall, in percent, of the classes that occur."""
    right, _, true = _per_class(flat)
    # A resample may hold no item of a class. The mean is then over the others, as scikit-learn would have it.
    return _mean(right / np.maximum(true, 1), np.sign(true))


def macro_f1(flat: Floats) -> Floats:
    """Mean F1, in percent, of the classes that occur."""
    _, _, true = _per_class(flat)
    return _mean(_f1(flat), np.sign(true))


def wf1(flat: Floats) -> Floats:
    """F1 in percent, classes weighted by how often they occur."""
    _, _, true = _per_class(flat)
    return _mean(_f1(flat), true)


MEASURES: Mapping[str, Statistic] = {"wa": wa, "ua": ua, "wf1": wf1, "macro_f1": macro_f1}


def measure(
    gold: Sequence[str], predicted: Sequence[str | None], clusters: Sequence[str], seed: int
) -> dict[str, Figure]:
    """All four measures with their intervals; arguments as for `counts` and `figure`."""
    # Only the classes that occur: scikit-learn warns of others, and would average their undefined recall as 0.
    each = counts(gold, predicted, sorted(set(gold)))
    return {name: figure(each, clusters, statistic, seed=seed) for name, statistic in MEASURES.items()}


def commonest(gold: Sequence[str]) -> str:
    """The label of the majority line: the most frequent one, and of equally frequent ones the first by name."""
    frequency = Counter(gold)
    return min(frequency, key=lambda label: (-frequency[label], label))


def _per_class(flat: Floats) -> tuple[Floats, Floats, Floats]:
    """Number of right, predicted and true items of each class, three arrays (..., L)."""
    whole = matrix(flat)
    right = np.diagonal(whole, axis1=-2, axis2=-1)
    predicted = whole.sum(-2)[..., :-1]
    true = whole.sum(-1)
    return right, predicted, true


def _f1(flat: Floats) -> Floats:
    right, predicted, true = _per_class(flat)
    out: Floats = 2 * right / np.maximum(predicted + true, 1)
    return out


def _mean(values: Floats, weights: Floats) -> Floats:
    out: Floats = 100 * (values * weights).sum(-1) / weights.sum(-1)
    return out
