"""Tables of full size, several GPUs, quantized LLMs, large data and the server, from their result files (`pages.py`).

A row with a "fault" shows it in place of a figure. A row whose samples did not go through the model all at once has the
number of samples at once ("at_once").
"""

from __future__ import annotations

from statistics import median
from typing import Any


def step_cells(one: dict[str, Any], own: dict[str, Any], samples: int) -> list[str]:
    """The cells of one optimizer step: s, times ours, TFLOP, times ours, share of the predicted ratio, GB."""
    name = one["step"] + in_parts(one.get("at_once"), samples)
    if "fault" in one:
        return [name, one["fault"], *[""] * 5]
    measured = _times(one, own, "seconds")
    predicted = _times(one, own, "tflop")
    # Above 100 %: slower than its FLOPs say, beside ours.
    reached = measured / predicted if measured and predicted else None
    figures = (
        (one["seconds"], ".3f"),
        (measured, ".2f"),
        (one["tflop"], ".3f"),
        (predicted, ".2f"),
        (reached, ".0%"),
    )
    return [name, *(_shown(value, form) for value, form in figures), f"{one['memory_gb']:.2f}"]


def _times(one: dict[str, Any], other: dict[str, Any], what: str) -> float | None:
    """The ratio of a figure to another row's; None where one of them was not measured."""
    value = one.get(what)
    unit = other.get(what)
    return value / unit if value and unit else None


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def in_parts(at_once: int | None, samples: int) -> str:
    """The number of samples at once, as a part of a row's name; empty where a batch went through the model whole."""
    return "" if at_once in (None, samples) else f", {at_once} at once"


def full_size(result: dict[str, Any]) -> str:
    """Each time with its lower bound and the rival's time."""
    lines = [
        f"`{result['command']}`; {result['machine']}; torch {result['torch']}, transformers {result['transformers']}; "
        f"size **{result['size']}**, {result['samples']} samples a step, quickest of {result['rounds']}; a large "
        f"product reaches {result['matrix_tflops']:.3f} TFLOP/s, a copy {result['copy_gb_s']:.1f} GB/s.\n",
        row("shape of", "what", "s", "floor, s", "set by", "floor / s", "Qwen2-Audio class, s", "times ours", "GB"),
        "|---|---|--:|--:|---|--:|--:|--:|--:|",
    ]
    for one in result["rows"]:
        name = one["what"] + in_parts(one.get("at_once"), result["samples"])
        seconds = one.get("fault") or f"{one['seconds']:.4f}"
        reached = "" if "fault" in one else f"{one['floor'] / one['seconds']:.0%}"
        cells = [one["llm"], name, seconds, f"{one['floor']:.4f}", one["bound"], reached]
        # The rival has no row of its own, and may not fit where ours does.
        rival = _shown(one.get("rival"), ".4f") + in_parts(one.get("rival_at_once"), result["samples"])
        cells.append(one.get("rival_fault") or rival)
        cells.append(_shown(_times({"seconds": one.get("rival")}, one, "seconds"), ".2f"))
        cells.append(f"{one['memory_gb']:.2f}" if one.get("memory_gb") else "")
        lines.append(row(*cells))
    return "\n".join([*lines, ""])


def processes(result: dict[str, Any]) -> str:
    """Training in several processes on one machine."""
    parts = {"step_ms": "step", "forward_ms": "forward", "drawing_ms": "drawing a batch", "sum_ms": "summing gradients"}
    lines = [
        f"`{result['command']}`; {result['machine']}; torch {result['torch']}, gloo; the quickest in ms; the last "
        f"column is one sum of {result['adapter_weights']:,} numbers, the paper's adapters.\n",
        row("processes", "losses apart by at most", *parts.values(), "the paper's sum"),
        "|--:|--:|" + "--:|" * (len(parts) + 1),
    ]
    for one in result["measured"]:
        times = [f"{one[name]:.1f}" for name in parts]
        lines.append(row(str(one["processes"]), f"{one['apart']:.0e}", *times, f"{one['paper_sum_ms']:.0f}"))
    return "\n".join([*lines, ""])


def scaling(result: dict[str, Any]) -> str:
    """The model of scaling to many GPUs."""
    lines = [row("batch", "GPUs", "a step, s", "of it the sum, ms", "efficiency"), "|--:|--:|--:|--:|--:|"]
    for one in result["model"]:
        times = (f"{one['step_s']:.3f}", f"{1000 * one['sum_s']:.2f}", f"{one['efficiency']:.0%}")
        lines.append(row(str(one["batch"]), str(one["gpus"]), *times))
    return "\n".join([*lines, ""])


def quantized(result: dict[str, Any]) -> str:
    """The loss through quantized LLMs; on a GPU their seconds and memory as well."""
    # Times and memory of a CPU would say nothing: the kernels of fewer bits are made for GPUs.
    on_gpu = {"seconds": "s", "peak_mb": "most in memory, MB"} if "seconds" in result["rows"][0] else {}
    headings = on_gpu.values()
    lines = [
        f"`{result['command']}`; n = {result['n']} sentences, seed {result['seed']}; nats a token, 95 % interval of "
        "the paired difference.\n",
        row("LLM", "its layers, MB", "sample", "loss", "more than whole", *headings),
        "|---|--:|---|--:|--:|" + "--:|" * len(headings),
    ]
    for one in result["rows"]:
        more = f"{one['more']:+.5f} [{one['low']:+.5f}, {one['high']:+.5f}]" if one["more"] else ""
        measured = (f"{one[name]:.2f}" for name in on_gpu)
        lines.append(row(one["llm"], f"{one['layers_mb']:.2f}", one["way"], f"{one['loss']:.5f}", more, *measured))
    return "\n".join([*lines, ""])


def data_paths(result: dict[str, Any]) -> str:
    """Start-up time, access time and memory of manifests and caches."""
    lines = [
        f"`{result['command']}`; {result['rows']:,} rows, {result['parts']:,} parts; {result['cores']} cores.\n",
        row("", "holds", "opened, s", "and listed, s", "MB", "a reading, ms", "99 of 100 within, ms", "MB more"),
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in ("manifest, first opening, one core", "manifest, first opening", "manifest", "cache"):
        one = result[name]
        holds = f"{one['talks']:,} examples" if "talks" in one else f"{one['recordings']:,} recordings"
        # A cache has no list of recordings to make: its index is one.
        listed = f"{one['listed_s']:.1f}" if "listed_s" in one else ""
        times = (f"{one['get_ms']:.2f}", f"{one['get_p99_ms']:.2f}", f"{one['grown_mb']:.0f}")
        lines.append(row(name, holds, f"{one['open_s']:.1f}", listed, f"{one['open_mb']:.0f}", *times))
    return "\n".join([*lines, ""])


def conversations(result: dict[str, Any]) -> str:
    """Tokens a second of many conversations at once, in process."""
    heading = row("conversations at once", "tokens/s", "times one's [lowest, highest]")
    lines = [_head(result), heading, "|--:|--:|--:|"]
    for one in result["rows"]:
        low, middle, high = one["times_one"]
        lines.append(row(f"{one['talks']}", f"{one['tokens_per_s']:.0f}", f"{middle:.2f} [{low:.2f}, {high:.2f}]"))
    return "\n".join([*lines, ""])


def vllm(result: dict[str, Any]) -> str:
    """Tokens a second through `dualslm serve`, and of text sent to the same vLLM itself."""
    lines = [_head(result), row("encoder", "prompts", "tokens/s", "of text [lowest, highest]"), "|---|---|--:|--:|"]
    for one in result["rows"]:
        ways = {way: rates for way, rates in one.items() if way != "encoder"}
        for way, rates in ways.items():
            # Round by round: what else ran on the machine was the same for all ways of a round.
            ratios = [rate / text for rate, text in zip(rates, ways["text"], strict=True)]
            spread = f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
            lines.append(row(one["encoder"], way, f"{median(rates):.1f}", spread))
    return "\n".join([*lines, ""])


def attack(result: dict[str, Any]) -> str:
    """What each attack did to the server, and to that of another checkout where one was attacked too."""
    before = {row["attack"]: row for row in result.get("before", ())}
    lines = [
        f"`{result['command']}`; {result['machine']}.\n",
        "| attack | s | bystander's longest silence, s | MiB more at most | kept | outcome | before |",
        "|---|--:|--:|--:|--:|---|---|",
    ]
    for row in result["after"]:
        was = before.get(row["attack"])
        told = "" if was is None else f"{was['seconds']:.1f} s, silence {was['stall']:.1f} s, {was['outcome']}"
        figures = f"{row['seconds']:.1f} | {row['stall']:.2f} | {row['peak']:.0f} | {row['kept']:+.0%}"
        lines.append(f"| {row['attack']} | {figures} | {row['outcome']} | {told} |")
    return "\n".join(lines) + "\n"


def load(result: dict[str, Any]) -> str:
    """Lost and wrong replies of many conversations, and the server's memory."""
    memory = [one["rss_mib"] for one in result["rounds"]]
    what = {
        "conversations at once, all different": result["different_talks"],
        "spoken turns of each": result["turns"],
        "minutes": result["minutes"],
        "replies": result["answered"],
        "of another conversation, or other than the conversation alone gets": result["wrong"],
        "lost": result["dropped"],
        "memory after the first round of all conversations, MiB": memory[0],
        "memory at the end, MiB": memory[-1],
        "most after any round, MiB": max(memory),
    }
    return "\n".join([_head(result), "| | |\n|---|--:|", *(row(name, f"{value}") for name, value in what.items()), ""])


def _head(result: dict[str, Any]) -> str:
    versions = f"torch {result['torch']}, transformers {result['transformers']}"
    return f"`{result['command']}`; {result['machine']}; {versions}.\n"


def row(*cells: str) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"
