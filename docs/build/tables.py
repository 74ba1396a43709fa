"""Tables of full size, several GPUs, quantized LLMs, large data and the server, from their result files (`pages.py`).

A row with a "fault" shows it in place of a figure. A row whose samples did not go through the model all at once has the
number of samples at once ("at_once").
"""

from __future__ import annotations

from statistics import median
from typing import Any

SKIPPED = "+ L skipped"  # our step with a shorter L, in bench/train_step.py
SHORT = "short windows, L skipped"  # our way with less work, in bench/first_token.py
WIRE_UNITS = {"positions": 1, "bytes": 1000}
STEP_HEADINGS = ("step", "s", "times ours", "times ours skipped", "TFLOP", "times ours", "reached", "GB")


def step_rows(rows: list[dict[str, Any]], samples: int) -> list[list[str]]:
    """The cells of every optimizer step of a workload; the first row is ours by the paper's settings."""
    skipped = next((row for row in rows if row["step"] == SKIPPED), {})
    return [step_cells(row, rows[0], samples, skipped) for row in rows]


def step_cells(one: dict[str, Any], own: dict[str, Any], samples: int, skipped: dict[str, Any]) -> list[str]:
    """The cells of one step, as `STEP_HEADINGS` names them.

    Args:
        one: row of the step.
        own: row of our step by the paper's settings.
        samples: samples of a step.
        skipped: row of our step with a shorter L; empty where it was not measured.
    """
    name = one["step"] + in_parts(one.get("at_once"), samples)
    if "fault" in one:
        return [name, one["fault"], *[""] * (len(STEP_HEADINGS) - 2)]
    measured = _times(one, own, "seconds")
    predicted = _times(one, own, "tflop")
    # Above 100 %: slower than its FLOPs say, beside ours.
    reached = measured / predicted if measured and predicted else None
    return [
        name,
        _shown(one["seconds"], ".3f"),
        round_ratios(one, own),
        round_ratios(one, skipped),
        _shown(one["tflop"], ".3f"),
        _shown(predicted, ".2f"),
        _shown(reached, ".0%"),
        f"{one['memory_gb']:.2f}",
    ]


def round_ratios(one: dict[str, Any], own: dict[str, Any]) -> str:
    """The median ratio of two rows' times in one round, with the lowest and the highest of the rounds.

    Of results without the times of each round it is the ratio of the medians.
    """
    pairs = zip(one.get("rounds_s", []), own.get("rounds_s", []), strict=False)
    ratios = [first / second for first, second in pairs if first and second]
    if not ratios:
        return _shown(_times(one, own, "seconds"), ".2f")
    return _spread(ratios)


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
    titles = row("encoder", "its cores", "prompts", "tokens/s", "of text [lowest, highest]")
    lines = [_head(result), titles, "|---|---|---|--:|--:|"]
    for one in result["rows"]:
        ways = {way: rates for way, rates in one.items() if way not in ("encoder", "cores")}
        for way, rates in ways.items():
            # Round by round: what else ran on the machine was the same for all ways of a round.
            ratios = [rate / text for rate, text in zip(rates, ways["text"], strict=True)]
            spread = f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
            lines.append(row(one["encoder"], one["cores"], way, f"{median(rates):.1f}", spread))
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


def clients(result: dict[str, Any]) -> str:
    """What works with each client, or what it said where something does not."""
    asked = list(dict.fromkeys(what for found in result["clients"] for what in found.get("works", {})))
    lines = [
        f"`{result['command']}`; dualslm {result['dualslm']}; {result['machine']}.\n",
        row("client", "version", *asked),
        "|---|---|" + "---|" * len(asked),
    ]
    for found in result["clients"]:
        works = found.get("works", {})
        lines.append(
            row(found["client"], found["version"] or "not installed", *(_works(works.get(one)) for one in asked))
        )
    return "\n".join(lines) + "\n"


def _works(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return "works" if found["ok"] else f"**fails**: {' '.join(found['said'])}"


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


def first_token(result: dict[str, Any]) -> str:
    """Seconds to the first token of spoken turns, each way, and their ratio to ours with short windows."""
    lines = [
        _head(result),
        row("turn, s", "way", "first token, s", "times ours short [lowest, highest]", "last turn / first"),
        "|--:|---|--:|--:|--:|",
    ]
    for one in result["rows"]:
        for way in one["rounds"][0]:
            times = [value for turns in one["rounds"] for value in turns[way]]
            spread = _spread(turn_ratios(one["rounds"], way))
            growth = median(turns[way][-1] / turns[way][0] for turns in one["rounds"])
            lines.append(row(f"{one['seconds']:g}", way, f"{median(times):.3f}", spread, f"{growth:.2f}"))
    return "\n".join([*lines, ""])


def turn_ratios(rounds: list[dict[str, list[float]]], way: str) -> list[float]:
    """How many times as long a way takes as ours with short windows: of each round, the median of its turns."""
    return [median(other / own for other, own in zip(one[way], one[SHORT], strict=True)) for one in rounds]


def features(result: dict[str, Any]) -> str:
    """`features` with the encoder's own windows and with short ones."""
    seconds = {rule: sum(one[rule] for one in result["rounds"]) for rule in ("full", "clip")}
    lines = [
        _head(result),
        row("clips of 1 to 10 s", "s, full windows", "s, short ones", "times [lowest, highest]", "`plan` says"),
        "|--:|--:|--:|--:|--:|",
        row(
            f"{result['clips']:,}, {result['hours']:g} h",
            *(f"{value:.0f}" for value in seconds.values()),
            _spread(result["ratios"]),
            f"{result['predicted']:.2f}",
        ),
    ]
    return "\n".join([*lines, ""])


def words_lost(result: dict[str, Any]) -> str:
    """Word error rates with short windows and without, and with skipping and without."""
    lines = [
        f"`{result['command']}`; skipping leaves {result['embeddings a second']:.1f} embeddings a second; one seed.\n",
        row("with", "set", "with it", "without", "points more", "n, speakers"),
        "|---|---|--:|--:|--:|--:|",
    ]
    for what in ("short windows", "skipping"):
        for name, one in result.get(what, {}).items():
            more = one["more"]
            lines.append(
                row(
                    what,
                    name.removeprefix("words-test-"),
                    *(f"{one[which]['value']:.1f}" for which in ("with", "without")),
                    f"{more['value']:+.1f} [{more['low']:+.1f}, {more['high']:+.1f}]",
                    f"{one['with']['n']}, {one['with']['clusters']}",
                )
            )
    return "\n".join([*lines, ""])


def decoding(result: dict[str, Any]) -> str:
    """Tokens a second of one reply, ours and llama.cpp's."""
    lines = [_head(result), row("", "tokens/s", "times ours [lowest, highest]"), "|---|--:|--:|"]
    rates = {
        way: [(one[way]["tokens"] - 1) / one[way]["rest"] for one in result["rounds"]] for way in result["rounds"][0]
    }
    for way, own in rates.items():
        spread = _spread([rate / ours for rate, ours in zip(own, rates["ours"], strict=True)])
        lines.append(row(way, f"{median(own):.1f}", spread))
    return "\n".join([*lines, ""])


def wire(result: dict[str, Any]) -> str:
    """Positions and bytes of a request to vLLM, by the length of its spoken turns."""
    turns = [1, result["turns"]]
    lines = [
        f"`{result['command']}`; {result['width']:,} wide, {result['dtype']}; skipped: {result['per_second']:g} "
        "embeddings of L a second.\n",
        row("turn, s", "", *(f"turn {turn}, {what}" for turn in turns for what in ("positions", "kB"))),
        "|--:|---|" + "--:|" * 4,
    ]
    for one in result["rows"]:
        cells = [f"{one[f'{what}, turn {turn}'] / unit:,.0f}" for turn in turns for what, unit in WIRE_UNITS.items()]
        lines.append(row(f"{one['seconds']:g}", one["way"], *cells))
    return "\n".join([*lines, ""])


def _spread(ratios: list[float]) -> str:
    return f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


def _head(result: dict[str, Any]) -> str:
    versions = f"torch {result['torch']}, transformers {result['transformers']}"
    return f"`{result['command']}`; {result['machine']}; {versions}.\n"


def row(*cells: str) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"
