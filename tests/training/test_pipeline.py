"""From downloaded folders to optimizer steps: prepare, targets and train by the shipped recipe, on stand-in parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support import standins
from support.factory import save_encoder, save_llm
from support.standins import textrol_path

from dualslm.cli.main import main

CORPORA = ("librispeech", "textrolspeech", "styletalk", "dailytalk")
LOCAL = (
    "model.encoder=encoder",
    "model.llm=llm",
    "model.paralinguistic.feedforward=64",
    "model.linguistic.hidden=32",
    "data.validation=[]",
    "loop.workers=0",
)


@pytest.fixture
def downloads(root: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with some rows of each corpus, stand-in recordings, the recipe, and local parts for the hub's."""
    raw = tmp_path / "raw"
    real = shared / "data"
    for name in CORPORA:
        (raw / name).mkdir(parents=True)
    standins.librispeech(raw / "librispeech", {"train-clean-100": ["19", "26"], "dev-clean": ["84"]})
    rows = standins.read(real / "textrolspeech/VccmDataset/controlspeech_test.csv")[:12]
    standins.textrolspeech(raw / "textrolspeech", rows, [textrol_path(row["item_name"]) for row in rows])
    (raw / "few").mkdir()
    for name in ("train.csv", "eval.csv"):
        standins.write(raw / "few" / name, standins.read(real / "styletalk" / name)[:10])
    standins.styletalk(raw / "styletalk", raw / "few")
    dialogues = json.loads((real / "dailytalk/metadata_first5_dialogues.json").read_text())
    (raw / "few" / "metadata.json").write_text(json.dumps(dialogues))
    standins.dailytalk(raw / "dailytalk", raw / "few" / "metadata.json")
    save_encoder(tmp_path / "encoder")
    save_llm(tmp_path / "llm")
    shutil.copy(root / "recipes" / "small.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_downloads_to_steps(downloads: Path, capsys: pytest.CaptureFixture[str]) -> None:
    local = [word for change in LOCAL for word in ("--set", change)]
    for name in CORPORA:
        assert main(["prepare", name, f"raw/{name}"]) == 0, capsys.readouterr().err
    assert main(["train", "small.toml", *local]) == 2
    assert "run dualslm targets first" in capsys.readouterr().err
    assert main(["targets", "small.toml", *local, "--max-new-tokens", "5"]) == 0, capsys.readouterr().err
    assert main(["train", "small.toml", *local, "--out", "run", "--device", "cpu"]) == 0, capsys.readouterr().err
    rows = [json.loads(line) for line in (downloads / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {"joint", "disentangle", "respond"}
    assert any("dual" in row.get("loss", {}) for row in rows)
    assert (downloads / "run" / "respond" / "adapters.safetensors").exists()
