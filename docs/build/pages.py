"""Writes the tables of docs/benchmarks.md, docs/serve.md, docs/clients.md, docs/threats.md and docs/scale.md
from the result files.

    python docs/build/pages.py [--check]

Nobody types a number there. With `--check` it only compares, and returns 1 where a page is stale.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tables

from dualslm.tiny.build.readme import put

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def main() -> int:
    """Writes the pages, or compares them."""
    check = "--check" in sys.argv
    stale = False
    for page, parts in PAGES.items():
        text = (DOCS / page).read_text()
        fresh = text
        for name, (file, table) in parts.items():
            # In memory first, so that a table that cannot be made leaves the page as it is.
            fresh = put(fresh, name, _table(file, name, table))
        stale |= fresh != text
        if not check:
            (DOCS / page).write_text(fresh)
    return int(stale and check)


def _table(file: str, name: str, table: Callable[[dict[str, Any]], str]) -> str:
    """The table of a result file, or a line that there is none yet."""
    path = DOCS / "results" / f"{file}.json"
    if not path.exists():
        return f"Not measured yet: there is no {path.relative_to(ROOT)}.\n"
    found = json.loads(path.read_text())
    # serve.json has one entry for each part, because parts are measured at different times and places.
    return table(found[name] if file == "serve" else found)


def train_step(result: dict[str, Any]) -> str:
    """One table for each workload: the time of each step, its ratio to ours, and the ratio that the FLOPs predict."""
    lines = [
        f"`{result['command']}`; {result['machine']}; torch {result['torch']}, transformers {result['transformers']}; "
        f"size {result['size']}, {result['samples']} samples a step, median of {result['rounds']} rounds.\n"
    ]
    for work in dict.fromkeys(row["work"] for row in result["rows"]):
        own = [row for row in result["rows"] if row["work"] == work]
        lines += [f"{work}:\n", _row(*tables.STEP_HEADINGS), "|---|" + "--:|" * (len(tables.STEP_HEADINGS) - 1)]
        lines += [*(_row(*cells) for cells in tables.step_rows(own, result["samples"])), ""]
    return "\n".join(lines)


def word_errors(result: dict[str, Any]) -> str:
    """The errors by kind of sentence, and the word error rate of each group."""
    lines = [
        f"`{result['command']}`; n = {result['n']}, seed {result['seed']}.\n",
        _row("sentences", "how many", "errors"),
    ]
    lines += ["|---|--:|--:|"]
    lines += [
        _row(kind, f"{count}", f"{result['errors'][kind]}") for kind, count in sorted(result["sentences"].items())
    ]
    lines += ["", _row("company", "word error rate, %"), "|---|--:|"]
    lines += [_row(name, f"{rate:.1f}") for name, rate in result["rates"].items()]
    return "\n".join([*lines, _row("the encoder's own CTC, all", f"{result['encoder_ctc']:.1f}"), ""])


def latency(result: dict[str, Any]) -> str:
    """Time to the first token at the first turn and the last, by way, and the ratios."""
    lines = [
        f"`{result['command']}`; {result['machine']}; torch {result['torch']}, transformers {result['transformers']}; "
        f"the quickest of {result['rounds']} conversations, in brackets the median of their own ratios.\n",
        _row("size", "way", "turn 1, s", f"turn {result['talk']}, s"),
        "|---|---|--:|--:|",
    ]
    for one in result["sizes"]:
        lines += [_row(one["size"], way, f"{first:.3f}", f"{last:.3f}") for way, (first, last) in one["rows"].items()]
        lines += [
            _row(one["size"], f"**{name}**", "", f"**{quickest:.2f}** ({median:.2f})")
            for name, (quickest, median) in one["ratios"].items()
        ]
    return "\n".join([*lines, ""])


def step_profile(result: dict[str, Any]) -> str:
    """Where the time and the work of our step go, and the least possible time."""
    rows = result["rows"]
    lines = [
        f"`{result['command']}`; {result['machine']}; torch {result['torch']}; size {result['size']}, "
        f"{result['samples']} samples a step.\n",
        _row("", *(row["work"] + tables.in_parts(row.get("at_once"), result["samples"]) for row in rows)),
        "|---|" + "--:|" * len(rows),
    ]
    lines += [
        _row(f"TFLOP: {name}", *(f"{row['parts'][name] / 1e12:.3f}" for row in rows)) for name in rows[0]["parts"]
    ]
    lines.append(_row("TFLOP: all, as PyTorch counts", *(f"{row['tflop']:.3f}" for row in rows)))
    for name in rows[0]["operators"]:  # a workload may lack one that the first has
        lines.append(_row(f"time: {name}", *(f"{row['operators'].get(name, 0):.0%}" for row in rows)))
    lines.append(_row("a step, s", *(f"{row['seconds']:.3f}" for row in rows)))
    lines.append(_row("its FLOPs at a bare product's rate, s", *(f"{row['floor']:.3f}" for row in rows)))
    return "\n".join([*lines, ""])


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


# By page: the name of the markers, the result file, and what makes its table.
PAGES: dict[str, dict[str, tuple[str, Callable[[dict[str, Any]], str]]]] = {
    "benchmarks.md": {
        "train_step": ("train_step", train_step),
        "step_profile": ("step_profile", step_profile),
        "word_errors": ("word_errors", word_errors),
        "latency": ("serve", latency),
        "full_size": ("full_size", tables.full_size),
        "data_paths": ("data_paths", tables.data_paths),
        "first_token": ("first_token", tables.first_token),
        "features": ("features", tables.features),
        "words_lost": ("words_lost", tables.words_lost),
        "decoding": ("decoding", tables.decoding),
    },
    "serve.md": {
        "wire": ("wire", tables.wire),
        "talks": ("serve", tables.conversations),
        "vllm": ("serve", tables.vllm),
        "load": ("load", tables.load),
    },
    "clients.md": {"clients": ("clients", tables.clients)},
    "threats.md": {"attack": ("attack", tables.attack)},
    "scale.md": {
        "processes": ("scale", tables.processes),
        "scaling": ("scale", tables.scaling),
        "quantized": ("quantized", tables.quantized),
    },
}


if __name__ == "__main__":
    sys.exit(main())
