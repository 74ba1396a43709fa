"""Builds the embedded default: LLM, encoder, conversations, stages, figures (ours).

Each step writes its result to the build folder and is skipped where the result exists; a stopped step resumes from its
last checkpoint. The LLM and the encoder do not depend on each other and are trained side by side.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
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
from dualslm.tiny.build import clips, conversations, exam, pretrain_encoder, pretrain_llm, readme
from dualslm.tiny.build.recordings import Recordings, record
from dualslm.training.train import train

PRETRAIN: dict[str, Callable[..., object]] = {"llm": pretrain_llm.pretrain, "encoder": pretrain_encoder.pretrain}
STEPS = ("llm", "encoder", "talks", "adapters", "eval")
RECIPE = Path("recipes/tiny.toml")
MORE_RECIPE = Path("recipes/tiny-more.toml")
RUN = "run"  # folders of the training runs
MORE = "more"
WITHOUT_ERR = "without-err"
VOICES = ("seen", "unseen")  # voices of the training data, and held-out ones
COMPARED = ("emotion", "energy")  # attributes that every stage is asked for; all five would take too long


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        llm: arguments of `pretrain_llm.pretrain`.
        encoder: arguments of `pretrain_encoder.pretrain`.
        conversations: number of recordings of each manifest.
        tested: number of utterances of each test set.
        max_new_tokens: limit of an answer in a test, in tokens.
        stages: settings that replace the recipe's in every stage.
    """

    llm: dict[str, Any]
    encoder: dict[str, Any]
    conversations: dict[str, int]
    tested: int
    max_new_tokens: int = 48
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
        "conversations": 200,
    },
    encoder={"utterances": 60, "steps": 4, "batch": 4},
    conversations={"train": 24, "validation": 12, "more": 12},
    tested=4,
    max_new_tokens=4,
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
        out: build folder, for `llm`, `encoder`, `adapters` and `figures.json`.
        size: amount of data and training.
        steps: some of `STEPS`; an LLM or encoder that is not in the folder is the shipped one.
        device: "cpu" or "cuda"; the GPU where there is one unless given.
        processes: number of processes that render side by side; all cores unless given.
        ship: whether to copy the result into the package.

    Raises:
        DualSLMError: an unknown step.
    """
    if unknown := set(steps) - set(STEPS):
        raise DualSLMError("unknown build step", got=", ".join(sorted(unknown)), do=f"choose from {', '.join(STEPS)}")
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    cores = processes or os.cpu_count() or 1
    out.mkdir(parents=True, exist_ok=True)
    # A part with a card is finished.
    wanted = [part for part in ("llm", "encoder") if part in steps and not (out / part / "card.json").exists()]
    _pretrain(wanted, out, size, where, cores)
    if "talks" in steps:
        _conversations(out, size, where, cores)
    if "adapters" in steps:
        _adapters(out, size, where)
    if "eval" in steps:
        _figures(out, size, where, cores)
    if ship:
        _ship(out)


def _pretrain(parts: Sequence[str], out: Path, size: Size, device: str, processes: int) -> None:
    """Pretrains the LLM, the encoder or both, each in a process of its own, and waits for all."""
    spawn = multiprocessing.get_context("spawn")  # a forked process could not use CUDA
    running = []
    for part in parts:
        settings = {**getattr(size, part), "seed": 0, "device": device, "processes": processes}
        running.append((part, spawn.Process(target=PRETRAIN[part], args=(out / part,), kwargs=settings)))
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


# ---------------------------------------------------------------------- the adapters


def _recipe(out: Path, size: Size, file: Path = RECIPE) -> Recipe:
    """A recipe with the parts and the data of this build."""
    recipe = load(file)

    def here(paths: Sequence[str]) -> tuple[str, ...]:
        return tuple(str(out / "talks" / Path(path).name) for path in paths)

    start = recipe.model.adapters and str(out / RUN / Path(recipe.model.adapters).name)
    encoder = str(_part(out, "encoder"))
    llm = str(_part(out, "llm"))
    train_manifests = here(recipe.data.train)
    validation_manifests = here(recipe.data.validation)
    return replace(
        recipe,
        model=replace(recipe.model, encoder=encoder, llm=llm, adapters=start),
        data=replace(recipe.data, train=train_manifests, validation=validation_manifests, features=str(out / "frames")),
        stages=tuple(replace(stage, **size.stages, also=here(stage.also)) for stage in recipe.stages),
    )


def _part(out: Path, name: str) -> Path:
    """The folder of a frozen part: that of this build, or else the shipped one."""
    return out / name if (out / name / "card.json").exists() else WEIGHTS / name


def without_err(recipe: Recipe) -> Recipe:
    """The same examples and steps, with both channels in every prompt and both adapters learning from all."""

    def plain(kind: Kind | None) -> Kind | None:
        return kind and replace(kind, learns=("para", "ling"), view=ViewDraw())

    def changed(stage: Stage) -> Stage:
        if stage.objective == "align":  # an alignment teaches one adapter without the LLM: there is nothing to replace
            return stage
        linguistic = plain(stage.linguistic)
        paralinguistic = plain(stage.paralinguistic)
        return replace(stage, linguistic=linguistic, paralinguistic=paralinguistic, dual=plain(stage.dual))

    return replace(recipe, stages=tuple(map(changed, recipe.stages)))


def _conversations(out: Path, size: Size, device: str, processes: int) -> None:
    recipe = _recipe(out, size)
    model = DualSLM.from_parts(recipe.model.encoder, recipe.model.llm, dtype=torch.float32, device=device)
    conversations.write(model, out / "talks", size.conversations, processes)


def _adapters(out: Path, size: Size, device: str) -> None:
    """Trains all stages with ERR, then more of the last one, then all without ERR; stopped runs are resumed."""
    recipe = _recipe(out, size)
    train(recipe, out / RUN, resume=True, device=device)
    folder = train(_recipe(out, size, MORE_RECIPE), out / MORE, resume=True, device=device)
    # Saved anew with relative paths, so that the build folder can be moved and shipped.
    model = DualSLM.from_pretrained(folder, dtype=torch.float32, device=device)
    model.save_pretrained(out / "adapters", encoder="../encoder", llm="../llm", limits=LIMITS)
    train(without_err(recipe), out / WITHOUT_ERR, resume=True, device=device)


def record_test_set(model: DualSLM, voices: str, count: int, processes: int, *, facts: bool = False) -> Recordings:
    """Records a test set of events, or of facts that a conversation may begin with.

    Args:
        model: model whose encoder is used.
        voices: "seen" for voices of the training data, "unseen" for held-out ones.
        count: number of recordings.
        processes: number of processes that render side by side.
        facts: whether to record facts, of training sentences, instead of events, of held-out ones.
    """
    draw = partial(world.sample_utterance, held_out=not facts, kinds=("fact" if facts else "event",))
    return record(
        model.encoder,
        f"{voices}-facts" if facts else voices,
        count,
        draw,
        held_out_voices=voices == "unseen",
        processes=processes,
        every_layer=model.every_layer,
    )


# ---------------------------------------------------------------------- the figures


def _test_sets(model: DualSLM, count: int, processes: int) -> dict[str, Recordings]:
    """A test set for each group of voices, with as many recorded facts."""
    sets = {}
    for voices in VOICES:
        facts = record_test_set(model, voices, count, processes, facts=True)
        sets[voices] = record_test_set(model, voices, count, processes).after(facts)
    return sets


def _figures(out: Path, size: Size, device: str, processes: int) -> None:
    """Measures the adapters after each stage, those without ERR and the final ones."""
    encoder = str(_part(out, "encoder"))
    llm = str(_part(out, "llm"))
    model = DualSLM.from_pretrained(out / "adapters", encoder=encoder, llm=llm, device=device, dtype=torch.float32)
    sets = _test_sets(model, size.tested, processes)
    stages = [stage.name for stage in load(RECIPE).stages]
    folders = {stage: out / RUN / stage for stage in stages}
    folders[WITHOUT_ERR] = out / WITHOUT_ERR / stages[-1]
    figures = {}
    # Encoder and LLM are the same throughout: one model takes the adapters of each run in turn.
    for name, folder in folders.items():
        model.adapters.load_state_dict(read_weights(folder, device))
        print(f"--- {name}", flush=True)
        seen = {"seen": sets["seen"]}
        figures[name] = exam.examine(model, seen, asked=COMPARED, max_new_tokens=size.max_new_tokens)
    model.adapters.load_state_dict(read_weights(out / "adapters", device))
    print("--- final", flush=True)
    figures["final"] = exam.examine(model, sets, max_new_tokens=size.max_new_tokens)
    _write_result(out / "figures.json", figures, device, size.tested)
    print(readme.tables(json.loads((out / "figures.json").read_text())))


def measure_shipped(out: Path, *, count: int, device: str | None, processes: int | None) -> None:
    """Measures the shipped model.

    Args:
        out: result file; the figures of the build's other runs stay in it as they are.
        count: number of utterances of each test set.
        device: "cpu" or "cuda"; the GPU where there is one unless given.
        processes: number of processes that render side by side; all cores unless given.
    """
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load_shipped(device=where)
    cores = processes or os.cpu_count() or 1
    sets = _test_sets(model, count, cores)
    figures = json.loads(out.read_text())["figures"] if out.exists() else {}
    figures["final"] = exam.examine(model, sets)
    _write_result(out, figures, where, count)


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
