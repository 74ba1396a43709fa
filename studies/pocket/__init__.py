"""A first small model of real parts: Whisper-base, SmolLM2-135M and real voices (docs/pocket.md)."""
