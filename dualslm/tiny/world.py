"""The grammar of the tiny world (ours): what is said, how it is captioned, what a good listener replies.

From the tables of `events` and `lexicon` come utterances, captions, tasks and talks, all drawn from a
`random.Random` alone. A sentence belongs to the test set for ever or never: by a hash of its words.
No torch, no numpy.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

from dualslm.conversation import Conversation, Part, Speech
from dualslm.tiny.events import EVENTS, FACTS, SMALL_TALK, Family, slots_of
from dualslm.tiny.lexicon import SLOTS
from dualslm.tiny.style import ATTRIBUTES, Style

HELD_OUT = 6  # one sentence in so many is kept for tests
LONGEST_SOUP = 8  # words
Kind: TypeAlias = Literal["event", "fact", "small", "soup"]
MIXTURE: Mapping[Kind, float] = {"event": 0.6, "fact": 0.1, "small": 0.04, "soup": 0.26}


@dataclass(frozen=True)
class Utterance:
    """One thing to say.

    Attributes:
        text: with capital and full stop.
        family: what kind of thing it is; None for a soup of random words.
        slots: its fillers by name.
    """

    text: str
    family: Family | None
    slots: Mapping[str, str]

    @property
    def kind(self) -> Kind:
        """An event, a fact, small talk or a soup."""
        return self.family.kind if self.family else "soup"


@dataclass(frozen=True)
class Reply:
    """What a good listener says: one sentence for the tone, one for the words, one that remembers."""

    tone: str
    content: str
    memory: str = ""

    @property
    def text(self) -> str:
        """The whole reply."""
        return " ".join(part for part in (self.tone, self.content, self.memory) if part)


@dataclass(frozen=True)
class Talk:
    """A talk to be answered, the right answer, and the fact that it remembers."""

    conversation: Conversation
    reply: Reply
    memory: Utterance | None = None


# ---------------------------------------------------------------------- sentences


def words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.sub(r"[^a-z ]", "", text.lower()).split()


def is_held_out(text: str) -> bool:
    """Whether a sentence belongs to the test set."""
    return zlib.crc32(" ".join(words(text)).encode()) % HELD_OUT == 0


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word that can be spoken, sorted."""
    phrasings = [phrasing for family in (*EVENTS, *FACTS, *SMALL_TALK) for phrasing in family.phrasings]
    texts = [re.sub(r"{\w+}", " ", phrasing) for phrasing in phrasings]
    used = {name for phrasing in phrasings for name in slots_of(phrasing)}
    texts += [filler for name in used for filler in SLOTS[name]]
    return tuple(sorted({word for text in texts for word in words(text)}))


def sample_utterance(rng: random.Random, *, held_out: bool, kinds: Sequence[Kind] | None = None) -> Utterance:
    """Draws a thing to say, of the test set or not; soups and short small talk belong to both."""
    shares = {kind: share for kind, share in MIXTURE.items() if kinds is None or kind in kinds}
    kind = rng.choices(list(shares), list(shares.values()))[0]
    if kind == "soup":
        return Utterance(" ".join(rng.choices(vocabulary(), k=rng.randint(2, LONGEST_SOUP))), None, {})
    while True:
        said = _fill(rng, rng.choice({"event": EVENTS, "fact": FACTS, "small": SMALL_TALK}[kind]))
        if kind == "small" or is_held_out(said.text) == held_out:
            return said


def sentence(rng: random.Random, held_out: bool) -> str:
    """The text of an event, a fact or small talk."""
    return sample_utterance(rng, held_out=held_out, kinds=("event", "fact", "small")).text


def _fill(rng: random.Random, family: Family) -> Utterance:
    """One phrasing with fillers; the answer's slots are drawn even where the phrasing leaves them out."""
    phrasing = rng.choice(family.phrasings)
    slots = {name: rng.choice(SLOTS[name]) for name in slots_of(phrasing)}
    return Utterance(phrasing.format(**slots), family, slots)


# ---------------------------------------------------------------------- captions

VALUE_WORDS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "gender": {"male": ("male", "a male speaker"), "female": ("female", "a female speaker")},
    "pitch": {
        "low": ("low", "a low voice"),
        "middle": ("middle", "a middle voice"),
        "high": ("high", "a high voice"),
    },
    "tempo": {"slow": ("slow", "slow speech"), "steady": ("steady", "steady speech"), "fast": ("fast", "fast speech")},
    "energy": {
        "quiet": ("quiet", "quiet sound"),
        "moderate": ("moderate", "moderate sound"),
        "loud": ("loud", "loud sound"),
    },
    "emotion": {value: (value, f"sounding {value}") for value in ATTRIBUTES["emotion"]},
}
SEPARATORS = (", ", ", ", "; ", " and ", " / ")


def caption(style: Style, rng: random.Random | None = None, *, drop: float = 0.15) -> str:
    """How something is said, in words; without `rng` the full, plain form.

    With `rng` the order, the phrasing and the separators vary and attributes are left out at random, each with
    the chance `drop` (never all): an LLM that has read such captions can later read them from soft prompts,
    where nothing has an order.
    """
    labels = style.labels()
    if rng is None:
        return ", ".join(VALUE_WORDS[name][value][1] for name, value in labels.items())
    names = list(labels)
    rng.shuffle(names)
    kept = [name for name in names if rng.random() >= drop] or names[:1]
    return rng.choice(SEPARATORS).join(_phrase(name, labels[name], rng) for name in kept)


def _phrase(name: str, value: str, rng: random.Random) -> str:
    short, long = VALUE_WORDS[name][value]
    return rng.choice((f"{name} {short}", short, long))


def mentions(caption_text: str, attribute: str) -> bool:
    """Whether a caption says anything of an attribute."""
    return chosen(caption_text, attribute) is not None


# ---------------------------------------------------------------------- tasks

TRANSCRIBE = "Write down what the speaker says."
TRANSCRIBE_PROMPTS = (
    TRANSCRIBE,
    "Transcribe the speech.",
    "Repeat the words of the speaker exactly.",
    "What does the speaker say? Answer with the words alone.",
    "You are a recogniser of speech. Give the transcript.",
    "Type the sentence that you hear.",
    "Please write the spoken words as text.",
    "Note every word that is spoken.",
)
ASK_PROMPTS = (
    "Answer questions about the voice of the speaker.",
    "Listen to how the speaker sounds and answer the question.",
    "You describe voices. Choose the answer that fits.",
    "Which of the choices fits the voice? Answer in a sentence.",
    "Judge the voice, not the words.",
    "Pay attention to the tone of voice and answer.",
    "You are an expert in voices. Answer each question in one sentence.",
    "Say how something is said, not what is said.",
)
QUESTIONS: Mapping[str, Sequence[str]] = {
    "gender": (
        "Is the speaker {choices}?",
        "What is the gender of the speaker? Choices: {choices}.",
        "The gender, please: {choices}?",
    ),
    "pitch": (
        "Is the pitch {choices}?",
        "What pitch does the voice have? Choices: {choices}.",
        "The pitch, please: {choices}?",
    ),
    "tempo": (
        "Is the tempo {choices}?",
        "At what tempo does the speaker talk? Choices: {choices}.",
        "The tempo, please: {choices}?",
    ),
    "energy": (
        "Is the energy {choices}?",
        "What energy does the voice have? Choices: {choices}.",
        "The energy, please: {choices}?",
    ),
    "emotion": (
        "Is the emotion {choices}?",
        "What emotion does the speaker show? Choices: {choices}.",
        "The emotion, please: {choices}?",
    ),
}
ANSWERS: Mapping[str, str] = {
    "gender": "The speaker is {value}.",
    "pitch": "The pitch is {value}.",
    "tempo": "The tempo is {value}.",
    "energy": "The energy is {value}.",
    "emotion": "The speaker sounds {value}.",
}
LISTEN = "You are a good listener."
LISTEN_PROMPTS = (
    LISTEN,
    "Answer warmly, in a few short sentences.",
    "You are a kind friend who listens well.",
    "Reply to the speaker with care.",
    "Hear what is said and how it is said, then answer.",
    "You are a friendly companion. Keep your answers short.",
    "Be gentle with the person who talks to you.",
    "Talk with the user and remember what they tell you.",
)


def transcription(speech: Speech, rng: random.Random) -> Conversation:
    """A transcription task with its answer."""
    assert speech.transcript is not None
    return Conversation(rng.choice(TRANSCRIBE_PROMPTS)).user(speech).assistant(speech.transcript)


def questions(speech: Speech, rng: random.Random, attributes: Sequence[str] | None = None) -> Conversation:
    """Questions about how something is said, in one talk, with their answers; 2 to 5 of them unless named."""
    asked = list(attributes or rng.sample(list(ATTRIBUTES), rng.randint(2, len(ATTRIBUTES))))
    conversation = Conversation(rng.choice(ASK_PROMPTS))
    for place, name in enumerate(asked):
        conversation.user(*([speech] if place == 0 else []), question(name, rng))
        conversation.assistant(ANSWERS[name].format(value=speech.labels[name]))
    return conversation


def question(attribute: str, rng: random.Random) -> str:
    """A question about an attribute, its choices in any order."""
    choices = list(ATTRIBUTES[attribute])
    rng.shuffle(choices)
    return rng.choice(QUESTIONS[attribute]).format(choices=", ".join(choices[:-1]) + " or " + choices[-1])


def chosen(answer: str, attribute: str) -> str | None:
    """The one value of an attribute that an answer names; None where it names none or several."""
    said = set(words(answer))
    named = [value for value in ATTRIBUTES[attribute] if value in said]
    return named[0] if len(named) == 1 else None


# ---------------------------------------------------------------------- replies

TONES: Mapping[str, Mapping[str, str]] = {
    "neutral": {"good": "That is good news.", "bad": "That is a pity.", "plain": "I see."},
    "happy": {
        "good": "How wonderful, I am so happy for you!",
        "bad": "I am glad that you can smile about it.",
        "plain": "You sound so cheerful!",
    },
    "sad": {
        "good": "That is good news, but you sound sad.",
        "bad": "I am so sorry, that must be hard.",
        "plain": "You sound a little down.",
    },
    "angry": {
        "good": "It is good news, so why are you angry?",
        "bad": "You have every right to be angry.",
        "plain": "You sound annoyed, take a deep breath.",
    },
    "afraid": {
        "good": "It is good news, there is nothing to fear.",
        "bad": "Do not worry, you are safe now.",
        "plain": "You sound worried, but all is well.",
    },
}
NO_TONE = "Thank you for telling me."
NO_CONTENT = "What happened?"
TONE_ALONE = {
    "neutral": "I am listening.",
    "happy": "You sound happy!",
    "sad": "You sound sad.",
    "angry": "You sound angry.",
    "afraid": "You sound afraid.",
}


def reply_to(utterance: Utterance | None, emotion: str | None, memory: Utterance | None = None) -> Reply:
    """The rule of the world: what a good listener says.

    Args:
        utterance: an event; None when the words were not heard.
        emotion: None when the tone was not heard.
        memory: a fact that was told earlier.
    """
    remembered = ""
    if memory is not None:
        assert memory.family is not None
        assert memory.family.memory is not None
        remembered = _with(memory.family.memory, memory.slots)
    if utterance is None:
        return Reply(TONE_ALONE[emotion] if emotion else NO_TONE, NO_CONTENT, remembered)
    assert utterance.family is not None
    tone = TONES[emotion][utterance.family.valence] if emotion else NO_TONE
    return Reply(tone, _with(utterance.family.content, utterance.slots), remembered)


def _with(text: str, slots: Mapping[str, str]) -> str:
    filled = text.format(**slots)
    return filled[0].upper() + filled[1:]


def typed(rng: random.Random, kind: Kind) -> tuple[Utterance, Part]:
    """Something said earlier in a talk, as text."""
    said = sample_utterance(rng, held_out=False, kinds=(kind,))
    return said, said.text


def sample_talk(
    rng: random.Random,
    speech: Speech,
    utterance: Utterance,
    style: Style,
    earlier: Callable[[random.Random, Kind], tuple[Utterance, Part]] = typed,
) -> Talk:
    """A talk that ends with a given spoken event: up to three exchanges, among them a fact or none.

    Args:
        rng: draws the system text and what was said before.
        speech: the event as it is spoken.
        utterance: what it says.
        style: how it is said.
        earlier: draws a fact or small talk and the part of a turn that says it.
    """
    conversation = Conversation(rng.choice(LISTEN_PROMPTS))
    memory, before = None, rng.randint(0, 3)
    told = rng.randrange(before) if before and rng.random() < 0.75 else None
    for place in range(before):
        said, part = earlier(rng, "fact" if place == told else "small")
        memory = said if place == told else memory
        assert said.family is not None
        conversation.user(part).assistant(_with(said.family.content, said.slots))
    return Talk(conversation.user(speech), reply_to(utterance, style.emotion, memory), memory)


def check(answer: str, reply: Reply) -> dict[str, bool]:
    """Which of the three parts of an answer are as the rule has them.

    The memory is right when the answer ends with it; where nothing was told, when it ends with no memory at all.
    """
    remembered = answer.endswith(reply.memory) if reply.memory else not _MEMORY.search(answer)
    return {"tone": answer.startswith(reply.tone), "content": reply.content in answer, "memory": remembered}


_MEMORY = re.compile("|".join(re.sub(r"{\w+}", r"[\\w ]+", family.memory) + "$" for family in FACTS if family.memory))
