"""Judges against a server that fails on purpose: no verdict lost, none invented, nothing asked twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.judgekit import Body, Fake, Say, block, fake, rows, sensible

from dualslm import openai_client
from dualslm.errors import DualSLMError
from dualslm.evaluation.judges.run import Outcome, judge, verdicts
from dualslm.evaluation.judges.spec import JudgeSpec
from dualslm.evaluation.judges.tables import summary

FORMS = ["json_schema", "json_object", None, None]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_client, "WAIT", 0.005)


def run(
    server: Fake, folder: Path, n: int = 3, protocols: tuple[str, ...] = ("cs",), **more: Any
) -> tuple[Outcome, list[dict[str, Any]]]:
    predictions = more.pop("predictions", rows(n))
    judges = more.pop("judges", [server.judge()])
    outcome = judge(predictions, judges, protocols, folder / "verdicts.jsonl", folder / "cache.sqlite", **more)
    return outcome, verdicts(outcome.path)


def form(body: Body) -> str | None:
    return dict(body.get("response_format", {})).get("type")


def first(*says: Say) -> Callable[[Body, int], Say]:
    """Says these once, then judges sensibly."""
    return lambda body, number: says[number] if number < len(says) else sensible(body)


# ---------------------------------------------------------------------- what goes well


def test_a_verdict_holds_what_the_record_needs(tmp_path: Path) -> None:
    with fake() as server:
        outcome, (one, *_) = run(server, tmp_path, protocols=("cs", "egs"), run_id="r1")
    assert (outcome.asked, outcome.scored, outcome.sent, outcome.enough) == (6, 6, 6, True)
    assert {key: one[key] for key in ("run_id", "item_id", "cluster", "direction", "system", "judge", "protocol")} == {
        **{"run_id": "r1", "item_id": "item-0", "cluster": "conversation-0", "direction": None, "system": "ours"},
        **{"judge": "fake", "protocol": "cs-1"},
    }
    assert one["scores"].keys() == {"content", "style"}
    assert (one["status"], one["rung"]) == ("scored", "json_schema")
    assert one["usage"] == {"total_tokens": 7}
    assert one["latency"] > 0
    assert len(one["prompt_sha"]) == 64
    body = next(body for body in server.bodies if "content" in body["messages"][0]["content"])
    assert (body["temperature"], body["top_p"], body["seed"]) == (0, 1, 0)
    schema = body["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert schema["schema"]["additionalProperties"] is False
    assert schema["schema"]["properties"]["content"] == {"type": "integer", "enum": [1, 2, 3, 4, 5]}
    assert {block(body, "user_says") for body in server.bodies} == {f"I lost {index} keys." for index in range(3)}
    assert {block(body, "user_sounds") for body in server.bodies} == {"sad"}


def test_two_judges_and_repeats_stand_side_by_side(tmp_path: Path) -> None:
    with fake() as one, fake() as two:
        outcome, found = run(one, tmp_path, judges=[one.judge("a"), two.judge("b")], repeats=2)
    assert (outcome.asked, len(one.bodies), len(two.bodies)) == (12, 6, 6)
    assert {(row["judge"], row["repeat"]) for row in found} == {("a", 0), ("a", 1), ("b", 0), ("b", 1)}
    assert {body["seed"] for body in one.bodies} == {0, 1}


def test_without_the_way_of_speaking(tmp_path: Path) -> None:
    with fake() as server:
        run(server, tmp_path, protocols=("cs-words",))
    assert all("user_sounds" not in body["messages"][1]["content"] for body in server.bodies)
    assert all("how they say it" not in body["messages"][0]["content"] for body in server.bodies)


# ---------------------------------------------------------------------- the ladder


@pytest.mark.parametrize("refused", [1, 2, 3])
def test_a_server_that_knows_no_schema(refused: int, tmp_path: Path) -> None:
    """What it refuses is asked in a looser form, and once it is known, not tried again."""

    def think(body: Body, number: int) -> Say:
        bare = "temperature" not in body
        rung = 3 if bare else FORMS.index(form(body))
        return (
            Say(status=400, whole=b'{"error": "response_format is not supported"}')
            if rung < refused
            else sensible(body)
        )

    with fake(think) as server:
        outcome, found = run(server, tmp_path, n=4, judges=[server.judge(at_once=1)])
    assert (outcome.scored, outcome.sent) == (4, 4 + refused)
    assert {row["rung"] for row in found} == {("json_schema", "json_object", "text", "bare")[refused]}


def test_a_question_that_no_form_mends_is_unscored(tmp_path: Path) -> None:
    """Too long a prompt is refused on every rung; the others are still asked on the strictest."""

    def think(body: Body, number: int) -> Say:
        return Say(status=400, whole=b"too long") if "lost 1 " in block(body, "user_says") else sensible(body)

    with fake(think) as server:
        outcome, found = run(server, tmp_path, judges=[server.judge(at_once=1)])
    assert [row["status"] for row in found] == ["scored", "unscored", "scored"]
    assert found[1]["reason"] == "status 400: too long"
    assert found[2]["rung"] == "json_schema"
    assert not outcome.enough


BAD = {
    "empty answer": "",
    "no JSON object": "I would rather not say.",
    "missing key": '{"content": 4, "sty',
    "unknown key": '{"content": 4, "style": 4, "total": 8}',
    "out of range": '{"content": 6, "style": 4}',
    "not a whole number": '{"content": 4.5, "style": 4}',
    "two answers": 'It says {"content": 5, "style": 5}, so {"content": 1, "style": 1}',
}


@pytest.mark.parametrize("kind", BAD)
def test_an_answer_that_cannot_be_read_gets_one_more_chance(kind: str, tmp_path: Path) -> None:
    with fake(first(Say(BAD[kind]))) as server:
        outcome, (one,) = run(server, tmp_path, n=1)
    assert (outcome.scored, one["asked"], len(server.bodies)) == (1, 2, 2)
    assert kind in server.bodies[1]["messages"][-1]["content"]
    with fake(lambda body, number: Say(BAD[kind])) as server:
        outcome, (one,) = run(server, tmp_path / "never", n=1)
    assert (one["status"], one["scores"], len(server.bodies)) == ("unscored", {}, 2)
    assert one["reason"].startswith(kind)
    assert one["raw"] == BAD[kind]
    assert outcome.lines()[1].startswith(f"unscored 1: fake, cs-1: {kind} (ours item-0)")


def test_a_cut_off_answer_says_so(tmp_path: Path) -> None:
    with fake(lambda body, number: Say('{"content": 4', why="length")) as server:
        _, (one,) = run(server, tmp_path, n=1)
    assert one["reason"].startswith("cut off, missing key")


# ---------------------------------------------------------------------- trouble that passes, and trouble that stays


def test_trouble_that_passes_loses_nothing(tmp_path: Path) -> None:
    slow = Say(wait=0.6)
    trouble = first(Say(status=429, headers={"Retry-After": "0.3"}), Say(status=500), Say(status=503), slow)
    with fake(trouble) as server:
        outcome, found = run(server, tmp_path, n=1, judges=[server.judge(timeout=0.3)])
    assert (outcome.scored, len(server.bodies), outcome.sent) == (1, 5, 1)
    assert server.times[1] - server.times[0] >= 0.3
    assert found[0]["scores"] == json.loads(str(sensible(server.bodies[0]).text))


def test_half_a_body_is_asked_for_again(tmp_path: Path) -> None:
    with fake(first(Say(whole=b'{"choices": [', headers={"Content-Length": "900"}))) as server:
        outcome, _ = run(server, tmp_path, n=1, judges=[server.judge(timeout=0.3)])
    assert (outcome.scored, len(server.bodies)) == (1, 2)


@pytest.mark.parametrize(
    ("say", "reason", "asked"),
    [
        (Say(status=500, whole=b"boom"), "status 500: boom", 6),
        (Say(status=429), "status 429", 6),
        (Say(wait=0.3), "too slow: 6 requests", 6),
        (Say(whole=b"<html>"), "no completion: <html>", 1),
        (Say(whole=b'{"choices": []}'), "no completion", 1),
    ],
)
def test_trouble_that_stays_is_unscored_and_tried_again_later(
    say: Say, reason: str, asked: int, tmp_path: Path
) -> None:
    with fake(lambda body, number: say if "lost 0" in block(body, "user_says") else sensible(body)) as server:
        judges = [server.judge(timeout=0.05 if say.wait else 5.0)]
        outcome, found = run(server, tmp_path, judges=judges)
        assert [row["status"] for row in found] == ["unscored", "scored", "scored"]
        assert found[0]["reason"].startswith(reason)
        assert len(server.bodies) == asked + 2
        assert not outcome.enough
        server.think = sensible
        again, found = run(server, tmp_path, judges=judges)
    assert (again.scored, again.reused, again.sent) == (3, 2, 1)
    assert [row["item_id"] for row in found] == ["item-0", "item-1", "item-2"]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_stops_at_once(status: int, tmp_path: Path) -> None:
    with fake(lambda body, number: Say(status=status)) as server, pytest.raises(DualSLMError, match=f"status {status}"):
        run(server, tmp_path, n=50, judges=[server.judge(at_once=2)])
    assert len(server.bodies) < 10


def test_nobody_there(tmp_path: Path) -> None:
    nobody = JudgeSpec("gone", "http://127.0.0.1:9/v1", "org/gone")
    with pytest.raises(DualSLMError, match="cannot reach"):
        judge(rows(2), [nobody], ["cs"], tmp_path / "v", tmp_path / "c")


def test_a_storm_loses_and_invents_nothing(tmp_path: Path) -> None:
    """Every kind of trouble at once over 60 questions: each verdict is there once and is what the judge said."""
    kinds = [
        *(Say(status=429, headers={"Retry-After": "0"}), Say(status=500), Say("not JSON"), Say('{"content": 9}')),
        *(Say(whole=b"x", headers={"Content-Length": "9"}), Say(None), Say('{"content": true, "style": 1}')),
    ]

    def think(body: Body, number: int) -> Say:
        return kinds[number // 2 % len(kinds)] if number % 2 else sensible(body)

    said = rows(20) + rows(20, "theirs", answer="Well.") + rows(20, "silent", answer="")
    with fake(think) as server:
        for _ in range(20):
            outcome, found = run(server, tmp_path, predictions=said, judges=[server.judge(timeout=2)])
            if outcome.scored == outcome.asked:
                break
    assert [(row["system"], row["item_id"]) for row in found] == [(row["system"], row["id"]) for row in said]
    expected = {
        block(body, "user_says") + block(body, "reply"): json.loads(str(sensible(body).text)) for body in server.bodies
    }
    unscored = 0
    for row, one in zip(said, found, strict=True):
        if one["status"] == "scored" and row["answer"]:
            assert one["scores"] == expected[row["transcript"] + row["answer"]]
        elif row["answer"]:
            unscored += 1
            assert one["reason"]
    assert outcome.scored == outcome.asked - unscored


# ---------------------------------------------------------------------- the cache, and being killed


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    with fake() as server:
        run(server, tmp_path)
        outcome, found = run(server, tmp_path)
        assert (outcome.reused, outcome.sent, len(server.bodies)) == (3, 0, 3)
        (tmp_path / "verdicts.jsonl").unlink()  # the raw answers are in the cache
        again, same = run(server, tmp_path)
        assert (again.reused, again.sent, again.scored) == (0, 0, 3)
        assert same == found
        moved = [JudgeSpec("fake", server.url, "org/another")]
        assert run(server, tmp_path, judges=moved)[0].sent == 3
        changed = rows(3)
        changed[1]["answer"] = "Another reply."
        outcome, found = run(server, tmp_path, predictions=changed)
    assert (outcome.sent, len(found)) == (1, 3)


def test_an_unreadable_answer_is_in_the_cache_too(tmp_path: Path) -> None:
    with fake(lambda body, number: Say("no")) as server:
        run(server, tmp_path, n=1)
        outcome, _ = run(server, tmp_path, n=1)
    assert (len(server.bodies), outcome.sent, outcome.scored) == (2, 0, 0)


def test_half_a_line_is_no_verdict(tmp_path: Path) -> None:
    with fake() as server:
        run(server, tmp_path)
        path = tmp_path / "verdicts.jsonl"
        whole = path.read_bytes()
        path.write_bytes(whole[:-20])
        outcome, _ = run(server, tmp_path)
    assert (outcome.reused, outcome.sent) == (2, 0)
    assert path.read_bytes() == whole


KILLED = """
import json, sys
from pathlib import Path
from dualslm.evaluation.judges.run import judge
from dualslm.evaluation.judges.spec import JudgeSpec
rows, url, folder = json.loads(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
spec = JudgeSpec("fake", url, "org/fake-judge", at_once=2)
judge(rows, [spec], ["cs"], folder / "verdicts.jsonl", folder / "cache.sqlite")
"""


def test_killed_and_started_again(tmp_path: Path) -> None:
    """SIGKILL in the middle: only requests that were under way at that instant may be sent once more."""
    said = rows(30)

    def slowly(body: Body, number: int) -> Say:
        say = sensible(body)
        say.wait = 0.03
        return say

    with fake(slowly) as server:
        command = [sys.executable, "-c", KILLED, json.dumps(said), server.url, str(tmp_path)]
        child = subprocess.Popen(command)
        while len(server.bodies) < 11 and child.poll() is None:
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        server.think = sensible
        time.sleep(0.1)  # the server still answers requests of the killed process
        outcome, found = run(server, tmp_path, predictions=said)
    assert 0 < outcome.reused < 30
    assert (outcome.scored, len(found)) == (30, 30)
    often = [block(body, "user_says") for body in server.bodies]
    assert len(often) - len({*often}) <= 2  # two requests at once
    assert {*often} == {row["transcript"] for row in said}


# ---------------------------------------------------------------------- rules


def test_an_empty_reply_gets_the_least_and_is_not_sent(tmp_path: Path) -> None:
    said = rows(2, answer="  <|im_end|>\n") + rows(1, "other")
    with fake() as server:
        _, found = run(server, tmp_path, predictions=said, protocols=("cs", "egs"))
    assert len(server.bodies) == 2
    assert found[0]["scores"] == {"content": 1, "style": 1}
    assert found[3]["scores"] == {"C1": 1, "C2": 1, "C3": 1, "C4": 1}
    assert (found[0]["raw"], found[0]["reason"]) == (None, "empty reply: the least score, by rule")
    assert summary(found)["coverage"][0]["by_rule"] == 2


@pytest.mark.parametrize(
    ("gap", "reason"),
    [
        ({"transcript": None}, "no transcript"),
        ({"caption": None, "labels": {}}, "no caption or label"),
        ({"answer": None}, "no reply"),
    ],
)
def test_what_a_judge_would_have_to_guess_is_unscored(gap: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with fake() as server:
        outcome, found = run(server, tmp_path, predictions=rows(2, **gap))
    assert not server.bodies
    assert all(row["reason"].startswith(reason) and not row["scores"] for row in found)
    assert not outcome.enough


def test_other_tasks_are_not_judged(tmp_path: Path) -> None:
    with fake() as server:
        outcome, _ = run(server, tmp_path, predictions=rows(2, task="asr") + rows(1))
        assert outcome.asked == 1
        with pytest.raises(DualSLMError, match="nothing to judge"):
            run(server, tmp_path, predictions=rows(2, task="asr"))
