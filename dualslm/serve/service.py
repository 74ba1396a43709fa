"""Encodes prompts and streams replies for many conversations at once (ours).

The service keeps no conversation, so any number of them may stand side by side. Prompts that wait while others are
encoded are encoded together: that is the micro-batch of the encoder and the adapters, and no request waits for it to
fill. Embeddings of recordings are cached (`AudioCache`), so a history that is sent again costs no encoding. The HTTP
routes call this and nothing below it.

A request becomes a reply in two steps: `encode` gives the prompt's embeddings, `stream` hands them to the backend.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from typing import ParamSpec, TypeVar

import numpy as np

from dualslm.audio import SAMPLE_RATE
from dualslm.conversation import L_ONLY, NORMAL, P_ONLY, Conversation, Speech, View
from dualslm.inference.audio_cache import AudioCache
from dualslm.inference.backend import Backend, Piece
from dualslm.inference.describe import ANSWER_SETTINGS, TRANSCRIPT_SETTINGS, Description, Questions, describe
from dualslm.inference.session import fitted
from dualslm.model.dualslm import DualSLM
from dualslm.model.generation import GenerationSettings
from dualslm.model.inputs import PromptEmbeds
from dualslm.prompt import Prompt, render
from dualslm.serve.caller import CALLER, Caller
from dualslm.serve.fairness import FairThreads
from dualslm.serve.tool_calls import CallFormat

T = TypeVar("T")
P_ = ParamSpec("P_")
MAX_BATCH_PROMPTS = 16  # encoded at once: more would let the first of them wait for the last
MAX_BATCH_S = 60.0  # s of recordings encoded at once, unless one is longer: others wait meanwhile
EXPLAIN_THREADS = 1
UNLIMITED_TOKENS = 2**31 - 1
WINDOW_S = 1.5  # of speech, which tells a tone: about five syllables
MAX_WINDOWS = 24  # of one recording, which bounds the work


@dataclass(frozen=True)
class Ask:
    """What is asked of the LLM.

    Attributes:
        conversation: conversation that ends with a user turn, or with the result of a call.
        view: sources of P and L in its spoken turns.
        generation: settings of the reply.
        stop: texts before the first of which the reply ends.
        calls: how calls of the conversation's tools stand in the reply; None where nothing may be called.
        several_calls: whether the reply may have more than one.
    """

    conversation: Conversation
    view: View = NORMAL
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    stop: Sequence[str] = ()
    calls: CallFormat | None = None
    several_calls: bool = True


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
        self._secret = secrets.token_bytes(16)
        # one thread, because `AudioCache` is for one thread at a time; encoding must not block the event loop
        self._encoder = FairThreads(1, "encoder")
        self.explainer = FairThreads(EXPLAIN_THREADS, "explain")
        self._waiting: list[_Waiting] = []
        self._encoding: asyncio.Task[None] | None = None

    async def encode(self, ask: Ask) -> EncodedPrompt:
        """Encodes a conversation, together with others that wait.

        Raises:
            DualSLMError: a recording that cannot be used, or a conversation that is too long or ends with no user turn.
        """
        rendered = await self._encoder.run(self._render, ask)
        *before, last = rendered.new_recordings or [[]]
        for some in before:
            await self._encoder.run(self.audio_cache.encode, some)  # by turns with what others sent
        encoded: asyncio.Future[PromptEmbeds] = asyncio.get_running_loop().create_future()
        seconds = sum(map(self.audio_cache.seconds, last))
        self._waiting.append(_Waiting(rendered.prompt, CALLER.get().name, seconds, encoded))
        if self._encoding is None or self._encoding.done():
            self._encoding = asyncio.create_task(self._encode_waiting())
        row = replace(await encoded, salt=rendered.salt, reuse=rendered.reuse, client=CALLER.get().name)
        audio_positions = sum(not isinstance(key, int) for key in row.keys)  # the key of a text position is its id
        free = UNLIMITED_TOKENS if self.context is None else self.context - len(row.keys)
        return EncodedPrompt(row, audio_positions, rendered.left_out_turns, max_new_tokens=free)

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
        stop = [*ask.stop, *(ask.calls.stop if ask.calls else ())]
        keep_special = ask.calls.special if ask.calls else ()
        async with aclosing(self.backend.stream(prompt.embeds, generation, stop, keep_special)) as pieces:
            async for piece in pieces:
                yield piece

    async def reply(self, ask: Ask) -> str:
        """The whole reply."""
        return "".join([piece.text async for piece in self.stream(ask)])

    async def stream_transcript(self, speech: Speech, temperature: float = 0.0) -> AsyncGenerator[Piece]:
        """The words of a recording in pieces, from L alone."""
        if self.model.aligned:
            read = await self._read(speech)
            yield Piece(read.words, len(read.words.split()), reason="stop")
            return
        settings = TRANSCRIPT_SETTINGS.changed(temperature=temperature)
        ask = Ask(Conversation(self.questions.words).user(speech), L_ONLY, settings)
        async with aclosing(self.stream(ask)) as pieces:
            async for piece in pieces:
                yield piece

    async def transcribe(self, speech: Speech) -> str:
        """The words of a recording, from L alone."""
        return "".join([piece.text async for piece in self.stream_transcript(speech)]).strip()

    async def attributes(self, speech: Speech) -> dict[str, str | None]:
        """The attributes of a voice, each from P alone; None where the answer names no value, or several."""
        if self.model.aligned:
            return dict((await self._read(speech)).attributes)
        return self._attribute_values(await self._attribute_answers(speech))

    async def describe(self, speech: Speech) -> Description:
        """Words and attributes of a recording."""
        if self.model.aligned:
            return await self._read(speech)
        words, answers = await asyncio.gather(self.transcribe(speech), self._attribute_answers(speech))
        attributes = self._attribute_values(answers)
        known = {name: value for name, value in attributes.items() if value is not None}
        return Description(words, attributes, self.questions.caption(known), answers)

    async def trace_emotion(self, speech: Speech) -> list[tuple[float, float, str | None]]:
        """The emotion of a recording from moment to moment: start and end in s of each window, and what P tells of it.

        Empty where the model was not trained with emotions.
        """
        question = self.questions.attributes.get("emotion")
        aligned = self.model.aligned
        if question is None or not isinstance(speech.audio, np.ndarray):
            return []
        if aligned and "emotion" not in aligned.attributes:
            return []
        spans = windows(len(speech.audio))
        parts = [Speech(speech.audio[span.start : span.stop]) for span in spans]
        if aligned:
            emotions = [(await self._read(part)).attributes.get("emotion") for part in parts]
        else:
            asks = [Ask(question.about(part), P_ONLY, ANSWER_SETTINGS) for part in parts]
            emotions = [question.value(answer) for answer in await asyncio.gather(*map(self.reply, asks))]
        return [
            (span.start / SAMPLE_RATE, span.stop / SAMPLE_RATE, emotion)
            for span, emotion in zip(spans, emotions, strict=True)
        ]

    async def _read(self, speech: Speech) -> Description:
        """What aligned adapters say, in the one thread that may encode; the LLM was not taught to be asked."""
        return await self._encoder.run(describe, self.audio_cache, speech, self.questions)

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
        return await self._encoder.run(work, *args, **kwargs)

    async def close(self) -> None:
        """Ends all work, that of the backend too."""
        await self.backend.close()
        self._encoder.close()
        self.explainer.close()

    # ------------------------------------------------------------------ encoding in batches

    def _render(self, ask: Ask) -> _Rendered:
        """A conversation as a prompt that fits in the context. Runs in the encoder's thread."""
        caller = CALLER.get()
        caller.check_wanted()
        render_view = partial(render, tokenizer=self.model.llm.tokenizer, view=ask.view)
        most = ask.generation.max_new_tokens
        # this also opens the recordings, so a bad one fails its own request and not the batch
        prompt, left_out = fitted(ask.conversation, render_view, self.audio_cache.length, self.context, most)
        parts: list[list[Speech]] = []
        free = 0.0
        for speech in self.audio_cache.missing(prompt):
            seconds = self.audio_cache.seconds(speech)
            if seconds > free:
                parts.append([])
                free = MAX_BATCH_S
            parts[-1].append(speech)
            free -= seconds
        if caller.key:
            return _Rendered(prompt, left_out, parts, caller.key, reuse=True)
        # Without keys anybody may ask: what was read of a talk is for those alone who know how it began, and its
        # first turn, which may hold a secret that can be guessed, is always read anew.
        replied = any(turn.role == "assistant" for turn in ask.conversation.turns)
        return _Rendered(prompt, left_out, parts, self._salt(ask.conversation, caller.name), reuse=replied)

    def _salt(self, conversation: Conversation, client: str) -> str:
        """A name of the talk that a conversation belongs to: its client, system text, tools and first turn."""
        first = [
            self.audio_cache.digest(part) if isinstance(part, Speech) and part.audio is not None else repr(part)
            for part in conversation.turns[0].parts
        ]
        return blake2b(
            repr((client, conversation.system, first, conversation.tools)).encode(), key=self._secret, digest_size=16
        ).hexdigest()

    async def _encode_waiting(self) -> None:
        """Encodes batch after batch until no request waits."""
        CALLER.set(Caller("all"))  # this task's own: it works for all clients, and goes by turns with each
        while batch := self._next_batch():
            results = await self._encoder.run(self._encode_batch, [one.prompt for one in batch])
            for one, result in zip(batch, results, strict=True):
                if one.encoded.cancelled():  # while it was encoded
                    continue
                if isinstance(result, Exception):
                    one.encoded.set_exception(result)
                else:
                    one.encoded.set_result(result)

    def _next_batch(self) -> list[_Waiting]:
        """Takes prompts that wait, the first of each client before the second of any."""
        # a client that left has cancelled its future; its recordings are not worth an encoder pass
        waiting = [one for one in self._waiting if not one.encoded.cancelled()]
        before: Counter[str] = Counter()
        rank: dict[int, int] = {}
        for index, one in enumerate(waiting):
            rank[index] = before[one.client]
            before[one.client] += 1
        batch: list[_Waiting] = []
        seconds = 0.0
        for index in sorted(rank, key=rank.__getitem__):
            one = waiting[index]
            if len(batch) == MAX_BATCH_PROMPTS or (batch and seconds + one.seconds > MAX_BATCH_S):
                break
            batch.append(one)
            seconds += one.seconds
        self._waiting = [one for one in waiting if one not in batch]
        return batch

    def _encode_batch(self, prompts: Sequence[Prompt]) -> Sequence[PromptEmbeds | Exception]:
        """For each prompt its embeddings, or why it has none. Runs in the encoder's thread."""
        try:
            embeds = self.audio_cache.embed(prompts)
        except Exception as error:
            if len(prompts) == 1:
                return [error]
            return [self._encode_batch([prompt])[0] for prompt in prompts]  # what is wrong with one is not the others'
        self.batches += 1
        return embeds


def windows(samples: int) -> list[range]:
    """The samples of each window of a recording: they overlap by half, and a long recording has longer ones."""
    length = max(round(WINDOW_S * SAMPLE_RATE), -(-2 * samples // MAX_WINDOWS))
    step = length // 2
    return [range(start, min(start + length, samples)) for start in range(0, max(1, samples - step), step)]


@dataclass(frozen=True)
class _Rendered:
    """A prompt that is not encoded yet.

    Attributes:
        prompt: text and slots.
        left_out_turns: number of oldest turns for which the context was too short.
        new_recordings: recordings that are not known yet, in parts that are encoded at once.
        salt: see `PromptEmbeds`.
        reuse: see `PromptEmbeds`.
    """

    prompt: Prompt
    left_out_turns: int
    new_recordings: list[list[Speech]]
    salt: str
    reuse: bool


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A prompt that waits to be encoded.

    Attributes:
        prompt: text and slots.
        client: whose it is.
        seconds: s of its recordings that are not known yet.
        encoded: takes its embeddings.
    """

    prompt: Prompt
    client: str
    seconds: float
    encoded: asyncio.Future[PromptEmbeds]
