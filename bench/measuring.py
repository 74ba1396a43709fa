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
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dualslm.model.dualslm import DualSLM

HERTZ = 10.0  # embeddings of L a second in the paper
DOES_NOT_FIT = "does not fit"  # stands in a result in place of a figure
Found = TypeVar("Found")


def about() -> dict[str, str]:
    """The command, the machine and the versions: the head of a result file."""
    gpu = torch.cuda.is_available()
    return {
        "command": " ".join(["python", *sys.argv]),
        "machine": torch.cuda.get_device_name() if gpu else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def write_result(result: dict[str, Any], out: Path | None) -> None:
    """Writes a result file, unless there is no path for it."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")


def count_flops(step: Callable[[], Any]) -> int:
    """FLOPs of a step, by PyTorch's counter.

    Attention runs as plain matrix products, because fused kernels are counted differently or not at all.
    """
    fused = functional.scaled_dot_product_attention

    def plain(*args: Any, **kwargs: Any) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # innermost, so that it overrides the kernels that the model chooses
            return fused(*args, **kwargs)

    with patch.object(functional, "scaled_dot_product_attention", plain), FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def as_trained(device: str) -> None:
    """Sets the precision of float32 products on a GPU to TF32, as training does."""
    if device == "cuda":
        torch.set_float32_matmul_precision("high")


def attempt(do: Callable[[], Found]) -> Found | None:
    """The result of a function; None where the GPU's memory is too small for it."""
    try:
        return do()
    except torch.OutOfMemoryError as error:
        print(f"{DOES_NOT_FIT}: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
    # Outside the `except`: the error holds the frames that it passed through, and their tensors.
    free_memory()
    return None


def fitting(do: Callable[[int], Found], samples: int, together: int = 1) -> tuple[int, Found] | None:
    """Runs a function with all samples at once, or half of them, a quarter and so on until it fits the memory.

    Args:
        do: function of the number of samples that go through the model at once.
        samples: number of all samples.
        together: number of neighboring samples that share a prefix and are never separated.

    Returns:
        The number of samples at once and the function's result; None where even the fewest do not fit.
    """
    at_once = samples
    while (found := attempt(partial(do, at_once))) is None:
        if at_once % (2 * together):
            return None
        at_once //= 2
    return at_once, found


def skipping(model: DualSLM, per_second: float) -> DualSLM:
    """The model with so many embeddings of L a second, at the cost of choosing them.

    How many an aligned adapter leaves depends on its training and on the speech; a fresh one is silent nowhere.
    """
    chosen = model.ling.spoken

    def spoken(embeds_LD: torch.Tensor) -> torch.Tensor:
        chosen(embeds_LD)
        left = max(1, round(len(embeds_LD) * per_second / HERTZ))
        return embeds_LD[torch.linspace(0, len(embeds_LD) - 1, left, device=embeds_LD.device).long()]

    model.ling.spoken = spoken  # type: ignore[method-assign]
    return model


def free_memory() -> None:
    """Frees the memory of models that are no longer used."""
    if torch.cuda.is_available():
        torch.compiler.reset()  # captured graphs hold the weights that they read
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def seconds_of(step: Callable[[], Any], device: str) -> float:
    """The duration of a step, in s."""
    synchronize(device)
    began = time.perf_counter()
    step()
    synchronize(device)  # CUDA runs behind the Python code: without this, only the launches are timed
    return time.perf_counter() - began


def synchronize(device: str) -> None:
    """Waits until the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def memory_of(device: str) -> Iterator[list[int]]:
    """Measures the memory of the step in its block; after the block, the list holds its bytes.

    On a GPU it is the most in use at any time. On a CPU, which has no such count, it is what autograd saves for the
    backward pass, without the weights.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        found = [0]
        yield found
        found[0] = torch.cuda.max_memory_allocated()
        return
    parameters = (thing for thing in gc.get_objects() if isinstance(thing, torch.nn.Parameter))
    weights = {address for weight in parameters if (address := _address(weight)) is not None}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        address = _address(tensor)
        if address is not None and address not in weights:
            saved[address] = tensor.untyped_storage().nbytes()  # by address: views of one tensor count once
        return tensor

    found = [0]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found
    found[0] = sum(saved.values())


def _address(tensor: torch.Tensor) -> int | None:
    """The address of a tensor's storage; None for one without storage, such as a FakeTensor or one on "meta"."""
    if isinstance(tensor, FakeTensor) or tensor.is_meta:
        return None
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # other subclasses that have no storage say so by an error
        return None
