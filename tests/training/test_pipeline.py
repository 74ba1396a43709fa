"""From downloaded folders to a report, by the paper's own recipe: only the names and sizes of its parts are replaced.

The recordings are tones under the names of real ones, and the encoder and the LLM are random and small.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from support import standins
from support.factory import save_encoder, save_llm
from support.standins import textrol_path

from dualslm.cli.main import main
from dualslm.data.corpora.base import HELD_OUT, split_of
from dualslm.data.corpora.styletalk import VALIDATION
from dualslm.recipe import Recipe, load
from dualslm.toml import plain

STAGES = ("joint", "disentangle", "respond")
PREPARED = ("librispeech", "textrolspeech", "meld", "styletalk", "dailytalk --validation-list held-out.txt")
SIZES = {
    "model.encoder": "encoder",
    "model.llm": "llm",
    "model.paralinguistic.feedforward": "64",
    "model.paralinguistic.tokens": "4",
    "model.linguistic.hidden": "32",
    "loop.workers": "0",
    "loop.validation_batches": "1",
}
LOCAL = [word for key, value in SIZES.items() for word in ("--set", f"{key}={value}")]


def some(
    rows: Iterable[Mapping[str, str]], key: Callable[[Mapping[str, str]], str], held_out: Mapping[str, float], each: int
) -> list[dict[str, str]]:
    """The first rows of each split, so that a handful of them has all."""
    found: list[dict[str, str]] = []
    taken: Counter[str] = Counter()
    for row in rows:
        split = split_of(key(row), 0, held_out)
        taken[split] += 1
        if taken[split] <= each:
            found.append(dict(row))
    return found


@pytest.fixture
def downloads(root: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with some rows of each corpus, stand-in recordings, the recipe, and local parts for the hub's."""
    raw = tmp_path / "raw"
    few = tmp_path / "few"
    real = shared / "data"
    for name in (*(line.split()[0] for line in PREPARED), "../few"):
        (raw / name).mkdir(parents=True)
    standins.librispeech(
        raw / "librispeech", {"train-clean-100": ["19", "26"], "dev-clean": ["84"], "test-clean": ["61"]}, 2
    )
    styled = standins.read(real / "textrolspeech/VccmDataset/controlspeech_test.csv")
    styled = some(styled, lambda row: row["spk"], HELD_OUT, 3)
    standins.textrolspeech(raw / "textrolspeech", styled, [textrol_path(row["item_name"]) for row in styled])
    for name in ("train", "dev", "test"):
        file = f"{name}_sent_emo.csv"
        standins.write(few / file, standins.read(real / "meld/MELD" / file)[:4])
    standins.meld(raw / "meld", few)
    spoken = standins.read(real / "styletalk/train.csv")
    standins.write(few / "train.csv", some(spoken, lambda row: row["diag_id"], VALIDATION, 3))
    standins.write(few / "eval.csv", standins.read(real / "styletalk/eval.csv")[:2])
    standins.styletalk(raw / "styletalk", few)
    dialogues = json.loads((real / "dailytalk/metadata_first5_dialogues.json").read_text())
    (few / "metadata.json").write_text(json.dumps({name: dialogues[name] for name in ("1", "3")}))
    standins.dailytalk(raw / "dailytalk", few / "metadata.json")
    (tmp_path / "held-out.txt").write_text("3\n")
    save_encoder(tmp_path / "encoder")
    save_llm(tmp_path / "llm")
    shutil.copy(root / "recipes" / "paper-qwen.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Every key of a recipe with its value."""
    if isinstance(value, dict):
        return {name: leaf for key, one in value.items() for name, leaf in flat(one, f"{path}.{key}").items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {name: leaf for index, one in enumerate(value) for name, leaf in flat(one, f"{path}.{index}").items()}
    return {path[1:]: value}


def keys(recipe: Recipe) -> dict[str, Any]:
    return flat(plain(recipe))


def test_the_papers_recipe_from_downloads_to_a_report(downloads: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> None:
        assert main([*words]) == 0, capsys.readouterr().err

    own = keys(load("paper-qwen.toml"))
    local = keys(load("paper-qwen.toml", LOCAL[1::2]))
    assert {key for key in local if local[key] != own.get(key)} == set(SIZES), "nothing else differs from the paper's"

    for line in PREPARED:
        corpus, *options = line.split()
        run("prepare", corpus, f"raw/{corpus}", *options)
    assert main(["train", "paper-qwen.toml", *LOCAL]) == 2
    assert "run dualslm targets first" in capsys.readouterr().err
    run("targets", "paper-qwen.toml", *LOCAL, "--max-new-tokens", "5")
    run("train", "paper-qwen.toml", *LOCAL, "--out", "run", "--device", "cpu")

    rows = [json.loads(line) for line in (downloads / "run" / "metrics.jsonl").read_text().splitlines()]
    learnt = {
        stage: {kind for row in rows if row["stage"] == stage for kind in row.get("loss", {})} for stage in STAGES
    }
    assert learnt == {
        "joint": {"linguistic", "paralinguistic"},
        "disentangle": {"linguistic", "paralinguistic"},
        "respond": {"linguistic", "paralinguistic", "dual"},
    }
    assert {row["stage"] for row in rows if "validation_loss" in row} == set(STAGES)
    assert all((downloads / "run" / stage / "adapters.safetensors").exists() for stage in STAGES)

    sets = ("meld/test", "librispeech/test-clean", "textrolspeech/test", "styletalk/test", "styletalk/test-reversed")
    named = [word for one in sets for word in ("--on", f"data/{one}.jsonl")]
    run("eval", "run", *named, "--out", "report", "--max-new-tokens", "3", "--device", "cpu", "--system", "majority")
    report = json.loads((downloads / "report" / "report.json").read_text())
    asked = {(cell["task"], f"{cell['corpus']}/{cell['split']}") for cell in report["cells"]}
    attributes = ("gender", "pitch", "tempo", "energy", "emotion")
    wanted = {("emotion", sets[0]), ("asr", sets[1]), ("respond", sets[3]), ("respond", sets[4])}
    wanted |= {(name, sets[2]) for name in attributes}
    assert asked == wanted | {(task, f"{name} (unseen prompts)") for task, name in wanted}
    page = (downloads / "report" / "report.md").read_text()
    assert all(f"Table {number}" in page for number in ("I", "II", "III"))
