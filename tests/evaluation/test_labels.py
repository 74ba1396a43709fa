"""Accuracy measures: scikit-learn's numbers, its traps, and the majority line."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from dualslm.evaluation.metrics import labels

CLASSES = ("anger", "joy", "neutral", "sadness", "fear")
MELD_TEST = {"neutral": 1256, "joy": 402, "anger": 345, "surprise": 281, "sadness": 208, "disgust": 68, "fear": 50}


@pytest.mark.parametrize("seed", range(6))
def test_measures_are_those_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gold = [str(one) for one in rng.choice(CLASSES[: 3 + seed % 3], 200)]
    said = [str(rng.choice([*CLASSES, "none of these", truth])) for truth in gold]
    found = labels.measure(gold, said, [str(index) for index in range(200)], seed=0)
    seen = sorted(set(gold))
    assert found["wa"].value == pytest.approx(100 * sk.accuracy_score(gold, said))
    assert found["ua"].value == pytest.approx(100 * sk.recall_score(gold, said, labels=seen, average="macro"))
    f1 = {
        how: 100 * sk.f1_score(gold, said, labels=seen, average=how, zero_division=0) for how in ("weighted", "macro")
    }
    assert found["wf1"].value == pytest.approx(f1["weighted"])
    assert found["macro_f1"].value == pytest.approx(f1["macro"])
    assert all(one.low <= one.value <= one.high for one in found.values())


def test_the_majority_line_of_meld() -> None:
    gold = [label for label, count in MELD_TEST.items() for _ in range(count)]
    assert labels.commonest(gold) == "neutral"
    found = labels.measure(gold, ["neutral"] * len(gold), [str(index % 280) for index in range(len(gold))], seed=0)
    assert {name: round(one.value, 2) for name, one in found.items()} == {
        "wa": 48.12,
        "ua": 14.29,
        "wf1": 31.27,
        "macro_f1": 9.28,
    }


def test_an_answer_without_a_label_is_wrong_and_no_class() -> None:
    each = labels.counts(["a", "b"], [None, "b"], ["a", "b"])
    assert labels.matrix(each.sum(0)).tolist() == [[0, 0, 1], [0, 1, 0]]
    assert float(labels.wa(each.sum(0))) == 50.0
    assert float(labels.macro_f1(each.sum(0))) == 50.0


def test_ties_of_the_commonest_go_by_name() -> None:
    assert labels.commonest(["b", "a", "b", "a", "c"]) == "a"
