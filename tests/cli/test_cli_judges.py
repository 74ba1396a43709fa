"""Judges from the command line: options, the trial before the scores, exit statuses."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from support.judgekit import Body, Say, fake, rows, sensible

from dualslm.cli import evaluation, judges
from dualslm.cli import main as cli
from dualslm.errors import DualSLMError
from dualslm.evaluation.judges import panel


def parsed(*words: str) -> Any:
    parser = argparse.ArgumentParser()
    evaluation.add_eval(parser)
    return judges.order(parser.parse_args(words))


def test_options_become_an_order(tmp_path: Path) -> None:
    spec = "name=a,base_url=http://localhost:1/v1,model=m"
    wanted = parsed("--judge", spec, "--judge", spec.replace("name=a", "name=b"), "--protocol", "egs", "--pair", "x:y")
    assert [judge.name for judge in wanted.judges] == ["a", "b"]
    assert (wanted.protocols, wanted.pairs, wanted.repeats) == (("egs-1",), (("x", "y"),), 1)
    assert parsed("--judge", spec).protocols == ("cs-words-1", "egs-words-1"), "no label of the tone unless asked"
    assert parsed() is None
    for words in (["--sanity"], ["--judge", spec, "--pair", "x"], ["--judge", spec, "--protocol", "bleu"]):
        with pytest.raises(DualSLMError):
            parsed(*words)


def test_judges_are_tried_before_they_judge(tmp_path: Path) -> None:
    def think(body: Body, number: int) -> Say:
        return Say('{"better": "tie"}') if "first_reply" in body["messages"][1]["content"] else sensible(body)

    predictions = rows(4)
    with fake(think) as server:
        wanted = panel.Order((server.judge(),), ("cs-1",), pairs=(("ours", "gold"),), controls=True)
        only = panel.run(wanted, tmp_path)
        found = panel.run(wanted, tmp_path, predictions, run_id="r")
    assert len(server.bodies) == 100 + 20 + 8
    assert only.report.keys() == {"trust"}
    assert found.enough
    assert any("can be trusted" in line for line in found.lines)
    assert found.report["trust"][0]["usable"]
    assert (len(found.report["scores"]), found.report["pairs"][0]["ties"]) == (10, 4)
    assert "scores: 20 of 20 verdicts, 0 from before, 20 requests sent" in found.lines


def test_the_verb_tries_a_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake() as server:
        spec = f"name=fake,base_url={server.url},model=org/fake-judge"
        words = ["eval", "--sanity", "--judge", spec, "--protocol", "cs", "--out", str(tmp_path)]
        assert cli.main(words) == 0
        assert "Judge fake under cs-1 can be trusted" in capsys.readouterr().out
        server.think = lambda body, number: Say('{"content": 3, "style": 3}')
        assert cli.main([*words, "--judge-cache", str(tmp_path / "other")]) == 0  # its verdicts are there
        assert cli.main([*words[:-1], str(tmp_path / "new")]) == 1
        assert "Its opinions are worthless" in capsys.readouterr().out
    assert cli.main(["eval", "--sanity"]) == 2
