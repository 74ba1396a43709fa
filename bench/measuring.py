"""What the benchmarks share: timing, counting FLOPs, memory, what does not fit it, and result files."""

from __future__ import annotations

import gc
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import torch
import transformers
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

NO_ROOM = "does not fit"  # in place of a figure
Found = TypeVar("Found")


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
    """FLOPs by PyTorch's counter, of attention as plain products: fused kernels are counted differently, or not."""
    fused = functional.scaled_dot_product_attention

    def plain(*args: Any, **kwargs: Any) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # within whatever the model itself asks for
            return fused(*args, **kwargs)

    with patch.object(functional, "scaled_dot_product_attention", plain), FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def as_trained(device: str) -> None:
    """Products of float32 weights as training does them on a GPU: as TF32."""
    if device == "cuda":
        torch.set_float32_matmul_precision("high")


def attempt(do: Callable[[], Found]) -> Found | None:
    """What it gives; None where the GPU's memory is too small for it."""
    try:
        return do()
    except torch.OutOfMemoryError as error:
        print(f"{NO_ROOM}: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
    forget()  # only here: an error holds the frames that it came through, and their tensors
    return None


def fitting(do: Callable[[int], Found], samples: int, together: int = 1) -> tuple[int, Found] | None:
    """Does it with all samples at once, or half of them, a quarter and so on until it fits.

    Args:
        do: takes how many samples go through the model at once.
        samples: in all.
        together: so many neighbours are never parted.

    Returns:
        How many at once, and what was given; None where the fewest do not fit.
    """
    at_once = samples
    while (found := attempt(partial(do, at_once))) is None:
        if at_once % (2 * together):
            return None
        at_once //= 2
    return at_once, found


def forget() -> None:
    """Gives back the memory of what is no longer needed; captured graphs hold the weights that they read."""
    if torch.cuda.is_available():
        torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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
