"""Golden values and an invariant of the measures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualslm.evaluation.metrics.figure import share
from dualslm.evaluation.metrics.wer import word_error_rate, word_errors, words


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors"),
    [("a b c", "a b c", 0), ("a b c", "a c", 1), ("a b c", "a x c d", 2), ("a", "", 1), ("", "a b", 2)],
)
def test_word_errors(reference: str, hypothesis: str, errors: int) -> None:
    assert word_errors(reference.split(), hypothesis.split()) == errors


@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abc")))
def test_word_errors_is_a_distance(a: list[str], b: list[str], c: list[str]) -> None:
    assert word_errors(a, b) == word_errors(b, a)
    assert word_errors(a, c) <= word_errors(a, b) + word_errors(b, c)


def test_rates_carry_their_interval() -> None:
    figure = word_error_rate(["I lost it.", "my own dog"], ["i lost it", "my dog"])
    assert figure.value == pytest.approx(100 / 6)
    assert figure.low <= figure.value <= figure.high
    assert figure.n == 2


def test_wilsons_interval() -> None:
    figure = share([True] * 95 + [False] * 5)
    assert (figure.value, figure.low, figure.high) == pytest.approx((95.0, 88.82, 97.85), abs=0.01)
    assert share([True] * 20).high == 100.0


def test_words_are_plain() -> None:
    assert words("I've lost my bag, Anna!") == ["i've", "lost", "my", "bag", "anna"]
