"""Training in several processes: whether all learn the same, what our code adds to a step, and a model of many GPUs.

    python bench/scale.py [--processes 1 2 4] [--out docs/results/scale.json]

Runs the tests' miniature with gloo on this machine. The parts of a step are timed in the first process, and so is a sum
over the processes of a tensor as long as the paper's adapters, which is what a step sends. The model of scaling is
arithmetic on stated numbers: FLOPs by `dualslm.training.estimate`, a card's rate, the links' rates. It is no
measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from support.trainkit import make

from dualslm.model.dualslm import DualSLM
from dualslm.recipe import Recipe, load, to_toml
from dualslm.training import estimate, train
from dualslm.training.dataset import StageDataset
from dualslm.training.shapes import encoder_shape, llm_shape
from dualslm.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
GPUS = (1, 4, 8, 32)
NODE = 8  # GPUs
RATE = estimate.CARDS["H100"] * 1e12 * estimate.REACHED  # FLOP/s, assumed as `dualslm plan` does
NVLINK = 300e9  # bytes/s that a sum reaches within a node: assumed
NETWORK = 40e9  # bytes/s that a sum reaches between nodes: assumed
LATENCY = {"node": 40e-6, "network": 150e-6}  # s of one sum, assumed
OVERHEAD_S = 8e-3  # of a step beside its FLOPs: drawing, launching, the optimizer; assumed, to be measured on a GPU


def main() -> int:
    """Measures, prints and writes; a worker only trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--worker", type=Path, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        return work(args.worker)
    weights = adapters(load(ROOT / "recipes" / "paper-qwen.toml"))
    result: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "adapter_weights": weights,
        "measured": list(measured(args.processes, weights)),
        "model": list(modelled(load(ROOT / "recipes" / "paper-qwen.toml"), weights)),
    }
    print(json.dumps(result, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def adapters(recipe: Recipe) -> int:
    """The number of weights of the two adapters of a recipe, without their biases and norms."""
    encoder = encoder_shape(recipe.model.encoder)
    llm = llm_shape(recipe.model.llm)
    para = recipe.model.paralinguistic
    ling = recipe.model.linguistic
    attention = 4 * encoder.width**2
    feedforward = 2 * encoder.width * (para.feedforward or 4 * encoder.width)
    p_weights = para.layers * (attention + feedforward) + encoder.width * llm.width
    l_weights = ling.stack * encoder.width * ling.hidden + ling.hidden * llm.width
    return p_weights + l_weights


# ---------------------------------------------------------------------- measured here


def measured(counts: list[int], weights: int) -> Iterator[dict[str, Any]]:
    """The same training by each number of processes: the quickest times in ms, and how far the losses are apart."""
    first: list[float] = []
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            recipe = make(folder)
            # Without dropout, whose draws differ by process: then all numbers of processes must learn the same.
            model = replace(recipe.model, paralinguistic=replace(recipe.model.paralinguistic, dropout=0.0))
            stages = tuple(replace(stage, steps=12, batch=8) for stage in recipe.stages)
            (folder / "recipe.toml").write_text(to_toml(replace(recipe, model=model, stages=stages)))
            (folder / "length").write_text(str(weights))
            launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
            own = {**os.environ, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, *launch, __file__, "--worker", name]
            subprocess.run(command, check=True, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            rows = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
            losses = [loss for row in rows if "loss" in row for loss in row["loss_by_view"].values()]
            first = first or losses
            apart = max(abs(one - two) for one, two in zip(first, losses, strict=True))
            yield {"processes": count, "apart": apart, **json.loads((folder / "times.json").read_text())}


def work(folder: Path) -> int:
    """Trains with timers around the parts of a step; the first process writes the quickest of each."""
    times: dict[str, list[float]] = defaultdict(list)
    for owner, name, what in (
        (StageDataset, "__getitem__", "drawing"),
        (Trainer, "training_step", "step"),
        (DualSLM, "forward", "forward"),
        (Trainer, "_average_gradients", "sum"),
    ):
        setattr(owner, name, timed(getattr(owner, name), times[what]))
    flat = torch.zeros(int((folder / "length").read_text()))
    run = Trainer.run

    def run_and_sum(self: Trainer) -> None:
        run(self)
        # Within the run, as long as its process group exists.
        for _ in range(4 if self.accelerator.num_processes > 1 else 0):
            timed(self.accelerator.reduce, times["paper_sum"])(flat, "sum")

    Trainer.run = run_and_sum  # type: ignore[method-assign]
    train.train(load(folder / "recipe.toml"), folder / "run", device="cpu")
    if int(os.environ["RANK"]) == 0:
        found = {f"{what}_ms": 1000 * min(some) for what, some in times.items() if some}
        found.setdefault("paper_sum_ms", 0.0)
        (folder / "times.json").write_text(json.dumps(found))
    return 0


def timed(real: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    """The same function, which also appends the seconds of each call to a list."""

    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = real(*args, **kwargs)
        times.append(time.perf_counter() - began)
        return result

    return call


# ---------------------------------------------------------------------- arithmetic


def modelled(recipe: Recipe, weights: int) -> Iterator[dict[str, Any]]:
    """A step of the last stage on so many GPUs, with the paper's batch and one eight times as large."""
    encoder = encoder_shape(recipe.model.encoder)
    llm = llm_shape(recipe.model.llm)
    sample = estimate.sample_cost(recipe, encoder, llm, replace(estimate.PAPER_LENGTHS["dual"], shared=4)).total / RATE
    for batch in (48, 384):
        alone = batch * sample + OVERHEAD_S
        for gpus in GPUS:
            # The slowest GPU sets the time: a batch that does not divide costs a whole sample more.
            seconds = -(-batch // gpus) * sample + OVERHEAD_S + summing(4 * weights, gpus)
            row = {"batch": batch, "gpus": gpus, "step_s": seconds, "sum_s": summing(4 * weights, gpus)}
            yield {**row, "efficiency": alone / (gpus * seconds)}


def summing(size: int, gpus: int) -> float:
    """Seconds of one sum in a ring of n GPUs: each sends and receives 2 (n - 1) / n of it, by the slowest link."""
    if gpus == 1:
        return 0.0
    near = gpus <= NODE
    return LATENCY["node" if near else "network"] + 2 * (gpus - 1) / gpus * size / (NVLINK if near else NETWORK)


if __name__ == "__main__":
    sys.exit(main())
