"""Where the time and the work of one of our training steps go, and what the least possible time is.

    python bench/step_profile.py [--size cpu|small|full] [--samples 8] [--out docs/results/step_profile.json]

The same step, sizes and lengths as in `train_step.py`. The first table has the share of operators in the time, by
PyTorch's profiler: on a GPU the kernels' own time, grouped by their names. The second has the FLOPs by what they are
spent on, as `dualslm plan` counts them. `floor` is the time of the counted FLOPs at the rate of a bare matrix product
of the size of the LLM's feed-forward, measured in the same run: no step that does this work can be quicker.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "docs/build"))

import torch
from measuring import DOES_NOT_FIT, about, as_trained, count_flops, fitting, free_memory, seconds_of, write_result
from rich.console import Console
from rich.table import Table
from rivals import Shape, Step, Work
from tables import in_parts
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from train_step import COUNTED, OURS, SHAPES, ours, works

from dualslm.recipe import Kind, Linguistic, ModelRecipe, Recipe, Stage
from dualslm.training.estimate import Lengths, sample_cost
from dualslm.training.shapes import EncoderShape, LLMShape

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
GROUPS = {"matrix products": PRODUCTS, "attention": ("scaled_dot_product", "flash_attention"), "optimizer": ("adam",)}
# Parts of kernels' names. The first group with one of them counts: fused attention has names of matrix products too.
KERNELS = {
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "optimizer": ("adam", "multi_tensor_apply"),
    "matrix products": ("gemm", "gemv", "nvjet", "cutlass", "cublas", "splitkreduce"),
}
REST = "everything else"


def operators(step: Step, at_once: int) -> dict[str, float]:
    """The share of a step's time in each group of operators."""
    gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu) as profiler:
        step(at_once)
    return shares(profiler.key_averages(), gpu=gpu)


def shares(events: Iterable[Any], *, gpu: bool) -> dict[str, float]:
    """The share of each group in the time, the largest first.

    Args:
        events: averages of the profiler.
        gpu: whether to count the time on the GPU.
    """
    times: Counter[str] = Counter()
    for event in events:
        # On a GPU a kernel's time stands in its own row, in that of its operator and in those of the annotations around
        # both: only the first kind counts.
        if not gpu:
            times[_operator_group(event.key.removeprefix("aten::").lower())] += event.self_cpu_time_total
        elif event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            name = event.key.lower()
            group = (group for group, words in KERNELS.items() if any(word in name for word in words))
            times[next(group, REST)] += event.self_device_time_total
    return {name: took / times.total() for name, took in times.most_common()}


def _operator_group(name: str) -> str:
    for group, words in GROUPS.items():
        # Products by their whole names: "mm" is a part of many others.
        if name in words or (words is not PRODUCTS and any(word in name for word in words)):
            return group
    return REST


def parts(shape: Shape, work: Work) -> dict[str, float]:
    """FLOPs of a step by what they are spent on, as `dualslm plan` counts them."""
    model = ModelRecipe(encoder="", llm="", linguistic=Linguistic(hidden=shape.hidden))
    stage = Stage(name="any", lr=1.0, batch=1, steps=1, dual=Kind(learns=("para", "ling")))
    encoder = EncoderShape(shape.d_speech, shape.speech_layers, shape.speech_ffn, shape.mels)
    llm = LLMShape(
        shape.d_llm, shape.layers, shape.heads, shape.kv_heads, shape.d_llm // shape.heads, shape.ffn, shape.vocabulary
    )
    lengths = Lengths(work.context, work.seconds, 4, work.reply, work.branches)
    cost = sample_cost(Recipe(model=model, stages=(stage,)), encoder, llm, lengths)
    return {
        "context, forward alone, shared": work.samples * cost.prefix,
        "P, L and reply, forward and back": work.samples * cost.llm,
        "adapters": work.samples * cost.adapters,
    }


def rate(shape: Shape, rows: int, device: str, rounds: int) -> float:
    """FLOP/s of a bare product with the LLM's feed-forward weights."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    x = torch.randn(rows, shape.d_llm, device=device, dtype=dtype)
    weight = torch.randn(shape.ffn, shape.d_llm, device=device, dtype=dtype)
    times = [seconds_of(lambda: x @ weight.T, device) for _ in range(5 * rounds)]
    return 2 * x.shape[0] * weight.numel() / statistics.median(times)


def measure(size: str, samples: int, rounds: int, device: str) -> Iterator[dict[str, Any]]:
    """One row for each workload."""
    for one in works(samples):
        yield _measured(SHAPES[size], one, rounds, device)
        free_memory()


def _measured(shape: Shape, work: Work, rounds: int, device: str) -> dict[str, Any]:
    """The row of one workload."""
    step = ours(shape, work, device, torch.bfloat16 if device == "cuda" else torch.float32)[OURS]
    fits = fitting(step, work.samples, work.branches)
    if fits is None:
        raise SystemExit(f"{work.name}: {DOES_NOT_FIT}")
    at_once, _ = fits
    flops = count_flops(lambda: step(min(at_once, COUNTED)))
    times: list[float] = []
    bare: list[float] = []
    for _ in range(rounds):  # in turns, so that both meet the same state of the machine
        times.append(seconds_of(partial(step, at_once), device))
        bare.append(rate(shape, work.samples * 100, device, rounds))
    row = {"work": work.name, "seconds": statistics.median(times), "tflop": flops / 1e12, "at_once": at_once}
    floor = flops / statistics.median(bare)
    return {**row, "floor": floor, "parts": parts(shape, work), "operators": operators(step, at_once)}


def tables(result: dict[str, Any]) -> list[Table]:
    """Time by operator and work by part, one column for each workload."""
    rows = result["rows"]
    names = [row["work"] + in_parts(row.get("at_once"), result["samples"]) for row in rows]
    times = Table("time, %", *names)
    for name in rows[0]["operators"]:
        times.add_row(name, *(f"{100 * row['operators'].get(name, 0):.0f}" for row in rows))
    times.add_row("step, s", *(f"{row['seconds']:.3f}" for row in rows))
    times.add_row("floor, s", *(f"{row['floor']:.3f}" for row in rows))
    times.add_row("floor / step", *(f"{row['floor'] / row['seconds']:.0%}" for row in rows))
    work = Table("work, TFLOP", *names)
    for name in rows[0]["parts"]:
        work.add_row(name, *(f"{row['parts'][name] / 1e12:.3f}" for row in rows))
    work.add_row("all, as PyTorch counts", *(f"{row['tflop']:.3f}" for row in rows))
    return [times, work]


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--size", choices=list(SHAPES), default="full" if gpu else "cpu")
    parser.add_argument("--samples", type=int, default=48 if gpu else 8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    device = "cuda" if gpu else "cpu"
    as_trained(device)
    result: dict[str, Any] = {**about(), "size": args.size, "samples": args.samples, "rows": []}
    for row in measure(args.size, args.samples, args.rounds, device):
        result["rows"].append(row)
        write_result(result, args.out)
    for table in tables(result):
        Console().print(table)


if __name__ == "__main__":
    main()
