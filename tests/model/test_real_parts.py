"""Real recordings through a real Whisper encoder into every family of LLM, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.factory import FAMILIES, save_llm

from dualslm.cli import main as cli


@pytest.fixture(scope="module")
def recordings(shared: Path) -> list[str]:
    """LibriSpeech (16 kHz), RAVDESS as recorded (48 kHz, stereo) and FSDD (8 kHz)."""
    found = [
        next(iter(sorted((shared / "data" / folder).rglob(name))))
        for folder, name in (("librispeech", "*.flac"), ("odd_audio", "*.flac"), ("fsdd", "*.wav"))
    ]
    return [str(path) for path in found]


def ask(recordings: list[str], shared: Path, llm: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The replies that `dualslm ask` prints."""
    parts = ["--encoder", str(shared / "weights" / "whisper-tiny.en"), "--llm", str(llm)]
    assert cli.main(["ask", *recordings, *parts, "--max-new-tokens", "6", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "untrained" in err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["said"] for line in lines] == recordings
    return [line["reply"] for line in lines]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_hears_every_recording(
    family: str, recordings: list[str], shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replies = ask(recordings, shared, save_llm(tmp_path, family), capsys)
    assert any(replies)


def test_a_real_base_model_without_a_template(
    recordings: list[str], shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert all(ask(recordings, shared, shared / "weights" / "stories260K", capsys))
