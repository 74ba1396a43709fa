"""Measures and their intervals (paper §IV-B): labels, words, answers, and the bootstrap over clusters. No torch."""

from dualslm.evaluation.metrics.figure import Figure, share
from dualslm.evaluation.metrics.wer import word_error_rate, word_errors, words

__all__ = ["Figure", "share", "word_error_rate", "word_errors", "words"]
