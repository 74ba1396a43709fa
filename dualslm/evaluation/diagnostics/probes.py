"""Linear probes: what a straight line can read from P, from L and from the encoder (ours).

A probe finds what is there, not what the LLM uses. Three things keep it honest: the recordings it is tested on
come from groups (speakers, or sentences where none are named) that it was not fitted on; a control task, the same
recordings with labels drawn at random, shows how much it learns by heart, and what is above that is its
selectivity; and the same adapters before any training show what was the encoder's alone.

Dimensions: N recordings, T embeddings, D features.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from dualslm.conversation import Channel, Speech
from dualslm.errors import DualSLMError
from dualslm.evaluation.diagnostics.base import Examiner, Line, Result, embeddings, line
from dualslm.evaluation.diagnostics.items import Item, Material
from dualslm.evaluation.metrics import words
from dualslm.model.dualslm import DualSLM

FOLDS = 4
SHRINK = (1.0, 10.0, 100.0)  # strengths of the penalty to choose from, the inverse of scikit-learn's C
LEAST = 20  # recordings below which nothing is fitted
COMMON = 3  # recordings in which a word must stand to be probed for
Features: TypeAlias = NDArray[np.float64]


def probes(desk: Examiner, material: Material) -> Result:
    """Every attribute, and which sentence is said, from P, L and the encoder.

    Raises:
        DualSLMError: scikit-learn is missing.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise DualSLMError(
            "probes need scikit-learn", got="it is not installed", do="pip install 'dualslm[instruments]'"
        ) from error
    items = list(material.recordings.values())
    if len(items) < LEAST or len({item.group for item in items}) < FOLDS:
        return Result("Linear probes", [], f"Too few recordings: {len(items)} of {LEAST}.")
    features = _features(desk, [item.speech for item in items])
    attributes = sorted({name for item in items for name in item.speech.labels})
    lines = []
    for attribute in attributes:
        known = [place for place, item in enumerate(items) if attribute in item.speech.labels]
        some = [items[place] for place in known]
        if len({item.speech.labels[attribute] for item in some}) > 1 and len(some) >= LEAST:
            lines += [_probed(name, table[known], some, attribute) for name, table in features.items()]
    lines += [_sentence(name, table, items) for name, table in features.items()]
    says = "P should be high on the voice and low on the sentence, L the other way round; zero is the control task"
    return Result("Linear probes", lines, f"{says}, for the sentence chance.")


def _features(desk: Examiner, clips: Sequence[Speech]) -> dict[str, Features]:
    """Mean embeddings of each source (N, D), standardized later."""
    torch.manual_seed(desk.seed)
    fresh = DualSLM(desk.model.encoder, desk.model.llm, **desk.model.settings).eval()
    found: dict[str, Features] = {}
    channels: Mapping[str, Channel | None] = {"P": "para", "L": "ling", "the encoder": None}
    for name, channel in channels.items():
        kept = [desk.embeddings(clip, channel) for clip in clips]
        found[name] = _table([one.mean(0) for one in kept])
        if name == "P" and len({len(one) for one in kept}) == 1:
            found["P, every embedding"] = _table([one.flatten() for one in kept])
        if channel is not None:
            untrained = [embeddings(fresh, desk.frames(clip), channel) for clip in clips]
            found[f"{name} untrained"] = _table([one.mean(0) for one in untrained])
    return found


def _table(rows: Sequence[torch.Tensor]) -> Features:
    return np.stack([row.double().cpu().numpy() for row in rows])


def _probed(name: str, table: Features, items: Sequence[Item], attribute: str) -> Line:
    """Accuracy of one probe over folds of groups; its zero is the control task's."""
    truth = [item.speech.labels[attribute] for item in items]
    groups = [item.group for item in items]
    rng = random.Random(f"{attribute}/control")
    drawn = rng.sample(truth, len(truth))
    right = fitted(table, truth, groups)
    control = 100 * float(np.mean(fitted(table, drawn, groups)))
    return line(f"{attribute} from {name}, %", right, groups, zero=control)


def fitted(table: Features, truth: Sequence[str], groups: Sequence[str]) -> list[bool]:
    """Whether a logistic regression is right about each recording, fitted on other groups than the recording's."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import GroupKFold

    right = np.zeros(len(truth), bool)
    labels = np.array(truth)
    for train, test in GroupKFold(FOLDS).split(table, labels, groups):
        if len(set(labels[train])) < 2:
            right[test] = labels[test] == labels[train][0]
            continue
        own, other = _standardised(table, train, test)
        model: Any = LogisticRegressionCV(
            Cs=[1 / shrink for shrink in SHRINK], cv=2, max_iter=200, use_legacy_attributes=False
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a rare class missing in an inner fold, a fit that stops early
            right[test] = model.fit(own, labels[train]).predict(other) == labels[test]
    return [bool(one) for one in right]


def _sentence(name: str, table: Features, items: Sequence[Item]) -> Line:
    """How often the words that ridge regression reads are nearest to the right sentence among those of a fold."""
    said = [frozenset(words(item.speech.transcript or "")) for item in items]
    groups = [item.group for item in items]
    right, chance = found_among(table, said, groups)
    return line(f"which sentence, from {name}, %", right, groups, zero=chance)


def found_among(table: Features, said: Sequence[frozenset[str]], groups: Sequence[str]) -> tuple[list[bool], float]:
    """Whether each sentence is found among the distinct ones of its fold, and the chance of it in percent."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GroupKFold

    often = {word: sum(word in one for one in said) for one in said for word in one}
    common = sorted(word for word, count in often.items() if count >= COMMON)
    bags = np.array([[word in one for word in common] for one in said], float)
    if not common:
        return [False] * len(said), 0.0
    right, chances = [False] * len(said), []
    for train, test in GroupKFold(FOLDS).split(table, bags, groups):
        own, other = _standardised(table, train, test)
        read = Ridge(alpha=float(table.shape[1])).fit(own, bags[train]).predict(other) - bags[train].mean(0)
        choices = list(dict.fromkeys(said[place] for place in test))
        chances.append(100 / len(choices))
        wanted = np.array([[word in one for word in common] for one in choices], float) - bags[train].mean(0)
        likeness = read @ (wanted / np.linalg.norm(wanted, axis=1, keepdims=True)).T
        for place, best in zip(test, likeness.argmax(1), strict=True):
            right[place] = choices[best] == said[place]
    return right, float(np.mean(chances))


def _standardised(table: Features, train: Any, test: Any) -> tuple[Features, Features]:
    mean, spread = table[train].mean(0), table[train].std(0) + 1e-8
    return (table[train] - mean) / spread, (table[test] - mean) / spread
