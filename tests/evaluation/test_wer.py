"""Word errors: normalizers, errors by kind, empty references, preambles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dualslm.errors import DualSLMError
from dualslm.evaluation import measure
from dualslm.evaluation.metrics import wer
from dualslm.evaluation.predict import records
from dualslm.evaluation.prediction_fields import NEEDED

pytest.importorskip("whisper_normalizer", reason="pip install 'dualslm[eval]'")


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("THE KING'S MEN", "the king is men"),
        ("HE'S GONE", "he has gone"),
        ("HE IS GONE", "he is gone"),
        ("O'CLOCK", "0 clock"),
        ("ONE TWO THREE", "123"),
        ("1 2 3", "one 2 3"),
        ("twenty one thousand three hundred and five", "21305"),
        ("$5 million", "$5000000"),
        ("um, uh", ""),
        ("Hmm.", ""),
        ("(laughter)", ""),
        ("[x] and <x> text", "and text"),
        ("colour", "color"),
        ("café", "cafe"),
    ],
)
def test_whispers_normalizer(text: str, normal: str) -> None:
    assert " ".join(wer.whisper(text)) == normal


def test_the_normalizer_names_its_version() -> None:
    from importlib.metadata import version

    assert version("whisper-normalizer") in wer.normaliser()


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("THE KING'S MEN", "the king's men"),
        ("O\N{RIGHT SINGLE QUOTATION MARK}CLOCK, he said!", "o'clock he said"),
        ("$5 million", "5 million"),
        ("м\N{MODIFIER LETTER APOSTROPHE}ята", "м'ята"),
        ("  ", ""),
    ],
)
def test_raw(text: str, normal: str) -> None:
    assert " ".join(wer.raw(text)) == normal


@pytest.mark.parametrize(
    ("reference", "hypothesis", "edits"),
    [
        ("a b c d", "a b c d", (0, 0, 0)),
        ("a b c d", "a x c d", (1, 0, 0)),
        ("a b c d", "a c d", (0, 1, 0)),
        ("a b c d", "a b b c d", (0, 0, 1)),
        ("a b c d", "", (0, 4, 0)),
        ("", "a b", (0, 0, 2)),
        ("", "", (0, 0, 0)),
        ("a b", "c d e", (2, 0, 1)),
    ],
)
def test_kinds_of_errors(reference: str, hypothesis: str, edits: tuple[int, int, int]) -> None:
    assert tuple(wer.edits(reference.split(), hypothesis.split())) == edits


@pytest.mark.parametrize(
    ("said", "bare"),
    [
        ('Sure! Here is the transcript: "I lost it."', "I lost it."),
        ("The speaker says: I lost it.", "I lost it."),
        ("Transcript: I lost it.", "I lost it."),
        ("The transcription of the recording is: I lost it.", "I lost it."),
        ("I lost it.", "I lost it."),
        ('"I lost it."', '"I lost it."'),
        ("I said: no.", "I said: no."),
        ("The man saw the text.", "The man saw the text."),
    ],
)
def test_preambles(said: str, bare: str) -> None:
    assert wer.unwrapped(said) == bare


def row(truth: str, answer: str, number: int = 0) -> dict[str, object]:
    known = {"id": f"i{number}", "task": "asr", "choices": None, "truth": truth, "answer": answer, "ended": True}
    return {**known, "cluster": f"c{number}", "system": "s", "view": None, "corpus": "c", "split": "t"}


def test_a_cell_of_words() -> None:
    rows = [
        row("HELLO THERE", "hello there", 0),
        row("a b c d", "Sure, here is the transcript: a b c d", 1),
        row("one", "one one one one", 2),
        row("um", "", 3),
    ]
    found = measure.measure(rows, 0)
    raw = found["edits"]["raw"]
    whisper = found["edits"]["whisper"]
    assert (raw["insertions"], raw["deletions"], raw["reference_words"], raw["empty_references"]) == (8, 1, 8, 0)
    assert whisper["empty_references"] == 1
    assert found["figures"]["wer_raw"]["value"] == pytest.approx(100 * 9 / 8)
    assert found["figures"]["wer_stripped"]["value"] == pytest.approx(100 * 4 / 8)
    assert found["figures"]["preambles"]["value"] == 25.0
    assert found["figures"]["runaway"]["value"] == 50.0  # the preamble, and the loop


def test_only_empty_references_have_no_rate() -> None:
    found = measure.measure([row("", "hello", 0), row("  ", "", 1)], 0)
    assert found["figures"]["wer_raw"]["value"] is None
    assert found["edits"]["raw"]["insertions"] == 1


@pytest.mark.parametrize("key", NEEDED)
def test_a_missing_key_fails(tmp_path: Path, key: str) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps({name: value for name, value in row("a", "a").items() if name != key}) + "\n")
    with pytest.raises(DualSLMError, match=f"line 1 is no prediction: got no {key}"):
        list(records(path))


def test_no_answer_is_no_empty_answer(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps({**row("a", "a"), "answer": None}) + "\n")
    with pytest.raises(DualSLMError, match="answer None"):
        list(records(path))
