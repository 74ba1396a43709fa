"""Replies read aloud in the terminal, by a synthesizer that writes down what it was given."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import pytest

from dualslm.chat.voice import COMMANDS, Voice
from dualslm.cli import main as cli
from dualslm.errors import DualSLMError


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What was said, a sentence a line; nothing else is on the path."""
    out = tmp_path / "said"
    out.touch()
    synthesizer = tmp_path / "bin" / "espeak-ng"
    synthesizer.parent.mkdir()
    # read with the shell's own means: the path holds this one program
    synthesizer.write_text(
        f'#!/bin/sh\n[ "$1" = --stdin ] || exit 1\nIFS= read -r line || :\necho "$line" >> {out}\n'
        f"[ -e {tmp_path}/slow ] && while :; do :; done\nexit 0\n"
    )
    synthesizer.chmod(0o755)
    monkeypatch.setenv("PATH", str(synthesizer.parent))
    return out


def test_sentences_are_said_as_they_are_whole(said: Path) -> None:
    voice = Voice()
    for piece in ("You have every ri", "ght to be angry. Tell", " the police!\nAnd --help is no option"):
        voice.add(piece)
    assert not voice.wait(0.0) or said.read_text()
    voice.end()
    assert voice.wait(30)
    assert said.read_text().splitlines() == [
        "You have every right to be angry.",
        "Tell the police!",
        "And --help is no option",
    ]


def test_it_falls_silent_at_once(said: Path) -> None:
    (said.parent / "slow").touch()
    voice = Voice()
    voice.add("One sentence. Another one. ")
    while not said.read_text():
        time.sleep(0.01)
    assert not voice.wait(0.05)
    voice.stop()
    assert voice.wait(30)
    assert said.read_text() == "One sentence.\n"


def test_chat_reads_its_replies(
    said: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("It was a long day.\n/quit\n"))
    assert cli.main(["chat", "--speak"]) == 0
    spoken = " ".join(said.read_text().split())
    assert spoken
    assert spoken in " ".join(capsys.readouterr().out.split())


def test_without_a_synthesizer_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DualSLMError, match="espeak-ng"):
        Voice()
    assert cli.main(["chat", "--speak"]) == 2
    told = capsys.readouterr().err
    assert "install espeak-ng" in told
    assert all(command[0] in told for command in COMMANDS)
    assert os.environ["PATH"] == str(tmp_path)
