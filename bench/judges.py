"""Tests a judge on the calibration items, and writes the protocols and the trial of docs/judges.md.

    python bench/judges.py --judge name=tiny,base_url=http://localhost:8000/v1,model=tiny,max_tokens=100
    python bench/judges.py [--check]

The first stores the result of the trial in docs/results/judges.json. Without a judge the page is written from that
file; with `--check` it is only compared, and the exit status is 1 where it is stale. The result names the server's
version where the server has the address `/version`, as vLLM does.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2

from dualslm.evaluation.judges.panel import TRIAL, Order, run
from dualslm.evaluation.judges.protocols import PROTOCOLS
from dualslm.evaluation.judges.run import verdicts
from dualslm.evaluation.judges.spec import JudgeSpec
from dualslm.evaluation.judges.tables import summary
from dualslm.tiny.build.readme import put

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "judges.md"
RESULT = DOCS / "results" / "judges.json"


def main() -> int:
    """Tests a judge, if one is named, and writes or compares the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.judge:
        RESULT.write_text(json.dumps(tried(args.judge), indent=1, ensure_ascii=False) + "\n")
    text = PAGE.read_text()
    fresh = put(put(text, "protocols", protocols()), "trial", trial(json.loads(RESULT.read_text())))
    if args.check:
        return int(fresh != text)
    PAGE.write_text(fresh)
    return 0


def tried(text: str) -> dict[str, Any]:
    """The result of a judge's trial.

    Args:
        text: judge, as `--judge` of `dualslm eval` takes it.
    """
    judge = JudgeSpec.parse(text)
    with tempfile.TemporaryDirectory() as folder:
        found = run(Order((judge,), ("cs", "egs", "cs-words", "egs-words")), Path(folder))
        tables = summary(verdicts(Path(folder) / TRIAL))
    print("\n".join(found.lines))
    return {
        "command": f"python bench/judges.py --judge {shlex.quote(text)}",
        "server": _version(judge.base_url),
        "judges": tables["judges"],
        "coverage": tables["coverage"],
        "trust": found.report["trust"],
    }


def protocols() -> str:
    """A table of all protocols, and the wordings of three."""
    lines = [row("protocol", "fingerprint", "a judge reads", "it answers"), "|---|---|---|---|"]
    for name, one in PROTOCOLS.items():
        answers = ", ".join(f"{key} {_ends(values)}" for key, values in one.allowed.items())
        lines.append(row(f"`{name}`", f"`{one.fingerprint}`", "; ".join(one.sees), answers))
    for name in ("cs-1", "egs-1", "pair-1"):  # the variants "-words" only leave out the way of speaking
        lines += [f"\n`{name}`:\n", "```text", PROTOCOLS[name].instructions, "```"]
    return "\n".join([*lines, ""])


def _ends(values: Sequence[object]) -> str:
    return f"{values[0]} to {values[-1]}" if isinstance(values[0], int) else " or ".join(map(str, values))


def trial(result: dict[str, Any]) -> str:
    """The result of a trial, its sentences unchanged."""
    counts = [sum(row[key] for row in result["coverage"]) for key in ("n", "scored", "asked_again")]
    rungs = ", ".join(f"{name} {count}" for one in result["judges"] for name, count in one["rungs"].items())
    head = f"`{result['command']}`; {result['server']}; {counts[0]} questions, {counts[1]} verdicts, "
    head += f"{counts[2]} asked once more; answers bound by {rungs}.\n"
    sentences = [line for row in result["trust"] for line in row["told"]]
    return "\n".join([head, "```text", *sentences, "```", ""])


def row(*cells: str) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def _version(base_url: str) -> str | None:
    """Name and version of the server; None where it does not say."""
    try:
        answer = httpx2.get(base_url.removesuffix("/v1") + "/version", timeout=10)
        return f"vLLM {answer.json()['version']}" if answer.status_code == 200 else None
    except (httpx2.HTTPError, ValueError, KeyError):
        return None


if __name__ == "__main__":
    sys.exit(main())
