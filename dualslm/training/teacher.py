"""The LLM that writes targets: the recipe's frozen LLM, in process or behind a server (paper §III-B).

Both read the styled transcript, the words of `View("text", "text")`, as the text of ordinary chat messages: a server
takes no token ids, so in either a turn is spelt out before it is tokenized, and greedy replies are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import Any, Protocol

import torch

from dualslm.conversation import Conversation, Part, Reply
from dualslm.errors import DualSLMError
from dualslm.model.execution import resolve_device
from dualslm.model.fingerprint import fingerprint
from dualslm.model.generation import GenerationSettings
from dualslm.model.llm import FrozenLM
from dualslm.model.reasoning import opens_thought, text_with_marks
from dualslm.openai_client import Client, key_of
from dualslm.prompt import JOIN, Text, render, styled
from dualslm.recipe import Quantize

TAIL_TOKENS = 32  # in which a chat template opens a thought
THOUGHT = "<think>\n"


class Teacher(Protocol):
    """An LLM that writes replies."""

    @property
    def about(self) -> Mapping[str, Any]:
        """Provenance: the LLM, its revision, where it runs, its generation settings."""

    def write(self, examples: Sequence[Conversation], seed: int) -> list[Reply]:
        """The reply to each conversation; `seed` matters only where tokens are drawn."""


def messages(conversation: Conversation) -> list[dict[str, str]]:
    """A conversation as chat messages, speech as its styled transcript, or as its transcript if it has no caption."""
    chat = [{"role": "system", "content": conversation.system}] if conversation.system else []
    # Turns of one role in a row are one message, as `render` joins them: some chat templates refuse two.
    for role, turns in groupby(conversation.turns, key=lambda turn: turn.role):
        chat.append({"role": role, "content": JOIN.join(_text(part) for turn in turns for part in turn.parts)})
    return chat


def _text(part: Part) -> str:
    if isinstance(part, str):
        return part
    words = (part.transcript or "").strip()
    return styled(part.caption, words) if part.caption else words


@dataclass
class LocalTeacher:
    """The LLM in this process, a batch at a time.

    Attributes:
        llm: the frozen LLM.
        generation: settings of the replies.
    """

    llm: FrozenLM
    generation: GenerationSettings

    @property
    def about(self) -> dict[str, Any]:
        """Provenance."""
        return {
            "llm": self.llm.name,
            "revision": self.llm.revision,
            "fingerprint": fingerprint(self.llm),
            "by": "in process",
            "decoding": self.generation.stated,
        }

    @torch.no_grad()
    def write(self, examples: Sequence[Conversation], seed: int) -> list[Reply]:
        """One prefill and one decoding loop for all of them."""
        prompts = []
        for conversation in examples:
            spelt_out = Conversation(conversation.system)
            for message in messages(conversation):
                if message["role"] == "user":
                    spelt_out.user(message["content"])
                elif message["role"] == "assistant":
                    spelt_out.assistant(message["content"])
            prompts.append(render(spelt_out, self.llm.tokenizer))
        embeds = [self.llm.embed_text(prompt) for prompt in prompts]
        replies = self.llm.generate(embeds, replace(self.generation, seed=seed), text=text_with_marks)
        # Where the prompt has opened a thought, the reply begins within it, and is given with the opening tag.
        ends = [prompt.segments[-1] for prompt in prompts]
        tails = [end.ids[-TAIL_TOKENS:] if isinstance(end, Text) else () for end in ends]
        texts = [self.llm.tokenizer.decode(list(ids), skip_special_tokens=False) for ids in tails]
        opened = [THOUGHT if opens_thought(str(text)) else "" for text in texts]
        return [replace(reply, text=f"{tag}{reply.text.strip()}") for tag, reply in zip(opened, replies, strict=True)]


@dataclass(frozen=True)
class DeferredTeacher:
    """A recipe's LLM, loaded where it is first asked: in this process, or in those of a cluster.

    Attributes:
        llm: path or id of the LLM.
        quantize: fewer bits for its weights, as in a recipe.
        device: device of the LLM; the best one there when None.
        generation: settings of the replies.
    """

    llm: str
    quantize: Quantize | None
    device: str | None
    generation: GenerationSettings

    @property
    def about(self) -> Mapping[str, Any]:
        """Provenance."""
        return _loaded(self).about

    def write(self, examples: Sequence[Conversation], seed: int) -> list[Reply]:
        """One batch, by the loaded LLM."""
        return _loaded(self).write(examples, seed)


@lru_cache(1)  # a process of a cluster does many tasks
def _loaded(teacher: DeferredTeacher) -> LocalTeacher:
    # the dtype of inference: no gradient flows through the teacher
    device, dtype = resolve_device(teacher.device, None)
    llm = FrozenLM.from_pretrained(teacher.llm, dtype=dtype, device=device, quantize=teacher.quantize)
    return LocalTeacher(llm, teacher.generation)


@dataclass
class ServerTeacher:
    """An OpenAI-compatible server, many requests at once.

    Attributes:
        url: address of the server up to and with /v1, for example http://localhost:8000/v1.
        model: name of the LLM on the server.
        generation: settings of the replies.
        key: bearer token; the environment's OPENAI_API_KEY when None.
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
        bodies = [self._request_body(conversation, seed + index) for index, conversation in enumerate(examples)]
        with ThreadPoolExecutor(len(bodies)) as pool:
            return [self._reply(answer) for answer in pool.map(self.client.chat, bodies)]

    def _request_body(self, conversation: Conversation, seed: int) -> dict[str, Any]:
        # Servers read a seed as a signed 32-bit number, and some refuse one where nothing is drawn.
        own_seed = seed % 2**31 if self.generation.temperature else None
        settings = replace(self.generation, seed=own_seed)
        return {
            "model": self.model,
            "messages": messages(conversation),
            "stream": False,
            **settings.as_openai(),
        }

    def _reply(self, answer: Mapping[str, Any]) -> Reply:
        text, finished, served = self.client.said(answer)
        # A server may load another LLM while we write: one file holds the targets of one.
        if self.served not in (None, served):
            raise DualSLMError("the server changed its LLM", got=f"{served} after {self.served}", do="use one LLM")
        self.served = served
        return Reply(text, finished)
