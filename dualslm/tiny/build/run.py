"""Makes the embedded default anew: LLM, encoder, talks, stages, figures (ours).

Each step leaves its result in the build folder and is skipped when that is there; a step that was stopped goes
on from its last checkpoint. The LLM and the encoder know nothing of each other and are trained side by side.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from dualslm.errors import DualSLMError
from dualslm.model.checkpoint import read_weights
from dualslm.model.dualslm import DualSLM
from dualslm.recipe import Kind, Recipe, Stage, ViewDraw, load
from dualslm.tiny import CLIPS, LIMITS, WEIGHTS, world
from dualslm.tiny import load as load_shipped
from dualslm.tiny.build import clips, conversations, exam, readme
from dualslm.tiny.build.recordings import Recordings, record
from dualslm.training.train import train

STEPS = ("llm", "encoder", "talks", "adapters", "eval")
RECIPE = Path("recipes/tiny.toml")
MORE_RECIPE = Path("recipes/tiny-more.toml")
RUN, MORE = "run", "more"
WITHOUT_ERR = "without-err"
VOICES = ("seen", "unseen")  # in training
COMPARED = ("emotion", "energy")  # attributes that every stage is asked about


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        llm: arguments of `pretrain_llm.pretrain`.
        encoder: arguments of `pretrain_encoder.pretrain`.
        conversations: recordings in each manifest.
        tested: utterances of each test set.
        longest: tokens of an answer in a test.
        stages: keys of every stage to set otherwise than the recipe does.
    """

    llm: dict[str, Any]
    encoder: dict[str, Any]
    conversations: dict[str, int]
    tested: int
    longest: int = 48
    stages: dict[str, Any] = field(default_factory=dict)


FULL = Size(
    llm={
        "fluent": {"examples": 300_000, "steps": 8_000, "tokens_per_step": 24_576},
        "stretched": {"examples": 40_000, "steps": 1_500, "tokens_per_step": 4_096},
    },
    encoder={"utterances": 30_000, "steps": 8_000, "batch": 96},
    conversations={"train": 16_000, "validation": 300, "more": 32_000},
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
    conversations={"train": 24, "validation": 12, "more": 12},
    tested=4,
    longest=4,
    stages={"steps": 2, "batch": 4, "warmup": 1},
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
        steps: which of `STEPS`; an LLM or encoder that is not in the folder is the shipped one.
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
    if "talks" in steps:
        _conversations(out, size, where, cores)
    if "adapters" in steps:
        _adapters(out, size, where)
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
    module = importlib.import_module(f"dualslm.tiny.build.pretrain_{part}")
    module.pretrain(out, **size, seed=0, device=device, processes=processes)


# ---------------------------------------------------------------------- the adapters


def _recipe(out: Path, size: Size, file: Path = RECIPE) -> Recipe:
    """A recipe on the parts and the talks of this build."""
    recipe = load(file)

    def here(paths: Sequence[str]) -> tuple[str, ...]:
        return tuple(str(out / "talks" / Path(path).name) for path in paths)

    begun = recipe.model.adapters and str(out / RUN / Path(recipe.model.adapters).name)
    encoder, llm = (str(_part(out, name)) for name in ("encoder", "llm"))
    lines, checks = here(recipe.data.train), here(recipe.data.validation)
    return replace(
        recipe,
        model=replace(recipe.model, encoder=encoder, llm=llm, adapters=begun),
        data=replace(recipe.data, train=lines, validation=checks, features=str(out / "frames")),
        stages=tuple(replace(stage, **size.stages, also=here(stage.also)) for stage in recipe.stages),
    )


def _part(out: Path, name: str) -> Path:
    """A frozen part: the one of this build, or else the shipped one."""
    return out / name if (out / name / "card.json").exists() else WEIGHTS / name


def without_err(recipe: Recipe) -> Recipe:
    """The same lessons and steps with both channels always heard and both adapters always learning."""

    def plain(kind: Kind | None) -> Kind | None:
        return kind and replace(kind, learns=("para", "ling"), view=ViewDraw())

    def heard(stage: Stage) -> Stage:
        return replace(
            stage,
            linguistic=plain(stage.linguistic),
            paralinguistic=plain(stage.paralinguistic),
            dual=plain(stage.dual),
        )

    changed = tuple(stage if stage.objective == "align" else heard(stage) for stage in recipe.stages)
    return replace(recipe, stages=changed)


def _conversations(out: Path, size: Size, device: str, processes: int) -> None:
    recipe = _recipe(out, size)
    model = DualSLM.from_parts(recipe.model.encoder, recipe.model.llm, dtype=torch.float32, device=device)
    conversations.write(model, out / "talks", size.conversations, processes)


def _adapters(out: Path, size: Size, device: str) -> None:
    """All stages with ERR, then more of the last one, and all without ERR; a run that was stopped goes on."""
    recipe = _recipe(out, size)
    train(recipe, out / RUN, resume=True, device=device)
    folder = train(_recipe(out, size, MORE_RECIPE), out / MORE, resume=True, device=device)
    model = DualSLM.from_pretrained(folder, dtype=torch.float32, device=device)
    model.save_pretrained(out / "adapters", encoder="../encoder", llm="../llm", limits=LIMITS)
    train(without_err(recipe), out / WITHOUT_ERR, resume=True, device=device)


def _record(model: DualSLM, name: str, count: int, processes: int, *, facts: bool = False) -> Recordings:
    """Test recordings in voices of training ("seen") or never heard ("unseen").

    Events in sentences never heard, or facts, which a talk may begin with and its reply should remember.
    """
    draw = partial(world.sample_utterance, held_out=not facts, kinds=("fact" if facts else "event",))
    key, unseen, mixed = f"{name}-facts" if facts else name, name == "unseen", model.every_layer
    return record(model.encoder, key, count, draw, held_out_voices=unseen, processes=processes, every_layer=mixed)


# ---------------------------------------------------------------------- the figures


def _tested(model: DualSLM, count: int, processes: int) -> dict[str, Recordings]:
    """Recordings by whose voices they are, and as many of facts that are told before them."""
    how = (count, processes)
    return {name: _record(model, name, *how).after(_record(model, name, *how, facts=True)) for name in VOICES}


def _figures(out: Path, size: Size, device: str, processes: int) -> None:
    """Examines the adapters after each stage, and those without ERR."""
    encoder, llm = (str(_part(out, name)) for name in ("encoder", "llm"))
    model = DualSLM.from_pretrained(out / "adapters", encoder=encoder, llm=llm, device=device, dtype=torch.float32)
    sets = _tested(model, size.tested, processes)
    names = [stage.name for stage in load(RECIPE).stages]
    found = {}
    for name, folder in {
        **{name: out / RUN / name for name in names},
        WITHOUT_ERR: out / WITHOUT_ERR / names[-1],
    }.items():
        model.adapters.load_state_dict(read_weights(folder, device))
        print(f"--- {name}", flush=True)
        found[name] = exam.examine(model, {"seen": sets["seen"]}, asked=COMPARED, longest=size.longest)
    model.adapters.load_state_dict(read_weights(out / "adapters", device))
    print("--- final", flush=True)
    found["final"] = exam.examine(model, sets, longest=size.longest)
    _write_result(out / "figures.json", found, device, size.tested)
    print(readme.tables(json.loads((out / "figures.json").read_text())))


def measure_shipped(out: Path, *, count: int, device: str | None, processes: int | None) -> None:
    """Measures the shipped model; the comparison runs of the build stay in the file as they are."""
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load_shipped(device=where)
    cores = processes or os.cpu_count() or 1
    sets = _tested(model, count, cores)
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
        if not (out / part).exists():  # it is the shipped one
            continue
        target = WEIGHTS / part
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(out / part, target, ignore=shutil.ignore_patterns("checkpoint*", "pool*", "new"))
    clips.write(CLIPS)
