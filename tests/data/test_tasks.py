"""Tasks: prompts, choices, answers and captions, all from a seed; nothing that a recording lacks is made up."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from typing import Any

import pytest

from dualslm.data.corpora import schema
from dualslm.data.tasks import NO_ANSWER, TASKS, caption, draw, finished, left_out, one_task, waiting
from dualslm.data.tasks.attributes import ATTRIBUTES
from dualslm.data.tasks.captions import LAYOUTS, MANNERS
from dualslm.recipe import TASK_KINDS

LABELS = {"gender": "F", "pitch": "low", "tempo": "high", "energy": "normal", "emotion": "joy"}
CLIP = {"audio": "a.wav", "transcript": "I LOST MY KEYS", "labels": LABELS}


def line(tasks: list[str], *, clip: dict[str, Any] = CLIP, name: str = "a") -> dict[str, Any]:
    earlier = [{"role": "user", "parts": ["Hello."]}, {"role": "assistant", "parts": ["Hello!"]}]
    return {"id": name, "tasks": tasks, "speaker": "7", "turns": [*earlier, {"role": "user", "parts": [clip]}]}


def test_every_task_is_whole() -> None:
    assert set(TASKS) == {"asr", "gender", "pitch", "tempo", "energy", "emotion", "respond"}
    assert {task.kind for task in TASKS.values()} == set(TASK_KINDS)
    for name, task in TASKS.items():
        assert task.name == name
        assert task.metric in ("wer", "wa", "judge")
        assert len(set(task.prompts)) == len(task.prompts) >= 8
        assert len(set(task.unseen_prompts)) == len(task.unseen_prompts) >= 4
        assert not {*task.prompts} & {*task.unseen_prompts}


def test_one_conversation_for_each_task_that_has_its_label() -> None:
    rows = list(finished(line(["asr", "gender", "pitch", "tempo", "energy", "emotion", "respond"])))
    answers = {row["id"]: row["turns"][-1]["parts"][0] for row in rows}
    assert answers == {
        "a/asr": "i lost my keys",
        "a/gender": "The speaker is female.",
        "a/pitch": "The pitch of the voice is low.",
        "a/tempo": "The tempo of the speech is fast.",
        "a/energy": "The energy of the voice is normal.",
        "a/emotion": "The speaker sounds happy.",
    }
    assert [row["turns"][0]["parts"] for row in rows] == [[CLIP]] * 6
    assert {row["speaker"] for row in rows} == {"7"}
    assert left_out(line(["asr", "respond"])) == {"respond": NO_ANSWER}


def test_prompts_that_no_training_draws_are_asked_where_they_are_wanted() -> None:
    for name, task in TASKS.items():
        drawn = [one_task(line([name], name=str(n)), name, unseen=True)["system"] for n in range(60)]
        assert len(set(drawn)) >= 4
        wanted = [re.escape(text).replace(r"\{choices\}", ".+") for text in task.unseen_prompts]
        assert all(re.fullmatch("|".join(wanted), text) for text in drawn)
        assert not set(drawn) & {one_task(line([name], name=str(n)), name)["system"] for n in range(60)}
    own = {**line(["respond"]), "system": "Be brief."}
    assert one_task(own, "respond")["system"] == "Be brief."
    assert one_task(own, "respond", unseen=True)["system"] in TASKS["respond"].unseen_prompts


def test_what_waits_keeps_its_turns_and_its_system_text() -> None:
    conversation = waiting(line(["asr", "respond"]))
    assert conversation is not None
    assert (conversation["id"], conversation["kind"], len(conversation["turns"])) == ("a/respond", "dual", 3)
    assert conversation["system"] in TASKS["respond"].prompts
    own = waiting({**line(["respond"]), "system": "Be brief."})
    assert own is not None
    assert own["system"] == "Be brief."
    assert waiting(line(["asr"])) is None


@pytest.mark.parametrize(
    ("task", "clip", "why"),
    [
        ("asr", {"audio": "a.wav", "transcript": " "}, "no transcript"),
        ("pitch", {"audio": "a.wav"}, "no label pitch"),
        ("emotion", {"audio": "a.wav", "labels": {"emotion": None}}, "no label emotion"),
        ("emotion", {"audio": "a.wav", "labels": {"emotion": "friendly"}}, "unknown emotion 'friendly'"),
        ("respond", {"audio": "a.wav", "labels": LABELS}, "no transcript"),
        ("respond", {"audio": "a.wav", "transcript": "Hi."}, "nothing known of how it is said"),
    ],
)
def test_what_lacks_its_label_is_left_out_with_the_reason(task: str, clip: dict[str, Any], why: str) -> None:
    row = line([task], clip=clip)
    assert list(finished(row)) == []
    assert left_out(row) == {task: why}


def test_a_corpus_may_have_its_own_choices() -> None:
    clip = {"audio": "a", "labels": {"emotion": "friendly"}, "choices": {"emotion": ["neutral", "friendly", "Joy"]}}
    (row,) = finished(line(["emotion"], clip=clip))
    assert row["turns"][-1]["parts"] == ["The speaker sounds friendly."]
    assert all(word in row["system"] for word in ("neutral", "friendly", "happy"))
    assert "angry" not in row["system"]


def test_choices_and_prompts_vary_and_give_nothing_away() -> None:
    pitch = ATTRIBUTES["pitch"]
    rows = [next(iter(finished(line(["pitch"], name=str(number))))) for number in range(600)]
    orders = Counter(tuple(re.findall(r"\b(?:low|normal|high)\b", row["system"])[-3:]) for row in rows)
    assert set(orders) == set(itertools.permutations(pitch.values))
    assert min(orders.values()) > 60
    assert len({re.sub(r"(low|normal|high)", "", row["system"]) for row in rows}) == len(pitch.prompts)
    for value in pitch.values:
        other = {**CLIP, "labels": {"pitch": value}}
        assert pitch.ask(other, random.Random(3), pitch.prompts) == pitch.ask(CLIP, random.Random(3), pitch.prompts)


def test_a_draw_follows_from_seed_id_and_task() -> None:
    row = line(["asr", "pitch"])
    assert list(finished(row, 1)) == list(finished(row, 1))
    assert draw(0, "a", "asr").random() == draw(0, "a", "asr").random()
    assert len({draw(*key).random() for key in [(0, "a", "asr"), (1, "a", "asr"), (0, "b", "asr"), (0, "a", "x")]}) == 4


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"tasks": ["dance"]}, "dance"),
        ({"tasks": []}, "tasks"),
        ({"tasks": "asr"}, "tasks"),
        ({"tasks": ["asr", "asr"]}, "tasks"),
        ({"kind": "dual"}, "both kind and tasks"),
        ({"turns": [{"role": "user", "parts": ["text"]}]}, "no spoken user turn"),
        ({"turns": [{"role": "assistant", "parts": [CLIP]}]}, "no spoken user turn"),
        ({"turns": []}, "no spoken user turn"),
    ],
)
def test_a_line_that_asks_for_the_impossible(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        list(finished({**line(["asr"]), **change}))


# ---------------------------------------------------------------------- captions


def test_a_caption_holds_all_that_is_known_and_nothing_else() -> None:
    everything = {
        name: [value, *itertools.chain(*([MANNERS[name][value]] if name in MANNERS else []))]
        for name, value in {"pitch": "low", "tempo": "slow", "energy": "high", "emotion": "sad"}.items()
    }
    for size in range(1, 5):
        for names in itertools.combinations(everything, size):
            labels = {name: everything[name][0] for name in names}
            for seed in range(20):
                text = caption(labels, random.Random(seed))
                assert text is not None
                named = {name for name, forms in everything.items() if any(form in text for form in forms)}
                assert named - {"energy", "pitch", "tempo"} == set(names) - {"energy", "pitch", "tempo"}, text
                assert set(names) <= named, text
                assert not re.search(r"  |None|\bman\b|woman|male", text), text


def test_a_clip_of_which_nothing_is_known_has_no_caption() -> None:
    for labels in ({}, {"emotion": ""}, {"emotion": None}, {"accent": "Scottish"}):
        assert caption(labels) is None
        assert caption(labels, random.Random(0)) is None


def test_captions_vary_and_follow_from_the_draw() -> None:
    texts = {caption(LABELS, random.Random(seed)) for seed in range(300)}
    assert len(texts) > 100
    assert caption(LABELS, random.Random(7)) == caption(LABELS, random.Random(7))
    assert caption(LABELS) == "female, low pitch, fast tempo, normal energy, happy"
    assert len(LAYOUTS) >= 3


def test_manifests_know_every_task() -> None:
    assert tuple(TASKS) == schema.TASKS
