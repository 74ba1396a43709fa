"""What the benchmarks share: timing, counting FLOPs, the memory of a step, and result files."""

from __future__ import annotations

import gc
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def about() -> dict[str, str]:
    """What ran where: the head of a result file."""
    gpu = torch.cuda.is_available()
    return {
        "command": " ".join(["python", *sys.argv]),
        "machine": torch.cuda.get_device_name() if gpu else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def keep(result: dict[str, Any], out: Path | None) -> None:
    """Writes a result file, where one is wanted."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")


def count_flops(step: Callable[[], Any]) -> int:
    """FLOPs by PyTorch's counter, which sees attention only as plain products; it warms the step up as well."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def seconds_of(step: Callable[[], Any], device: str) -> float:
    """How long a step takes, in s."""
    wait(device)
    began = time.perf_counter()
    step()
    wait(device)
    return time.perf_counter() - began


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def memory_of(device: str) -> Iterator[list[int]]:
    """Bytes of a step: the most in use on a GPU; on a CPU what is kept for the backward pass, weights left out."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        found = [0]
        yield found
        found[0] = torch.cuda.max_memory_allocated()
        return
    weights = {_place(thing) for thing in gc.get_objects() if isinstance(thing, torch.nn.Parameter)}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if _place(tensor) not in weights:
            kept[_place(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    found = [0]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found
    found[0] = sum(kept.values())


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
