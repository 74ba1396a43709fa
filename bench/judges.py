"""Tries a judge on the calibration items, and writes docs/judges.md's protocols and trial; nothing there is typed.

    python bench/judges.py --judge name=tiny,base_url=http://localhost:8000/v1,model=tiny,max_tokens=100
    python bench/judges.py [--check]

The first keeps what came of the trial in docs/results/judges.json. Without a judge the page is written from it; with
`--check` it is only compared, and 1 returned where it is stale. The server is asked for its version where it tells
one (`/version`, as vLLM does).
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

from dualslm.cli.judges import TRIAL, Order, run
from dualslm.evaluation.judges import PROTOCOLS
from dualslm.evaluation.judges.run import verdicts
from dualslm.evaluation.judges.spec import JudgeSpec
from dualslm.evaluation.judges.tables import summary
from dualslm.tiny.build.readme import put

DOCS = Path(__file__).parents[1] / "docs"
PAGE, RESULT = DOCS / "judges.md", DOCS / "results" / "judges.json"


def main() -> int:
    """Tries a judge, where one is named, and writes the page; or compares it."""
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
    """What comes of a judge's trial."""
    judge = JudgeSpec.parse(text)
    with tempfile.TemporaryDirectory() as folder:
        found = run(Order((judge,), ("cs", "egs", "cs-words", "egs-words")), Path(folder))
        tables = summary(verdicts(Path(folder) / TRIAL))
    print("\n".join(found.told))
    return {
        "command": f"python bench/judges.py --judge {shlex.quote(text)}",
        "server": _version(judge.base_url),
        "judges": tables["judges"],
        "coverage": tables["coverage"],
        "trust": found.report["trust"],
    }


def protocols() -> str:
    """Every protocol, and the words of the three that say all."""
    said = [row("protocol", "print", "a judge reads", "it answers"), "|---|---|---|---|"]
    for name, one in PROTOCOLS.items():
        answers = ", ".join(f"{key} {_ends(values)}" for key, values in one.allowed.items())
        said.append(row(f"`{name}`", f"`{one.print}`", "; ".join(one.sees), answers))
    for name in ("cs-1", "egs-1", "pair-1"):
        said += [f"\n`{name}`:\n", "```text", PROTOCOLS[name].instructions, "```"]
    return "\n".join([*said, ""])


def _ends(values: Sequence[object]) -> str:
    return f"{values[0]} to {values[-1]}" if isinstance(values[0], int) else " or ".join(map(str, values))


def trial(result: dict[str, Any]) -> str:
    """What the trial said, word for word."""
    counts = [sum(row[key] for row in result["coverage"]) for key in ("n", "scored", "asked_again")]
    rungs = ", ".join(f"{name} {count}" for one in result["judges"] for name, count in one["rungs"].items())
    head = f"`{result['command']}`; {result['server']}; {counts[0]} questions, {counts[1]} verdicts, "
    head += f"{counts[2]} asked once more; answers bound by {rungs}.\n"
    told = [line for row in result["trust"] for line in row["told"]]
    return "\n".join([head, "```text", *told, "```", ""])


def row(*cells: str) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def _version(base_url: str) -> str | None:
    """What the server says that it is."""
    try:
        answer = httpx2.get(base_url.removesuffix("/v1") + "/version", timeout=10)
        return f"vLLM {answer.json()['version']}" if answer.status_code == 200 else None
    except (httpx2.HTTPError, ValueError, KeyError):
        return None


if __name__ == "__main__":
    sys.exit(main())
