"""Manifests → training samples: seeded, in the stated shares, every example once an epoch."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support.trainkit import make

from dualslm.conversation import Channel, History
from dualslm.data import manifest_index
from dualslm.data.manifest import Examples, recordings
from dualslm.data.tasks.attributes import ATTRIBUTES
from dualslm.errors import DualSLMError
from dualslm.model.encoder import SpeechEncoder
from dualslm.model.inputs import SlotLengths
from dualslm.model.llm import FrozenLM
from dualslm.prompt import Slot, Text
from dualslm.recipe import TASK_KINDS, Recipe, Stage
from dualslm.training.dataset import BLOCK, StageDataset, _block_kinds
from dualslm.training.feature_cache import FrameCache, Rule, build

ROW = {
    "id": "a",
    "kind": "linguistic",
    "turns": [{"role": "user", "parts": ["hello"]}, {"role": "assistant", "parts": ["Hello."]}],
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return make(tmp_path_factory.mktemp("kit"))


@pytest.fixture(scope="module")
def samples(recipe: Recipe) -> StageDataset:
    return dataset_of(recipe, recipe.stages[1])


def dataset_of(recipe: Recipe, stage: Stage, *, rank: int = 0, world_size: int = 1) -> StageDataset:
    encoder = SpeechEncoder.from_pretrained(recipe.model.encoder)
    examples = Examples(recipe.data.train)
    folder = Path(recipe.data.features)
    build(encoder, recordings(examples), folder, say=lambda _: None)
    cache = FrameCache(folder, Rule.of(encoder))
    tokenizer = FrozenLM.from_pretrained(recipe.model.llm).tokenizer
    return StageDataset(
        stage, examples, cache, tokenizer, recipe.seed, lengths=SlotLengths(16, 5), rank=rank, world_size=world_size
    )


def test_a_sample_follows_from_its_index_alone(recipe: Recipe, samples: StageDataset) -> None:
    again = dataset_of(recipe, recipe.stages[1])
    for index in (40, 3, 3, 17):
        assert again.sample(index).prompt.segments == samples.sample(index).prompt.segments


def test_kinds_stand_in_their_shares_and_views_are_drawn_evenly(recipe: Recipe) -> None:
    stage = recipe.stages[1]
    assert stage.linguistic is not None
    uneven = dataset_of(recipe, replace(stage, linguistic=replace(stage.linguistic, share=3.0)))
    drawn = [uneven.sample(index) for index in range(BLOCK)]
    assert Counter(sample.kind for sample in drawn) == {"linguistic": 750, "paralinguistic": 250}
    views = Counter(sample.view.para for sample in drawn if sample.kind == "linguistic")
    assert all(200 < count < 300 for count in views.values())
    assert {sample.view.ling for sample in drawn if sample.kind == "linguistic"} == {"speech"}


def test_a_kind_of_a_tiny_share_is_not_forgotten(recipe: Recipe) -> None:
    stage = recipe.stages[1]
    assert stage.paralinguistic is not None
    rare = replace(stage.paralinguistic, share=1e-6)
    kinds = Counter(_block_kinds(replace(stage, paralinguistic=rare, dual=rare)))
    assert kinds == {"linguistic": BLOCK - 2, "paralinguistic": 1, "dual": 1}


def test_an_epoch_has_every_example_once(recipe: Recipe, samples: StageDataset) -> None:
    drawn = [samples.sample(index) for index in range(BLOCK)]
    for kind in TASK_KINDS[:2]:
        ids = [sample.conversation for sample in drawn if sample.kind == kind]
        count = samples.examples.count(kind)
        for epoch in range(len(ids) // count):
            assert len(set(ids[epoch * count : (epoch + 1) * count])) == count


def test_a_weighted_manifest_is_seen_as_often(recipe: Recipe) -> None:
    path = recipe.data.train[0]
    count = Examples([path]).count("linguistic")
    weighted = Examples([path, path], weights=[2.5, 0.25])
    first, second = round(2.5 * count), round(0.25 * count)
    assert weighted.count("linguistic") == first + second
    drawn = [Counter(weighted.get("linguistic", index, epoch).id for index in range(first)) for epoch in (0, 1)]
    assert set(drawn[0].values()) == {2, 3}
    assert set((drawn[0] + drawn[1]).values()) == {5}


def test_a_part_of_a_manifest_is_another_part_in_the_next_epoch(recipe: Recipe) -> None:
    quarter = Examples([recipe.data.train[0]], weights=[0.25])
    count = quarter.count("linguistic")
    ids = [quarter.get("linguistic", index, epoch).id for epoch in range(4) for index in range(count)]
    assert len(set(ids)) == len(ids) == 4 * count
    assert ids == [quarter.get("linguistic", index, epoch).id for epoch in range(4) for index in range(count)]


def test_an_epoch_is_that_of_the_kind_with_the_largest_share(recipe: Recipe) -> None:
    stage = replace(recipe.stages[0], steps=None, epochs=2, batch=10)
    assert stage.linguistic is not None
    mostly = replace(stage, linguistic=replace(stage.linguistic, share=4.0))
    assert mostly.steps_over({"linguistic": 80, "paralinguistic": 10_000}) == 2 * 100 // 10
    assert stage.steps_over({"linguistic": 80, "paralinguistic": 100}) == 2 * 200 // 10


def test_examples_drawn_together_stand_side_by_side(recipe: Recipe) -> None:
    stage = recipe.stages[0]
    assert stage.linguistic is not None
    some = dataset_of(recipe, replace(stage, linguistic=replace(stage.linguistic, together=5)))
    drawn = [some.sample(index) for index in range(BLOCK)]
    ids = [sample.conversation for sample in drawn if sample.kind == "linguistic"]
    every = [some.examples.get("linguistic", index).id for index in range(12)]
    runs = [every[:5], every[5:10], every[10:]]
    assert sorted(ids[:12]) == sorted(every)
    assert all(run in [ids[start : start + len(run)] for start in range(12)] for run in runs)
    assert ids[:12] != every or ids[12:24] != every


def test_epochs_become_steps(recipe: Recipe) -> None:
    stage = replace(recipe.stages[0], steps=None, epochs=3)
    assert dataset_of(recipe, stage).steps == 3 * 24 // 6


def test_processes_share_a_batch(recipe: Recipe, samples: StageDataset) -> None:
    shares = [dataset_of(recipe, recipe.stages[1], rank=rank, world_size=2)[5] for rank in (0, 1)]
    whole = samples[5]
    assert Counter(sample.conversation for share in shares for sample in share.samples) == Counter(
        sample.conversation for sample in whole.samples
    )
    assert whole.lengths == sorted(whole.lengths)


def test_what_learns_is_what_the_stage_says(samples: StageDataset) -> None:
    for index in range(50):
        sample = samples.sample(index)
        frozen = {slot.channel: slot.detached for slot in sample.prompt.segments if isinstance(slot, Slot)}
        own: Channel = "ling" if sample.kind == "linguistic" else "para"
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
    with pytest.raises(DualSLMError, match=r"m\.jsonl line 3: "):
        Examples([tmp_path / "m.jsonl"])


def test_a_missing_manifest_and_a_missing_kind(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DualSLMError, match="cannot read the manifest"):
        Examples([tmp_path / "none.jsonl"])
    stage = replace(recipe.stages[0], linguistic=None, paralinguistic=None, dual=recipe.stages[0].linguistic)
    with pytest.raises(DualSLMError, match="has no dual examples"):
        dataset_of(recipe, stage)


# ---------------------------------------------------------------------- lines with tasks


def _task_line(number: int, tasks: list[str], **clip: object) -> dict[str, object]:
    speech = {"audio": f"clips/train{number}.wav", "transcript": "hello good morning", **clip}
    return {"id": f"t{number}", "tasks": tasks, "turns": [{"role": "user", "parts": [speech]}]}


def _manifest(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_line_is_one_example_for_each_task_with_a_label(tmp_path: Path) -> None:
    every = ["asr", "pitch", "emotion", "respond"]
    lines = [_task_line(0, every, labels={"pitch": "low"}), _task_line(1, every, labels={"emotion": "sad"})]
    examples = Examples([_manifest(tmp_path / "m.jsonl", [*lines, ROW])])
    assert [examples.count(kind) for kind in TASK_KINDS] == [3, 2, 0]
    assert [examples.get("linguistic", index).id for index in range(3)] == ["t0/asr", "t1/asr", "a"]
    assert examples.left_out == {
        "pitch: no label pitch": 1,
        "emotion: no label emotion": 1,
        "respond: no answer (run dualslm targets)": 2,
    }
    asked = examples.get("paralinguistic", 1).conversation
    assert asked.turns[-1].parts == ("The speaker sounds sad.",)
    assert asked.turns[0].speeches[0].caption
    assert recordings(examples) == [str(tmp_path / f"clips/train{number}.wav") for number in (0, 1)]


LABELS = {"emotion": "sad", "tempo": "fast", "gender": "male", "energy": "low", "pitch": "low"}


def test_under_one_seed_a_recording_has_one_caption_wherever_it_stands(tmp_path: Path) -> None:
    rows = [_task_line(number % 3, ["asr", "emotion"], labels=LABELS) | {"id": str(number)} for number in range(30)]
    examples = Examples([_manifest(tmp_path / "m.jsonl", rows)])

    def captions(seed: str) -> set[tuple[object, str | None]]:
        some = (examples.get("linguistic", index, seed=seed).conversation.turns[0].speeches[0] for index in range(30))
        return {(clip.audio, clip.caption) for clip in some}

    assert len(captions("a")) == 3
    assert captions("a") != captions("b")


def _one_recording(recipe: Recipe, stage: Stage, task: str) -> StageDataset:
    """The samples of a stage whose only example is one task of one recording."""
    folder = Path(recipe.data.train[0]).parent
    path = _manifest(folder / f"one-{task}.jsonl", [_task_line(0, [task], labels=LABELS)])
    kind = "linguistic" if task == "asr" else "paralinguistic"
    alone = {**dict.fromkeys(("linguistic", "paralinguistic")), kind: getattr(stage, kind)}
    return dataset_of(replace(recipe, data=replace(recipe.data, train=(str(path),))), replace(stage, **alone))


def _drawn(samples: StageDataset, indices: Sequence[int]) -> list[tuple[str | None, str | None]]:
    """System text and caption of samples, as the dataset draws them."""
    found = []
    for index in indices:
        example, _ = samples._readable_example(next(iter(samples.stage.kinds)), index, samples.seed_of(index))
        found.append((example.conversation.system, example.conversation.turns[0].speeches[0].caption))
    return found


def test_a_recording_comes_with_another_draw_in_each_epoch_and_stage(recipe: Recipe) -> None:
    joint, err = (_one_recording(recipe, stage, "emotion") for stage in recipe.stages[:2])
    epochs = range(60)  # one example: every sample is an epoch
    asked, captions = zip(*_drawn(joint, epochs), strict=True)
    others = _drawn(err, epochs)
    for own, count in ((asked, 40), (captions, 12)):
        assert len(set(own)) >= count
    orders = {tuple(re.findall("|".join(ATTRIBUTES["emotion"].values), text or "")) for text in asked}
    assert len(orders) > 40, "the order of the choices is drawn anew too"
    assert sum(one == other for one, other in zip(zip(asked, captions, strict=True), others, strict=True)) < 5
    assert _drawn(joint, epochs) == list(zip(asked, captions, strict=True)), "and yet follows from the seed"
    segments = [joint.sample(index).prompt.segments for index in (0, 1)]
    assert segments[0] != segments[1], "the draw is what the LLM reads"


def test_any_start_gives_the_same_draws(recipe: Recipe) -> None:
    samples = _one_recording(recipe, recipe.stages[1], "asr")
    again = _one_recording(recipe, recipe.stages[1], "asr")
    whole = [sample.prompt.segments for step in range(4) for sample in samples[step].samples]
    later = [sample.prompt.segments for step in (3, 2) for sample in again[step].samples]
    half = 2 * samples.stage.batch
    assert later == [*whole[half + half // 2 :], *whole[half : half + half // 2]]
    assert len({str(segments) for segments in whole}) > len(whole) // 2


def test_earlier_turns_are_read_or_heard_as_the_stage_says(recipe: Recipe) -> None:
    folder = Path(recipe.data.train[0]).parent
    clips = [{"audio": f"clips/train{number}.wav", "transcript": f"word{number}"} for number in range(2)]
    turns = [
        {"role": "user", "parts": [{**clips[0], "caption": "sad"}]},
        {"role": "assistant", "parts": ["I see."]},
        {"role": "user", "parts": [{**clips[1], "caption": "low"}]},
        {"role": "assistant", "parts": ["Yes."]},
    ]
    path = _manifest(folder / "dual.jsonl", [{"id": "d", "kind": "dual", "turns": turns}])
    stage = replace(recipe.stages[0], linguistic=None, paralinguistic=None, dual=recipe.stages[0].linguistic)
    data = replace(recipe.data, train=(str(path),))

    def heard(*history: History) -> Counter[tuple[int, bool]]:
        """How many recordings stand in a prompt, and whether it reads the first as a styled transcript."""
        samples = dataset_of(replace(recipe, data=data), replace(stage, history=history))
        found = Counter[tuple[int, bool]]()
        for index in range(60):
            prompt = samples.sample(index).prompt
            ids = [token for segment in prompt.segments if isinstance(segment, Text) for token in segment.ids]
            found[len(prompt.clips), "[sad] word0" in samples.tokenizer.decode(ids)] += 1
        return found

    assert stage.history == ("text",), "the paper's way unless a recipe says otherwise"
    assert heard("text") == {(1, True): 60}
    assert heard("speech") == {(2, False): 60}
    both = heard("text", "speech")
    assert set(both) == {(1, True), (2, False)}
    assert min(both.values()) > 15


def test_samples_from_lines_with_tasks(recipe: Recipe, tmp_path: Path) -> None:
    folder = Path(recipe.data.train[0]).parent
    rows = [_task_line(number, ["asr", "pitch"], labels={"pitch": "low"}) for number in range(6)]
    rows += [_task_line(number, ["asr"]) for number in range(6, 12)]  # nothing known of how these are said
    stage = recipe.stages[1]
    data = replace(recipe.data, train=(str(_manifest(folder / "tasks.jsonl", rows)),))
    samples = dataset_of(replace(recipe, data=data), stage)
    drawn = [samples.sample(index) for index in range(400)]
    views = {(sample.conversation, sample.view.para) for sample in drawn if sample.kind == "linguistic"}
    assert {para for conversation, para in views if conversation == "t0/asr"} == {"text", "speech", "none"}
    assert {para for conversation, para in views if conversation == "t9/asr"} == {"speech", "none"}


def test_a_target_that_was_cut_off_does_not_teach_to_end(recipe: Recipe, tmp_path: Path) -> None:
    answer: dict[str, object] = {"id": "d", "kind": "dual", "turns": ROW["turns"]}
    ends, stops = answer | {"early_stop": True}, answer | {"early_stop": False}
    stage = replace(recipe.stages[0], linguistic=None, paralinguistic=None, dual=recipe.stages[0].linguistic)
    found = []
    for row in (answer, ends, stops):
        data = replace(recipe.data, train=(str(_manifest(tmp_path / "m.jsonl", [row])),))
        found.append(dataset_of(replace(recipe, data=data), stage).sample(0).label_count)
    assert found[0] == found[1] == found[2] + 1


def test_targets_of_two_llms_are_refused(tmp_path: Path) -> None:
    rows = [{**ROW, "provenance": {"llm": name, "revision": None}} for name in ("a", "a", "b")]
    assert Examples([_manifest(tmp_path / "m.jsonl", rows[:2])]).writer == {"llm": "a", "revision": None}
    with pytest.raises(DualSLMError, match="targets of another LLM: got b beside a"):
        Examples([_manifest(tmp_path / "m.jsonl", rows)])


def test_lines_with_tasks_that_are_damaged(tmp_path: Path) -> None:
    for change in ({"tasks": ["dance"]}, {"kind": "dual"}, {"turns": [{"role": "user", "parts": ["x"]}]}):
        path = _manifest(tmp_path / "m.jsonl", [_task_line(0, ["asr"]), {**_task_line(1, ["asr"]), **change}])
        with pytest.raises(DualSLMError, match=r"m\.jsonl line 2: "):
            Examples([path])


def test_a_large_manifest_is_opened_from_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "train.jsonl"
    index = tmp_path / ".train.jsonl.index.npz"
    make(tmp_path / "kit")
    path.write_text((tmp_path / "kit" / "train.jsonl").read_text())
    plain = Examples([path])
    assert not index.exists(), "a small one needs none"
    monkeypatch.setattr(manifest_index, "INDEXED", 0)
    first = Examples([path])
    assert index.exists()
    with monkeypatch.context() as patch:
        patch.setattr(manifest_index, "rows", None)  # no line is looked at
        again = Examples([path])
    for some in (first, again):
        assert recordings(some) == recordings(plain)
        assert [some.get("linguistic", n).id for n in range(3)] == [plain.get("linguistic", n).id for n in range(3)]
        for kind, (own,) in plain.positions.items():
            (other,) = some.positions[kind]
            assert (own.positions == other.positions).all()

    index.write_bytes(index.read_bytes()[:-100] + bytes(100))
    assert Examples([path]).count("linguistic") == plain.count("linguistic")
    manifest_index._keep(
        manifest_index._read(path), index, f"{hashlib.sha256(path.read_bytes()).hexdigest()} 0.1.0 asr"
    )
    assert recordings(Examples([path])) == recordings(plain), "an index of another format does not hold"
    path.write_text("\n".join(path.read_text().splitlines()[:4]) + "\n")
    assert Examples([path]).count("linguistic") == 2, "another manifest: the index does not hold"
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(DualSLMError, match="line 5"):
        Examples([path])


def test_a_large_manifest_in_parts_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "kit")
    lines = (tmp_path / "kit" / "train.jsonl").read_text().splitlines()
    more = {**json.loads(lines[0]), "provenance": {"llm": "b"}, "id": "ä"}
    waits = {"id": "w", "tasks": ["asr", "gender"], "turns": [{"role": "user", "parts": [{"audio": "./x//ü.wav"}]}]}
    path = tmp_path / "train.jsonl"
    path.write_text("\n\n".join([*lines, json.dumps(more, ensure_ascii=False), json.dumps(waits)] * 3))
    whole = manifest_index._read(path)
    monkeypatch.setattr(manifest_index, "PART", 300)
    for cores in (2, 7):
        monkeypatch.setattr(manifest_index, "_cores", lambda cores=cores: cores)
        with monkeypatch.context() as patch:
            patch.setattr(manifest_index, "rows", None)  # this process looks at no line
            parts = manifest_index._found(path)
        assert (parts.recordings, parts.left_out) == (whole.recordings, whole.left_out)
        assert (parts.answers, parts.writers) == (whole.answers, whole.writers) == (3, [{"llm": "b"}])
        for kind, own in whole.kinds.items():
            assert (parts.kinds[kind] == own).all()
    (tmp_path / "random.py").write_text("raise SystemExit(1)")
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        assert manifest_index._at_once([[str(path), "0", "300"]]), "no module of the user's folder is run"
    with path.open("a") as file:
        file.write("\n{}\n")
    with pytest.raises(DualSLMError, match=f"line {2 * 3 * (len(lines) + 2)}: "):
        manifest_index._found(path)
