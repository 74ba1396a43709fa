"""Who writes conversation targets: the recipe's frozen LLM, in process or behind a server (paper §III-B).

Either reads the styled transcript, the words of `View("text", "text")`, as the text of ordinary chat messages: a
server gets no token ids, so both spell a turn out before it is tokenised, and give the same greedy replies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any, Protocol

import torch

from dualslm.checkpoint import fingerprint
from dualslm.client import Client, key_of
from dualslm.conversation import Conversation, Part
from dualslm.errors import DualSLMError
from dualslm.llm import Decoding, FrozenLM
from dualslm.prompt import JOIN, Text, render, styled


@dataclass(frozen=True)
class Reply:
    """A reply, and whether it ended by its own end token rather than at the longest length."""

    text: str
    ended: bool


class Writer(Protocol):
    """Writes replies."""

    @property
    def about(self) -> Mapping[str, Any]:
        """Provenance: the LLM, its revision, how it was run, its decoding."""

    def write(self, talks: Sequence[Conversation], seed: int) -> list[Reply]:
        """The reply to each talk; `seed` matters only where tokens are drawn."""


def messages(talk: Conversation) -> list[dict[str, str]]:
    """A talk as chat messages, spoken parts as styled transcripts; one without a caption as its words alone."""
    said = [{"role": "system", "content": talk.system}] if talk.system else []
    for role, turns in groupby(talk.turns, key=lambda turn: turn.role):
        said.append({"role": role, "content": JOIN.join(_text(part) for turn in turns for part in turn.parts)})
    return said


def _text(part: Part) -> str:
    if isinstance(part, str):
        return part
    words = (part.transcript or "").strip()
    return styled(part.caption, words) if part.caption else words


@dataclass
class InProcess:
    """The LLM in this process, a batch at a time."""

    llm: FrozenLM
    how: Decoding

    @property
    def about(self) -> dict[str, Any]:
        """Provenance."""
        own = {"llm": self.llm.name, "revision": self.llm.revision, "print": fingerprint(self.llm)}
        return {**own, "by": "in process", "decoding": _decoding(self.how)}

    @torch.no_grad()
    def write(self, talks: Sequence[Conversation], seed: int) -> list[Reply]:
        """One prefill and one decoding loop for all of them."""
        read = self.llm.prefill([self._embedded(talk) for talk in talks])
        replies: list[list[int]] = [[] for _ in talks]
        ended = [False] * len(talks)
        for tokens in self.llm.decode(read, replace(self.how, seed=seed)):
            for place, token in enumerate(tokens):
                if token is None:
                    ended[place] = True
                else:
                    replies[place].append(token)
        return [Reply(self._decoded(ids), end) for ids, end in zip(replies, ended, strict=True)]

    def _embedded(self, talk: Conversation) -> torch.Tensor:
        spelt = Conversation(talk.system)
        for message in messages(talk):
            if message["role"] != "system":
                (spelt.user if message["role"] == "user" else spelt.assistant)(message["content"])
        segments = render(spelt, self.llm.tokenizer).segments
        ids = [token for segment in segments if isinstance(segment, Text) for token in segment.ids]
        return self.llm.embed(torch.tensor(ids, device=self.llm.device))

    def _decoded(self, ids: list[int]) -> str:
        text = self.llm.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).strip()


@dataclass
class Server:
    """An OpenAI-compatible server, many requests at once.

    Attributes:
        url: up to and with /v1, for example http://localhost:8000/v1.
        model: as the server calls it.
        how: decoding settings.
        key: sent as a bearer token; the environment's OPENAI_API_KEY when None.
    """

    url: str
    model: str
    how: Decoding
    key: str | None = None

    def __post_init__(self) -> None:
        self.client = Client(self.url, self.key or key_of())
        self.served: str | None = None

    @property
    def about(self) -> dict[str, Any]:
        """Provenance."""
        return {"llm": self.model, "revision": None, "by": "server", "decoding": _decoding(self.how)}

    def write(self, talks: Sequence[Conversation], seed: int) -> list[Reply]:
        """All requests at once, in order."""
        bodies = [self._body(talk, seed + place) for place, talk in enumerate(talks)]
        with ThreadPoolExecutor(len(bodies)) as pool:
            return [self._reply(answer) for answer in pool.map(self.client.chat, bodies)]

    def _body(self, talk: Conversation, seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "messages": messages(talk), "stream": False}
        body |= {"max_tokens": self.how.max_new_tokens, "temperature": self.how.temperature, "top_p": self.how.top_p}
        return body | ({"seed": seed % 2**31} if self.how.temperature else {})

    def _reply(self, answer: Mapping[str, Any]) -> Reply:
        try:
            choice, served = answer["choices"][0], answer.get("model")
            text, why = choice["message"]["content"] or "", choice["finish_reason"]
        except (KeyError, IndexError, TypeError) as error:
            raise self.client.strange(answer) from error
        if self.served not in (None, served):
            raise DualSLMError("the server changed its LLM", got=f"{served} after {self.served}", do="use one LLM")
        self.served = served
        return Reply(str(text).strip(), why == "stop")


def _decoding(how: Decoding) -> dict[str, Any]:
    return {key: value for key, value in asdict(how).items() if key != "seed"}
