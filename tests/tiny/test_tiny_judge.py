"""The tiny world's rule, asked as a judge."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from dualslm.conversation import Speech
from dualslm.evaluation.judges.run import judge, verdicts
from dualslm.evaluation.judges.sanity import calibration
from dualslm.evaluation.judges.spec import JudgeSpec
from dualslm.tiny import judge as rule
from dualslm.tiny import world
from dualslm.tiny.style import sample_style


def predictions(count: int) -> list[dict[str, Any]]:
    """Conversations of the world, answered by the rule and by a listener that does not hear the tone."""
    rows = []
    for index in range(count):
        rng = random.Random(index)
        utterance = world.sample_utterance(rng, held_out=True, kinds=("event",))
        style = sample_style(rng)
        sample = world.sample_talk(rng, Speech(transcript=utterance.text), utterance, style)
        context = [{"role": turn.role, "text": str(turn.parts[0])} for turn in sample.conversation.turns[:-1]]
        row = {"id": str(index), "cluster": str(index), "task": "respond", "context": context}
        row |= {"transcript": utterance.text, "caption": world.caption(style, drop=0), "truth": sample.reply.text}
        # Right words without tone or memory: what a system that reads the transcript alone can do.
        toneless = world.ExpectedReply("Thank you for telling me.", sample.reply.content)
        rows.append({**row, "system": "ours", "view": "speech,speech", "answer": sample.reply.text})
        rows.append({**row, "system": "ours", "view": "none,text", "answer": toneless.text})
    return rows


def test_the_rule_scores_as_the_world_has_it(tmp_path: Path) -> None:
    found = rule.judged(predictions(30), tmp_path)
    assert found.enough
    means = {(row["system"], row["dimension"]): row["mean"] for row in found.report["scores"]}
    best = "ours [speech,speech]"
    toneless = "ours [none,text]"
    assert [means[best, name] for name in ("content", "style", "C1", "C2", "C3", "C4")] == [5, 5, 10, 10, 10, 10]
    assert means[toneless, "style"] == 1
    # "Thank you for telling me." claims nothing wrong, and the words are right.
    assert 1 < means[toneless, "content"] < 5
    assert means["gold", "content"] == 5 > means["generic", "content"] == 2
    assert {row["judge"] for row in found.report["trust"]} == {rule.NAME}
    assert all(row["usable"] for row in found.report["trust"]), found.lines


def test_what_the_rule_does_not_know_it_does_not_score(tmp_path: Path) -> None:
    with rule.serving(predictions(3)) as spec:
        assert isinstance(spec, JudgeSpec)
        outcome = judge(calibration()[:4], [spec], ["cs"], tmp_path / "v", tmp_path / "c")
    assert (outcome.scored, len(verdicts(outcome.path))) == (0, 4)
