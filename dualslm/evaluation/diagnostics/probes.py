"""Linear probes: what a straight line can read from P, from L and from the encoder (ours).

A probe finds what is there, not what the LLM uses. Three things keep it honest:
- It is tested on recordings from groups (speakers, or sentences where none are named) that it was not fitted on.
- A control task, the same recordings with labels drawn at random, shows how much it memorises; accuracy above that is
  its selectivity.
- The same adapters before any training show what comes from the encoder alone.

Dimensions: N recordings, T embeddings, D features.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from dualslm.conversation import Channel, Speech
from dualslm.errors import DualSLMError
from dualslm.evaluation.diagnostics.base import Examiner, Line, Result, embeddings, line
from dualslm.evaluation.diagnostics.items import Item, Material
from dualslm.evaluation.metrics.wer import words
from dualslm.model.dualslm import DualSLM

FOLDS = 4
PENALTIES = (1.0, 10.0, 100.0)  # strengths to choose from, the inverse of scikit-learn's C
MIN_RECORDINGS = 20  # to fit a probe at all
MIN_WORD_RECORDINGS = 3  # in which a word must occur to be probed for: a rarer one can hardly be learnt
Features: TypeAlias = NDArray[np.float64]


def probes(examiner: Examiner, material: Material) -> Result:
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
    if len(items) < MIN_RECORDINGS or len({item.group for item in items}) < FOLDS:
        return Result("Linear probes", [], f"Too few recordings: {len(items)} of {MIN_RECORDINGS}.")
    features = _features(examiner, [item.speech for item in items])
    attributes = sorted({name for item in items for name in item.speech.labels})
    lines = []
    for attribute in attributes:
        known = [index for index, item in enumerate(items) if attribute in item.speech.labels]
        some = [items[index] for index in known]
        if len({item.speech.labels[attribute] for item in some}) > 1 and len(some) >= MIN_RECORDINGS:
            lines += [_probed(name, table[known], some, attribute) for name, table in features.items()]
    lines += [_sentence(name, table, items) for name, table in features.items()]
    says = "P should be high on the voice and low on the sentence, L the other way round; zero is the control task"
    return Result("Linear probes", lines, f"{says}, for the sentence chance.")


def _features(examiner: Examiner, clips: Sequence[Speech]) -> dict[str, Features]:
    """Mean embeddings (N, D) of each source, not yet standardised."""
    torch.manual_seed(examiner.seed)  # `DualSLM` draws the weights of new adapters
    fresh = DualSLM(examiner.model.encoder, examiner.model.llm, **examiner.model.settings).eval()
    found: dict[str, Features] = {}
    channels: Mapping[str, Channel | None] = {"P": "para", "L": "ling", "the encoder": None}
    for name, channel in channels.items():
        embeds = [examiner.embeddings(clip, channel) for clip in clips]
        found[name] = _table([one_TD.mean(0) for one_TD in embeds])
        # P has as many embeddings for every recording, so that each may carry something of its own. A mean hides it.
        if name == "P" and len({len(one_TD) for one_TD in embeds}) == 1:
            found["P, every embedding"] = _table([one_TD.flatten() for one_TD in embeds])
        if channel is not None:
            untrained = [embeddings(fresh, examiner.frames(clip), channel) for clip in clips]
            found[f"{name} untrained"] = _table([one_TD.mean(0) for one_TD in untrained])
    return found


def _table(rows: Sequence[torch.Tensor]) -> Features:
    return np.stack([row.double().cpu().numpy() for row in rows])


def _probed(name: str, table: Features, items: Sequence[Item], attribute: str) -> Line:
    """Accuracy of one probe over folds of groups; its zero is the control task's."""
    truth = [item.speech.labels[attribute] for item in items]
    groups = [item.group for item in items]
    right = fitted(table, truth, groups)
    # The control task permutes the labels, which keeps how often each occurs: guessing the commonest gains nothing.
    permuted = random.Random(f"{attribute}/control").sample(truth, len(truth))
    control = 100 * float(np.mean(fitted(table, permuted, groups)))
    return line(f"{attribute} from {name}, %", right, groups, zero=control)


def fitted(table: Features, truth: Sequence[str], groups: Sequence[str]) -> list[bool]:
    """Whether a logistic regression is right about each recording, fitted on other groups than the recording's."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import GroupKFold

    right = np.zeros(len(truth), bool)
    labels = np.array(truth)
    for train, test in GroupKFold(FOLDS).split(table, labels, groups):
        # scikit-learn fits no single class. Where a fold leaves one, its label is all that could be learnt.
        if len(set(labels[train])) < 2:
            right[test] = labels[test] == labels[train][0]
            continue
        train_ND, test_ND = _standardised(table, train, test)
        model: Any = LogisticRegressionCV(
            Cs=[1 / penalty for penalty in PENALTIES], cv=2, max_iter=200, use_legacy_attributes=False
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a rare class missing in an inner fold, a fit that stops early
            right[test] = model.fit(train_ND, labels[train]).predict(test_ND) == labels[test]
    return [bool(one) for one in right]


def _sentence(name: str, table: Features, items: Sequence[Item]) -> Line:
    """How often the words that ridge regression predicts are nearest to the right sentence among those of a fold."""
    sentences = [frozenset(words(item.speech.transcript or "")) for item in items]
    groups = [item.group for item in items]
    right, chance = found_among(table, sentences, groups)
    return line(f"which sentence, from {name}, %", right, groups, zero=chance)


def found_among(
    table: Features, sentences: Sequence[frozenset[str]], groups: Sequence[str]
) -> tuple[list[bool], float]:
    """Whether each sentence is found among the distinct ones of its fold, and the chance of it in percent.

    Args:
        table: features of each recording (N, D).
        sentences: words of each recording.
        groups: name of each recording's group.
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GroupKFold

    # Sentences of a fold may be new to the probe, so that it predicts words, which recur, and not whole sentences.
    often = Counter(word for sentence in sentences for word in sentence)
    common = sorted(word for word, count in often.items() if count >= MIN_WORD_RECORDINGS)
    if not common:
        return [False] * len(sentences), 0.0
    bags = np.array([[word in sentence for word in common] for sentence in sentences], float)
    right = [False] * len(sentences)
    chances = []
    for train, test in GroupKFold(FOLDS).split(table, bags, groups):
        train_ND, test_ND = _standardised(table, train, test)
        # Without the mean, a word that is in most sentences would bring every prediction near to every sentence.
        mean = bags[train].mean(0)
        predicted = Ridge(alpha=float(table.shape[1])).fit(train_ND, bags[train]).predict(test_ND) - mean
        choices = list(dict.fromkeys(sentences[index] for index in test))
        chances.append(100 / len(choices))
        wanted = np.array([[word in choice for word in common] for choice in choices], float) - mean
        # Scaled to length 1, or a long sentence would be near to every prediction.
        likeness = predicted @ (wanted / np.linalg.norm(wanted, axis=1, keepdims=True)).T
        for index, best in zip(test, likeness.argmax(1), strict=True):
            right[index] = choices[best] == sentences[index]
    return right, float(np.mean(chances))


def _standardised(table: Features, train: Any, test: Any) -> tuple[Features, Features]:
    """Rows to fit on and rows to test on, scaled alike by the former: the latter must tell nothing of themselves."""
    mean = table[train].mean(0)
    spread = table[train].std(0) + 1e-8
    return (table[train] - mean) / spread, (table[test] - mean) / spread
