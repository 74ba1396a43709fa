"""Training: byte-exact resume, any number of workers and processes, counted faults, golden losses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.factory import save_llm
from support.trainkit import make

from dualslm.cli.main import main
from dualslm.data.manifest import Examples
from dualslm.errors import DualSLMError
from dualslm.model.checkpoint import read_weights
from dualslm.model.dualslm import DualSLM
from dualslm.model.encoder import SpeechEncoder
from dualslm.model.fingerprint import weights_hash
from dualslm.recipe import Linguistic, Paralinguistic, Recipe, Stage, to_toml
from dualslm.training.dataset import Batch, StageDataset
from dualslm.training.feature_cache import FrameCache, Rule
from dualslm.training.train import train
from dualslm.training.trainer import Trainer, optimizer_and_schedule

STAGES = ["joint", "disentangle"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return make(tmp_path_factory.mktemp("kit"))


@pytest.fixture(scope="module")
def whole(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(recipe, out, device="cpu")
    return out


def weights(out: Path) -> list[bytes]:
    return [(out / stage / "adapters.safetensors").read_bytes() for stage in STAGES]


def losses(out: Path) -> list[tuple[str, int, dict[str, float]]]:
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    found = [(row["stage"], row["step"], row["loss_by_view"]) for row in rows if "loss" in row]
    assert len(found) >= 6
    return found


class StoppedError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize(("stage", "step"), [("joint", 1), ("joint", 5), ("disentangle", 0), ("disentangle", 6)])
def test_a_stopped_run_ends_with_the_same_bytes(
    recipe: Recipe, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, step: int
) -> None:
    real = Trainer.training_step

    def stopped(self: Trainer, own: Stage, number: int, *rest: Any) -> None:
        if (own.name, number) == (stage, step):
            raise StoppedError
        real(self, own, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", stopped)
        with pytest.raises(StoppedError):
            train(recipe, tmp_path / "run", device="cpu")
    train(recipe, tmp_path / "run", resume=True, device="cpu")
    assert weights(tmp_path / "run") == weights(whole)
    assert losses(tmp_path / "run") == losses(whole)


@pytest.mark.parametrize(("times", "processes"), [("2", "1"), ("1", "2")])
def test_a_run_killed_by_the_system_ends_with_the_same_bytes(root: Path, times: str, processes: str) -> None:
    done = subprocess.run(
        [sys.executable, str(root / "tests" / "support" / "kill.py"), "--times", times, "--processes", processes],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{times} kills" in done.stdout


def test_a_finished_run_is_left_as_it_is(recipe: Recipe, whole: Path) -> None:
    before = weights(whole)
    train(recipe, whole, resume=True, device="cpu")
    assert weights(whole) == before


def test_workers_change_nothing(recipe: Recipe, whole: Path, tmp_path: Path) -> None:
    many = replace(recipe, loop=replace(recipe.loop, workers=2))
    train(many, tmp_path / "run", device="cpu")
    assert weights(tmp_path / "run") == weights(whole)


def test_micro_batches_change_nothing_but_rounding(recipe: Recipe, whole: Path, tmp_path: Path) -> None:
    one = replace(recipe, loop=replace(recipe.loop, max_tokens=1))
    calm = replace(one.model, paralinguistic=replace(one.model.paralinguistic, dropout=0.0))
    states = []
    for name, some in (("one", one), ("all", replace(one, loop=replace(one.loop, max_tokens=10_000)))):
        train(replace(some, model=calm), tmp_path / name, device="cpu")
        states.append(read_weights(tmp_path / name / STAGES[-1]))
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], atol=1e-4, rtol=1e-3)


@pytest.fixture(scope="module")
def calm(recipe: Recipe) -> Recipe:
    """Without dropout, whose draws depend on the process."""
    still = replace(recipe.model, paralinguistic=replace(recipe.model.paralinguistic, dropout=0.0))
    return replace(recipe, model=still, stages=tuple(replace(stage, steps=9) for stage in recipe.stages))


@pytest.fixture(scope="module")
def alone(calm: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, layers as they are."""
    out = tmp_path_factory.mktemp("alone") / "one"
    train(calm, out, device="cpu")
    return out


@pytest.mark.parametrize("loop", [{}, {"fsdp": True, "activation_checkpointing": True}], ids=["whole", "sharded"])
def test_two_processes_are_one(calm: Recipe, alone: Path, tmp_path: Path, loop: dict[str, bool]) -> None:
    (tmp_path / "recipe.toml").write_text(to_toml(replace(calm, loop=replace(calm.loop, **loop))))
    code = (
        "from pathlib import Path; from dualslm.recipe import load; from dualslm.training import train as loop\n"
        "parts = []; real = loop.prepare\n"
        "loop.prepare = lambda *args: parts.append(real(*args)) or parts[0]\n"
        f"loop.train(load('{tmp_path}/recipe.toml'), Path('{tmp_path}/two'))\n"
        "print(sum(hasattr(weight, 'to_local') for weight in parts[0].model.llm.parameters()), 'shards')"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    (tmp_path / "go.py").write_text(code)
    launch.append(str(tmp_path / "go.py"))
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # as on a machine without a card, where no device is named
    done = subprocess.run(launch, capture_output=True, text=True, check=False, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    assert ("\n0 shards" in done.stdout) == (not loop)
    same_losses(alone, tmp_path / "two", within=1e-6)


def same_losses(one: Path, two: Path, *, within: float) -> None:
    for (_, _, first), (_, _, second) in zip(losses(one), losses(two), strict=True):
        assert first.keys() == second.keys()
        assert all(abs(first[key] - second[key]) < within for key in first)


@pytest.mark.parametrize("way", ["activation_checkpointing", "compile"])
def test_how_layers_are_carried_out_changes_nothing_but_rounding(
    calm: Recipe, alone: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: plain(self, backend="eager", **how))
    train(replace(calm, loop=replace(calm.loop, **{way: True})), tmp_path / "run", device="cpu")
    same_losses(alone, tmp_path / "run", within=1e-5)


def test_adapters_learn_through_a_quantized_llm(calm: Recipe, alone: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="pip install 'dualslm[quantized]'")
    small = replace(calm, model=replace(calm.model, quantize="int8"))
    last = train(small, tmp_path / "run", device="cpu")
    for (_, _, first), (_, _, second) in zip(losses(alone), losses(tmp_path / "run"), strict=True):
        assert all(abs(first[key] - second[key]) < 0.3 for key in first)
    DualSLM.from_pretrained(last, device="cpu")
    with pytest.raises(AssertionError):
        same_losses(alone, tmp_path / "run", within=1e-6)


def test_every_adapter_weight_moves(whole: Path) -> None:
    first, last = (read_weights(whole / stage) for stage in STAGES)
    for key, value in first.items():
        if value.dim() > 1:
            assert (value != last[key]).float().mean() > 0.99, key


@pytest.mark.parametrize(("part", "name"), [("llm", "LLM"), ("encoder", "encoder")])
def test_a_frozen_weight_that_moved_is_refused(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, name: str
) -> None:
    step = Trainer.training_step

    def moving(self: Trainer, *rest: Any) -> None:
        with torch.no_grad():
            next(getattr(self.model, part).parameters()).view(-1)[0].add_(1e-3)
        step(self, *rest)

    monkeypatch.setattr(Trainer, "training_step", moving)
    short = replace(recipe, stages=tuple(replace(stage, steps=1) for stage in recipe.stages[:1]))
    with pytest.raises(DualSLMError, match=f"frozen weights moved during training: got the {name}"):
        train(short, tmp_path / "run", device="cpu")


@pytest.mark.parametrize(("kind", "still"), [("linguistic", "para"), ("paralinguistic", "ling")])
def test_an_adapter_that_a_stage_does_not_teach_keeps_its_bits(
    recipe: Recipe, whole: Path, tmp_path: Path, kind: str, still: str
) -> None:
    err = recipe.stages[1]
    alone = replace(err, **{**dict.fromkeys(("linguistic", "paralinguistic")), kind: getattr(err, kind)})
    begun = replace(recipe, stages=(alone,), model=replace(recipe.model, adapters=str(whole / STAGES[0])))
    before, after = read_weights(whole / STAGES[0]), read_weights(train(begun, tmp_path / "run", device="cpu"))
    same = {key: torch.equal(value, after[key]) for key, value in before.items()}
    assert all(same[key] for key in same if key.startswith(still))
    learnt = [key for key in same if not key.startswith(still) and before[key].dim()]  # a scale is no weight
    assert not any(same[key] for key in learnt)


def test_one_step_at_the_papers_rate_under_bfloat16_moves_the_adapters(calm: Recipe, alone: Path) -> None:
    parts = calm.model
    model = DualSLM.from_parts(parts.encoder, parts.llm, dtype=torch.bfloat16, device="cpu").train()
    stage = replace(calm.stages[0], lr=5e-6, warmup=0)
    adamw, _ = optimizer_and_schedule(model, stage, calm.optimizer, steps=1)
    before = {key: value.clone() for key, value in model.adapters.state_dict().items()}
    frozen = weights_hash(model.llm), weights_hash(model.encoder)
    batch = first_batch(calm, model, stage)
    model([sample.prompt for sample in batch.samples], batch.hear).nll_B.sum().backward()
    adamw.step()
    moved = [(value != before[key]).flatten() for key, value in model.adapters.state_dict().items()]
    assert torch.cat(moved).float().mean() > 0.99
    assert (weights_hash(model.llm), weights_hash(model.encoder)) == frozen


def first_batch(recipe: Recipe, model: DualSLM, stage: Stage) -> Batch:
    cache = FrameCache(Path(recipe.data.features), Rule.of(SpeechEncoder.from_pretrained(recipe.model.encoder)))
    examples = Examples(recipe.data.train)
    dataset = StageDataset(stage, examples, cache, model.llm.tokenizer, 0, lengths=model.slot_lengths)
    return dataset[0]


def test_unreadable_recordings_are_counted_and_listed(recipe: Recipe, tmp_path: Path) -> None:
    hurt = make(tmp_path / "hurt")
    (tmp_path / "hurt" / "clips" / "train3.wav").write_bytes(b"")
    train(hurt, tmp_path / "run", device="cpu")
    rows = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert rows
    assert {row["talk"].split("-")[0] for row in rows} == {"train3"}
    assert all("zero bytes" in row["reason"] for row in rows)


def test_a_folder_in_use_and_another_recipe_are_refused(recipe: Recipe, whole: Path) -> None:
    with pytest.raises(DualSLMError, match="holds a run already"):
        train(recipe, whole, device="cpu")
    with pytest.raises(DualSLMError, match="another recipe"):
        train(replace(recipe, seed=2), whole, resume=True, device="cpu")


def test_the_run_folder_is_complete(whole: Path) -> None:
    names = {"recipe.toml", "metrics.jsonl", "curves.png", "state.pt", *STAGES}
    assert names <= {path.name for path in whole.iterdir()}
    assert any((whole / "logs").rglob("events*"))


def test_golden_losses(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    found = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert found == pytest.approx([5.95053, 5.92983, 5.91961, 5.91365], abs=2e-3)


def test_frames_made_in_shards_are_those_that_training_makes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make(tmp_path)
    (tmp_path / "recipe.toml").write_text(to_toml(made))
    for shard in ("1/2", "2/2"):
        assert main(["--json", "features", str(tmp_path / "recipe.toml"), "--shard", shard, "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines() == ['{"usable": 8}'] * 2
    before = {file.name: file.read_bytes() for file in Path(made.data.features).iterdir()}
    train(made, tmp_path / "run", device="cpu")
    assert {file.name: file.read_bytes() for file in Path(made.data.features).iterdir()} == before
    assert main(["features", str(tmp_path / "recipe.toml"), "--shard", "3/2"]) == 2
    assert "this is no shard" in capsys.readouterr().err


def test_a_missing_manifest_leaves_no_run(calm: Recipe, tmp_path: Path) -> None:
    lost = replace(calm, data=replace(calm.data, train=(str(tmp_path / "none.jsonl"),)))
    with pytest.raises(DualSLMError, match="cannot read"):
        train(lost, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def begun(recipe: Recipe, adapters: Path) -> Recipe:
    """The second stage alone, from the adapters of a folder."""
    model = replace(recipe.model, adapters=str(adapters))
    return replace(recipe, model=model, stages=recipe.stages[1:])


def test_a_run_begins_from_trained_adapters(recipe: Recipe, whole: Path, tmp_path: Path) -> None:
    """A stage alone, from what the stage before it left, ends as it did in the whole run."""
    last = train(begun(recipe, whole / "joint"), tmp_path / "run", device="cpu")
    own, other = read_weights(last), read_weights(whole / "disentangle")
    assert all(torch.equal(own[name], other[name]) for name in other)
    assert DualSLM.from_pretrained(last).recipe["model"]["adapters"] == str(whole / "joint")


def test_adapters_that_do_not_fit_are_refused(recipe: Recipe, whole: Path, tmp_path: Path) -> None:
    wider = begun(recipe, whole / "joint")
    wider = replace(wider, model=replace(wider.model, linguistic=replace(recipe.model.linguistic, hidden=64)))
    with pytest.raises(DualSLMError, match=r"of another build: got linguistic.hidden 32, not 64; write"):
        train(wider, tmp_path / "run", device="cpu")
    save_llm(tmp_path / "llm", seed=5)
    other = replace(begun(recipe, whole / "joint").model, llm=str(tmp_path / "llm"))
    with pytest.raises(DualSLMError, match="is not the LLM that these adapters were trained with"):
        train(replace(recipe, model=other), tmp_path / "run", device="cpu")
    with pytest.raises(DualSLMError, match=r"is not a dualslm checkpoint: got no config\.json"):
        train(begun(recipe, tmp_path / "llm" / ".."), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_what_a_stage_left_in_the_other_adapter_does_not_count(recipe: Recipe, tmp_path: Path) -> None:
    """A stage that teaches P alone, after one that taught both, and clips: by itself it ends with the same bytes."""
    last = replace(recipe.stages[1], linguistic=None)
    tight = replace(recipe, stages=(recipe.stages[0], last), optimizer=replace(recipe.optimizer, clip=0.01))
    train(tight, tmp_path / "whole", device="cpu")
    train(begun(tight, tmp_path / "whole" / "joint"), tmp_path / "alone", device="cpu")
    for name, weight in read_weights(tmp_path / "whole" / "disentangle").items():
        assert torch.equal(weight, read_weights(tmp_path / "alone" / "disentangle")[name])


def test_validation_without_a_stages_kind_is_refused_before_any_step(recipe: Recipe, tmp_path: Path) -> None:
    (file,) = recipe.data.validation
    lines = [line for line in Path(file).read_text().splitlines() if json.loads(line)["kind"] != "linguistic"]
    some = Path(file).with_name("some-validation.jsonl")
    some.write_text("".join(f"{line}\n" for line in lines))
    lacking = replace(recipe, data=replace(recipe.data, validation=(str(some),)))
    with pytest.raises(DualSLMError, match=r"has no linguistic examples: got none in .*some-validation\.jsonl"):
        train(lacking, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_without_validation_the_last_step_is_kept_and_no_number_invented(recipe: Recipe, tmp_path: Path) -> None:
    unchecked = replace(recipe, data=replace(recipe.data, validation=()), stages=recipe.stages[:1])
    folder = train(unchecked, tmp_path / "run", device="cpu")

    def refuse(name: str) -> None:
        raise AssertionError(name)

    card = json.loads((folder / "config.json").read_text(), parse_constant=refuse)
    assert card["metrics"] == {"stage": "joint", "step": 7}
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        assert "validation_loss" not in json.loads(line, parse_constant=refuse)


def test_adapters_whose_card_states_no_defaults_fit(recipe: Recipe, tmp_path: Path) -> None:
    made = DualSLM.from_parts(recipe.model.encoder, recipe.model.llm)
    made.save_pretrained(tmp_path / "adapters")
    stated = {"paralinguistic": asdict(Paralinguistic()), "linguistic": asdict(Linguistic())}
    other = DualSLM.from_parts(recipe.model.encoder, recipe.model.llm, **stated)  # type: ignore[arg-type]
    other.load_adapters(tmp_path / "adapters")
    assert all(torch.equal(one, two) for one, two in zip(made.parameters(), other.parameters(), strict=True))
