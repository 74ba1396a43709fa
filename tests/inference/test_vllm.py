"""The untouched LLM behind stock vLLM: the same greedy replies as in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.targetskit import RECIPE, lines
from support.vllmkit import NAME

from dualslm.cli import main as cli
from dualslm.tiny import WEIGHTS


def replies(path: Path) -> list[tuple[str, bool]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row["turns"][-1]["parts"][0], row["early_stop"]) for row in rows]


@pytest.mark.parametrize("longest", ["4", "60"])
def test_targets_by_vllm_and_in_this_process_are_the_same(tmp_path: Path, vllm: str, longest: str) -> None:
    for name, count in (("a", 11), ("b", 3)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines(count)))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(folder=tmp_path, llm=WEIGHTS / "llm"))
    command = ["targets", str(recipe), "--max-new-tokens", longest, "--device", "cpu", "--out"]
    assert cli.main([*command, str(tmp_path / "own.jsonl")]) == 0
    assert cli.main([*command, str(tmp_path / "vllm.jsonl"), "--server", vllm, "--model", NAME]) == 0
    own = replies(tmp_path / "own.jsonl")
    assert own == replies(tmp_path / "vllm.jsonl")
    assert len(set(own)) > 5
    assert {ended for _, ended in own} == {longest == "60"}
