"""docs/five-clips.md is run as it stands: its files are written, its commands and its Python carried out."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from dualslm import DualSLM
from dualslm.cli import main as cli
from dualslm.tiny import WEIGHTS

BLOCK = re.compile(r"(?:`(\w+\.\w+)`[^`]*)?```(\w+)\n(.*?)```", re.DOTALL)


def test_the_page_ends_with_adapters_that_know_the_five_clips(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("parselmouth", reason="pip install 'dualslm[label]'")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(WEIGHTS.parent)
    said: dict[str, str] = {}
    for name, language, text in BLOCK.findall((root / "docs" / "five-clips.md").read_text()):
        if language == "python":
            exec(compile(text, "five-clips.md", "exec"), {})
        elif language != "sh":
            (tmp_path / name).write_text(text)
        else:
            said |= {line: out(line, capsys) for line in text.splitlines() if line.startswith("dualslm ")}
    assert len(said) == 7
    asked = next(reply for line, reply in said.items() if line.startswith("dualslm ask"))
    targets = map(json.loads, (tmp_path / "data" / "labelled.targets.jsonl").read_text().splitlines())
    (wanted,) = [row["turns"][-1]["parts"][0] for row in targets if "hear_3_sad" in json.dumps(row)]
    assert asked.startswith(wanted.split(".")[0]), "not even the first sentence"
    assert "bakery" in asked
    known = knows(tmp_path / "data" / "labelled.targets.jsonl", tmp_path / "runs" / "five" / "respond")
    assert (len(known), sum(known) >= 4) == (5, True)
    page = (tmp_path / "five-adapters" / "README.md").read_text()
    assert "license: apache-2.0" in page
    assert "[[stage]]" in page


def knows(targets: Path, adapters: Path) -> list[bool]:
    """Whether each talk is answered as the LLM answered its styled transcript."""
    model, rows = DualSLM.from_pretrained(adapters, device="cpu"), map(json.loads, targets.read_text().splitlines())
    found = []
    for row in rows:
        said, answer = (turn["parts"][0] for turn in row["turns"])
        found.append(model.reply(str(targets.parent / said["audio"]), system=row["system"]) == answer)
    return found


def out(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints."""
    assert cli.main(shlex.split(line)[1:]) == 0, line
    return capsys.readouterr().out
