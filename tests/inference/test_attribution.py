"""Degrees and influence: equal to what the plain loss says, complete, and undisturbed by a second thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch

from dualslm import tiny
from dualslm.conversation import P_ONLY, Conversation, Speech, View
from dualslm.inference.attribution import MAX_PIECES, degrees, influence
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


def test_influence_is_the_loss_that_leaving_out_costs(session: Session) -> None:
    conversation = Conversation(world.LISTEN).user("It was a long day.").assistant("I see.").user(CLIP)
    found, whole = influence(session.audio_cache, conversation, REPLY, View()), conversation.copy().assistant(REPLY)
    views = [View(), View("none", "speech"), View("speech", "none")]
    full, no_para, no_ling = (nll(session.model, whole, view, cut_off=True) for view in views)
    assert sum(found.para) == pytest.approx(no_para - full, abs=1e-2)
    assert sum(found.ling) == pytest.approx(no_ling - full, abs=1e-2)
    assert "".join(found.tokens) == REPLY
    assert len(found.tokens) == len(found.para) == len(found.ling)
    assert found.para[0] > 5 > found.ling[0]


def test_pieces_are_those_of_the_last_recording_and_leave_nothing_out(session: Session) -> None:
    conversation = Conversation(world.LISTEN).user(Speech(CLIPS / "tones_1_happy.wav")).assistant("I see.").user(CLIP)
    pieces = influence(session.audio_cache, conversation, REPLY, View()).pieces
    assert 1 < len(pieces) <= MAX_PIECES
    assert pieces[0][0] == 0
    assert all(one[1] == pytest.approx(other[0]) for one, other in pairwise(pieces))
    assert pieces[-1][1] == pytest.approx(duration(CLIPS / "hear_1_angry.wav"), abs=0.1)
    assert influence(session.audio_cache, conversation, REPLY, View("speech", "none")).pieces == []


def test_a_second_thread_changes_nothing(session: Session) -> None:
    conversation = Conversation(world.LISTEN).user(CLIP)
    alone, heard = (
        influence(session.audio_cache, conversation, REPLY, View()),
        describe(session.audio_cache, CLIP, ASKED),
    )
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            other = pool.submit(session.model.reply, conversation)
            assert influence(session.audio_cache, conversation, REPLY, View()).para == pytest.approx(
                alone.para, abs=1e-4
            )
            assert other.result().startswith("You have every right")
    assert degrees(session.audio_cache, CLIP, ASKED, heard)["gender"]["male"] > 0.9
