"""A whole training run: reads the manifests, encodes recordings, makes the run folder, runs or resumes all stages.

The loop itself is `trainer.py`; what a run learns is the recipe's alone.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path

import torch
from accelerate import Accelerator

from dualslm.data.manifest import Examples, recordings
from dualslm.errors import DualSLMError, new_console, one_line
from dualslm.files import replacing, system_errors
from dualslm.model import execution
from dualslm.model.dualslm import DualSLM
from dualslm.model.encoder import SpeechEncoder
from dualslm.model.execution import resolve_device
from dualslm.model.fingerprint import fingerprint
from dualslm.recipe import RUN_RECIPE, Loop, Recipe, to_toml
from dualslm.training import feature_cache
from dualslm.training.cache_lists import recordings_hash
from dualslm.training.feature_cache import FrameCache, Rule
from dualslm.training.log import overview, trackers
from dualslm.training.run_folder import check_recipe, check_sources, data_hashes, held, read_state
from dualslm.training.trainer import Trainer, TrainerState

CALIBRATION_RECORDINGS = 500  # at most so many are read for the means and deviations of P's frames


def train(recipe: Recipe, out: Path, *, resume: bool = False, device: str | None = None) -> Path:
    """Trains all stages of a recipe.

    Args:
        recipe: recipe with manifests under [data].
        out: run folder; it must be new unless `resume`.
        resume: continue the run in the folder where it was stopped.
        device: "cpu" or "cuda"; Accelerate's choice when None.

    Returns:
        The folder of the last stage's checkpoint.

    Raises:
        DualSLMError: a folder in use, another recipe, data or models than the run's, data that cannot be used, a
            damaged file, a failure of a disk, or a loss that is no number.
    """
    resolve_device(device)  # refuses a device that is not there
    # Without a GPU Accelerate must be told so, or several processes on CPUs would each believe to be alone.
    cpu = device == "cpu" or not torch.accelerator.is_available()
    accelerator = Accelerator(cpu=cpu, log_with=trackers(), project_dir=str(out))
    main = accelerator.is_main_process
    with system_errors(), held(out) if main else nullcontext():
        if main:
            check_recipe(recipe, out, resume=resume)
        state = read_state(out)  # a damaged one is found before hours of encoding
        trainer = prepare(recipe, out, accelerator)
        if main:
            if state is not None:
                check_sources(state, trainer.sources, out)
            with replacing(out / RUN_RECIPE) as partial_file:
                partial_file.write_text(to_toml(recipe), encoding="utf-8")
        if state is not None:
            trainer.state = TrainerState(state["stage"], state["step"], state["best"])
        del state  # three times the adapters' memory
        accelerator.wait_for_everyone()
        accelerator.init_trackers("logs")
        if main:
            datasets = [trainer.samples(stage, trainer.examples[stage.name], recipe.seed) for stage in recipe.stages]
            for table in overview(recipe, trainer.model, datasets):
                new_console(stderr=True).print(table)
        trainer.run()
        accelerator.end_training()
    return out / recipe.stages[-1].name


def prepare(recipe: Recipe, out: Path, accelerator: Accelerator) -> Trainer:
    """Loads the frozen parts and the adapters, and encodes recordings that are not in the cache yet.

    Args:
        recipe: recipe with manifests under [data].
        out: run folder; nothing is written into it yet.
        accelerator: device and processes.

    Raises:
        DualSLMError: data, a frozen part or adapters that cannot be used.
    """
    examples, validation = read_examples(recipe)
    torch.manual_seed(recipe.seed)  # fresh adapters are drawn by it
    model = DualSLM.from_parts(
        recipe.model.encoder,
        recipe.model.llm,
        paralinguistic=asdict(recipe.model.paralinguistic),
        linguistic=asdict(recipe.model.linguistic),
        window=recipe.model.window,
        quantize=recipe.model.quantize,
        dtype=None if recipe.model.dtype is None else getattr(torch, recipe.model.dtype),
        device=str(accelerator.device),
    )
    if recipe.model.adapters is not None:
        model.load_adapters(recipe.model.adapters)
    _check_writer(model, [*examples.values(), validation])
    _prepare_llm(model, recipe.loop)
    folder = Path(recipe.data.features)
    if accelerator.is_main_process:
        paths = _recording_paths(examples, validation)
        counts = feature_cache.build(model.encoder, paths, folder, every_layer=model.every_layer, layer=model.layer)
        if faults := [f"{count} {why}" for why, count in counts.items() if why != "usable"]:
            listed = f"recordings that cannot be used: {'; '.join(faults)}; see skipped.jsonl in the run"
            print(one_line(listed), file=sys.stderr)
    accelerator.wait_for_everyone()
    cache = FrameCache(folder, Rule.of(model.encoder, every_layer=model.every_layer, layer=model.layer))
    standardized = [adapter for adapter in (model.para, model.ling) if adapter.standardize]
    if standardized and recipe.model.adapters is None:  # trained adapters keep their own scale
        paths = [path for path in _recording_paths(examples, None) if path in cache.rows]
        # Evenly spaced ones, since neighbours in a manifest are often of one speaker.
        some = paths[:: max(1, -(-len(paths) // CALIBRATION_RECORDINGS))]
        if not some:
            do = "check the audio that the manifests name"
            raise DualSLMError("no recording can be read", got=f"0 of the training manifests in {folder}", do=do)
        for adapter in standardized:
            adapter.calibrate(map(cache.get, some))
    if accelerator.device.type == "cuda":
        # Products of the adapters' float32 weights as TF32. After the frames were made, which must not depend on it.
        torch.set_float32_matmul_precision("high")
    sources = {}
    if accelerator.is_main_process:
        sources = data_hashes(recipe)
        sources["the recordings"] = recordings_hash(folder, _recording_paths(examples, validation))
        for part, found in model.frozen_files.items():
            sources |= {f"{file} of the {part}": one["sha256"] for file, one in found.get("files", {}).items()}
    trainer = Trainer(recipe, model, out, examples, validation, cache, accelerator, sources=sources)
    if validation is not None:
        for stage in recipe.stages:
            # Without examples of a stage's kinds the run would end at its first validation, with its work undone.
            trainer.samples(stage, validation, recipe.seed + 1)
    return trainer


def read_examples(recipe: Recipe) -> tuple[dict[str, Examples], Examples | None]:
    """The examples of each stage, and those for validation.

    Raises:
        DualSLMError: no manifest is named, or one cannot be read.
    """
    if not recipe.data.train:
        raise DualSLMError("the recipe names no data", got="data.train is empty", do="add manifests under [data]")
    # Stages of the same manifests share one object: a large manifest takes seconds to open.
    opened = lru_cache(None)(partial(Examples, seed=recipe.seed, weights=recipe.data.weights))
    examples = {stage.name: opened((*recipe.data.train, *stage.also)) for stage in recipe.stages}
    validation = Examples(recipe.data.validation, recipe.seed) if recipe.data.validation else None
    return examples, validation


def _recording_paths(examples: Mapping[str, Examples], validation: Examples | None) -> list[str]:
    every = [*examples.values(), validation]
    return [path for some in dict.fromkeys(every) if some is not None for path in recordings(some)]


def encode(
    recipe: Recipe, *, shard: tuple[int, int] = (1, 1), check: bool = False, device: str | None = None
) -> Counter[str]:
    """Fills the recipe's cache of frames, or part i of n of it, without loading the LLM.

    Args:
        recipe: recipe whose recordings are encoded.
        shard: (i, n): part i of n, counted from 1.
        check: encode recordings again that were replaced since they were encoded.
        device: device of the encoder; the best one there when None.

    Returns:
        How many recordings are usable, and how many could not be read, by reason.
    """
    paths = _recording_paths(*read_examples(recipe))
    torch_device, dtype = resolve_device(device)
    if recipe.model.dtype is not None:
        dtype = getattr(torch, recipe.model.dtype)
    encoder = SpeechEncoder.from_pretrained(
        recipe.model.encoder, dtype=dtype, device=torch_device, window=recipe.model.window
    )
    para = recipe.model.paralinguistic
    return feature_cache.build(
        encoder,
        paths,
        Path(recipe.data.features),
        every_layer=para.mix,
        layer=para.layer,
        shard=shard,
        check=check,
    )


def _check_writer(model: DualSLM, examples: Iterable[Examples | None]) -> None:
    """Refuses targets that another LLM wrote, if their provenance has the fingerprint of its weights."""
    own = fingerprint(model.llm)
    for writer in (some.writer for some in examples if some is not None and some.writer):
        # Manifests of an earlier version call it "print"; a server's LLM has none.
        if own and writer.get("fingerprint", writer.get("print")) not in (None, "", own):
            got = f"targets of {writer.get('llm')}, not of {model.llm.name}"
            raise DualSLMError("another LLM wrote these targets", got=got, do="write them again: dualslm targets")


def _prepare_llm(model: DualSLM, loop: Loop) -> None:
    """Shards the LLM's layers, checkpoints their activations and compiles them, as the recipe says."""
    if loop.fsdp:
        model.llm.identity = fingerprint(model.llm)  # while this process still has all weights
        execution.shard_fully(model.llm.model)
    if loop.activation_checkpointing:
        execution.activation_checkpointing(model.llm.model)
    if loop.compile:
        execution.compile_layers(model.llm.model)
