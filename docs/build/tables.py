"""Tables of full size, GPUs, small cards, large data and the server, from their result files (`pages.py`).

A row that has a "fault" shows it in place of a figure; one whose samples did not go through the model all at once
("at_once") says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any


def step_cells(one: dict[str, Any], own: dict[str, Any], samples: int) -> list[str]:
    """One optimizer step: s, times ours, TFLOP, times ours, what of that is reached, GB."""
    name = one["step"] + in_parts(one.get("at_once"), samples)
    if "fault" in one:
        return [name, one["fault"], *[""] * 5]
    took, counted = _times(one, own, "seconds"), _times(one, own, "tflop")
    reached = took / counted if took and counted else None
    figures = ((one["seconds"], ".3f"), (took, ".2f"), (one["tflop"], ".3f"), (counted, ".2f"), (reached, ".0%"))
    return [name, *(_shown(value, form) for value, form in figures), f"{one['memory_gb']:.2f}"]


def _times(one: dict[str, Any], other: dict[str, Any], what: str) -> float | None:
    """How many times the other's; None where one of them is not known."""
    value, unit = one.get(what), other.get(what)
    return value / unit if value and unit else None


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def in_parts(at_once: int | None, samples: int) -> str:
    """Said where a batch did not go through the model all at once."""
    return "" if at_once in (None, samples) else f", {at_once} at once"


def full_size(result: dict[str, Any]) -> str:
    """Each time beside its floor and the other class's."""
    said = [
        f"`{result['command']}`; {result['machine']}; torch {result['torch']}, transformers {result['transformers']}; "
        f"size **{result['size']}**, {result['samples']} samples a step, quickest of {result['rounds']}; a large "
        f"product reaches {result['matrix_tflops']:.3f} TFLOP/s, a copy {result['copy_gb_s']:.1f} GB/s.\n",
        row("shape of", "what", "s", "floor, s", "set by", "floor / s", "Qwen2-Audio class, s", "times ours", "GB"),
        "|---|---|--:|--:|---|--:|--:|--:|--:|",
    ]
    for one in result["rows"]:
        name = one["what"] + in_parts(one.get("at_once"), result["samples"])
        said.append(row(one["llm"], name, *_beside_floor(one), *_beside_rival(one, result["samples"])))
    return "\n".join([*said, ""])


def _beside_floor(one: dict[str, Any]) -> tuple[str, ...]:
    floor = (f"{one['floor']:.4f}", one["bound"])
    if "fault" in one:
        return one["fault"], *floor, ""
    return f"{one['seconds']:.4f}", *floor, f"{one['floor'] / one['seconds']:.0%}"


def _beside_rival(one: dict[str, Any], samples: int) -> tuple[str, ...]:
    rival, times = one.get("rival"), _times({"seconds": one.get("rival")}, one, "seconds")
    theirs = one.get("rival_fault") or _shown(rival, ".4f") + in_parts(one.get("rival_at_once"), samples)
    return theirs, _shown(times, ".2f"), f"{one['memory_gb']:.2f}" if one.get("memory_gb") else ""


def processes(result: dict[str, Any]) -> str:
    """What was measured with several processes here."""
    parts = {"step_ms": "step", "forward_ms": "forward", "drawing_ms": "drawing a batch", "sum_ms": "summing gradients"}
    said = [
        f"`{result['command']}`; {result['machine']}; torch {result['torch']}, gloo; the quickest in ms; the last "
        f"column is one sum of {result['adapter_weights']:,} numbers, the paper's adapters.\n",
        row("processes", "losses apart by at most", *parts.values(), "the paper's sum"),
        "|--:|--:|" + "--:|" * (len(parts) + 1),
    ]
    for one in result["measured"]:
        times = [f"{one[name]:.1f}" for name in parts]
        said.append(row(str(one["processes"]), f"{one['apart']:.0e}", *times, f"{one['paper_sum_ms']:.0f}"))
    return "\n".join([*said, ""])


def scaling(result: dict[str, Any]) -> str:
    """What the model of scaling expects."""
    said = [row("batch", "GPUs", "a step, s", "of it the sum, ms", "efficiency"), "|--:|--:|--:|--:|--:|"]
    for one in result["model"]:
        times = (f"{one['step_s']:.3f}", f"{1000 * one['sum_s']:.2f}", f"{one['efficiency']:.0%}")
        said.append(row(str(one["batch"]), str(one["gpus"]), *times))
    return "\n".join([*said, ""])


def quantized(result: dict[str, Any]) -> str:
    """Loss through the LLM in fewer bits; on a GPU its seconds and memory as well."""
    on_gpu = {"seconds": "s", "peak_mb": "most in memory, MB"} if "seconds" in result["rows"][0] else {}
    headings = on_gpu.values()
    said = [
        f"`{result['command']}`; n = {result['n']} sentences, seed {result['seed']}; nats a token, 95 % interval of "
        "the paired difference.\n",
        row("LLM", "its layers, MB", "lesson", "loss", "more than whole", *headings),
        "|---|--:|---|--:|--:|" + "--:|" * len(headings),
    ]
    for one in result["rows"]:
        more = f"{one['more']:+.5f} [{one['low']:+.5f}, {one['high']:+.5f}]" if one["more"] else ""
        measured = (f"{one[name]:.2f}" for name in on_gpu)
        said.append(row(one["llm"], f"{one['layers_mb']:.2f}", one["way"], f"{one['loss']:.5f}", more, *measured))
    return "\n".join([*said, ""])


def data_paths(result: dict[str, Any]) -> str:
    """Start-up, access and memory of manifests and caches."""
    said = [
        f"`{result['command']}`; {result['rows']:,} rows, {result['parts']:,} parts; {result['cores']} cores.\n",
        row("", "holds", "opened, s", "and listed, s", "MB", "a reading, ms", "99 of 100 within, ms", "MB more"),
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in ("manifest, first opening, one core", "manifest, first opening", "manifest", "cache"):
        one = result[name]
        holds = f"{one['talks']:,} talks" if "talks" in one else f"{one['recordings']:,} recordings"
        listed = f"{one['listed_s']:.1f}" if "listed_s" in one else ""
        times = (f"{one['get_ms']:.2f}", f"{one['get_p99_ms']:.2f}", f"{one['grown_mb']:.0f}")
        said.append(row(name, holds, f"{one['open_s']:.1f}", listed, f"{one['open_mb']:.0f}", *times))
    return "\n".join([*said, ""])


def conversations(result: dict[str, Any]) -> str:
    """Tokens a second of many talks at once in process."""
    said = [_made(result), row("talks at once", "tokens/s", "times one talk's [lowest, highest]"), "|--:|--:|--:|"]
    for one in result["rows"]:
        low, middle, high = one["times_one"]
        said.append(row(f"{one['talks']}", f"{one['tokens_per_s']:.0f}", f"{middle:.2f} [{low:.2f}, {high:.2f}]"))
    return "\n".join([*said, ""])


def vllm(result: dict[str, Any]) -> str:
    """Tokens a second through a front end, and of text sent to the same vLLM itself."""
    said = [_made(result), row("encoder", "prompts", "tokens/s", "of text [lowest, highest]"), "|---|---|--:|--:|"]
    for one in result["rows"]:
        ways = {way: rates for way, rates in one.items() if way != "encoder"}
        for way, rates in ways.items():
            said.append(row(one["encoder"], way, f"{median(rates):.1f}", _ratio(rates, ways["text"])))
    return "\n".join([*said, ""])


def load(result: dict[str, Any]) -> str:
    """Whether any reply of many talks was lost or mixed up, and the server's memory."""
    memory = [one["rss_mib"] for one in result["rounds"]]
    what = {
        "talks at once, all different": result["different_talks"],
        "spoken turns of each": result["turns"],
        "minutes": result["minutes"],
        "replies": result["answered"],
        "of another talk, or other than the talk alone gets": result["wrong"],
        "lost": result["dropped"],
        "memory after the first round of all talks, MiB": memory[0],
        "memory at the end, MiB": memory[-1],
        "most after any round, MiB": max(memory),
    }
    return "\n".join([_made(result), "| | |\n|---|--:|", *(row(name, f"{value}") for name, value in what.items()), ""])


def _made(result: dict[str, Any]) -> str:
    versions = f"torch {result['torch']}, transformers {result['transformers']}"
    return f"`{result['command']}`; {result['machine']}; {versions}.\n"


def _ratio(some: Sequence[float], others: Sequence[float]) -> str:
    ratios = [one / other for one, other in zip(some, others, strict=True)]
    return f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


def row(*cells: str) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"
