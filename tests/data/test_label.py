"""`dualslm label`: measurements of synthetic tones, bins, labels that exist already, unreadable recordings."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.badaudio import wav

pytest.importorskip("parselmouth", reason="needs pip install 'dualslm[label]'")

from dualslm.cli import main as cli
from dualslm.data import voice
from dualslm.data.label import ANY, Labelling, thresholds
from dualslm.data.manifest import Examples
from dualslm.errors import DualSLMError

RATE = 16_000


def buzz(hertz: float, seconds: float = 1.0, level: float = 0.1) -> Any:
    """A synthetic voice: a fundamental in Hz and its harmonics."""
    time = np.arange(round(RATE * seconds)) / RATE
    wave = np.sum([np.sin(2 * np.pi * hertz * number * time) / number for number in range(1, 8)], axis=0)
    return (level * wave / 1.5).astype(np.float32)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Nine voices, from low and quiet to high and loud, one broken file, one existing label."""
    rows = []
    for number in range(10):
        path = tmp_path / "clips" / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        if number < 9:
            wav(path, buzz(100 + 20 * number, 0.5 + 0.1 * number, 0.02 * (number + 1)))
        else:
            path.write_bytes(b"no audio")
        labels = {"gender": "male" if number < 5 else "female"} | ({"pitch": "high"} if number == 0 else {})
        clip = {"audio": f"clips/{number}.wav", "transcript": "one two three four", "labels": labels}
        rows.append({"id": str(number), "tasks": ["gender"], "turns": [{"role": "user", "parts": ["Hi.", clip]}]})
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return source


def labelled(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row["turns"][0]["parts"][1] for row in rows]


@pytest.mark.parametrize("hertz", [80, 120, 210, 333])
def test_pitch_of_a_tone(hertz: float) -> None:
    found = voice.pitch(buzz(hertz))
    assert found == pytest.approx(hertz, rel=0.01)


def test_silence_around_the_speech_changes_nothing(tmp_path: Path) -> None:
    wave = buzz(150)
    quiet = np.zeros(RATE, np.float32)
    near = voice.measure(str(wav(tmp_path / "a.wav", wave)), "one two three")
    far = voice.measure(str(wav(tmp_path / "b.wav", np.concatenate([quiet, wave, quiet]))), "one two three")
    assert (near.energy, near.tempo) == (far.energy, far.tempo)
    assert near.pitch == pytest.approx(far.pitch, rel=0.01)
    assert near.tempo == pytest.approx(3.0)


def test_what_has_no_voice_has_no_pitch(tmp_path: Path) -> None:
    silent = voice.measure(str(wav(tmp_path / "a.wav", np.zeros(RATE, np.float32))), "words")
    assert silent == voice.Voice(None, None, None)
    assert voice.pitch(np.zeros(100, np.float32)) is None
    assert voice.measure(str(wav(tmp_path / "b.wav", buzz(100)))).tempo is None


@pytest.mark.parametrize(
    ("text", "count"), [("Kids are talking by the door", 7), ("home", 1), ("little table", 4), ("", 0), ("hmm 12", 1)]
)
def test_syllables(text: str, count: int) -> None:
    assert voice.syllables(text) == count


def test_terciles_label_a_third_each(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "elsewhere" / "out.jsonl"
    assert cli.main(["label", str(manifest), str(out), "--ask"]) == 0
    report = json.loads(capsys.readouterr().out)
    clips = labelled(out)
    assert [clip["labels"].get("energy") for clip in clips] == ["low"] * 3 + ["normal"] * 3 + ["high"] * 3 + [None]
    assert [clip["labels"].get("pitch") for clip in clips[:3]] == ["high", "low", "low"]  # the first had a label
    assert [clip["labels"].get("tempo") for clip in clips] == ["fast"] * 3 + ["normal"] * 3 + ["slow"] * 3 + [None]
    assert clips[1]["measured"]["pitch"] == pytest.approx(120, rel=0.01)
    assert clips[1]["audio"] == "../clips/1.wav"
    assert "measured" not in clips[9]
    assert report == json.loads(out.with_suffix(".report.json").read_text())
    assert (report["recordings"], report["measured"], sum(report["unreadable"].values())) == (10, 9, 1)
    assert report["labels"]["pitch kept"] == 1
    assert Examples([out]).count("paralinguistic") == 10 + 3 * 9


def test_workers_give_the_same_bytes(manifest: Path, tmp_path: Path) -> None:
    outs = [tmp_path / f"{count}.jsonl" for count in (1, 2)]
    for count, out in enumerate(outs, 1):
        assert cli.main(["label", str(manifest), str(out), "--by-gender", "--workers", str(count)]) == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()
    pitches = [clip["labels"].get("pitch") for clip in labelled(outs[0])]
    assert pitches[0] == "high"  # as it was
    assert (pitches[1], pitches[4], pitches[5], pitches[8]) == ("low", "high", "low", "high")


def test_given_thresholds(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert cli.main(["label", str(manifest), str(out), "--pitch", "male:110,150", "--pitch", "female:210,250"]) == 0
    pitches = [clip["labels"].get("pitch") for clip in labelled(out)]
    assert pitches == ["high", "normal", "normal", "high", "high", "low", "normal", "normal", "high", None]


def test_labels_by_gender_leave_unknown_speakers_out(manifest: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    [clip] = [part for turn in rows[1]["turns"] for part in turn["parts"] if isinstance(part, dict)]
    del clip["labels"]["gender"]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.jsonl"
    assert cli.main(["label", str(manifest), str(out), "--by-gender"]) == 0
    assert "pitch" not in labelled(out)[1]["labels"]
    assert labelled(out)[1]["measured"]["pitch"] > 0
    assert labelled(out)[4]["labels"]["pitch"] == "high"
    assert json.loads(out.with_suffix(".report.json").read_text())["labels"]["pitch without a threshold"] == 1
    assert cli.main(["label", str(manifest), str(out)]) == 0  # for everybody alike
    assert labelled(out)[1]["labels"]["pitch"] == "low"


def test_bins_hold_their_thresholds() -> None:
    labelling = Labelling(thresholds={"pitch": {ANY: (100.0, 200.0)}, "energy": {"male": (-40.0, -30.0)}})
    assert [labelling.bin("pitch", hertz, "female") for hertz in (99.9, 100.0, 200.0, 200.1)] == [
        "low",
        "normal",
        "normal",
        "high",
    ]
    assert labelling.bin("energy", -35.0, None) is None
    both = Labelling(thresholds={"pitch": {ANY: (125.0, 187.0), "female": (188.0, 216.0)}})
    assert [both.bin("pitch", 187.5, gender) for gender in ("female", "male", None)] == ["low", "high", None]


@pytest.mark.parametrize("text", ["low", "1", "2,1", "child:1,2", "1,2,3"])
def test_thresholds_that_are_none(text: str) -> None:
    with pytest.raises(DualSLMError, match="not thresholds for pitch"):
        thresholds([text], "pitch")


def test_mistakes_are_one_line(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = tmp_path / "lost.jsonl"
    clip = {"audio": "none.wav", "transcript": "x"}
    lost.write_text(json.dumps({"id": "a", "tasks": ["asr"], "turns": [{"role": "user", "parts": [clip]}]}) + "\n")
    for arguments, word in (
        ([str(manifest), str(manifest)], "would replace"),
        (["missing.jsonl", "out.jsonl"], "cannot read the manifest"),
        ([str(lost), str(tmp_path / "o.jsonl")], "can be measured"),
    ):
        assert cli.main(["label", *arguments]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("dualslm: error: "), error
        assert word in error


def test_captions_of_a_corpus_that_names_the_gender_alone_say_more(manifest: Path, tmp_path: Path) -> None:
    def captions(path: Path) -> list[str]:
        examples = Examples([path])
        found = (examples.get("paralinguistic", index) for index in range(examples.count("paralinguistic")))
        return [str(example.conversation.turns[-2].speeches[-1].caption) for example in found]

    assert cli.main(["label", str(manifest), str(tmp_path / "out.jsonl")]) == 0
    before, after = captions(manifest), captions(tmp_path / "out.jsonl")
    words = {"pitch": r"pitch|voice", "tempo": r"tempo|slow|fast|pace|speed", "energy": r"energy|quiet|loud|volume"}
    for name, pattern in words.items():
        if name != "pitch":  # the first recording has that label from its corpus
            assert not any(re.search(pattern, text) for text in before), name
        assert sum(bool(re.search(pattern, text)) for text in after) == 9, name  # all but the one that cannot be read


def test_another_split_takes_the_thresholds_of_the_first(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "train.report.json"
    assert cli.main(["label", str(manifest), str(tmp_path / "train.jsonl"), "--by-gender"]) == 0
    half = manifest.with_name("half.jsonl")
    half.write_text("".join(line + "\n" for line in manifest.read_text().splitlines()[5:]))
    assert cli.main(["label", str(half), str(tmp_path / "out.jsonl"), "--like", str(report), "--energy=-9,-3"]) == 0
    made, wanted = (json.loads(path.read_text())["thresholds"] for path in (tmp_path / "out.report.json", report))
    assert made == {**wanted, "energy": {"any": [-9.0, -3.0]}}
    assert (
        labelled(tmp_path / "out.jsonl")[0]["labels"]["pitch"]
        == labelled(tmp_path / "train.jsonl")[5]["labels"]["pitch"]
    )
    capsys.readouterr()
    for text in ("{", "[]", '{"thresholds": {"pitch": {"any": [1]}}}'):
        report.write_text(text)
        assert cli.main(["label", str(half), str(tmp_path / "out.jsonl"), "--like", str(report)]) == 2
        assert "is no report of labels" in capsys.readouterr().err
