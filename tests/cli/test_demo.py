"""`dualslm demo --model pocket`: every shipped recording is heard and answered, and two are mixed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.aligned import WORD, aligned_model
from support.servekit import ANGRY, SAD

from dualslm import pocket
from dualslm.cli import demo
from dualslm.cli import main as cli
from dualslm.model.dualslm import DualSLM


def test_people_are_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = aligned_model(tmp_path)
    listed = [
        {"file": str(file), "text": text, "corpus": "a corpus"} for file, text in ((SAD, "One."), (ANGRY, "Two."))
    ]
    (tmp_path / "clips.json").write_text(json.dumps(listed))
    monkeypatch.setattr(pocket, "RECORDINGS", tmp_path)
    monkeypatch.setattr(demo, "fetch_parts", lambda _: None)
    monkeypatch.setattr(DualSLM, "from_pretrained", lambda _: model)
    monkeypatch.setattr(demo, "MAX_NEW_TOKENS", 2)
    assert cli.main(["demo", "--model", "pocket"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count(WORD) == len(listed)
    assert printed.out.count("male, fast tempo") == len(listed)
    assert all(f'"{item["text"]}"' in printed.out for item in listed)
    assert "source swap" in printed.out
    assert "dualslm: this model" in printed.err


def test_a_build_without_recordings_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pocket, "RECORDINGS", tmp_path)
    assert cli.main(["demo", "--model", "pocket"]) == 2
    assert capsys.readouterr().err.startswith("dualslm: error: no recordings of people")


@pytest.mark.skipif(not (pocket.RECORDINGS / "clips.json").exists(), reason="this build has no recordings of people")
def test_shipped_recordings_are_short_and_name_their_licence() -> None:
    clips = demo.clips()
    assert len(clips) == 6
    assert all("CC BY" in clip.corpus for clip in clips)
    assert sum(clip.path.stat().st_size for clip in clips) < 1_000_000
