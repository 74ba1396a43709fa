"""Several processes: that they learn the same, what our own code adds to a step, and what to expect of many GPUs.

    python bench/scale.py [--processes 1 2 4] [--out docs/results/scale.json]

Runs the tests' miniature with gloo on this machine. Every part of a step is timed in the first process; beside it
stands a sum over the processes of one tensor as long as the paper's adapters, which is what a step sends. The model of
scaling is arithmetic on stated numbers: FLOPs by `dualslm.training.estimate`, a card's rate, the links' rates. It is no
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

from dualslm.recipe import Recipe, load, to_toml
from dualslm.training import estimate, train
from dualslm.training.dataset import StageDataset
from dualslm.training.shapes import encoder_shape, llm_shape
from dualslm.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
GPUS = (1, 4, 8, 32)
NODE = 8  # GPUs
RATE = estimate.CARDS["H100"] * 1e12 * estimate.REACHED  # FLOP/s, assumed as `dualslm plan` does
NVLINK, NETWORK = 300e9, 40e9  # bytes/s that a sum reaches within a node and between nodes: assumed
LATENCY = {"node": 40e-6, "network": 150e-6}  # s of one sum, assumed
OURS = 8e-3  # s of a step beside FLOPs: drawing, launching, the optimizer; assumed, to be measured on a GPU


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
    """How many weights the two adapters of a recipe have, without their biases and norms."""
    ears, mind = encoder_shape(recipe.model.encoder), llm_shape(recipe.model.llm)
    para, ling = recipe.model.paralinguistic, recipe.model.linguistic
    tone = para.layers * (4 * ears.width**2 + 2 * ears.width * (para.feedforward or 4 * ears.width))
    words = ling.stack * ears.width * ling.hidden + ling.hidden * mind.width
    return tone + ears.width * mind.width + words


# ---------------------------------------------------------------------- measured here


def measured(counts: list[int], weights: int) -> Iterator[dict[str, Any]]:
    """The same training by so many processes: the quickest of each part in ms, and how far its losses are apart."""
    first: list[float] = []
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            made = make(folder)
            still = replace(made.model, paralinguistic=replace(made.model.paralinguistic, dropout=0.0))
            stages = tuple(replace(stage, steps=12, batch=8) for stage in made.stages)
            (folder / "recipe.toml").write_text(to_toml(replace(made, model=still, stages=stages)))
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
        (Trainer, "_step", "step"),
        (Trainer, "_loss", "forward"),
        (Trainer, "_share_gradients", "sum"),
    ):
        setattr(owner, name, timed(getattr(owner, name), times[what]))
    flat, run = torch.zeros(int((folder / "length").read_text())), Trainer.run

    def and_sum(self: Trainer) -> None:
        run(self)
        for _ in range(4 if self.accelerator.num_processes > 1 else 0):  # while the processes still know each other
            timed(self.accelerator.reduce, times["paper_sum"])(flat, "sum")

    Trainer.run = and_sum  # type: ignore[method-assign]
    train.train(load(folder / "recipe.toml"), folder / "run", device="cpu")
    if int(os.environ["RANK"]) == 0:
        found = {f"{what}_ms": 1000 * min(some) for what, some in times.items() if some}
        found.setdefault("paper_sum_ms", 0.0)
        (folder / "times.json").write_text(json.dumps(found))
    return 0


def timed(real: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    """The same function, its seconds kept."""

    def run(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        out = real(*args, **kwargs)
        times.append(time.perf_counter() - began)
        return out

    return run


# ---------------------------------------------------------------------- arithmetic


def modelled(recipe: Recipe, weights: int) -> Iterator[dict[str, Any]]:
    """A step of the last stage on so many GPUs, the batch as in the paper and eight times as large."""
    ears, mind = encoder_shape(recipe.model.encoder), llm_shape(recipe.model.llm)
    sample = estimate.lesson_cost(recipe, ears, mind, replace(estimate.PAPER_LENGTHS["dual"], shared=4)).total / RATE
    for batch in (48, 384):
        alone = batch * sample + OURS
        for gpus in GPUS:
            seconds = -(-batch // gpus) * sample + OURS + summing(4 * weights, gpus)
            row = {"batch": batch, "gpus": gpus, "step_s": seconds, "sum_s": summing(4 * weights, gpus)}
            yield {**row, "efficiency": alone / (gpus * seconds)}


def summing(size: int, gpus: int) -> float:
    """Seconds of one sum in a ring: each GPU sends and takes 2 (n - 1) / n of it, by the slowest link."""
    if gpus == 1:
        return 0.0
    near = gpus <= NODE
    return LATENCY["node" if near else "network"] + 2 * (gpus - 1) / gpus * size / (NVLINK if near else NETWORK)


if __name__ == "__main__":
    sys.exit(main())
