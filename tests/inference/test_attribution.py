"""Degrees and influence: equal to what the plain loss says, complete, and undisturbed by a second thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from dualslm import tiny
from dualslm.conversation import P_ONLY, Conversation, Speech, View
from dualslm.inference.attribution import MAX_PIECES, OTHER_WORDS, degrees, influence
from dualslm.inference.describe import describe
from dualslm.inference.session import Session
from dualslm.model.dualslm import DualSLM
from dualslm.prompt import render
from dualslm.tiny import CLIPS, world
from dualslm.tiny.questions import ASKED
from dualslm.training.feature_cache import duration

CLIP = Speech(CLIPS / "hear_1_angry.wav")
REPLY = "You have every right to be angry."


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(tiny.load(), Conversation(world.LISTEN), questions=ASKED)


def nll(model: DualSLM, conversation: Conversation, view: View, *, cut_off: bool = False) -> float:
    """As training counts it."""
    prompt = render(conversation, model.llm.tokenizer, view, supervise="last", cut_off=cut_off)
    with torch.no_grad():
        return float(model([prompt]).nll_B[0])


def test_degrees_are_the_shares_of_the_choices(session: Session) -> None:
    heard = session.describe(CLIP)
    found = degrees(session.audio_cache, CLIP, ASKED, heard)
    assert found.keys() == ASKED.attributes.keys()
    for name, shares in found.items():
        assert tuple(shares) == ASKED.attributes[name].values
        assert sum(shares.values()) == pytest.approx(1)
        assert max(shares, key=lambda value: shares[value]) == heard.attributes[name]


def test_degrees_are_those_of_the_plain_loss(session: Session) -> None:
    heard = session.describe(CLIP)
    asked, found = ASKED.attributes["energy"], degrees(session.audio_cache, CLIP, ASKED, heard)["energy"]
    conversation = Conversation(asked.system).user(CLIP, asked.question)
    quiet, loud = (
        nll(session.model, conversation.copy().assistant(f"The energy is {value}."), P_ONLY)
        for value in ("quiet", "loud")
    )
    assert found["quiet"] / found["loud"] == pytest.approx(2.718281828 ** (loud - quiet), rel=1e-3)


def test_a_question_without_a_clear_answer_has_no_degrees(session: Session) -> None:
    heard = session.describe(CLIP)
    attributes = {**heard.attributes, "pitch": None}
    unclear = type(heard)(heard.words, attributes, heard.caption, heard.answers)
    assert degrees(session.audio_cache, CLIP, ASKED, unclear).keys() == ASKED.attributes.keys() - {"pitch"}
    nothing = type(heard)(heard.words, dict.fromkeys(attributes), None, heard.answers)
    assert degrees(session.audio_cache, CLIP, ASKED, nothing) == {}


def test_influence_is_the_loss_that_swapping_costs(session: Session) -> None:
    before = Conversation(world.LISTEN).user("It was a long day.").assistant("I see.")
    found = influence(session.audio_cache, before.copy().user(CLIP), REPLY, View(), ASKED)
    assert "".join(found.tokens) == REPLY
    assert len(found.tokens) == len(found.para) == len(found.ling)
    full = nll(session.model, before.copy().user(CLIP).assistant(REPLY), View(), cut_off=True)

    voice = {name: value for name, value in session.describe(CLIP).attributes.items() if value}
    for emotion in ASKED.attributes["emotion"].values:
        swapped = CLIP.in_the_tone_of(Speech(caption=ASKED.caption({**voice, "emotion": emotion})))
        lost = nll(session.model, before.copy().user(swapped).assistant(REPLY), View(), cut_off=True) - full
        assert sum(found.para) >= lost - 1e-2  # of each token the most that any tone costs it
    for words in OTHER_WORDS:
        other = before.copy().user(replace(CLIP, transcript=words)).assistant(REPLY)
        prompt = render(
            other, session.model.llm.tokenizer, View("speech", "text"), history=View(), supervise="last", cut_off=True
        )
        with torch.no_grad():
            lost = float(session.model([prompt]).nll_B[0]) - full
        # of each token the least that other words cost it; those about a thief are no others here
        assert sum(found.ling) <= lost + 1e-2 or "thief" in words


@pytest.mark.parametrize("emotion", ["happy", "sad", "angry", "afraid"])
def test_a_word_that_the_swapped_tone_made_is_the_tones(session: Session, emotion: str) -> None:
    """The words tell of a lost job; whatever is said of a feeling comes from the tone that was put there."""
    sad = Speech(CLIPS / "hear_3_sad.wav")
    voice = {name: value for name, value in session.describe(sad).attributes.items() if value}
    swapped = sad.in_the_tone_of(Speech(caption=ASKED.caption({**voice, "emotion": emotion})))
    conversation = Conversation(world.LISTEN).user(swapped)
    found = influence(session.audio_cache, conversation, "".join(session.answer(conversation)), View(), ASKED)
    feeling: list[str] = []
    words: list[str] = []
    for token, para, ling in zip(found.tokens, found.para, found.ling, strict=True):
        if max(para, ling) > 1:
            (feeling if para > ling else words).append(token.strip())
    assert "bakery" in words
    assert feeling
    assert not {"glad", "sorry", "angry", "worried", "worry", "right", "safe", "hard"} & set(words)


def test_a_channel_that_was_not_heard_decides_nothing(session: Session) -> None:
    conversation = Conversation(world.LISTEN).user(CLIP)
    without_p = influence(session.audio_cache, conversation, REPLY, View("none", "speech"), ASKED)
    assert set(without_p.para) == {0.0}
    assert max(without_p.ling) > 1
    without_l = influence(session.audio_cache, conversation, REPLY, View("speech", "none"), ASKED)
    assert set(without_l.ling) == {0.0}
    assert max(without_l.para) > 1


def test_pieces_are_those_of_the_last_recording_and_leave_nothing_out(session: Session) -> None:
    conversation = Conversation(world.LISTEN).user(Speech(CLIPS / "tones_1_happy.wav")).assistant("I see.").user(CLIP)
    pieces = influence(session.audio_cache, conversation, REPLY, View(), ASKED).pieces
    assert 1 < len(pieces) <= MAX_PIECES
    assert pieces[0][0] == 0
    assert all(one[1] == pytest.approx(other[0]) for one, other in pairwise(pieces))
    assert pieces[-1][1] == pytest.approx(duration(CLIPS / "hear_1_angry.wav"), abs=0.1)
    assert influence(session.audio_cache, conversation, REPLY, View("speech", "none"), ASKED).pieces == []


def test_a_second_thread_changes_nothing(session: Session) -> None:
    conversation = Conversation(world.LISTEN).user(CLIP)
    alone, heard = (
        influence(session.audio_cache, conversation, REPLY, View(), ASKED),
        describe(session.audio_cache, CLIP, ASKED),
    )
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            other = pool.submit(session.model.reply, conversation)
            assert influence(session.audio_cache, conversation, REPLY, View(), ASKED).para == pytest.approx(
                alone.para, abs=1e-4
            )
            assert other.result().startswith("You have every right")
    assert degrees(session.audio_cache, CLIP, ASKED, heard)["gender"]["male"] > 0.9
