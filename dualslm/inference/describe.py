"""What was heard of a recording, channel by channel: the words from L alone, the attributes from P alone (ours).

The frozen LLM is asked in words, as in the paper's simple tasks (§III-B), while it is given one channel only. So an
answer about the voice cannot come from the words, nor the other way round. Which questions an LLM understands
depends on what its adapters were trained with: `Questions` is data, and `ASKED` those of `dualslm.data.tasks`.
Adapters that were aligned alone are read instead of asked (`dualslm.model.nearest`): their LLM was never taught to
answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dualslm.conversation import L_ONLY, P_ONLY, Conversation, Speech
from dualslm.data.tasks import TASKS
from dualslm.data.tasks.attributes import ATTRIBUTES
from dualslm.data.tasks.captions import caption
from dualslm.model.generation import GenerationSettings
from dualslm.model.nearest import read_tone, read_words
from dualslm.prompt import render

if TYPE_CHECKING:
    from dualslm.inference.audio_cache import AudioCache
    from dualslm.model.dualslm import DualSLM

TRANSCRIPT_SETTINGS = GenerationSettings(max_new_tokens=448)  # tokens, as Whisper's own limit for a window of 30 s
ANSWER_SETTINGS = GenerationSettings(max_new_tokens=40)  # tokens of an answer about the voice


@dataclass(frozen=True)
class Question:
    """One question about a voice.

    Attributes:
        system: the system text.
        values: that can be answered.
        question: asked after the recording; empty where the system text asks it.
        spellings: other words for a value.
    """

    system: str
    values: tuple[str, ...]
    question: str = ""
    spellings: Mapping[str, str] = field(default_factory=dict)

    def about(self, speech: Speech) -> Conversation:
        """The question about a recording, to be answered."""
        return Conversation(self.system).user(speech, *filter(None, [self.question]))

    def value(self, answer: str) -> str | None:
        """The one value that an answer names; None where it names none or several."""
        said = re.findall(r"[a-z]+", answer.lower())
        named = {self.spellings.get(word, word) for word in said} & set(self.values)
        return named.pop() if len(named) == 1 else None


@dataclass(frozen=True)
class Questions:
    """How an LLM is asked for what it heard.

    Attributes:
        words: the system text that asks for the words.
        attributes: the questions about the voice, by attribute.
        caption: puts what was answered in words.
    """

    words: str
    attributes: Mapping[str, Question]
    caption: Callable[[Mapping[str, str]], str | None]


@dataclass(frozen=True)
class Description:
    """What was heard of a recording.

    Attributes:
        words: read from L alone.
        attributes: each read from P alone; None where the answer names no value, or several.
        caption: the attributes in words; None where none is known.
        answers: to the questions about the voice, as the LLM put them; of adapters that are read there are none.
        shares: how likely each value of each attribute is, where adapters are read.
    """

    words: str
    attributes: Mapping[str, str | None]
    caption: str | None
    answers: Mapping[str, str]
    shares: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def describe(audio_cache: AudioCache, speech: Speech, questions: Questions) -> Description:
    """The words and each attribute of a recording, as the frozen LLM says them, or as aligned adapters are read.

    Args:
        audio_cache: encodes the recording.
        speech: the recording.
        questions: that are asked.

    Raises:
        DualSLMError: a recording that cannot be used.
    """
    if audio_cache.model.aligned:
        return _read(audio_cache.model, speech)
    llm = audio_cache.model.llm
    asked = questions.attributes
    prompts = [render(Conversation(questions.words).user(speech), llm.tokenizer, L_ONLY)]
    prompts += [render(question.about(speech), llm.tokenizer, P_ONLY) for question in asked.values()]
    embeds = [prompt.embeds_TD for prompt in audio_cache.embed(prompts)]
    (words,) = llm.generate(embeds[:1], TRANSCRIPT_SETTINGS)
    answers = {name: reply.text for name, reply in zip(asked, llm.generate(embeds[1:], ANSWER_SETTINGS), strict=True)}
    attributes = {name: question.value(answers[name]) for name, question in asked.items()}
    known = {name: value for name, value in attributes.items() if value is not None}
    return Description(words.text.strip(), attributes, questions.caption(known), answers)


def _read(model: DualSLM, speech: Speech) -> Description:
    """What aligned adapters say; of L or P nothing where it was not aligned."""
    frames = model.hear([speech])
    words = read_words(model, frames) if model.aligned.words else ""
    shares = read_tone(model, frames, model.aligned.attributes)
    attributes = {name: max(own, key=own.__getitem__) for name, own in shares.items()}
    return Description(words, attributes, caption(attributes), {}, shares)


def _questions_of_tasks() -> Questions:
    about = {}
    for name, one in ATTRIBUTES.items():
        choices = ", ".join(one.values[:-1]) + " or " + one.values[-1]
        about[name] = Question(one.prompts[0].format(choices=choices), one.values, spellings=one.spellings)
    return Questions(TASKS["asr"].prompts[0], about, caption)


ASKED = _questions_of_tasks()
"""The questions that adapters learn from `dualslm.data.tasks`."""
