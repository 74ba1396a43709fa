"""Conversations in a terminal: the loop, the microphone, saved conversations."""
