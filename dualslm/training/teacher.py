"""Who writes conversation targets: the recipe's frozen LLM, in process or behind a server (paper §III-B).

Either reads the styled transcript, the words of `View("text", "text")`, as the text of ordinary chat messages: a
server gets no token ids, so both spell a turn out before it is tokenised, and give the same greedy replies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Protocol

import torch

from dualslm.conversation import Conversation, Part, Reply
from dualslm.errors import DualSLMError
from dualslm.model.checkpoint import fingerprint
from dualslm.model.generation import GenerationSettings
from dualslm.model.llm import FrozenLM
from dualslm.openai_client import Client, key_of
from dualslm.prompt import JOIN, render, styled


class Teacher(Protocol):
    """Writes replies."""

    @property
    def about(self) -> Mapping[str, Any]:
        """Provenance: the LLM, its revision, how it was run, its decoding."""

    def write(self, examples: Sequence[Conversation], seed: int) -> list[Reply]:
        """The reply to each talk; `seed` matters only where tokens are drawn."""


def messages(conversation: Conversation) -> list[dict[str, str]]:
    """A talk as chat messages, spoken parts as styled transcripts; one without a caption as its words alone."""
    said = [{"role": "system", "content": conversation.system}] if conversation.system else []
    for role, turns in groupby(conversation.turns, key=lambda turn: turn.role):
        said.append({"role": role, "content": JOIN.join(_text(part) for turn in turns for part in turn.parts)})
    return said


def _text(part: Part) -> str:
    if isinstance(part, str):
        return part
    words = (part.transcript or "").strip()
    return styled(part.caption, words) if part.caption else words


@dataclass
class LocalTeacher:
    """The LLM in this process, a batch at a time."""

    llm: FrozenLM
    generation: GenerationSettings

    @property
    def about(self) -> dict[str, Any]:
        """Provenance."""
        own = {"llm": self.llm.name, "revision": self.llm.revision, "fingerprint": fingerprint(self.llm)}
        return {**own, "by": "in process", "decoding": self.generation.stated}

    @torch.no_grad()
    def write(self, examples: Sequence[Conversation], seed: int) -> list[Reply]:
        """One prefill and one decoding loop for all of them."""
        prompts = [self._embedded(conversation) for conversation in examples]
        replies = self.llm.generate(prompts, replace(self.generation, seed=seed))
        return [replace(reply, text=reply.text.strip()) for reply in replies]

    def _embedded(self, conversation: Conversation) -> torch.Tensor:
        spelt = Conversation(conversation.system)
        for message in messages(conversation):
            if message["role"] != "system":
                (spelt.user if message["role"] == "user" else spelt.assistant)(message["content"])
        return self.llm.embed_text(render(spelt, self.llm.tokenizer))


@dataclass
class ServerTeacher:
    """An OpenAI-compatible server, many requests at once.

    Attributes:
        url: up to and with /v1, for example http://localhost:8000/v1.
        model: as the server calls it.
        how: decoding settings.
        key: sent as a bearer token; the environment's OPENAI_API_KEY when None.
    """

    url: str
    model: str
    generation: GenerationSettings
    key: str | None = None

    def __post_init__(self) -> None:
        self.client = Client(self.url, self.key or key_of())
        self.served: str | None = None

    @property
    def about(self) -> dict[str, Any]:
        """Provenance."""
        return {"llm": self.model, "revision": None, "by": "server", "decoding": self.generation.stated}

    def write(self, examples: Sequence[Conversation], seed: int) -> list[Reply]:
        """All requests at once, in order."""
        bodies = [self._body(conversation, seed + place) for place, conversation in enumerate(examples)]
        with ThreadPoolExecutor(len(bodies)) as pool:
            return [self._reply(answer) for answer in pool.map(self.client.chat, bodies)]

    def _body(self, conversation: Conversation, seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "messages": messages(conversation), "stream": False}
        body |= {
            "max_tokens": self.generation.max_new_tokens,
            "temperature": self.generation.temperature,
            "top_p": self.generation.top_p,
        }
        return body | ({"seed": seed % 2**31} if self.generation.temperature else {})

    def _reply(self, answer: Mapping[str, Any]) -> Reply:
        text, ended, served = self.client.said(answer)
        if self.served not in (None, served):
            raise DualSLMError("the server changed its LLM", got=f"{served} after {self.served}", do="use one LLM")
        self.served = served
        return Reply(text, ended)
