"""Hears and answers for many talks at once; stateless, so that any number may stand side by side (ours).

Prompts that wait while others are heard are heard together: that is the micro-batch of the encoder and the adapters,
and nobody waits for it to fill. Embeddings of recordings are kept (`AudioCache`), so a history that is sent again costs
no encoding. The page and the HTTP routes talk to this and to nothing below it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import ParamSpec, TypeVar

from dualslm.conversation import L_ONLY, NORMAL, P_ONLY, Conversation, Speech, View
from dualslm.inference.audio_cache import AudioCache
from dualslm.inference.backend import Backend, Piece
from dualslm.inference.describe import ANSWER, WORDS, Description, Questions
from dualslm.inference.session import fitted
from dualslm.model.dualslm import DualSLM
from dualslm.model.generation import GenerationSettings
from dualslm.model.inputs import PromptEmbeds
from dualslm.prompt import Prompt, render

T = TypeVar("T")
P_ = ParamSpec("P_")
TOGETHER = 16  # prompts that are heard in one go


@dataclass(frozen=True)
class Ask:
    """What is asked of the LLM.

    Attributes:
        conversation: ends with a user turn.
        view: where the channels of its spoken turns come from.
        how: decoding settings.
        stop: the reply ends before the first of these texts.
    """

    conversation: Conversation
    view: View = NORMAL
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    stop: Sequence[str] = ()


@dataclass(frozen=True)
class Read:
    """A talk as the LLM reads it.

    Attributes:
        prompt: its embeddings.
        heard: how many positions are P or L.
        left_out: how many turns the context had no place for.
        most: tokens that the reply may have.
    """

    prompt: PromptEmbeds
    heard: int
    left_out: int
    most: int


class Service:
    """Hears, and lets a backend answer.

    Args:
        model: its encoder and adapters; its LLM is asked for nothing but embeddings.
        backend: runs the LLM.
        questions: by which the LLM is asked for what it heard.
        context: positions that prompt and reply may take together; the backend's when None.
        system: the system text of talks that have none.
    """

    def __init__(
        self,
        model: DualSLM,
        backend: Backend,
        *,
        questions: Questions,
        context: int | None = None,
        system: str | None = None,
    ) -> None:
        self.model, self.backend, self.questions, self.system = model, backend, questions, system
        limits = [limit for limit in (context, backend.context) if limit is not None]
        self.context = min(limits, default=None)
        self.audio_cache = AudioCache(model)
        self.batches = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ears")
        self._waiting: list[tuple[Ask, asyncio.Future[Read]]] = []
        self._task: asyncio.Task[None] | None = None

    async def read(self, ask: Ask) -> Read:
        """Hears a talk, together with others that wait.

        Raises:
            DualSLMError: a recording that cannot be used, a talk that cannot be answered or is too long.
        """
        place: asyncio.Future[Read] = asyncio.get_running_loop().create_future()
        self._waiting.append((ask, place))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._hear())
        return await place

    async def stream(self, ask: Ask) -> AsyncGenerator[Piece]:
        """The reply to a talk, in pieces; see `Backend.stream`."""
        async with aclosing(self.answer(await self.read(ask), ask)) as pieces:
            async for piece in pieces:
                yield piece

    def answer(self, read: Read, ask: Ask) -> AsyncGenerator[Piece]:
        """The reply to a talk that was read."""
        longest = min(ask.generation.max_new_tokens, read.most)
        return self.backend.stream(read.prompt, ask.generation.changed(max_new_tokens=longest), ask.stop)

    async def reply(self, ask: Ask) -> str:
        """The whole reply to a talk."""
        return "".join([piece.text async for piece in self.stream(ask)])

    async def words(self, speech: Speech) -> str:
        """The words of a recording, from L alone."""
        ask = Ask(Conversation(self.questions.words).user(speech), L_ONLY, WORDS)
        return (await self.reply(ask)).strip()

    async def attributes(self, speech: Speech) -> dict[str, str | None]:
        """The attributes of a voice, each from P alone; None where the answer names no value, or several."""
        return self._values(await self._answers(speech))

    async def heard(self, speech: Speech) -> Description:
        """Words and attributes of a recording."""
        words, answers = await asyncio.gather(self.words(speech), self._answers(speech))
        found = self._values(answers)
        known = {name: value for name, value in found.items() if value is not None}
        return Description(words, found, self.questions.caption(known), answers)

    async def _answers(self, speech: Speech) -> dict[str, str]:
        asked = self.questions.attributes
        asks = [Ask(one.about(speech), P_ONLY, ANSWER) for one in asked.values()]
        return dict(zip(asked, await asyncio.gather(*map(self.reply, asks)), strict=True))

    def _values(self, answers: Mapping[str, str]) -> dict[str, str | None]:
        return {name: self.questions.attributes[name].value(text) for name, text in answers.items()}

    @property
    def llm_here(self) -> bool:
        """Whether the LLM's weights are in this process, and not its token embeddings alone."""
        return not any(weight.is_meta for weight in self.model.llm.parameters())

    async def in_ears(self, work: Callable[P_, T], *args: P_.args, **more: P_.kwargs) -> T:
        """Does work in the thread to which the ears belong."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *args, **more))

    async def close(self) -> None:
        """Ends all work, that of the backend too."""
        await self.backend.close()
        self._thread.shutdown(cancel_futures=True)

    # ------------------------------------------------------------------ in the ears' thread

    async def _hear(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            some, self._waiting = self._waiting[:TOGETHER], self._waiting[TOGETHER:]
            there = [(ask, place) for ask, place in some if not place.cancelled()]
            found = await loop.run_in_executor(self._thread, self._together, [ask for ask, _ in there])
            for (_, place), one in zip(there, found, strict=True):
                if place.cancelled():
                    continue
                if isinstance(one, Exception):
                    place.set_exception(one)
                else:
                    place.set_result(one)

    def _together(self, asks: Sequence[Ask]) -> list[Read | Exception]:
        """Each talk as it is read, or why it cannot be."""
        found: list[Read | Exception | tuple[Prompt, int]] = []
        for ask in asks:
            try:
                found.append(self._fitted(ask))
            except Exception as error:
                found.append(error)
        try:
            rows = iter(self.audio_cache.embed([one[0] for one in found if isinstance(one, tuple)]))
        except Exception as error:
            return [one if isinstance(one, Exception) else error for one in found if not isinstance(one, Read)]
        self.batches += 1
        return [one if not isinstance(one, tuple) else self._read(next(rows), one[1]) for one in found]

    def _fitted(self, ask: Ask) -> tuple[Prompt, int]:
        tokenizer = self.model.llm.tokenizer
        return fitted(
            ask.conversation,
            lambda conversation: render(conversation, tokenizer, ask.view),
            self.audio_cache.length,
            self.context,
            ask.generation.max_new_tokens,
        )

    def _read(self, row: PromptEmbeds, left_out: int) -> Read:
        heard = sum(not isinstance(mark, int) for mark in row.keys)
        most = 2**31 - 1 if self.context is None else self.context - len(row.keys)
        return Read(row, heard, left_out, most)
