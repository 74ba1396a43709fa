"""A whole training run: reads, encodes, makes the run folder, goes through all stages or on where it stopped.

The loop itself is `trainer.py`; what a run learns is the recipe's alone.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.console import Console

from dualslm.data.manifest import Examples, recordings
from dualslm.errors import DualSLMError
from dualslm.files import replacing
from dualslm.model import execution
from dualslm.model.checkpoint import fingerprint
from dualslm.model.dualslm import DualSLM, resolve_device
from dualslm.model.encoder import SpeechEncoder
from dualslm.recipe import RUN_RECIPE, Recipe, parse, to_toml
from dualslm.training import feature_cache
from dualslm.training.feature_cache import FrameCache, Rule
from dualslm.training.log import overview, trackers
from dualslm.training.trainer import STATE, Position, Trainer


def train(recipe: Recipe, out: Path, *, resume: bool = False, device: str | None = None) -> Path:
    """Trains all stages of a recipe.

    Args:
        recipe: with manifests under [data].
        out: the run folder; it must be new unless `resume`.
        resume: go on where the run in the folder was stopped.
        device: "cpu" or "cuda"; Accelerate's choice unless given.

    Returns:
        The folder of the last stage's checkpoint.

    Raises:
        DualSLMError: a folder in use, another recipe than the run's, or data that cannot be used.
    """
    resolve_device(device)  # refuses one that is not there
    cpu = device == "cpu" or not torch.accelerator.is_available()  # else processes on CPUs would not know of each other
    accelerator = Accelerator(cpu=cpu, log_with=trackers(), project_dir=str(out))
    if accelerator.is_main_process:
        _refuse(recipe, out, resume)
    trainer = prepare(recipe, out, accelerator)
    if accelerator.is_main_process:
        _claim(recipe, out)
    accelerator.wait_for_everyone()
    accelerator.init_trackers("logs")
    trainer.at = _position(out / STATE)
    if accelerator.is_main_process:
        stages = [trainer.samples(stage, trainer.examples[stage.name], recipe.seed) for stage in recipe.stages]
        for table in overview(recipe, trainer.model, stages):
            Console(stderr=True).print(table)
    trainer.run()
    accelerator.end_training()
    return out / recipe.stages[-1].name


def prepare(recipe: Recipe, out: Path, accelerator: Accelerator) -> Trainer:
    """Loads the frozen parts, makes adapters or loads those to go on from, and encodes what is not in the cache yet."""
    examples, validation = read(recipe)
    torch.manual_seed(recipe.seed)
    model = DualSLM.from_parts(
        recipe.model.encoder,
        recipe.model.llm,
        paralinguistic=asdict(recipe.model.paralinguistic),
        linguistic=asdict(recipe.model.linguistic),
        quantize=recipe.model.quantize,
        device=str(accelerator.device),
    )
    if recipe.model.adapters is not None:
        model.load_adapters(recipe.model.adapters)
    _check_writer(model, [*examples.values(), validation])
    _carry_out(model, recipe)
    folder = Path(recipe.data.features)
    if accelerator.is_main_process:
        counts = feature_cache.build(model.encoder, _heard(examples, validation), folder, every_layer=model.every_layer)
        _tell_unusable(counts)
    accelerator.wait_for_everyone()
    cache = FrameCache(folder, Rule.of(model.encoder, every_layer=model.every_layer))
    if model.para.standardize and recipe.model.adapters is None:  # trained ones keep their own scale
        learnt = (path for path in _heard(examples, None) if path in cache.rows)
        model.para.calibrate(map(cache.get, _some(learnt)))
    if accelerator.device.type == "cuda":  # after the frames were made, which are the same wherever they are made
        torch.set_float32_matmul_precision("high")  # products of the adapters' float32 weights, as TF32
    return Trainer(recipe, model, out, examples, validation, cache, accelerator)


def _tell_unusable(counts: Counter[str]) -> None:
    """Says which recordings cannot be learnt from; the lessons that are passed over are listed in the run's folder."""
    if faults := [f"{count} {why}" for why, count in counts.items() if why != "usable"]:
        print(f"recordings that cannot be used: {'; '.join(faults)}; see skipped.jsonl in the run", file=sys.stderr)


def _some(paths: Iterable[str], most: int = 500) -> list[str]:
    """About so many of the recordings, from all over the list."""
    every = list(paths)
    return every[:: -(-len(every) // most)]


def read(recipe: Recipe) -> tuple[dict[str, Examples], Examples | None]:
    """The talks of each stage, and those that validate.

    Raises:
        DualSLMError: no manifest is named, or one cannot be read.
    """
    if not recipe.data.train:
        raise DualSLMError("the recipe names no data", got="data.train is empty", do="add manifests under [data]")
    once = lru_cache(None)(partial(Examples, seed=recipe.seed, weights=recipe.data.weights))
    examples = {stage.name: once((*recipe.data.train, *stage.also)) for stage in recipe.stages}
    return examples, Examples(recipe.data.validation, recipe.seed) if recipe.data.validation else None


def _heard(examples: Mapping[str, Examples], validation: Examples | None) -> list[str]:
    every = [*examples.values(), validation]
    return [path for some in dict.fromkeys(every) if some is not None for path in recordings(some)]


def encode(
    recipe: Recipe, *, shard: tuple[int, int] = (1, 1), check: bool = False, device: str | None = None
) -> Counter[str]:
    """Fills the recipe's cache of frames, or the part i of n of it, without loading the LLM.

    Args:
        recipe: whose recordings are encoded.
        shard: (i, n): part i of n, counted from 1.
        check: encode again those that were replaced since they were encoded.
        device: of the encoder.

    Returns:
        How many recordings are usable, and how many could not be read, by reason.
    """
    heard = _heard(*read(recipe))
    where, trunk = resolve_device(device)
    encoder = SpeechEncoder.from_pretrained(recipe.model.encoder, dtype=trunk, device=where)
    every_layer, folder = recipe.model.paralinguistic.every_layer, Path(recipe.data.features)
    return feature_cache.build(encoder, heard, folder, every_layer=every_layer, shard=shard, check=check)


def _check_writer(model: DualSLM, examples: Sequence[Examples | None]) -> None:
    """Refuses targets that another LLM wrote, where their provenance tells its weights."""
    own = fingerprint(model.llm)
    for writer in (some.writer for some in examples if some is not None and some.writer):
        if own and writer.get("fingerprint", writer.get("print")) not in (None, "", own):
            got = f"targets of {writer.get('llm')}, not of {model.llm.name}"
            raise DualSLMError("another LLM wrote these targets", got=got, do="write them anew: dualslm targets")


def _carry_out(model: DualSLM, recipe: Recipe) -> None:
    """Shards, checkpoints and compiles the LLM's layers as the recipe says."""
    if recipe.loop.fsdp:
        model.llm.identity = fingerprint(model.llm)
        execution.shard_fully(model.llm.model)
    if recipe.loop.activation_checkpointing:
        execution.activation_checkpointing(model.llm.model)
    if recipe.loop.compile:
        execution.compile_layers(model.llm.model)


def _refuse(recipe: Recipe, out: Path, resume: bool) -> None:
    """Refuses a folder that holds another run, or this one where it is not to be resumed."""
    file = out / RUN_RECIPE
    if file.exists() and not resume:
        raise DualSLMError(f"{out} holds a run already", got=RUN_RECIPE, do="give --resume, or another folder")
    if file.exists() and parse(file.read_text(), name=str(file)) != recipe:
        raise DualSLMError(f"{out} holds a run of another recipe", got=str(file), do="resume with the recipe as it was")


def _claim(recipe: Recipe, out: Path) -> None:
    """Makes the run folder once everything could be read, so that a mistake leaves none behind."""
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / RUN_RECIPE) as partial:
        partial.write_text(to_toml(recipe))


def _position(state: Path) -> Position:
    if not state.exists():
        return Position()
    found = torch.load(state, map_location="cpu", weights_only=True)
    return Position(found["stage"], found["step"], found["best"])
