"""Recipes: the shipped ones say what the paper says, and no mistake in one trains a default."""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from dualslm import recipe
from dualslm.conversation import Source, View
from dualslm.errors import DualSLMError
from dualslm.recipe import Kind, Linguistic, ModelRecipe, Recipe, Stage, ViewDraw

SHIPPED = ["paper-qwen", "paper-qwen-24gb", "paper-llama", "slam-asr", "small", "tiny", "tiny-more"]
PAPER = ["joint", "disentangle", "respond"]
STAGES = {"slam-asr": ["transcribe"], "tiny": ["align", *PAPER], "tiny-more": ["respond", "again"]}
TAG = re.compile(r"# (paper §|measured: |assumed: )\S")


def small(*overrides: str) -> Recipe:
    """A recipe in few lines, with changes."""
    text = """
        [model]
        encoder = "e"
        llm = "l"
        [[stage]]
        name = "only"
        lr = 1e-3
        batch = 4
        steps = 10
        [stage.linguistic]
        learns = ["ling"]
    """
    return recipe.parse(text, overrides)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_survive_a_round_trip(root: Path, name: str) -> None:
    read = recipe.load(root / "recipes" / f"{name}.toml")
    assert recipe.parse(recipe.to_toml(read)) == read
    assert [stage.name for stage in read.stages] == STAGES.get(name, PAPER)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_number_says_where_it_comes_from(root: Path, name: str) -> None:
    for line in (root / "recipes" / f"{name}.toml").read_text().splitlines():
        value = re.sub(r'"[^"]*"', "", line.partition("#")[0])
        assert not re.search(r"\d", value) or TAG.search(line), line


def test_every_recipe_is_known_to_these_tests(root: Path) -> None:
    assert sorted(path.stem for path in (root / "recipes").iterdir()) == sorted(SHIPPED)


@pytest.mark.parametrize("name", ["paper-qwen", "paper-qwen-24gb", "paper-llama"])
def test_the_paper(root: Path, name: str) -> None:
    read = recipe.load(root / "recipes" / f"{name}.toml")
    assert read.optimizer.weight_decay == 0.05
    assert [stage.lr for stage in read.stages] == [5e-5, 5e-6, 5e-6]
    assert [stage.warmup for stage in read.stages] == [1000, 1000, 0]
    assert {(stage.batch, stage.epochs, stage.steps) for stage in read.stages} == {(48, 3, None)}
    err = {name: (kind.learns, kind.view) for name, kind in read.stages[1].kinds.items()}
    any_source: tuple[Source, ...] = ("text", "speech", "none")
    speech: tuple[Source, ...] = ("speech",)
    assert err == {
        "linguistic": (("ling",), ViewDraw(para=any_source, ling=speech)),
        "paralinguistic": (("para",), ViewDraw(para=speech, ling=any_source)),
    }


def test_a_draw_takes_each_source_equally_often() -> None:
    rng = random.Random(0)
    draw = ViewDraw(para=("text", "speech", "none"))
    counts = Counter(draw.draw(rng) for _ in range(3000))
    assert counts.keys() == {View("text"), View("speech"), View("none")}
    assert all(abs(count - 1000) < 100 for count in counts.values())


def test_defaults_are_the_papers() -> None:
    read = small()
    assert read.stages[0].linguistic == Kind(learns=("ling",))
    assert read.model == ModelRecipe(encoder="e", llm="l", linguistic=Linguistic(stack=5, hidden=2048))
    assert small("stage.1.steps=7").stages[0].steps == 7


@pytest.mark.parametrize(
    ("override", "get"),
    [
        ("stage.1.lr=1e-5", lambda read: read.stages[0].lr == 1e-5),
        ("stage.1.lr = 1", lambda read: read.stages[0].lr == 1.0),
        ("model.llm=Qwen/Qwen2.5-0.5B", lambda read: read.model.llm == "Qwen/Qwen2.5-0.5B"),
        ('model.llm="quoted"', lambda read: read.model.llm == "quoted"),
        ("model.paralinguistic.mix=true", lambda read: read.model.paralinguistic.mix),
        ("model.paralinguistic.layer=3", lambda read: read.model.paralinguistic.layer == 3),
        ("stage.1.dual.learns=['para']", lambda read: read.stages[0].dual == Kind(learns=("para",))),
        ("seed=3", lambda read: read.seed == 3),
    ],
)
def test_overrides(override: str, get: object) -> None:
    assert callable(get)
    assert get(small(override))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stage.1.lrr=1", ["stage.1.lrr", "did you mean stage.1.lr?"]),
        ("modle.llm=x", ["modle", "did you mean model?"]),
        ("model.paralinguistic.headz=4", ["model.paralinguistic.headz", "did you mean"]),
        ("stage.1.lr=1e-5x", ["stage.1.lr must be a number", "'1e-5x'"]),
        ("stage.1.batch=2.5", ["stage.1.batch must be a whole number", "2.5"]),
        ("stage.1.batch=true", ["stage.1.batch must be a whole number", "True"]),
        ("model.paralinguistic.mix=1", ["model.paralinguistic.mix must be true or false"]),
        ("model.llm=3", ["model.llm must be text"]),
        ("model=3", ["model must be a table"]),
        ("stage=3", ["stage must be a list"]),
        ("stage=[]", ["stage"]),
        ("stage.2.lr=1", ["stage.2", "from 1 to 1"]),
        ("stage.0.lr=1", ["stage.0"]),
        ("stage.one.lr=1", ["stage.one"]),
        ("seed.x=1", ["seed must be a whole number"]),
        ("stage.1.lr.x=1", ["stage.1.lr.x cannot be set"]),
        ("lr", ["not an override"]),
        (".=1", ["not an override"]),
        ("stage.1.lr=0", ["stage.1.lr", "above 0"]),
        ("stage.1.lr=nan", ["stage.1.lr"]),
        ("stage.1.lr=inf", ["stage.1.lr"]),
        ("stage.1.batch=0", ["stage.1.batch", "1 or more"]),
        ("stage.1.epochs=3", ["stage.1.length", "epochs 3 and steps 10"]),
        ("stage.1.name=a/b", ["stage.1.name", "a/b"]),
        ("stage.1.linguistic.share=0", ["stage.1.linguistic.share"]),
        ("stage.1.linguistic.learns=[]", ["stage.1.linguistic.learns"]),
        ("stage.1.linguistic.learns=['lingg']", ["stage.1.linguistic.learns.1", "did you mean ling?"]),
        (
            "stage.1.linguistic.view.para=['speach']",
            ["stage.1.linguistic.view.para.1", "did you mean speech?"],
        ),
        ("stage.1.linguistic.view.ling=['text']", ["stage.1.linguistic.view.ling", "learns from speech"]),
        ("model.paralinguistic.dropout=1", ["model.paralinguistic.dropout"]),
        ("optimizer.clip=0", ["optimizer.clip"]),
        # far from what anybody trains: Python, numpy or the file system would refuse them hours later, or never
        pytest.param(f"stage.1.lr=1{'0' * 4000}", ["stage.1.lr is too large", "bits"], id="lr of 4000 digits"),
        pytest.param(f"stage.1.lr=1{'0' * 5000}", ["stage.1.lr must be a number"], id="lr of 5000 digits"),
        pytest.param(f"seed=0x{'f' * 5000}", ["seed is too large", "20000 bits"], id="seed of 20000 bits"),
        pytest.param(f"model.llm=0x{'f' * 5000}", ["model.llm is too large"], id="name of 20000 bits"),
        pytest.param(f"stage.1.lr={'[' * 100_000}", ["stage.1.lr must be a number"], id="nested lr"),
        pytest.param(f"stage.{'9' * 5000}.lr=1", ["there is no stage.9"], id="stage of 5000 digits"),
        pytest.param(f"stage.1.name={'a' * 300}", ["stage.1.name makes no sense"], id="name of 300 letters"),
        ("stage.1.batch=1_000_000_000", ["stage.1.batch makes no sense"]),
        ("stage.1.steps=1_000_000_000_000", ["stage.1.steps makes no sense"]),
        ("stage.1.linguistic.share=1e308", ["stage.1.linguistic.share makes no sense"]),
        ("stage.1.linguistic.share=1e-320", ["stage.1.linguistic.share makes no sense"]),
        ("stage.1.linguistic.together=1_000_000_000", ["stage.1.linguistic.together makes no sense"]),
    ],
)
def test_mistakes_name_the_full_key(override: str, words: list[str]) -> None:
    with pytest.raises(DualSLMError) as caught:
        small(override)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "lacks model"),
        ("[model]\nencoder = 'e'", "lacks stage|lacks model.llm"),
        ("seed = ", "not TOML"),
        ("seed = 1\nseed = 2", "not TOML"),
        pytest.param(f"seed = {'1' * 5000}", "not TOML", id="5000 digits"),
        pytest.param(f"seed = {'[' * 100_000}", "not TOML", id="nested lists"),
        pytest.param(f"seed = {'{a=' * 5000}1{'}' * 5000}", "not TOML", id="nested tables"),
    ],
)
def test_what_is_missing_is_named(text: str, word: str) -> None:
    with pytest.raises(DualSLMError, match=word):
        recipe.parse(text)


def test_a_stage_needs_a_kind_of_task_and_a_length() -> None:
    stage = small().stages[0]
    with pytest.raises(DualSLMError, match="mixture"):
        dataclasses.replace(stage, linguistic=None)
    with pytest.raises(DualSLMError, match="length"):
        Stage(name="a", lr=1.0, batch=1, linguistic=Kind(learns=("ling",)))


def test_stages_have_names_of_their_own() -> None:
    read = small()
    with pytest.raises(DualSLMError, match="only only"):
        dataclasses.replace(read, stages=read.stages * 2)


def test_weights_of_manifests() -> None:
    assert small('data.train=["a", "b"]', "data.weights=[1, 2.5]").data.weights == (1.0, 2.5)
    with pytest.raises(DualSLMError, match=r"data\.weights makes no sense: got 1 for 2 manifests"):
        small('data.train=["a", "b"]', "data.weights=[1]")
    with pytest.raises(DualSLMError, match=r"data\.weights makes no sense: got 0\.0"):
        small('data.train=["a"]', "data.weights=[0]")
    with pytest.raises(DualSLMError, match=r"data\.weights makes no sense: got 1e\+308"):
        small('data.train=["a"]', "data.weights=[1e308]")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DualSLMError, match="No such file"):
        recipe.load(tmp_path / "none.toml")
    with pytest.raises(DualSLMError, match="Is a directory"):
        recipe.load(tmp_path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DualSLMError, match="UTF-8"):
        recipe.load(tmp_path / "bytes.toml")


@pytest.mark.parametrize("name", ["paper-qwen", "paper-llama", "paper-qwen-24gb", "small"])
def test_the_switch_of_stage_three_to_plain_views_is_as_the_paper_map_says(root: Path, name: str) -> None:
    page = (root / "docs" / "paper-map.md").read_text()
    sets = re.findall(r"--set '(stage\.3\.[^']+)'", page)
    default, plain = (
        recipe.load(root / "recipes" / f"{name}.toml"),
        recipe.load(root / "recipes" / f"{name}.toml", sets),
    )
    joint, err, respond = default.stages
    for kind in ("linguistic", "paralinguistic"):
        own, other = getattr(respond, kind), getattr(plain.stages[2], kind)
        assert (own.view, own.learns) == (getattr(err, kind).view, getattr(err, kind).learns), (
            "the default goes on with ERR"
        )
        assert (other.view, set(other.learns)) == (getattr(joint, kind).view, {"para", "ling"})
    assert (respond.dual, respond.history) == (plain.stages[2].dual, ("text",))


def test_a_history_is_text_or_speech() -> None:
    assert small('stage.1.history=["speech", "text"]').stages[0].history == ("speech", "text")
    for bad in ("[]", '["none"]', "3"):
        with pytest.raises(DualSLMError, match=r"stage\.1\.history"):
            small(f"stage.1.history={bad}")
