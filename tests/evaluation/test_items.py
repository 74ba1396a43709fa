"""Which recording a question is about: the last one of the user's last turn, as training takes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dualslm.data.manifest import Examples
from dualslm.errors import DualSLMError
from dualslm.evaluation import items


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
