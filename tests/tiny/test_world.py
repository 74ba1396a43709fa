"""The tiny world's grammar: large enough, split for ever, and replies that follow from tone, words and memory."""

from __future__ import annotations

import math
import random

import pytest
from transformers import AutoTokenizer

from dualslm import tiny
from dualslm.conversation import Speech, View
from dualslm.prompt import Text, render
from dualslm.tiny import world
from dualslm.tiny.build.llm_examples import example
from dualslm.tiny.events import EVENTS, FACTS, slots_of
from dualslm.tiny.lexicon import SLOTS
from dualslm.tiny.style import ATTRIBUTES, Style, sample_style


def fillings(phrasing: str) -> int:
    return math.prod(len(SLOTS[name]) for name in slots_of(phrasing))


def test_forty_families_of_sixty_fillings_and_hundreds_of_words() -> None:
    assert len(EVENTS) >= 40
    assert all(sum(map(fillings, family.phrasings)) >= 60 for family in EVENTS)
    assert 450 <= len(world.vocabulary()) <= 700  # each is one token of a vocabulary of 3,072


def test_every_answer_can_be_filled_from_every_phrasing() -> None:
    for family in (*EVENTS, *FACTS):
        needed = set(slots_of(family.content)) | set(slots_of(family.memory or ""))
        assert all(needed <= set(slots_of(phrasing)) for phrasing in family.phrasings), family.name


def test_a_sentence_is_in_one_set_for_ever() -> None:
    assert world.is_held_out("I lost my wallet at the station today.") == world.is_held_out(
        "i lost my wallet at the station today"
    )
    # Golden: another split would put test sentences into the training data of the shipped weights.
    assert [world.is_held_out(f"I live in {town}.") for town in ("Paris", "London", "Oslo")] == [False, False, False]
    for held_out in (True, False):
        rng = random.Random(1)
        drawn = [world.sample_utterance(rng, held_out=held_out, kinds=("event", "fact")) for _ in range(300)]
        assert {world.is_held_out(utterance.text) for utterance in drawn} == {held_out}


def test_only_known_words_are_spoken() -> None:
    rng = random.Random(2)
    known = set(world.vocabulary())
    for _ in range(500):
        assert set(world.words(world.sample_utterance(rng, held_out=False).text)) <= known


def test_one_word_names_one_attribute() -> None:
    values = [value for choices in ATTRIBUTES.values() for value in choices]
    assert len(values) == len(set(values))


def test_captions_vary_but_never_lie() -> None:
    rng = random.Random(3)
    seen = set()
    for _ in range(300):
        style = sample_style(rng)
        text = world.caption(style, rng)
        seen.add(text)
        named = {name: world.chosen(text, name) for name in ATTRIBUTES}
        assert all(value in (None, style.labels()[name]) for name, value in named.items())
        assert any(named.values())  # never all are left out
        assert all(world.mentions(world.caption(style, rng, drop=0.0), name) for name in ATTRIBUTES)
    assert len(seen) > 280  # of 300: few are drawn twice


def test_the_reply_follows_the_tone_the_words_and_the_memory() -> None:
    rng = random.Random(4)
    event = world.sample_utterance(rng, held_out=False, kinds=("event",))
    other = world.sample_utterance(rng, held_out=False, kinds=("event",))
    fact = world.sample_utterance(rng, held_out=False, kinds=("fact",))
    tones = {world.reply_to(event, emotion).tone for emotion in (*ATTRIBUTES["emotion"], None)}
    assert len(tones) == 6  # five emotions, and none
    assert world.reply_to(event, "sad").content != world.reply_to(other, "sad").content
    assert world.reply_to(event, "sad", fact).memory
    assert not world.reply_to(event, "sad").memory
    assert world.reply_to(None, "sad").content == world.NO_CONTENT


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("I see. Good luck. Take care, Anna.", (True, True, True)),
        ("That is a pity. Good luck. Take care, Anna.", (False, True, True)),
        ("I see. Bad luck. Take care, Anna.", (True, False, True)),
        ("I see. Good luck. Take care, Peter.", (True, True, False)),
        ("I see. Good luck.", (True, True, False)),
    ],
)
def test_an_answer_is_checked_part_by_part(answer: str, right: tuple[bool, ...]) -> None:
    found = world.check(answer, world.ExpectedReply("I see.", "Good luck.", "Take care, Anna."))
    assert tuple(found.values()) == right


def test_remembering_what_nobody_said_is_wrong() -> None:
    reply = world.ExpectedReply("I see.", "Good luck.")
    assert world.check("I see. Good luck.", reply)["memory"]
    assert not world.check("I see. Good luck. Take care, Anna.", reply)["memory"]


@pytest.mark.parametrize(
    ("answer", "value"), [("The speaker sounds sad.", "sad"), ("I cannot tell.", None), ("sad or happy", None)]
)
def test_an_answer_names_one_choice_or_none(answer: str, value: str | None) -> None:
    assert world.chosen(answer, "emotion") == value


def test_tasks_have_eight_system_texts_and_shuffled_choices() -> None:
    for prompts in (world.TRANSCRIBE_PROMPTS, world.ASK_PROMPTS, world.LISTEN_PROMPTS):
        assert len(set(prompts)) >= 8
    speech = Speech(transcript="Hello.", caption="sad", labels=Style().labels())
    asked = {str(world.questions(speech, random.Random(seed), ("emotion",)).turns[0].parts[1]) for seed in range(40)}
    assert len(asked) > 10  # 3 wordings by 120 orders of the choices


def test_the_same_seed_gives_the_same_example() -> None:
    for seed in range(20):
        conversation, view = example(random.Random(seed))
        again, same_view = example(random.Random(seed))
        assert [str(turn.parts) for turn in conversation.turns] == [str(turn.parts) for turn in again.turns]
        assert view == same_view


def test_every_spoken_word_is_one_token() -> None:
    fast = AutoTokenizer.from_pretrained(tiny.WEIGHTS / "llm")
    for word in world.vocabulary():
        assert len(fast.encode(word)) == len(fast.encode(f" {word}")) == 1, word
    conversation, _ = example(random.Random(0))
    prompt = render(conversation, fast, View("text", "text"), supervise="all")
    learnt = [fast.decode(s.ids) for s in prompt.segments if isinstance(s, Text) and s.loss]
    assert learnt[-1] == "<|im_end|>"  # the LLM learns to end its turn
