"""A prediction whose fields hold something else is refused in one line, and nothing of it is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dualslm.errors import DualSLMError
from dualslm.evaluation import predict
from dualslm.evaluation.predict import records

ROW: dict[str, Any] = {
    "id": "i",
    "system": "s",
    "view": None,
    "task": "asr",
    "corpus": "c",
    "split": "t",
    "cluster": "k",
    "choices": None,
    "truth": "a",
    "answer": "a",
    "ended": True,
}


def write(folder: Path, line: Any, encoding: str = "utf-8") -> Path:
    path = folder / "predictions.jsonl"
    path.write_text(json.dumps(line) + "\n", encoding=encoding)
    return path


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("system", None),
        ("corpus", None),
        ("split", 3),
        ("cluster", None),
        ("view", 1),
        ("truth", 3),
        ("truth", ["a"]),
        ("choices", "ab"),
        ("choices", [1, 2]),
        ("choices", ["a", "b"]),  # of a transcription
        ("task", "mood"),
        ("task", "x" * 1000),
        ("task", ""),
        ("answer", ["a"]),
        ("ended", "yes"),
        ("audio", {"path": "a.wav"}),
        ("seconds", "3"),
        ("seconds", True),
        ("likelihoods", [0.5]),
    ],
)
def test_a_field_of_another_kind_is_one_line(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(DualSLMError, match=f"line 1 is no prediction: got {field} ") as caught:
        list(records(write(tmp_path, {**ROW, field: value})))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_a_label_without_choices_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DualSLMError, match="got choices None for the task emotion"):
        list(records(write(tmp_path, {**ROW, "task": "emotion", "truth": "sad"})))


@pytest.mark.parametrize("line", [[1], None, 5, "id"])
def test_a_line_that_is_no_object_is_said_to_be_none(tmp_path: Path, line: Any) -> None:
    with pytest.raises(DualSLMError, match="line 1 is no prediction: got no object"):
        list(records(write(tmp_path, line)))


def test_likelihoods_of_null_are_none(tmp_path: Path) -> None:
    (found,) = records(write(tmp_path, {**ROW, "likelihoods": None, "seconds": None, "labels": {}}))
    assert "likelihoods" not in found


@pytest.mark.parametrize("head", [b"[" * 100_000, b"[]", b"{", b"1" * 5000])
def test_a_work_file_that_nobody_here_wrote_is_one_line(tmp_path: Path, head: bytes) -> None:
    (tmp_path / ".predictions.0-of-1.work").write_bytes(head + b"\n")
    with pytest.raises(DualSLMError, match=r"line 1 of .*\.work is damaged"):
        predict._done(tmp_path, {})
    (tmp_path / ".predictions.0-of-1.work").write_bytes(b'{}\n{"job": 1}\n')
    with pytest.raises(DualSLMError, match=r"line 2 of .*\.work is damaged: got no object with job, lines"):
        predict._done(tmp_path, {})


def test_a_record_of_predictions_that_nobody_here_wrote_is_one_line(tmp_path: Path) -> None:
    (tmp_path / predict.META).write_bytes(b"[" * 100_000)
    with pytest.raises(DualSLMError, match="nothing tells how it was made"):
        predict._settings_of(tmp_path)
