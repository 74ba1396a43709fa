"""Limits: how large a request may be, and how many are answered at once (ours).

Limits hold for the request as it arrives: the body while it is read, the recordings before they are decoded whole,
the queue before anything is encoded. A request over a limit gets status 413, 429 or 503.
"""

from __future__ import annotations

from dataclasses import dataclass

DECODED_PER_S = 8 * 48_000  # samples of all channels in a second of the longest recording: eight channels at 48 kHz
DECODED_PER_S_TOGETHER = 2 * 48_000  # in a second of all recordings of a request: stereo at 48 kHz


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may take.

    Attributes:
        body: bytes of a request.
        audio: seconds of one recording.
        speech: seconds of all recordings in a request.
        turns: messages of a conversation.
        running: requests that are answered at once.
        waiting: requests that wait for it; one more is refused with 429.
        timeout: seconds that a request may take, waiting included.
        any_sound: whether recordings without speech are answered too.
        ignore_tools: whether requests that offer tools are answered without calling any.
        tool_call_parser: how the LLM writes calls of tools; as its chat template has it when None.
        memory: bytes of bodies and decoded recordings of all requests together; half of them for one client.
    """

    body: int = 32 * 2**20
    audio: float = 120.0
    speech: float = 1800.0
    turns: int = 128
    running: int = 32
    waiting: int = 128
    timeout: float = 300.0
    any_sound: bool = False
    ignore_tools: bool = False
    tool_call_parser: str | None = None
    memory: int = 2**30

    @property
    def decoded(self) -> int:
        """Samples of all channels in one recording: decoding costs by them, and not by seconds alone."""
        return int(self.audio * DECODED_PER_S)

    @property
    def decoded_together(self) -> int:
        """Samples of all channels in all recordings of a request."""
        return int(self.speech * DECODED_PER_S_TOGETHER)
