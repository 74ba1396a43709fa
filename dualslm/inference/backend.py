"""Where the LLM runs, behind one interface: in this process (`local`), or stock vLLM over HTTP (`vllm`) (ours).

A prompt is embeddings and keys (`model.inputs.PromptEmbeds`); a reply is pieces of text. Whoever serves a conversation
needs no more than that of an LLM.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from dualslm.errors import DualSLMError

if TYPE_CHECKING:
    from dualslm.model.generation import GenerationSettings
    from dualslm.model.inputs import PromptEmbeds

Reason: TypeAlias = Literal["stop", "length"]


class UnavailableError(DualSLMError):
    """The LLM cannot be reached, or gave up; the request itself was right."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token of a reply and how likely it was, before temperature and penalties.

    Attributes:
        token: its text.
        logprob: natural logarithm of its probability.
        top: the likeliest tokens there, with theirs.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """Some of a reply.

    Attributes:
        text: what comes next; may be empty.
        tokens: of the reply so far.
        reused: positions of the prompt that had been read before, as far as that is known.
        reason: why the reply ends with this piece: its own end or a stop text, or the longest length; None before.
        logprobs: of the tokens since the piece before, where the settings ask for them.
    """

    text: str
    tokens: int
    reused: int = 0
    reason: Reason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


class Backend(Protocol):
    """Runs the LLM for many talks at once."""

    @property
    def context(self) -> int | None:
        """Positions that prompt and reply may take together; None where it does not say."""

    def stream(
        self,
        prompt: PromptEmbeds,
        generation: GenerationSettings,
        stop: Sequence[str] = (),
        keep_special: Sequence[str] = (),
    ) -> AsyncGenerator[Piece]:
        """The reply in pieces, the last of which has a reason. Closed early, the LLM stops working on it.

        Args:
            prompt: as the LLM reads it.
            generation: settings of the reply.
            stop: the reply ends before the first of these texts.
            keep_special: special tokens that stay in the text, since they mark calls of tools in it.

        Raises:
            UnavailableError: the LLM cannot be reached, or gave up.
        """

    def state(self) -> Mapping[str, float]:
        """Figures for a dashboard, by name."""

    async def close(self) -> None:
        """Ends all work."""


class StopStrings:
    """Text up to the first of some stop texts; what may be the beginning of one is held back."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.stop = [text for text in stop if text]
        self.held = ""
        self.met = False

    def add(self, text: str) -> str:
        """What can be shown now."""
        text, self.held = self.held + text, ""
        starts = [start for stop in self.stop if (start := text.find(stop)) >= 0]
        if starts:
            self.met = True
            return text[: min(starts)]
        keep = max((overlap(text, one) for one in self.stop), default=0)
        shown = text[: len(text) - keep]
        self.held = text[len(shown) :]
        return shown

    def rest(self) -> str:
        """What was held back, when no more text comes."""
        rest, self.held = self.held, ""
        return "" if self.met else rest


def overlap(text: str, stop: str) -> int:
    """The longest end of a text with which a stop text begins."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
