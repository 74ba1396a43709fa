"""Encodes prompts and streams replies for many conversations at once (ours).

The service keeps no conversation, so any number of them may stand side by side. Prompts that wait while others are
encoded are encoded together: that is the micro-batch of the encoder and the adapters, and no request waits for it to
fill. Embeddings of recordings are cached (`AudioCache`), so a history that is sent again costs no encoding. The HTTP
routes call this and nothing below it.

A request becomes a reply in two steps: `encode` gives the prompt's embeddings, `stream` hands them to the backend.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import ParamSpec, TypeVar

import numpy as np

from dualslm.audio import SAMPLE_RATE
from dualslm.conversation import L_ONLY, NORMAL, P_ONLY, Conversation, Speech, View
from dualslm.inference.audio_cache import AudioCache
from dualslm.inference.backend import Backend, Piece
from dualslm.inference.describe import ANSWER_SETTINGS, TRANSCRIPT_SETTINGS, Description, Questions
from dualslm.inference.session import fitted
from dualslm.model.dualslm import DualSLM
from dualslm.model.generation import GenerationSettings
from dualslm.model.inputs import PromptEmbeds
from dualslm.prompt import Prompt, render

T = TypeVar("T")
P_ = ParamSpec("P_")
MAX_BATCH_PROMPTS = 16  # encoded at once: more would let the first of them wait for the last
UNLIMITED_TOKENS = 2**31 - 1
WINDOW_S = 1.5  # of speech, which tells a tone: about five syllables
MAX_WINDOWS = 24  # of one recording, which bounds the work


@dataclass(frozen=True)
class Ask:
    """What is asked of the LLM.

    Attributes:
        conversation: conversation that ends with a user turn.
        view: sources of P and L in its spoken turns.
        generation: settings of the reply.
        stop: texts before the first of which the reply ends.
    """

    conversation: Conversation
    view: View = NORMAL
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    stop: Sequence[str] = ()


@dataclass(frozen=True)
class EncodedPrompt:
    """A conversation as the LLM reads it.

    Attributes:
        embeds: embeddings and keys of every position.
        audio_positions: number of positions that are P or L.
        left_out_turns: number of oldest turns for which the context was too short.
        max_new_tokens: number of tokens that the context leaves for the reply.
    """

    embeds: PromptEmbeds
    audio_positions: int
    left_out_turns: int
    max_new_tokens: int


class Service:
    """Encodes conversations and lets a backend reply.

    Args:
        model: encoder and adapters; of its LLM only the token embeddings are used here.
        backend: where the LLM runs.
        questions: questions by which the LLM is asked for words and attributes.
        context: positions that prompt and reply may take together; the backend's limit when None.
        system: system text of conversations that have none.

    Attributes:
        audio_cache: embeddings of recordings.
        batches: number of batches that were encoded.
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
        self.model = model
        self.backend = backend
        self.questions = questions
        self.system = system
        self.context = min((limit for limit in (context, backend.context) if limit is not None), default=None)
        self.audio_cache = AudioCache(model)
        self.batches = 0
        # one thread, because `AudioCache` is for one thread at a time; encoding must not block the event loop
        self._encoder_thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._waiting: list[tuple[Ask, asyncio.Future[EncodedPrompt]]] = []
        self._encoding: asyncio.Task[None] | None = None

    async def encode(self, ask: Ask) -> EncodedPrompt:
        """Encodes a conversation, together with others that wait.

        Raises:
            DualSLMError: a recording that cannot be used, or a conversation that is too long or ends with no user turn.
        """
        encoded: asyncio.Future[EncodedPrompt] = asyncio.get_running_loop().create_future()
        self._waiting.append((ask, encoded))
        if self._encoding is None or self._encoding.done():
            self._encoding = asyncio.create_task(self._encode_waiting())
        return await encoded

    async def stream(self, ask: Ask, prompt: EncodedPrompt | None = None) -> AsyncGenerator[Piece]:
        """The reply in pieces; see `Backend.stream`.

        Args:
            ask: conversation and settings.
            prompt: the conversation as `encode` gave it; encoded here when None.
        """
        if prompt is None:
            prompt = await self.encode(ask)
        longest = min(ask.generation.max_new_tokens, prompt.max_new_tokens)
        generation = ask.generation.changed(max_new_tokens=longest)
        # aclosing, because a client that leaves closes this generator and the LLM must stop at once, not when
        # the garbage collector finds the backend's generator
        async with aclosing(self.backend.stream(prompt.embeds, generation, ask.stop)) as pieces:
            async for piece in pieces:
                yield piece

    async def reply(self, ask: Ask) -> str:
        """The whole reply."""
        return "".join([piece.text async for piece in self.stream(ask)])

    def stream_transcript(self, speech: Speech, temperature: float = 0.0) -> AsyncGenerator[Piece]:
        """The words of a recording in pieces, from L alone."""
        settings = TRANSCRIPT_SETTINGS.changed(temperature=temperature)
        return self.stream(Ask(Conversation(self.questions.words).user(speech), L_ONLY, settings))

    async def transcribe(self, speech: Speech) -> str:
        """The words of a recording, from L alone."""
        return "".join([piece.text async for piece in self.stream_transcript(speech)]).strip()

    async def attributes(self, speech: Speech) -> dict[str, str | None]:
        """The attributes of a voice, each from P alone; None where the answer names no value, or several."""
        return self._attribute_values(await self._attribute_answers(speech))

    async def describe(self, speech: Speech) -> Description:
        """Words and attributes of a recording."""
        words, answers = await asyncio.gather(self.transcribe(speech), self._attribute_answers(speech))
        attributes = self._attribute_values(answers)
        known = {name: value for name, value in attributes.items() if value is not None}
        return Description(words, attributes, self.questions.caption(known), answers)

    async def trace_emotion(self, speech: Speech) -> list[tuple[float, float, str | None]]:
        """The emotion of a recording from moment to moment: start and end in s of each window, and what P tells of it.

        Empty where the model was not trained with emotions.
        """
        question = self.questions.attributes.get("emotion")
        if question is None or not isinstance(speech.audio, np.ndarray):
            return []
        spans = windows(len(speech.audio))
        asks = [
            Ask(question.about(Speech(speech.audio[span.start : span.stop])), P_ONLY, ANSWER_SETTINGS) for span in spans
        ]
        answers = await asyncio.gather(*map(self.reply, asks))
        return [
            (span.start / SAMPLE_RATE, span.stop / SAMPLE_RATE, question.value(answer))
            for span, answer in zip(spans, answers, strict=True)
        ]

    async def _attribute_answers(self, speech: Speech) -> dict[str, str]:
        """The LLM's own words on each attribute; all questions are asked at once and share the backend's batch."""
        questions = self.questions.attributes
        asks = [Ask(question.about(speech), P_ONLY, ANSWER_SETTINGS) for question in questions.values()]
        return dict(zip(questions, await asyncio.gather(*map(self.reply, asks)), strict=True))

    def _attribute_values(self, answers: Mapping[str, str]) -> dict[str, str | None]:
        return {name: self.questions.attributes[name].value(text) for name, text in answers.items()}

    @property
    def llm_is_local(self) -> bool:
        """Whether the LLM's weights are in this process, and not its token embeddings alone."""
        return not any(weight.is_meta for weight in self.model.llm.parameters())

    async def run_in_encoder_thread(self, work: Callable[P_, T], *args: P_.args, **kwargs: P_.kwargs) -> T:
        """Runs work that uses `audio_cache` in the one thread that may."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._encoder_thread, partial(work, *args, **kwargs))

    async def close(self) -> None:
        """Ends all work, that of the backend too."""
        await self.backend.close()
        self._encoder_thread.shutdown(cancel_futures=True)

    # ------------------------------------------------------------------ encoding in batches

    async def _encode_waiting(self) -> None:
        """Encodes batch after batch until no request waits."""
        while self._waiting:
            taken = self._waiting[:MAX_BATCH_PROMPTS]
            self._waiting = self._waiting[MAX_BATCH_PROMPTS:]
            # a client that left has cancelled its future; its recordings are not worth an encoder pass
            batch = [(ask, future) for ask, future in taken if not future.cancelled()]
            results = await self.run_in_encoder_thread(self._encode_batch, [ask for ask, _ in batch])
            for (_, future), result in zip(batch, results, strict=True):
                if future.cancelled():  # while it was encoded
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    def _encode_batch(self, asks: Sequence[Ask]) -> list[EncodedPrompt | Exception]:
        """For each request its encoded prompt, or why it has none. Runs in the encoder's thread."""
        tokenizer = self.model.llm.tokenizer
        rendered: list[tuple[Prompt, int] | Exception] = []
        for ask in asks:
            render_view = partial(render, tokenizer=tokenizer, view=ask.view)
            most = ask.generation.max_new_tokens
            try:
                # this also opens the recordings, so a bad one fails its own request and not the batch
                rendered.append(fitted(ask.conversation, render_view, self.audio_cache.length, self.context, most))
            except Exception as error:
                rendered.append(error)
        prompts = [one[0] for one in rendered if not isinstance(one, Exception)]
        try:
            embeds = iter(self.audio_cache.embed(prompts))
        except Exception as error:
            return [one if isinstance(one, Exception) else error for one in rendered]
        self.batches += 1
        results: list[EncodedPrompt | Exception] = []
        for one in rendered:
            if isinstance(one, Exception):
                results.append(one)
                continue
            row = next(embeds)
            audio_positions = sum(not isinstance(key, int) for key in row.keys)  # the key of a text position is its id
            free = UNLIMITED_TOKENS if self.context is None else self.context - len(row.keys)
            results.append(EncodedPrompt(row, audio_positions, left_out_turns=one[1], max_new_tokens=free))
        return results


def windows(samples: int) -> list[range]:
    """The samples of each window of a recording: they overlap by half, and a long recording has longer ones."""
    length = max(round(WINDOW_S * SAMPLE_RATE), -(-2 * samples // MAX_WINDOWS))
    step = length // 2
    return [range(start, min(start + length, samples)) for start in range(0, max(1, samples - step), step)]
