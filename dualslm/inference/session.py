"""A running conversation: spoken or typed turns in, a reply in pieces out; used by chat and by serve (ours).

Only what is new is encoded and read: a recording's embeddings are kept (`AudioCache`), and so are the keys and values
of what the LLM has read (`PrefixCache`). The history is data, not state: `answer` takes any `Conversation`, so that a
server without state reuses as much as a terminal does, and the reply is the one that `DualSLM.reply` gives.

When the context is full the oldest exchanges are left out, whole, and the system text stays. An interrupted reply
stands in the history as far as it was said.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

import torch

from dualslm.conversation import NORMAL, Conversation, Part, Speech, Turn, View
from dualslm.errors import DualSLMError
from dualslm.inference.audio_cache import AudioCache
from dualslm.inference.continuous_batch import ContinuousBatch, RequestBatch
from dualslm.inference.describe import ASKED, Description, Questions, describe
from dualslm.model.dualslm import DualSLM
from dualslm.model.generation import GenerationSettings, ReplyStreamer
from dualslm.model.llm import FrozenLM
from dualslm.model.reasoning import begins_within
from dualslm.prompt import Prompt, render

CHARACTERS_PER_POSITION = 16  # more than any language has in a token: what is longer cannot fit, and is not tokenised
REPLY_SHARE = 4  # at most one position in so many is kept free for the reply


@dataclass(frozen=True)
class Times:
    """What an answer took.

    Attributes:
        encode: s, until all recordings were embeddings.
        prefill: s, to read what was new.
        first_token: s, from the question to the first token.
        decode: s, from the first token to the last.
        tokens: of the reply.
        positions: of the prompt.
        reused: how many of them had been read before.
        left_out: number of oldest turns that did not fit in the context.
    """

    encode: float
    prefill: float
    first_token: float
    decode: float
    tokens: int
    positions: int
    reused: int
    left_out: int

    @property
    def tokens_per_second(self) -> float:
        """How fast the reply was drawn after its first token; 0 for a reply of one token."""
        return (self.tokens - 1) / self.decode if self.tokens > 1 else 0.0


@dataclass(frozen=True)
class Exchange:
    """What was said and answered, and how long it took.

    Attributes:
        parts: of the user's turn.
        reply: as far as it was said.
        whole: it was not interrupted.
        times: of the answer; None where it was interrupted before its first token.
    """

    parts: tuple[Part, ...]
    reply: str
    whole: bool
    times: Times | None


class Session:
    """A conversation with a model. For one thread at a time.

    Args:
        model: who answers.
        conversation: goes on in place; an empty one without a system text when None.
        view: where the channels of the last spoken turn come from.
        past: where those of earlier spoken turns come from; as `view` when None. Words that a text source needs and
            a recording lacks are read from L, captions from P.
        generation: settings of replies; the checkpoint's own unless given.
        context: positions that prompt and reply may take together; what the LLM was made for when None.
        questions: put to the LLM to describe a recording.
        audio_cache: embeddings of recordings, which several sessions may share.
        batch: who runs the LLM; PyTorch when None.

    Attributes:
        record: the exchanges since the session began, oldest first.
        times: of the last answer; None before there is one.
    """

    def __init__(
        self,
        model: DualSLM,
        conversation: Conversation | None = None,
        *,
        view: View = NORMAL,
        past: View | None = None,
        generation: GenerationSettings | None = None,
        context: int | None = None,
        questions: Questions = ASKED,
        audio_cache: AudioCache | None = None,
        batch: RequestBatch | None = None,
    ) -> None:
        self.model = model
        self.conversation = conversation if conversation is not None else Conversation()
        self.view = view
        self.past = past
        self.generation = generation or model.generation
        self.questions = questions
        self.context = context_of(model.llm, context)
        self.audio_cache = audio_cache if audio_cache is not None else AudioCache(model)
        # a session is a batch of one request
        self.batch: RequestBatch = batch if batch is not None else ContinuousBatch(model.llm, 1)
        self.context = min((limit for limit in (self.context, self.batch.context) if limit is not None), default=None)
        self.record: list[Exchange] = []
        self.times: Times | None = None
        self._descriptions: dict[str, Description] = {}

    # ------------------------------------------------------------------ this conversation

    def say(self, *parts: Part) -> Generator[str]:
        """Adds a user turn, yields the reply in pieces and adds it as well.

        Closed or broken off in the middle, it keeps what was yielded as the reply. A turn that cannot be answered is
        taken back.

        Raises:
            DualSLMError: a recording that cannot be used, or a turn that does not fit in the context.
        """
        self.conversation.user(*parts)
        self.times, said = None, ""
        try:
            for piece in self.answer(self.conversation):
                said += piece
                yield piece
        except Exception:
            self.conversation.turns.pop()
            raise
        except BaseException:  # closed, or Ctrl-C
            self._keep(parts, said, whole=False)
            raise
        self._keep(parts, said, whole=True)

    def _keep(self, parts: tuple[Part, ...], said: str, *, whole: bool) -> None:
        """A reply of which nothing was said leaves the user's turn open, to be joined by the next."""
        if whole or said:
            self.conversation.assistant(said)
        self.record.append(Exchange(parts, said, whole, self.times))

    def reply(self, *parts: Part) -> str:
        """The whole reply to a user turn, which it adds with the turn."""
        return "".join(self.say(*parts))

    def undo(self) -> Turn | None:
        """Takes back the last user turn with its reply, and gives it; None where there is none."""
        turns = self.conversation.turns
        last = next((index for index in reversed(range(len(turns))) if turns[index].role == "user"), None)
        if last is None:
            return None
        taken = turns[last]
        if self.record and self.record[-1].parts == taken.parts:
            self.record.pop()
        del turns[last:]
        return taken

    def describe(self, speech: Speech) -> Description:
        """The words of a recording through L alone, and its attributes through P alone; asked once.

        Raises:
            DualSLMError: a recording that cannot be used.
        """
        digest = self.audio_cache.digest(speech)
        if digest not in self._descriptions:
            self._descriptions[digest] = describe(self.audio_cache, replace(speech, tone=None), self.questions)
        return self._descriptions[digest]

    # ------------------------------------------------------------------ any conversation

    def answer(self, conversation: Conversation, *, generation: GenerationSettings | None = None) -> Generator[str]:
        """Yields the reply to a conversation in pieces and leaves it as it is; joined they are the whole reply.

        What this session has read before is reused as far as the conversation begins alike.

        Args:
            conversation: ends with a user turn.
            generation: settings of the reply; the session's own when None.
        """
        generation = generation or self.generation
        began = time.perf_counter()
        prompt, left_out = self._fitted(conversation, generation)
        (embeds,) = self.audio_cache.embed([prompt])
        encoded = self._now()
        positions = len(embeds.keys)
        if self.context is not None:
            longest = min(generation.max_new_tokens, self.context - positions)
            generation = generation.changed(max_new_tokens=longest)
        request = self.batch.join(embeds, generation)
        prefilled = self._now()
        tokenizer = self.model.llm.tokenizer
        streamer = ReplyStreamer(tokenizer, begins_within(tokenizer, embeds.keys))
        first = prefilled
        tokens = 0
        try:
            while request in self.batch.requests:
                ((_, token),) = self.batch.step()
                if token is None:
                    break
                now = time.perf_counter()
                tokens += 1
                first = now if tokens == 1 else first
                spans = (encoded - began, prefilled - encoded, first - began, now - first)
                self.times = Times(*spans, tokens, positions, request.reused, left_out)
                if piece := streamer.add(token):
                    yield piece
            if rest := streamer.rest():
                yield rest
        except GeneratorExit:
            raise
        except BaseException:
            self.batch.clear()  # a step that was broken off may have read in some layers only
            raise
        finally:
            self.batch.leave(request)  # what was read stays in the prefix cache

    def _fitted(self, conversation: Conversation, generation: GenerationSettings) -> tuple[Prompt, int]:
        return fitted(conversation, self._prompt, self.audio_cache.length, self.context, generation.max_new_tokens)

    def _prompt(self, conversation: Conversation) -> Prompt:
        past = self.past or self.view
        return render(self._worded(conversation), self.model.llm.tokenizer, self.view, history=past)

    def _worded(self, conversation: Conversation) -> Conversation:
        """The conversation with described recordings, where earlier turns are given as text and lack it."""
        past = self.past or self.view
        spoken = [index for index, turn in enumerate(conversation.turns) if turn.role == "user" and turn.speeches]
        if "text" not in (past.para, past.ling) or past == self.view:
            return conversation
        turns = list(conversation.turns)
        for index in spoken[:-1]:
            parts = (self._in_words(part, past) if isinstance(part, Speech) else part for part in turns[index].parts)
            turns[index] = Turn("user", tuple(parts))
        return replace(conversation, turns=turns)

    def _in_words(self, speech: Speech, past: View) -> Speech:
        """A recording with the words and the caption that the model gives it; what it came with stays."""
        tone = speech.tone or speech
        words = speech.transcript
        caption = tone.caption
        if past.ling == "text" and words is None and speech.audio is not None:
            words = self.describe(speech).words
        if past.para == "text" and caption is None and tone.audio is not None:
            caption = self.describe(tone).caption or ""  # no attribute is known: empty brackets
        if past.para != "text":
            return replace(speech, transcript=words)
        return replace(speech, transcript=words, caption=caption, tone=None)

    def _now(self) -> float:
        if self.model.llm.device.type == "cuda":
            torch.cuda.synchronize(self.model.llm.device)
        return time.perf_counter()


def fitted(
    conversation: Conversation,
    prompt_of: Callable[[Conversation], Prompt],
    length: Callable[[Prompt], int],
    context: int | None,
    most: int,
) -> tuple[Prompt, int]:
    """The prompt of a conversation, without as many of its oldest exchanges as do not fit in the context.

    Args:
        conversation: ends with a user turn.
        prompt_of: renders a conversation.
        length: positions that a prompt takes.
        context: positions that prompt and reply may take together; None where nothing limits them.
        most: tokens of the reply.

    Returns:
        The prompt, and how many turns were left out.

    Raises:
        DualSLMError: the last exchange alone is too long.
    """
    if context is None:
        return prompt_of(conversation), 0
    starts = [0, *_exchanges(conversation)[1:]]
    prompts: dict[int, Prompt] = {}
    free = context - min(most, context // REPLY_SHARE)
    first = _first_of_a_size(conversation, starts, context * CHARACTERS_PER_POSITION)

    def fits(number: int) -> bool:
        if number not in prompts:
            prompts[number] = prompt_of(replace(conversation, turns=conversation.turns[starts[number] :]))
        return length(prompts[number]) <= free

    fewest = first if fits(first) else bisect_left(range(len(starts)), True, lo=first, key=fits)
    if fewest == len(starts):
        raise DualSLMError(
            "this turn is too long for the LLM's context",
            got=f"{length(prompts[fewest - 1])} positions, where {free} are free",
            do="say it in several shorter turns",
        )
    # What is left out moves all that follows it, so the whole context is read anew: a power of two at once, which grows
    # with the number of exchanges, makes that rare.
    step = 1 << max(0, ((len(starts) - fewest) // REPLY_SHARE).bit_length() - 1)
    number = min(-(-fewest // step) * step, len(starts) - 1)
    fits(number)
    return prompts[number], starts[number]


def _first_of_a_size(conversation: Conversation, starts: Sequence[int], most: int) -> int:
    """The first exchange from which on the text has at most so many characters; what is longer is not tokenised.

    Raises:
        DualSLMError: the last exchange alone is longer.
    """
    sizes = [
        sum(len(part) if isinstance(part, str) else len(part.transcript or "") for part in turn.parts)
        + sum(len(str(call.arguments)) for call in turn.calls)
        for turn in conversation.turns
    ]
    always = len(conversation.system or "") + len(str(conversation.tools))
    for index, start in enumerate(starts):
        if (size := always + sum(sizes[start:])) <= most:
            return index
    raise DualSLMError(
        "this turn is too long for the LLM's context",
        got=f"{size} characters, where {most} are the most that can fit",
        do="say it in several shorter turns",
    )


def _exchanges(conversation: Conversation) -> list[int]:
    """Where the user begins to speak."""
    turns = conversation.turns
    return [
        index
        for index, turn in enumerate(turns)
        if turn.role == "user" and (index == 0 or turns[index - 1].role != "user")
    ]


def context_of(llm: FrozenLM, wanted: int | None) -> int | None:
    """Positions that the LLM can hold; None where nothing limits them."""
    if wanted is not None and (wanted < 2 or (llm.context is not None and wanted > llm.context)):
        raise DualSLMError("this context makes no sense", got=wanted, do=f"give 2 to {llm.context or 'any number'}")
    return wanted if wanted is not None else llm.context
