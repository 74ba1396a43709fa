"""Talking in a terminal: the loop, the microphone, saved talks."""
