"""Measures and their intervals (paper §IV-B): labels, words, answers, and the bootstrap over clusters. No torch."""
