"""Which recording a question is about, as training takes it; and what is asked again for a second figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.evalkit import Parrot

from dualslm.conversation import View
from dualslm.data.manifest import Examples
from dualslm.errors import DualSLMError
from dualslm.evaluation import items, predict


def clip(name: str, gender: str = "male") -> dict[str, Any]:
    return {"audio": f"{name}.wav", "transcript": f"Words of {name}.", "labels": {"gender": gender}}


def write(folder: Path, *rows: Mapping[str, Any]) -> Path:
    path = folder / "m.jsonl"
    path.write_text("".join(json.dumps({"id": str(number), **row}) + "\n" for number, row in enumerate(rows)))
    return path


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "parts": list(parts)}


def said(*parts: Any) -> dict[str, Any]:
    return {"role": "assistant", "parts": list(parts)}


@pytest.mark.parametrize(
    "parts",
    [
        (clip("a"), clip("b", "female"), "And a text after it."),
        (clip("a"), "A text between.", clip("b", "female")),
        ("A text before.", clip("b", "female"), "And one.", "And another."),
    ],
)
def test_a_text_beside_the_recording_changes_nothing(tmp_path: Path, parts: Sequence[Any]) -> None:
    path = write(tmp_path, {"tasks": ["asr", "gender"], "turns": [user(*parts)]})
    found = {item.task: item for item in items.read([path]).items}
    assert found["asr"].truth == "Words of b."
    assert found["gender"].truth == "female"
    assert {str(item.speech.audio) for item in found.values()} == {str(tmp_path / "b.wav")}
    trained = Examples([path]).get("paralinguistic", 0).conversation.turns
    assert trained[-1].parts == ("The speaker is female.",)
    assert str(trained[-2].speeches[-1].audio) == str(tmp_path / "b.wav")


def test_a_recording_before_the_last_turn_is_not_asked_about(tmp_path: Path) -> None:
    turns = [user(clip("a")), said("I see."), user("What did I say?"), said("Words of a.")]
    spoken = [user("Hello."), said("Hello."), user(clip("b"), "Please answer."), said("Yes.")]
    path = write(tmp_path, {"kind": "dual", "turns": turns}, {"kind": "dual", "turns": spoken})
    exam = items.read([path])
    assert [str(item.speech.audio) for item in exam.items] == [str(tmp_path / "b.wav")]
    assert exam.skipped == {"no recording in the user's last turn": 1}


def test_questions_that_follow_each_other_are_about_one_voice(tmp_path: Path) -> None:
    turns = [user(clip("a"), "How fast?"), said("Normal."), user("A man or a woman?"), said("The speaker is male.")]
    exam = items.read([write(tmp_path, {"kind": "paralinguistic", "turns": turns})])
    assert [(item.task, str(item.speech.audio)) for item in exam.items] == [("gender", str(tmp_path / "a.wav"))]


def test_nothing_but_earlier_recordings_is_one_line(tmp_path: Path) -> None:
    turns = [user(clip("a")), said("I see."), user("Yes?"), said("Yes.")]
    with pytest.raises(DualSLMError, match="no recording in the user's last turn"):
        items.read([write(tmp_path, {"kind": "dual", "turns": turns})])


def test_an_item_is_asked_again_by_prompts_that_no_training_draws(tmp_path: Path) -> None:
    rows = [{"tasks": ["gender", "respond"], "turns": [user(clip(name))], "corpus": "c"} for name in "abcdefgh"]
    finished = {"kind": "dual", "turns": [user(clip("i")), said("Yes.")], "corpus": "c"}
    path = write(tmp_path, *rows, finished)
    base = items.read([path]).items
    exam = items.read([path], prompts=["trained", "unseen"], limit=5)
    first = {item.id: item for item in exam.items if not item.second}
    again = {item.id: item for item in exam.items if item.second}
    assert {item.task for item in again.values()} == {"gender", "respond"}
    assert len(again) == 10, "the limit is of items, and the finished conversation has its own words"
    for name, item in again.items():
        one = first[name.replace(" (unseen prompts)", "")]
        assert item.split == "m (unseen prompts)"
        assert (item.truth, item.choices, item.cluster, item.conversation.turns[0].role) == (
            *(one.truth, one.choices, one.cluster),
            "user",
        )
        assert item.conversation.system not in {own.conversation.system for own in base}
        assert item.direction == (None if item.task == "gender" else "forward, unseen prompts")
    only = items.read([path], prompts=["unseen"], limit=5).items
    assert {item.conversation.system for item in only if item.task == "gender"} <= {
        item.conversation.system for item in again.values()
    }
    assert not any(item.second for item in only)


def test_a_spoken_history_is_heard_and_read(tmp_path: Path) -> None:
    spoken = [user(clip("a")), said("I see."), user(clip("b")), said("Yes.")]
    typed = [user("Hello."), said("Hello!"), user(clip("c")), said("Yes.")]
    path = write(tmp_path, *({"kind": "dual", "turns": turns, "corpus": "c"} for turns in (spoken, typed)))
    found = items.read([path], history=["speech", "text"]).items
    assert [(item.id, item.history, item.second) for item in found] == [
        ("c/m/0", "speech", False),
        ("c/m (history as text)/0", "text", True),
        ("c/m/1", "speech", False),
    ]
    only = items.read([path], history=["text"]).items
    assert [(item.id, item.history, item.second) for item in only] == [
        ("c/m/0", "text", False),
        ("c/m/1", "text", False),
    ]


def test_a_second_figure_is_of_normal_use_alone(tmp_path: Path) -> None:
    path = write(tmp_path, {"tasks": ["gender"], "turns": [user(clip("a"))]})
    views = (View(), View("speech", "none"))
    exam = items.read([path], prompts=["trained", "unseen"])
    jobs = [(job.view, job.items[0].second) for job in predict.plan(exam, [Parrot(known=views)]).jobs]
    assert jobs == [(views[0], False), (views[1], False), (views[0], True)]
    named = predict.plan(exam, [Parrot(known=views)], views=[views[1]]).jobs
    assert [(job.view, job.items[0].second) for job in named] == [(views[1], False), (views[1], True)]
    deaf = Parrot(known=views)
    deaf.reads_prompts = False  # type: ignore[attr-defined]
    asked = predict.plan(exam, [deaf])
    assert [job.items[0].second for job in asked.jobs] == [False, False]
    assert not asked.skipped
