"""Writes the measured tables of docs/benchmarks.md and docs/judges.md from the result files; nothing there is typed.

    python bench/pages.py [--check]

With `--check` it only compares and returns 1 where the page is stale.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dualslm.judges import PROTOCOLS
from dualslm.tiny.readme import put

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "results"


def main() -> int:
    """Writes or compares."""
    stale = False
    for page, tables in PAGES.items():
        text = fresh = (DOCS / page).read_text()
        for name, table in tables.items():
            fresh = put(fresh, name, table())
        stale |= fresh != text
        if "--check" not in sys.argv:
            (DOCS / page).write_text(fresh)
    return int(stale and "--check" in sys.argv)


def _result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def train_step() -> str:
    """One table a workload: how many times as long as ours each step takes, and what the FLOPs predict."""
    result = _result("train_step")
    said = [
        f"`{result['command']}`; {result['machine']}; torch {result['torch']}, transformers {result['transformers']}; "
        f"size {result['size']}, {result['samples']} samples a step, median of {result['rounds']} rounds.\n"
    ]
    for work in dict.fromkeys(row["work"] for row in result["rows"]):
        own = [row for row in result["rows"] if row["work"] == work]
        said += [f"{work}:\n", _row("step", "s", "times ours", "TFLOP", "times ours", "reached", "GB")]
        said += ["|---|" + "--:|" * 6]
        for row in own:
            took, counted = row["seconds"] / own[0]["seconds"], row["tflop"] / own[0]["tflop"]
            numbers = (f"{row['seconds']:.3f}", f"{took:.2f}", f"{row['tflop']:.3f}", f"{counted:.2f}")
            said.append(_row(row["step"], *numbers, f"{took / counted:.0%}", f"{row['memory_gb']:.2f}"))
        said.append("")
    return "\n".join(said)


def word_errors() -> str:
    """How the errors fall on sentences, and their rate in each company."""
    result = _result("word_errors")
    said = [
        f"`{result['command']}`; n = {result['n']}, seed {result['seed']}.\n",
        _row("sentences", "how many", "errors"),
    ]
    said += ["|---|--:|--:|"]
    said += [_row(kind, f"{count}", f"{result['errors'][kind]}") for kind, count in sorted(result["sentences"].items())]
    said += ["", _row("company", "word error rate, %"), "|---|--:|"]
    said += [_row(name, f"{rate:.1f}") for name, rate in result["rates"].items()]
    return "\n".join([*said, _row("the encoder's own CTC, all", f"{result['encoder_ctc']:.1f}"), ""])


def protocols() -> str:
    """Every protocol, and the words of the three that say all."""
    said = [_row("protocol", "print", "a judge reads", "it answers"), "|---|---|---|---|"]
    for name, one in PROTOCOLS.items():
        answers = ", ".join(f"{key} {_ends(values)}" for key, values in one.allowed.items())
        said.append(_row(f"`{name}`", f"`{one.print}`", "; ".join(one.sees), answers))
    for name in ("cs-1", "egs-1", "pair-1"):
        said += [f"\n`{name}`:\n", "```text", PROTOCOLS[name].instructions, "```"]
    return "\n".join([*said, ""])


def _ends(values: Sequence[object]) -> str:
    return f"{values[0]} to {values[-1]}" if isinstance(values[0], int) else " or ".join(map(str, values))


def trial() -> str:
    """What the trial of the judges said, word for word."""
    result = _result("judges")
    counts = [sum(row[key] for row in result["coverage"]) for key in ("n", "scored", "asked_again")]
    rungs = ", ".join(f"{name} {count}" for one in result["judges"] for name, count in one["rungs"].items())
    head = f"`{result['command']}`; {result['server']}; {counts[0]} questions, {counts[1]} verdicts, "
    head += f"{counts[2]} asked once more; answers bound by {rungs}.\n"
    told = [line for row in result["trust"] for line in row["told"]]
    return "\n".join([head, "```text", *told, "```", ""])


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "benchmarks.md": {"train_step": train_step, "word_errors": word_errors},
    "judges.md": {"protocols": protocols, "trial": trial},
}


if __name__ == "__main__":
    sys.exit(main())
