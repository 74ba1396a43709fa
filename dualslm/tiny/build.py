"""Makes the embedded default anew: LLM, encoder, recordings, three stages, figures (ours).

Each step leaves its result in the build folder and is skipped when that is there; a step that was stopped goes
on from its last checkpoint. The LLM and the encoder know nothing of each other and are trained side by side.
"""

from __future__ import annotations

import copy
import importlib
import json
import multiprocessing
import os
import platform
import random
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from dualslm.checkpoint import CARD, read_weights
from dualslm.errors import DualSLMError
from dualslm.model import DualSLM
from dualslm.recipe import Kind, Recipe, Stage, ViewDraw, load
from dualslm.tiny import CLIPS, WEIGHTS, clips, exam, world
from dualslm.tiny import load as load_shipped
from dualslm.tiny.recordings import Recordings, record
from dualslm.tiny.stages import train_stage, write_targets

STEPS = ("llm", "encoder", "adapters", "eval")
RECIPE = Path("recipes/tiny.toml")
WITHOUT_ERR = "without-err"


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        llm: arguments of `pretrain_llm.pretrain`.
        encoder: arguments of `pretrain_encoder.pretrain`.
        recordings: utterances that the adapters learn from.
        tested: utterances of each test set.
        stage_steps: instead of the recipe's, for every stage.
        stage_batch: instead of the recipe's.
    """

    llm: dict[str, Any]
    encoder: dict[str, Any]
    recordings: int
    tested: int
    stage_steps: int | None = None
    stage_batch: int | None = None


FULL = Size(
    llm={
        "fluent": {"examples": 300_000, "steps": 8_000, "tokens_per_step": 24_576},
        "stretched": {"examples": 40_000, "steps": 1_500, "tokens_per_step": 4_096},
    },
    encoder={"utterances": 30_000, "steps": 8_000, "batch": 96},
    recordings=16_000,
    tested=500,
)
QUICK = Size(
    llm={
        "fluent": {"examples": 100, "steps": 3, "tokens_per_step": 1024},
        "stretched": {"examples": 100, "steps": 3, "tokens_per_step": 1024},
        "tested": 2,
        "talks": 200,
    },
    encoder={"utterances": 60, "steps": 4, "batch": 4},
    recordings=24,
    tested=4,
    stage_steps=2,
    stage_batch=4,
)


def run(
    out: Path,
    size: Size,
    *,
    steps: Sequence[str] = STEPS,
    device: str | None = None,
    processes: int | None = None,
    ship: bool = False,
) -> None:
    """Builds in a folder.

    Args:
        out: the build folder; `llm`, `encoder`, `adapters` and `figures.json` appear in it.
        size: how much of everything.
        steps: which of `STEPS`; the others' results must be there.
        device: "cpu" or "cuda"; the GPU where there is one.
        processes: that speak side by side; all cores unless given.
        ship: copy the result into the package.

    Raises:
        DualSLMError: an unknown step.
    """
    if unknown := set(steps) - set(STEPS):
        raise DualSLMError("unknown build step", got=", ".join(sorted(unknown)), do=f"choose from {', '.join(STEPS)}")
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    cores = processes or os.cpu_count() or 1
    out.mkdir(parents=True, exist_ok=True)
    _side_by_side(
        [(part, (out / part, getattr(size, part), where, cores)) for part in ("llm", "encoder") if part in steps]
    )
    if "adapters" in steps:
        _adapters(out, size, where, cores)
    if "eval" in steps:
        _figures(out, size, where, cores)
    if ship:
        _ship(out)


def _side_by_side(parts: Sequence[tuple[str, tuple[Any, ...]]]) -> None:
    """Runs the pretrainings, each in a process of its own, and waits for all."""
    spawn = multiprocessing.get_context("spawn")
    running = [(name, spawn.Process(target=_pretrain, args=(name, *args))) for name, args in parts]
    for _, process in running:
        process.start()
    for _, process in running:
        process.join()
    if failed := [name for name, process in running if process.exitcode]:
        raise DualSLMError(
            f"the {' and the '.join(failed)} could not be trained",
            got="see above",
            do="mend it and run again",
        )


def _pretrain(part: str, out: Path, size: dict[str, Any], device: str, processes: int) -> None:
    if (out / "card.json").exists():
        return
    module = importlib.import_module(f"dualslm.tiny.pretrain_{part}")
    module.pretrain(out, **size, seed=0, device=device, processes=processes)


# ---------------------------------------------------------------------- the adapters


def _recipe(size: Size) -> Recipe:
    recipe = load(RECIPE)
    if size.stage_steps is None or size.stage_batch is None:
        return recipe
    steps, batch = size.stage_steps, size.stage_batch
    short = tuple(replace(stage, steps=steps, batch=batch, warmup=1) for stage in recipe.stages)
    return replace(recipe, stages=short)


def _fresh(out: Path, recipe: Recipe, device: str) -> DualSLM:
    """Untrained adapters between the two frozen parts of the build."""
    torch.manual_seed(recipe.seed)
    return DualSLM.from_parts(
        str((out / "encoder").resolve()),
        str((out / "llm").resolve()),
        paralinguistic=asdict(recipe.model.paralinguistic),
        linguistic=asdict(recipe.model.linguistic),
        dtype=torch.float32,
        device=device,
    )


def _adapters(out: Path, size: Size, device: str, processes: int) -> None:
    """Three stages; the state after stage 1, and a run without stage 2 and ERR, are kept for comparison."""
    recipe = _recipe(size)
    model = _fresh(out, recipe, device)
    recordings = _record(model, "train", size.recordings, processes, keep=out / "frames.safetensors")
    drawn = [
        world.sample_talk(
            random.Random(f"talk/{index}"), take.speech, take.utterance, take.style, recordings.earlier
        ).conversation
        for index, take in enumerate(recordings.by_kind["event"])
    ]
    talks = write_targets(model, drawn, out / "targets.jsonl")
    workers = min(4, processes) if device == "cuda" else 0

    def learn(stage: Stage, name: str) -> None:
        """Trains a stage, or loads what an earlier run of it left."""
        folder = out / f"adapters-{name}"
        if not (folder / CARD).exists():
            started = time.monotonic()
            losses = train_stage(
                model, stage, recordings, talks, optimiser=recipe.optimiser, seed=recipe.seed, workers=workers
            )
            print(f"{name}: {losses} in {time.monotonic() - started:.0f} s", flush=True)
            _save(model, folder, recipe)
        model.adapters.load_state_dict(read_weights(folder, device))

    for stage in recipe.stages:
        learn(stage, stage.name)
    _save(model, out / "adapters", recipe)
    joint, *_, respond = recipe.stages
    learn(joint, joint.name)
    learn(without_err(respond), WITHOUT_ERR)


def without_err(stage: Stage) -> Stage:
    """The same stage with both channels always heard and both adapters always learning."""

    def plain(kind: Kind | None) -> Kind | None:
        return kind and replace(kind, learns=("para", "ling"), view=ViewDraw())

    return replace(
        stage,
        linguistic=plain(stage.linguistic),
        paralinguistic=plain(stage.paralinguistic),
        dual=plain(stage.dual),
    )


def _record(model: DualSLM, name: str, count: int, processes: int, keep: Path | None = None) -> Recordings:
    """Training or test recordings: "train", "seen" (voices of training) or "unseen" (voices never heard)."""
    held_out = name != "train"

    def draw(rng: random.Random) -> world.Utterance:
        return world.sample_utterance(rng, held_out=held_out, kinds=("event",) if held_out else None)

    return record(
        model.encoder,
        name,
        count,
        draw,
        held_out_voices=name == "unseen",
        augment=0.0 if held_out else 0.3,
        processes=processes,
        every_layer=model.every_layer,
        keep=keep,
    )


def _save(model: DualSLM, folder: Path, recipe: Recipe) -> None:
    model.recipe = asdict(recipe)
    model.save_pretrained(folder, encoder="../encoder", llm="../llm")


# ---------------------------------------------------------------------- the figures


def _figures(out: Path, size: Size, device: str, processes: int) -> None:
    """Examines the adapters after each stage, and those without ERR."""
    model = DualSLM.from_pretrained(out / "adapters", device=device, dtype=torch.float32)
    sets = {name: _record(model, name, size.tested, processes) for name in ("seen", "unseen")}
    final = copy.deepcopy(model.adapters.state_dict())
    last = _recipe(size).stages[-1].name
    found = {}
    for folder in sorted(out.glob("adapters-*")):
        if (name := folder.name.removeprefix("adapters-")) != last:
            model.adapters.load_state_dict(read_weights(folder, device))
            print(f"--- {name}", flush=True)
            found[name] = exam.examine(model, {"seen": sets["seen"]}, asked=("emotion",))
    model.adapters.load_state_dict(final)
    print("--- final", flush=True)
    found["final"] = exam.examine(model, sets)
    found[last] = {key: figure for key, figure in found["final"].items() if key.startswith("seen/")}
    _write_result(out / "figures.json", found, device, size.tested)


def measure_shipped(out: Path, *, count: int, device: str | None, processes: int | None) -> None:
    """Measures the shipped model; the comparison runs of the build stay in the file as they are."""
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load_shipped(device=where)
    cores = processes or os.cpu_count() or 1
    sets = {name: _record(model, name, count, cores) for name in ("seen", "unseen")}
    found = json.loads(out.read_text())["figures"] if out.exists() else {}
    found["final"] = exam.examine(model, sets)
    _write_result(out, found, where, count)


def _write_result(path: Path, figures: dict[str, exam.Figures], device: str, count: int) -> None:
    machine = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    result = {
        "command": " ".join(["python -m dualslm.tiny", *sys.argv[1:2]]),
        "machine": machine,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "n": count,
        "seed": 0,
        "figures": figures,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def _ship(out: Path) -> None:
    """Copies what a user needs into the package."""
    for part in ("encoder", "llm", "adapters"):
        target = WEIGHTS / part
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(out / part, target, ignore=shutil.ignore_patterns("checkpoint*", "pool*", "new"))
    clips.write(CLIPS)
