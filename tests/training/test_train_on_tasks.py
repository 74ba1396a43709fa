"""From lines with tasks to an optimizer step: label nothing, write the targets, train, refuse another LLM's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.factory import save_llm
from support.trainkit import RECIPE, make

from dualslm.cli import main as cli
from dualslm.errors import DualSLMError
from dualslm.recipe import load
from dualslm.training import estimate, expected
from dualslm.training.train import train

DUAL = """
[[stage]]
name = "respond"
lr = 1e-3
batch = 4
steps = 2
[stage.dual]
learns = ["para", "ling"]
[stage.linguistic]
learns = ["ling"]
view = { para = ["text", "speech", "none"], ling = ["speech"] }
[stage.paralinguistic]
learns = ["para"]
view = { para = ["speech"], ling = ["text", "speech", "none"] }
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A recipe of one stage of all three kinds, its manifests made of lines with tasks."""
    make(tmp_path)
    for name, count in (("train", 12), ("validation", 4)):
        rows = []
        for number in range(count):
            clip = {"audio": f"clips/{name}{number}.wav", "transcript": f"hello {number}", "labels": {"gender": "F"}}
            turns = [{"role": "user", "parts": ["Hi."]}, {"role": "assistant", "parts": ["Hi!"]}]
            turns.append({"role": "user", "parts": [clip]})  # type: ignore[list-item]
            rows.append({"id": f"{name}{number}", "tasks": ["asr", "gender", "respond"], "turns": turns})
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = RECIPE[: RECIPE.index("[[stage]]")].format(folder=tmp_path) + DUAL
    for name in ("train", "validation"):
        text = text.replace(f'{name}.jsonl"]', f'{name}.jsonl", "{tmp_path}/{name}.targets.jsonl"]')
    (tmp_path / "recipe.toml").write_text(text)
    return tmp_path / "recipe.toml"


def test_from_tasks_to_a_step(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load(recipe_file)
    with pytest.raises(DualSLMError, match="run dualslm targets first"):
        train(recipe, tmp_path / "early", device="cpu")
    assert cli.main(["targets", str(recipe_file), "--max-new-tokens", "8", "--device", "cpu"]) == 0
    written = (tmp_path / "train.targets.jsonl").read_text().count("\n")  # a random LLM says nothing at times
    assert estimate.estimate(recipe).examples == {"linguistic": 12, "paralinguistic": 12, "dual": written}
    capsys.readouterr()
    train(recipe, tmp_path / "run", device="cpu")
    printed = " ".join(capsys.readouterr().err.split())
    assert f"left out: {12 - written} examples, respond: no answer" in printed
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "dual" in metrics
    save_llm(tmp_path / "llm", seed=5)
    with pytest.raises(DualSLMError, match="another LLM wrote these targets"):
        train(recipe, tmp_path / "other", device="cpu")


def test_a_plan_counts_what_is_yet_to_be_written(recipe_file: Path, tmp_path: Path) -> None:
    names = [f"data.train=['{tmp_path}/train.jsonl']", "data.validation=[]"]
    found = estimate.estimate(load(recipe_file, names))
    assert found.examples == {"linguistic": 12, "paralinguistic": 12, "dual": 12}
    assert found.lengths["dual"].reply == expected.PAPER_LENGTHS["dual"].reply
    with pytest.raises(DualSLMError, match=r"no dual examples.*respond: no answer"):
        train(load(recipe_file, names), tmp_path / "run", device="cpu")
