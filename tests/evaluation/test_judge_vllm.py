"""A real server: the tiny LLM behind stock vLLM answers under the JSON schema, and fails the trial."""

from __future__ import annotations

from pathlib import Path

from support.judgekit import rows
from support.vllmkit import NAME

from dualslm.evaluation.judges.run import compare, judge, verdicts
from dualslm.evaluation.judges.sanity import calibration, trust
from dualslm.evaluation.judges.spec import JudgeSpec
from dualslm.evaluation.judges.tables import summary

FEW = 12  # of the calibration items


def test_the_tiny_llm_answers_as_a_judge_and_its_opinions_are_worthless(tmp_path: Path, vllm: str) -> None:
    spec = JudgeSpec("tiny-llm", vllm, NAME, max_tokens=100)  # 1024 tokens hold a question of 900 and the answer
    some = {row["id"] for row in calibration()[: 4 * FEW]}
    said = [row for row in calibration() if row["id"] in some]
    outcome = judge(said, [spec], ["cs", "egs"], tmp_path / "v.jsonl", tmp_path / "c.sqlite")
    found = verdicts(outcome.path)
    assert outcome.enough, outcome.lines()
    assert {(row["rung"], row["served"]["model"]) for row in found} == {("json_schema", NAME)}
    assert all(row["usage"]["completion_tokens"] > 0 for row in found)
    for row in trust(found):
        assert not row["usable"]
        assert "Its opinions are worthless" in row["told"][0]
    again = judge(said, [spec], ["cs", "egs"], tmp_path / "w.jsonl", tmp_path / "c.sqlite")
    assert (again.sent, verdicts(again.path)) == (0, found)


def test_the_tiny_llm_compares_in_both_orders(tmp_path: Path, vllm: str) -> None:
    spec = JudgeSpec("tiny-llm", vllm, NAME, max_tokens=60)
    said = rows(4) + rows(4, "rival", answer="I see.")
    pairs = [("ours", "rival")]
    outcome = compare(said, pairs, [spec], tmp_path / "p.jsonl", tmp_path / "c.sqlite", protocol="pair-words")
    assert outcome.enough, outcome.lines()
    (row,) = summary(verdicts(outcome.path))["pairs"]
    assert row["wins"] + row["losses"] + row["ties"] == row["n"] == 4
