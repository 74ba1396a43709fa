"""The grammar of the tiny world (ours): what is said, how it is captioned, what a good listener replies.

From the tables of `events` and `lexicon` come utterances, captions, tasks and conversations, all drawn from a
`random.Random` alone. A hash of its words decides for ever whether a sentence belongs to the test set.
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

HELD_OUT_EVERY = 6  # one sentence in six belongs to the test set
MAX_SOUP_WORDS = 8
Kind: TypeAlias = Literal["event", "fact", "small", "soup"]
# Soups of random words make every word as frequent as any other, and cannot be guessed from their context.
MIXTURE: Mapping[Kind, float] = {"event": 0.6, "fact": 0.1, "small": 0.04, "soup": 0.26}


@dataclass(frozen=True)
class Utterance:
    """One thing to say.

    Attributes:
        text: the sentence, with capital and full stop.
        family: the family that the sentence was drawn from; None for a soup of random words.
        slots: the fillers of the sentence, by slot name.
    """

    text: str
    family: Family | None
    slots: Mapping[str, str]

    @property
    def kind(self) -> Kind:
        """An event, a fact, small talk or a soup."""
        return self.family.kind if self.family else "soup"


@dataclass(frozen=True)
class ExpectedReply:
    """What a good listener says, which is the label of a conversation.

    Attributes:
        tone: a sentence that answers the tone.
        content: a sentence that answers the words.
        memory: a sentence that uses an earlier fact; empty where no fact was stated.
    """

    tone: str
    content: str
    memory: str = ""

    @property
    def text(self) -> str:
        """The whole reply."""
        return " ".join(part for part in (self.tone, self.content, self.memory) if part)


@dataclass(frozen=True)
class ConversationSample:
    """A conversation with its label.

    Attributes:
        conversation: the turns up to the last user turn.
        reply: the right reply to it.
        memory: the fact that the reply uses; None where no fact was stated.
    """

    conversation: Conversation
    reply: ExpectedReply
    memory: Utterance | None = None


# ---------------------------------------------------------------------- sentences


def words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.sub(r"[^a-z ]", "", text.lower()).split()


def is_held_out(text: str) -> bool:
    """Whether a sentence belongs to the test set."""
    # CRC-32 and not `hash`, which Python seeds anew in every process.
    return zlib.crc32(" ".join(words(text)).encode()) % HELD_OUT_EVERY == 0


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word that can be spoken, sorted."""
    phrasings = [phrasing for family in (*EVENTS, *FACTS, *SMALL_TALK) for phrasing in family.phrasings]
    texts = [re.sub(r"{\w+}", " ", phrasing) for phrasing in phrasings]
    used = {name for phrasing in phrasings for name in slots_of(phrasing)}
    texts += [filler for name in used for filler in SLOTS[name]]
    return tuple(sorted({word for text in texts for word in words(text)}))


def sample_utterance(rng: random.Random, *, held_out: bool, kinds: Sequence[Kind] | None = None) -> Utterance:
    """Draws a thing to say.

    Args:
        rng: source of every draw.
        held_out: True for sentences of the test set, False for those of training; soups and small talk belong to both.
        kinds: kinds to draw from; all unless given.
    """
    shares = {kind: share for kind, share in MIXTURE.items() if kinds is None or kind in kinds}
    kind = rng.choices(list(shares), list(shares.values()))[0]
    if kind == "soup":
        return Utterance(" ".join(rng.choices(vocabulary(), k=rng.randint(2, MAX_SOUP_WORDS))), None, {})
    families = {"event": EVENTS, "fact": FACTS, "small": SMALL_TALK}[kind]
    while True:
        family = rng.choice(families)
        phrasing = rng.choice(family.phrasings)
        slots = {name: rng.choice(SLOTS[name]) for name in slots_of(phrasing)}
        text = phrasing.format(**slots)
        # Small talk has too few sentences to split: a sixth of them would leave some families without any.
        if kind == "small" or is_held_out(text) == held_out:
            return Utterance(text, family, slots)


def sentence(rng: random.Random, held_out: bool) -> str:
    """The text of an event, a fact or small talk."""
    return sample_utterance(rng, held_out=held_out, kinds=("event", "fact", "small")).text


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
    """How something is said, in words.

    Args:
        style: the attributes to put in words.
        rng: source of the order, the phrasing, the separator and the attributes left out; None gives the full caption
            in its plain form.
        drop: probability that an attribute is left out; one always stays.
    """
    labels = style.labels()
    if rng is None:
        return ", ".join(VALUE_WORDS[name][value][1] for name, value in labels.items())
    names = list(labels)
    # An LLM that has read captions in any order can later read them from soft prompts, where nothing has an order.
    rng.shuffle(names)
    named = [name for name in names if rng.random() >= drop] or names[:1]
    separator = rng.choice(SEPARATORS)
    phrases = []
    for name in named:
        short, long = VALUE_WORDS[name][labels[name]]
        phrases.append(rng.choice((f"{name} {short}", short, long)))
    return separator.join(phrases)


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
    """One conversation of questions about how something is said, with their answers.

    Args:
        speech: the recording; it stands in the first turn alone.
        rng: source of every draw.
        attributes: the attributes asked for, in order; 2 to 5 drawn ones unless given.
    """
    asked = list(attributes or rng.sample(list(ATTRIBUTES), rng.randint(2, len(ATTRIBUTES))))
    conversation = Conversation(rng.choice(ASK_PROMPTS))
    for index, name in enumerate(asked):
        conversation.user(*([speech] if index == 0 else []), question(name, rng))
        conversation.assistant(ANSWERS[name].format(value=speech.labels[name]))
    return conversation


def question(attribute: str, rng: random.Random) -> str:
    """A question about an attribute, its choices in any order."""
    choices = list(ATTRIBUTES[attribute])
    rng.shuffle(choices)
    return rng.choice(QUESTIONS[attribute]).format(choices=", ".join(choices[:-1]) + " or " + choices[-1])


def chosen(answer: str, attribute: str) -> str | None:
    """The one value of an attribute that an answer names; None where it names none or several."""
    answered = set(words(answer))
    named = [value for value in ATTRIBUTES[attribute] if value in answered]
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


def reply_to(utterance: Utterance | None, emotion: str | None, memory: Utterance | None = None) -> ExpectedReply:
    """The rule of the world: what a good listener says.

    Args:
        utterance: the event that is replied to; None where its words are not known.
        emotion: the emotion of the voice; None where the tone is not known.
        memory: a fact stated earlier in the conversation; None where there is none.
    """
    remembered = ""
    if memory is not None:
        assert memory.family is not None
        assert memory.family.memory is not None
        remembered = _with(memory.family.memory, memory.slots)
    if utterance is None:
        return ExpectedReply(TONE_ALONE[emotion] if emotion else NO_TONE, NO_CONTENT, remembered)
    assert utterance.family is not None
    tone = TONES[emotion][utterance.family.valence] if emotion else NO_TONE
    return ExpectedReply(tone, _with(utterance.family.content, utterance.slots), remembered)


def _with(text: str, slots: Mapping[str, str]) -> str:
    filled = text.format(**slots)
    return filled[0].upper() + filled[1:]


def typed(rng: random.Random, kind: Kind) -> tuple[Utterance, Part]:
    """An earlier statement of a conversation, as text."""
    utterance = sample_utterance(rng, held_out=False, kinds=(kind,))
    return utterance, utterance.text


def sample_talk(
    rng: random.Random,
    speech: Speech,
    utterance: Utterance,
    style: Style,
    earlier: Callable[[random.Random, Kind], tuple[Utterance, Part]] = typed,
) -> ConversationSample:
    """A conversation that ends with a given spoken event, after up to three exchanges with at most one fact.

    Args:
        rng: source of the system text and of the earlier turns.
        speech: the event as it is spoken.
        utterance: what the event says.
        style: how the event is said.
        earlier: function that draws a fact or small talk, and the part of a turn that says it.
    """
    conversation = Conversation(rng.choice(LISTEN_PROMPTS))
    exchanges = rng.randint(0, 3)
    # A quarter of the conversations have no fact: a reply must also learn when there is nothing to remember.
    fact_index = rng.randrange(exchanges) if exchanges and rng.random() < 0.75 else None
    memory = None
    for index in range(exchanges):
        stated, part = earlier(rng, "fact" if index == fact_index else "small")
        if index == fact_index:
            memory = stated
        assert stated.family is not None
        conversation.user(part).assistant(_with(stated.family.content, stated.slots))
    return ConversationSample(conversation.user(speech), reply_to(utterance, style.emotion, memory), memory)


def check(answer: str, reply: ExpectedReply) -> dict[str, bool]:
    """Which of the three parts of an answer are as the rule has them: "tone", "content" and "memory".

    The memory is right when the answer ends with it. Where no fact was stated, it is right when the answer ends with
    no memory of any family.
    """
    remembered = answer.endswith(reply.memory) if reply.memory else not _MEMORY.search(answer)
    return {"tone": answer.startswith(reply.tone), "content": reply.content in answer, "memory": remembered}


_MEMORY = re.compile("|".join(re.sub(r"{\w+}", r"[\\w ]+", family.memory) + "$" for family in FACTS if family.memory))
