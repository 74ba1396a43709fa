"""Manifests → lessons: seeded, in the stated shares, every talk once an epoch."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from trainkit import make

from dualslm.conversation import Channel
from dualslm.data import BLOCK, Lessons, Talks, recordings
from dualslm.encoder import SpeechEncoder
from dualslm.errors import DualSLMError
from dualslm.features import FrameCache, Rule, build
from dualslm.llm import FrozenLM
from dualslm.prompt import Slot
from dualslm.recipe import TASK_KINDS, Recipe, Stage

ROW = {
    "id": "a",
    "kind": "linguistic",
    "turns": [{"role": "user", "parts": ["hello"]}, {"role": "assistant", "parts": ["Hello."]}],
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return make(tmp_path_factory.mktemp("kit"))


@pytest.fixture(scope="module")
def lessons(recipe: Recipe) -> Lessons:
    return _lessons(recipe, recipe.stages[1])


def _lessons(recipe: Recipe, stage: Stage, *, rank: int = 0, world: int = 1) -> Lessons:
    encoder = SpeechEncoder.from_pretrained(recipe.model.encoder)
    talks = Talks(recipe.data.train)
    folder = Path(recipe.data.features)
    build(encoder, recordings(talks), folder, say=lambda _: None)
    cache = FrameCache(folder, Rule.of(encoder))
    tokenizer = FrozenLM.from_pretrained(recipe.model.llm).tokenizer
    return Lessons(stage, talks, cache, tokenizer, recipe.seed, rank=rank, world=world)


def test_a_lesson_follows_from_its_place_alone(recipe: Recipe, lessons: Lessons) -> None:
    again = _lessons(recipe, recipe.stages[1])
    for place in (40, 3, 3, 17):
        assert again.lesson(place).prompt.segments == lessons.lesson(place).prompt.segments


def test_kinds_stand_in_their_shares_and_views_are_drawn_evenly(recipe: Recipe) -> None:
    stage = recipe.stages[1]
    assert stage.linguistic is not None
    uneven = _lessons(recipe, replace(stage, linguistic=replace(stage.linguistic, share=3.0)))
    drawn = [uneven.lesson(place) for place in range(BLOCK)]
    assert Counter(lesson.kind for lesson in drawn) == {"linguistic": 750, "paralinguistic": 250}
    views = Counter(lesson.view.para for lesson in drawn if lesson.kind == "linguistic")
    assert all(200 < count < 300 for count in views.values())
    assert {lesson.view.ling for lesson in drawn if lesson.kind == "linguistic"} == {"speech"}


def test_an_epoch_has_every_talk_once(recipe: Recipe, lessons: Lessons) -> None:
    drawn = [lessons.lesson(place) for place in range(BLOCK)]
    for kind in TASK_KINDS[:2]:
        ids = [lesson.talk for lesson in drawn if lesson.kind == kind]
        count = lessons.talks.count(kind)
        for epoch in range(len(ids) // count):
            assert len(set(ids[epoch * count : (epoch + 1) * count])) == count


def test_epochs_become_steps(recipe: Recipe) -> None:
    stage = replace(recipe.stages[0], steps=None, epochs=3)
    assert _lessons(recipe, stage).steps == 3 * 24 // 6


def test_processes_share_a_batch(recipe: Recipe, lessons: Lessons) -> None:
    shares = [_lessons(recipe, recipe.stages[1], rank=rank, world=2)[5] for rank in (0, 1)]
    whole = lessons[5]
    assert Counter(x.talk for share in shares for x in share.lessons) == Counter(x.talk for x in whole.lessons)
    assert whole.lengths == sorted(whole.lengths)


def test_what_learns_is_what_the_stage_says(lessons: Lessons) -> None:
    for place in range(50):
        lesson = lessons.lesson(place)
        frozen = {slot.channel: slot.frozen for slot in lesson.prompt.segments if isinstance(slot, Slot)}
        own: Channel = "ling" if lesson.kind == "linguistic" else "para"
        assert not frozen[own]
        assert all(frozen[channel] for channel in frozen if channel != own)


DAMAGE = {
    "not JSON": "{",
    "no id": {key: value for key, value in ROW.items() if key != "id"},
    "no kind": {key: value for key, value in ROW.items() if key != "kind"},
    "another kind": {**ROW, "kind": "musical"},
    "no turns": {key: value for key, value in ROW.items() if key != "turns"},
    "another role": {**ROW, "turns": [{"role": "system", "parts": ["x"]}]},
    "no parts": {**ROW, "turns": [{"role": "user", "parts": []}]},
    "a number for a part": {**ROW, "turns": [{"role": "user", "parts": [3]}]},
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_broken_line_is_named(tmp_path: Path, name: str) -> None:
    row = DAMAGE[name]
    bad = row if isinstance(row, str) else json.dumps(row)
    (tmp_path / "m.jsonl").write_text(json.dumps(ROW) + "\n\n" + bad + "\n")
    with pytest.raises(DualSLMError, match=r"m\.jsonl line 3 is no talk"):
        Talks([tmp_path / "m.jsonl"])


def test_a_missing_manifest_and_a_missing_kind(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DualSLMError, match="cannot read the manifest"):
        Talks([tmp_path / "none.jsonl"])
    stage = replace(recipe.stages[0], linguistic=None, paralinguistic=None, dual=recipe.stages[0].linguistic)
    with pytest.raises(DualSLMError, match="has no dual talks"):
        _lessons(recipe, stage)
