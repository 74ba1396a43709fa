"""A thread that owns the LLM: requests go in, pieces of replies come out (ours).

Between two steps of the batch new requests join and abandoned ones leave. Nothing else touches the LLM's cache, so
nothing is locked. What fails between two steps, or in one, ends the requests of the batch and no others.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Condition, Thread
from time import perf_counter

from dualslm.inference.backend import Piece, Reason, StopStrings, TokenLogprob, UnavailableError
from dualslm.inference.continuous_batch import ActiveRequest, ContinuousBatch, Logprobs, RequestBatch
from dualslm.inference.prefix_cache import PREFIX_CACHE_BYTES, PrefixCache
from dualslm.model.generation import GenerationSettings, ReplyStreamer, text_of
from dualslm.model.inputs import PromptEmbeds
from dualslm.model.llm import FrozenLM
from dualslm.model.reasoning import begins_within

JOINS_PER_STEP = 4  # more would keep the requests in the batch waiting
JOIN_POSITIONS = 1024  # read for prompts, after which the others have their next token first
JOIN_S = 0.1  # the same for the time that was spent on them: on a busy machine four short prompts took seconds


@dataclass(eq=False)
class _Job:
    """A request on its way through the thread."""

    prompt: PromptEmbeds
    generation: GenerationSettings
    pieces: ReplyStreamer
    until: StopStrings
    loop: asyncio.AbstractEventLoop
    out: asyncio.Queue[Piece | Exception] = field(default_factory=asyncio.Queue)
    request: ActiveRequest | None = None
    client_gone: bool = False
    tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)  # of tokens whose text was not sent yet

    def send(self, what: Piece | Exception) -> None:
        """Hands something to the event loop, which may be gone already."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.out.put_nowait, what)

    def drawn(self, token: int | None) -> bool:
        """Sends the next token, None for the reply's own end; returns whether the reply goes on."""
        assert self.request is not None
        self.tokens += token is not None
        if token is not None and self.request.logprobs is not None:
            self.logprobs.append(self._told(token, self.request.logprobs))
        text = self.until.add(self.pieces.add(token)) if token is not None else ""
        reason: Reason | None = None if self.request.tokens_left else "length"
        reason = "stop" if token is None or self.until.met else reason
        if reason is not None:
            text += self.until.add(self.pieces.rest()) if not self.until.met else ""
            text += self.until.rest()
            reason = "stop" if self.until.met else reason
        if text or reason:
            self.send(Piece(text, self.tokens, self.request.reused, reason, tuple(self.logprobs)))
            self.logprobs.clear()
        return reason is None

    def _told(self, token: int, logprobs: Logprobs) -> TokenLogprob:
        top = tuple((text_of(self.pieces.tokenizer, [other]), logprob) for other, logprob in logprobs.top)
        return TokenLogprob(text_of(self.pieces.tokenizer, [token]), logprobs.token, top)


class LocalBackend:
    """Answers with an LLM in this process.

    Args:
        llm: the frozen LLM; where a batch is given, its tokenizer and end-of-turn tokens alone.
        size: most requests that are answered at once.
        max_bytes: of keys and values to keep of replies that were given.
        batch: who runs the LLM; PyTorch when None.
    """

    def __init__(
        self,
        llm: FrozenLM,
        size: int = 32,
        max_bytes: int = PREFIX_CACHE_BYTES,
        batch: RequestBatch | None = None,
    ) -> None:
        self.llm = llm
        self.batch: RequestBatch = batch or ContinuousBatch(llm, size, PrefixCache(max_bytes))
        self._waiting: list[_Job] = []
        self._jobs: dict[ActiveRequest, _Job] = {}
        self._changed, self._closed = Condition(), False
        self._thread = Thread(target=self._run, name="llm", daemon=True)
        self._thread.start()

    @property
    def context(self) -> int | None:
        """What the batch has room for."""
        return self.batch.context

    async def stream(
        self,
        prompt: PromptEmbeds,
        generation: GenerationSettings,
        stop: Sequence[str] = (),
        keep_special: Sequence[str] = (),
    ) -> AsyncGenerator[Piece]:
        """See `Backend.stream`."""
        pieces = ReplyStreamer(self.llm.tokenizer, begins_within(self.llm.tokenizer, prompt.keys), keep_special)
        job = _Job(prompt, generation, pieces, StopStrings(stop), asyncio.get_running_loop())
        with self._changed:
            if self._closed:
                raise UnavailableError("the server stops", got="a new request", do="ask again in a moment")
            self._waiting.append(job)
            self._changed.notify()
        try:
            while True:
                piece = await job.out.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if piece.reason:
                    return
        finally:
            job.client_gone = True

    def state(self) -> Mapping[str, float]:
        """See `Backend.state`."""
        return {
            "batch_talks": len(self.batch.requests),
            "batch_waiting": len(self._waiting),
            "kept_positions": self.batch.kept_positions,
        }

    async def close(self) -> None:
        """See `Backend.close`; the requests in the batch are answered first."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    # ------------------------------------------------------------------ in the thread

    def _run(self) -> None:
        while self._awaits_work():
            try:
                for request in [request for request, job in self._jobs.items() if job.client_gone]:
                    self.batch.leave(request)  # whoever asked has hung up
                    del self._jobs[request]
                self._join_waiting()
                self._step()
            except Exception as error:  # out of memory, for one: these requests end, later ones may fit
                for job in self._jobs.values():
                    job.send(_gave_up(error))
                self._jobs.clear()
                self.batch.clear()

    def _awaits_work(self) -> bool:
        """Sleeps until there is something to do; False when the backend was closed and all work is done."""
        with self._changed:
            while not (self._waiting or self._jobs or self._closed):
                self._changed.wait()
            return bool(self._waiting or self._jobs)

    def _join_waiting(self) -> None:
        """Adds requests that wait, for as long as the others in the batch can do without a token."""
        positions = 0
        until = perf_counter() + JOIN_S
        for number in range(JOINS_PER_STEP):
            if not self._waiting or len(self.batch.requests) >= self.batch.size:
                return
            if number and (positions >= JOIN_POSITIONS or perf_counter() >= until):
                return
            positions += self._join(self._next())

    def _next(self) -> _Job:
        """Takes a request that waits, of the client with fewest in the batch: the prompts of one hold up no other."""
        answered = Counter(job.prompt.client for job in self._jobs.values())
        with self._changed:  # others come meanwhile
            job = min(self._waiting, key=lambda one: answered[one.prompt.client])  # the oldest of those that are equal
            self._waiting.remove(job)
        return job

    def _join(self, job: _Job) -> int:
        """Adds a request to the batch; returns the positions that were read for it."""
        if job.client_gone:
            return 0
        try:
            job.request = self.batch.join(job.prompt, job.generation)
        except Exception as error:
            job.send(_gave_up(error))
            return len(job.prompt.keys)
        self._jobs[job.request] = job
        return job.request.positions - job.request.reused

    def _step(self) -> None:
        for request, token in self.batch.step() if self._jobs else []:
            if not self._jobs[request].drawn(token):
                self.batch.leave(request)
                del self._jobs[request]


def _gave_up(error: Exception) -> UnavailableError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UnavailableError("the LLM gave up on this reply", got=first, do="ask again, or for less")
