"""A run goes on only where it would end with the same bytes, and every failure on the way is one line."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.flips import flipped, outcome
from support.trainkit import make

from dualslm.cli.main import main
from dualslm.errors import DualSLMError
from dualslm.files import locked
from dualslm.model.loss import Loss
from dualslm.recipe import Recipe, Stage, to_toml
from dualslm.training import run_folder
from dualslm.training.feature_cache import FrameCache, Rule
from dualslm.training.train import train
from dualslm.training.trainer import Trainer

STOP = ("disentangle", 5)


class StoppedError(Exception):
    """Stands for a kill."""


def stop_at(patch: pytest.MonkeyPatch, stage: str, step: int) -> None:
    real = Trainer.training_step

    def stopped(self: Trainer, own: Stage, number: int, *rest: Any) -> None:
        if (own.name, number) == (stage, step):
            raise StoppedError
        real(self, own, number, *rest)

    patch.setattr(Trainer, "training_step", stopped)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a run that was stopped in its second stage."""
    folder = tmp_path_factory.mktemp("kit")
    recipe = make(folder)
    recipe = replace(recipe, stages=(recipe.stages[0], replace(recipe.stages[1], also=(str(folder / "also.jsonl"),))))
    shutil.copy(folder / "train.jsonl", folder / "also.jsonl")
    (folder / "recipe.toml").write_text(to_toml(recipe))
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, *STOP)
        with pytest.raises(StoppedError):
            train(recipe, folder / "run", device="cpu")
    return folder


@pytest.fixture
def run(kit: Path, tmp_path: Path) -> Callable[[], Path]:
    """Goes on with the stopped run in a copy of its folder; the data stay where they are, which the recipe names."""
    shutil.copytree(kit / "run", tmp_path / "run")
    return lambda: train(recipe_of(kit), tmp_path / "run", resume=True, device="cpu")


def recipe_of(kit: Path) -> Recipe:
    from dualslm.recipe import load

    return load(kit / "recipe.toml")


def swap_lines(file: Path) -> None:
    first, second, *rest = file.read_text().splitlines(keepends=True)
    file.write_text("".join([second, first, *rest]))


def add_blank(file: Path) -> None:
    file.write_text(file.read_text() + "\n")


@pytest.mark.parametrize("name", ["train.jsonl", "also.jsonl", "validation.jsonl"])
@pytest.mark.parametrize("change", [swap_lines, add_blank])
def test_other_data_are_refused(kit: Path, run: Callable[[], Path], name: str, change: Callable[[Path], None]) -> None:
    before = (kit / name).read_bytes()
    try:
        change(kit / name)
        with pytest.raises(DualSLMError, match=f"other data or models: got a change in .*{name}; put them back"):
            run()
    finally:
        (kit / name).write_bytes(before)


def test_other_recordings_are_refused(kit: Path, run: Callable[[], Path]) -> None:
    clip = kit / "clips" / "train3.wav"
    before = clip.read_bytes()
    shutil.move(kit / "features", kit / "kept")
    try:
        shutil.copy(kit / "clips" / "train4.wav", clip)
        with pytest.raises(DualSLMError, match="a change in the recordings"):
            run()
    finally:
        clip.write_bytes(before)
        shutil.rmtree(kit / "features")
        shutil.move(kit / "kept", kit / "features")


@pytest.mark.parametrize("name", ["encoder/model.safetensors", "llm/tokenizer.json", "llm/chat_template.jinja"])
def test_other_frozen_parts_are_refused(kit: Path, run: Callable[[], Path], name: str) -> None:
    before = (kit / name).read_bytes()
    try:
        if name.endswith(".safetensors"):  # one value, which a fingerprint does not see
            tensors = load_file(kit / name)
            longest = max(tensors, key=lambda key: tensors[key].numel())
            tensors[longest].view(-1)[tensors[longest].numel() // 2 + 1] += 1
            save_file(tensors, kit / name, metadata={"format": "pt"})
        else:
            (kit / name).write_bytes(before.replace(b"<|im_end|>\\n", b"<|im_end|> \\n", 1) + b"\n")
        with pytest.raises(DualSLMError, match=r"other data or models: got a change in [\w.]+ of the"):
            run()
    finally:
        (kit / name).write_bytes(before)


def test_a_run_of_the_last_version_goes_on(
    kit: Path, tmp_path: Path, run: Callable[[], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Its state has no hash and names no sources, its adapters and lists of frames have no hash."""
    out = tmp_path / "run"
    state = run_folder.read_state(out)
    assert state is not None
    torch.save({key: value for key, value in state.items() if key not in ("sources", "logs")}, out / "state.pt")
    save_file(load_file(out / "joint" / "adapters.safetensors"), out / "joint" / "adapters.safetensors")
    whole = run()
    assert "of an earlier version" in caplog.text
    again = tmp_path / "again"
    train(recipe_of(kit), again, device="cpu")
    for stage in ("joint", "disentangle"):
        one, other = (load_file(path / stage / "adapters.safetensors") for path in (whole.parent, again))
        assert all(torch.equal(one[key], other[key]) for key in other)


def test_a_second_process_is_refused_and_one_that_was_killed_holds_nothing(
    run: Callable[[], Path], tmp_path: Path
) -> None:
    hold = "import sys; from pathlib import Path; from dualslm.training.run_folder import held\n"
    hold += "with held(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(DualSLMError, match="another process trains in"):
            run()
        other.kill()
    run()


def test_a_cache_that_another_process_fills_is_waited_for(kit: Path, tmp_path: Path) -> None:
    order: list[str] = []
    with locked(tmp_path / "lock", lambda: None):
        code = (
            "import sys; from pathlib import Path; from dualslm.files import locked\n"
            "with locked(Path(sys.argv[1]), lambda: print('waits', flush=True)): print('has it', flush=True)"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "lock")]
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        order.append(other.stdout.readline())
    order += other.communicate()[0].splitlines(keepends=True)
    assert order == ["waits\n", "has it\n"]


# ---------------------------------------------------------------------- no numbers


def test_a_loss_that_is_no_number_names_step_and_recordings(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One recording's frames are broken, as an encoder in too few bits would break them."""
    real = FrameCache.get

    def broken(self: FrameCache, path: str) -> torch.Tensor:
        frames_NTD = real(self, path)
        return frames_NTD * float("nan") if path.endswith("train5.wav") else frames_NTD

    monkeypatch.setattr(FrameCache, "get", broken)
    message = r"the loss is no number: got step \d of stage joint, recordings [^ ]*train5\.wav; look"
    with pytest.raises(DualSLMError, match=message):
        train(recipe_of(kit), tmp_path / "new", device="cpu")
    state = run_folder.read_state(tmp_path / "new")
    if state is not None:
        assert all(weight.isfinite().all() for weight in state["adapters"].values())


def test_a_gradient_or_a_validation_that_is_no_number_ends_the_run_too(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_average_gradients", lambda _, gradients, __: gradients[0].fill_(float("inf")))
        with pytest.raises(DualSLMError, match="the gradient is no number: got step 0 of stage joint, recordings "):
            train(recipe_of(kit), tmp_path / "one", device="cpu")
    real = Trainer._validation_loss

    def hurt(self: Trainer, stage: Stage, validation: Any) -> float:
        plain = self.model.forward

        def no_number(*given: Any, **options: Any) -> Loss:
            loss = plain(*given, **options)
            return replace(loss, nll_B=loss.nll_B * float("nan"))

        self.model.forward = no_number  # type: ignore[method-assign]
        return real(self, stage, validation)

    monkeypatch.setattr(Trainer, "_validation_loss", hurt)
    with pytest.raises(DualSLMError, match="the validation loss is no number: got step 4 of stage joint"):
        train(recipe_of(kit), tmp_path / "two", device="cpu")


def test_adapters_that_left_the_numbers_are_never_saved(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step may overshoot, after which no loss is looked at."""
    real = Trainer.training_step

    def overshoots(self: Trainer, *given: Any) -> None:
        real(self, *given)
        self.weights[0].data.view(-1)[0] = float("inf")

    monkeypatch.setattr(Trainer, "training_step", overshoots)
    recipe = recipe_of(kit)
    short = replace(recipe, stages=(replace(recipe.stages[0], steps=1),), data=replace(recipe.data, validation=()))
    with pytest.raises(DualSLMError, match=r"the adapters have left the numbers: got .* after step 1 of stage joint"):
        train(short, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "joint").exists()
    assert not (tmp_path / "run" / "state.pt").exists()


# ---------------------------------------------------------------------- disks and folders


def as_file(out: Path) -> None:
    out.write_text("")


def as_folder(name: str) -> Callable[[Path], None]:
    return lambda out: (out / name).mkdir(parents=True)


@pytest.mark.parametrize(
    "trouble", [as_file, *map(as_folder, ["state.pt", "metrics.jsonl", "run.lock", "joint/config.json"])]
)
def test_a_folder_in_the_way_is_one_line(
    kit: Path, tmp_path: Path, trouble: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    trouble(tmp_path / "run")
    command = ["train", str(kit / "recipe.toml"), "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main(command) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("dualslm: error: cannot ")
    assert str(tmp_path / "run") in last


@pytest.mark.parametrize("name", ["state.pt", "metrics.jsonl", "adapters.safetensors", "recipe.toml", "run.lock"])
def test_a_full_disk_is_one_line_that_names_the_file(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real = Path.open

    def full(self: Path, *given: Any, **options: Any) -> Any:
        # Errors of a write name no file, as from the system.
        mode = given[0] if given else options.get("mode", "r")
        if name in self.name and {*"wa"} & {*mode}:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, *given, **options)

    monkeypatch.setattr(Path, "open", full)
    message = f"{'' if name == 'run.lock' else name}.*: got No space left on device; free some space"
    with pytest.raises(DualSLMError, match=message):
        train(recipe_of(kit), tmp_path / "run", device="cpu")


# ---------------------------------------------------------------------- flipped bytes


def test_flipped_bytes_are_found_or_harmless(tmp_path: Path) -> None:
    """Twelve of the places that `tests/support/flips.py` tries by hundreds; every kind of file once."""
    found = flipped(tmp_path, times=12, seed=3)
    assert set(found) <= {"found", "harmless"}, found
    assert found["found"] >= 4


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9999])
@pytest.mark.parametrize(
    "name", ["run/state.pt", "run/joint/adapters.safetensors", "run/features/part-1-00000.safetensors"]
)
def test_a_flip_in_what_is_learnt_from_is_found(kit: Path, tmp_path: Path, name: str, share: float) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(kit, folder)
    shutil.move(folder / "features", folder / "run" / "features")
    text = (folder / "recipe.toml").read_text().replace(f'"{kit}/features"', f'"{folder}/run/features"')
    (folder / "recipe.toml").write_text(text)
    shutil.copy(folder / "recipe.toml", folder / "run" / "recipe.toml")
    file = folder / name
    data = bytearray(file.read_bytes())
    data[int(share * len(data))] ^= 4
    file.write_bytes(data)
    assert outcome(folder, {}) == "found"


@pytest.mark.parametrize(
    "changed",
    [
        {"step": "x"},
        {"step": -1},
        {"step": 10**6},
        {"step": True},
        {"stage": -1},
        {"stage": 9},
        {"best": float("nan")},
        {"adapters": {}},
        {"adapters": []},
        {"adamw": {}},
        {"sources": 5},
        {"logs": 5},
    ],
)
def test_a_state_that_no_run_wrote_is_one_line(run: Callable[[], Path], tmp_path: Path, changed: Any) -> None:
    """Its hash says only that nothing has changed since somebody sealed it."""
    reseal(tmp_path / "run", changed)
    with pytest.raises(DualSLMError, match=r"state\.pt is (damaged|not of this run)"):
        run()


@pytest.mark.parametrize("kind", ["weights", "rate", "decay"])
def test_a_state_that_would_learn_otherwise_is_one_line(run: Callable[[], Path], tmp_path: Path, kind: str) -> None:
    state = run_folder.read_state(tmp_path / "run")
    assert state is not None
    if kind == "weights":
        next(iter(state["adapters"].values())).fill_(float("nan"))
    elif kind == "rate":
        state["schedule"]["last_epoch"] += 1
    else:
        state["adamw"]["param_groups"][0]["weight_decay"] = 0.5
    reseal(tmp_path / "run", state)
    with pytest.raises(DualSLMError, match=r"state\.pt is not of this run"):
        run()


def reseal(folder: Path, changed: Any) -> None:
    state = run_folder.read_state(folder)
    assert state is not None
    memory = io.BytesIO()
    torch.save({**state, **changed}, memory)
    seal = run_folder.SEAL + hashlib.sha256(memory.getbuffer()).digest()
    (folder / "state.pt").write_bytes(memory.getvalue() + seal)


def test_a_cache_that_says_nonsense_is_one_line(tmp_path: Path) -> None:
    for text in ("[" * 100_000, "null", '{"window": 1, "window": 2}'):
        (tmp_path / "cache.json").write_text(text)
        with pytest.raises(DualSLMError, match="is not a cache of frames"):
            FrameCache(tmp_path, Rule("encoder", 1, 1))


def test_a_log_that_was_changed_is_named(
    run: Callable[[], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "run" / "metrics.jsonl"
    lines = file.read_text().splitlines()
    changed = [lines[0].replace('"stage"', '"stagf"'), '{"half', "[]", *lines[1:]]
    file.write_text("\n".join(changed) + "\n")
    run()
    assert "metrics.jsonl is not as the run wrote it" in caplog.text
    assert all(json.loads(line)["stage"] for line in file.read_text().splitlines())
