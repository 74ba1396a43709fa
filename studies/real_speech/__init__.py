"""Real human speech through a real encoder (docs/real-speech.md)."""
