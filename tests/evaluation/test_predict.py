"""Items and predictions: what is asked, one path for every view, stopped runs, several processes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.evalkit import MOODS, SETTINGS, Parrot, exam
from support.standins import styletalk

from dualslm.cli import main as cli
from dualslm.conversation import Reply, View
from dualslm.errors import DualSLMError
from dualslm.evaluation import items, predict
from dualslm.evaluation.systems.item import Item

ALL = tuple(View(para, ling) for para in ("speech", "text", "none") for ling in ("speech", "text", "none"))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return exam(tmp_path / "exam")


def test_items(paths: list[Path]) -> None:
    found = items.read(paths)
    assert Counter(item.task for item in found.items) == {"asr": 12, "gender": 12, "emotion": 24, "respond": 12}
    by_id = {item.id: item for item in found.items}
    words, felt, reply = (by_id[f"mine/{name}"] for name in ("asked/t1/asr", "finished/f1", "asked/t1/respond"))
    assert (words.truth, words.choices, words.cluster) == ("i lost my umbrella 1", None, "mine/speaker s1")
    assert (felt.task, felt.truth, felt.choices) == ("emotion", "happy", MOODS)
    assert felt.options() == {mood: f"It sounds {mood}." for mood in MOODS}
    assert felt.conversation.turns[-1].parts[1] == "How does it sound?"
    assert (reply.direction, reply.truth, len(reply.conversation.turns)) == ("forward", None, 3)
    assert all(item.conversation.turns[-1].role == "user" for item in found.items)


def test_what_is_not_asked_is_counted(paths: list[Path]) -> None:
    rows = [json.loads(line) for line in paths[0].read_text().splitlines()]
    del rows[0]["turns"][-1]["parts"][0]["labels"]["emotion"]
    rows[1]["turns"][-1]["parts"][0]["labels"]["emotion"] = "puzzled"
    paths[0].write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = items.read(paths[:1], limit=5)
    assert found.skipped == {"emotion: no label emotion": 1, "emotion: unknown emotion 'puzzled'": 1}
    assert Counter(item.task for item in found.items) == {"asr": 5, "gender": 5, "emotion": 5, "respond": 5}
    with pytest.raises(DualSLMError, match="unknown task: got mood"):
        items.read(paths, tasks=["mood"])
    with pytest.raises(DualSLMError, match="an item stands twice"):
        items.read([paths[0], paths[0]])


def test_roles_are_reversed(shared: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    styletalk(raw, shared / "data" / "styletalk")
    assert cli.main(["prepare", "styletalk", str(raw), "--out", str(tmp_path / "out")]) == 0
    paths = [tmp_path / "out" / f"{name}.jsonl" for name in ("test", "test-reversed")]
    system = Parrot()
    asked = predict.plan(items.read(paths), [system])
    path = predict.run(tmp_path / "eval", asked, SETTINGS)
    rows = list(predict.records(path))
    assert Counter(row["direction"] for row in rows) == {"forward": 858, "reversed": 858}
    assert len({row["cluster"] for row in rows}) == 480
    forward, back = (next(row for row in rows if row["direction"] == way) for way in ("forward", "reversed"))
    assert [turn["role"] for turn in forward["context"]] == ["assistant", "user", "assistant"]
    assert [turn["role"] for turn in back["context"]] == ["user", "assistant", "user", "assistant"]
    assert forward["truth"]
    assert back["truth"] is None


def test_every_view_goes_one_way_for_every_task(paths: list[Path], tmp_path: Path) -> None:
    system = Parrot(known=ALL)
    asked = predict.plan(items.read(paths), [system], views=ALL, batch=5)
    rows = list(predict.records(predict.run(tmp_path / "out", asked, SETTINGS)))
    assert Counter((row["view"], row["task"]) for row in rows) == {
        (str(view), task): 12 * (1 + (task == "emotion"))
        for view in ALL
        for task in ("asr", "gender", "emotion", "respond")
    }
    assert len({(row["id"], row["view"]) for row in rows}) == len(rows)


def test_a_view_that_a_clip_cannot_have_is_counted(paths: list[Path], tmp_path: Path) -> None:
    text = paths[1].read_text().replace('"transcript": "i lost my umbrella 3", ', "")
    paths[1].write_text(text)
    asked = predict.plan(items.read(paths[1:]), [Parrot(known=ALL)], views=[View("none", "text")])
    assert asked.skipped == {"parrot, view none,text: no transcript": 1}
    assert sum(len(job.items) for job in asked.jobs) == 11


class Stops(Parrot):
    """Fails after so many batches."""

    left = 3

    def answer(self, items: Sequence[Item], view: View | None) -> list[Reply]:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().answer(items, view)


def test_killed_and_resumed(paths: list[Path], tmp_path: Path) -> None:
    def plan(system: Parrot) -> predict.Plan:
        return predict.plan(items.read(paths), [system], batch=4)

    whole = predict.run(tmp_path / "whole", plan(Parrot(name="p")), SETTINGS).read_bytes()
    for stop in (0, 1, 7):
        out = tmp_path / f"stop{stop}"
        stopped = Stops(name="p")
        stopped.left = stop
        with pytest.raises(KeyboardInterrupt):
            predict.run(out, plan(stopped), SETTINGS)
        with (out / ".predictions.0.work").open("ab") as file:
            file.write(b'{"job": 99, "li')  # half a line
        again = Parrot(name="p")
        assert predict.run(out, plan(again), SETTINGS).read_bytes() == whole
        assert not set(stopped.asked) & set(again.asked)  # nothing is asked twice
        assert not list(out.glob(".predictions*"))
        assert predict.run(out, plan(Parrot(name="p")), SETTINGS).read_bytes() == whole
    with pytest.raises(DualSLMError, match="begun with other settings: got other seed"):
        predict.run(tmp_path / "whole", plan(Parrot(name="p")), {**SETTINGS, "seed": 1})


def test_several_processes_write_the_same(paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = predict.plan(items.read(paths), [Parrot(known=(View(), View("none", "speech")))], batch=4)
    alone = predict.run(tmp_path / "alone", asked, SETTINGS).read_bytes()
    monkeypatch.setattr(predict, "POLL_SECONDS", 0.01)
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in ("2", "1"):
        monkeypatch.setenv("RANK", rank)
        predict.run(tmp_path / "many", asked, SETTINGS)
    monkeypatch.setenv("RANK", "0")
    assert predict.run(tmp_path / "many", asked, SETTINGS).read_bytes() == alone
    meta = json.loads((tmp_path / "many" / predict.META).read_text())
    assert meta["n"] == 120
    assert meta["settings"]["systems"] == [{"name": "parrot", "kind": "parrot", "wrong": 3}]


def test_mistakes(tmp_path: Path, paths: list[Path]) -> None:
    with pytest.raises(DualSLMError, match="two systems have one name"):
        predict.plan(items.read(paths), [Parrot(), Parrot()])
    with pytest.raises(DualSLMError, match="run predict first"):
        list(predict.records(tmp_path / "nothing.jsonl"))
    (tmp_path / predict.PREDICTIONS).write_text("")
    with pytest.raises(DualSLMError, match="nothing tells how it was made"):
        predict.run(tmp_path, predict.plan(items.read(paths), [Parrot()]), SETTINGS)
