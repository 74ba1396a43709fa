"""Tries a judge on the calibration items and keeps what came of it for docs/judges.md.

    python bench/judges.py --judge name=tiny,base_url=http://localhost:8000/v1,model=tiny,max_tokens=100

The server is asked for its version where it tells one (`/version`, as vLLM does).
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path

import httpx2

from dualslm.judges.command import TRIAL, Order, run
from dualslm.judges.run import verdicts
from dualslm.judges.spec import JudgeSpec
from dualslm.judges.tables import summary

OUT = Path(__file__).parents[1] / "docs" / "results" / "judges.json"


def main() -> int:
    """Tries one judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", required=True)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    judge = JudgeSpec.parse(args.judge)
    with tempfile.TemporaryDirectory() as folder:
        found = run(Order((judge,), ("cs", "egs", "cs-words", "egs-words")), Path(folder))
        tables = summary(verdicts(Path(folder) / TRIAL))
    result = {
        "command": f"python bench/judges.py --judge {shlex.quote(args.judge)}",
        "server": _version(judge.base_url),
        "judges": tables["judges"],
        "coverage": tables["coverage"],
        "trust": found.report["trust"],
    }
    args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print("\n".join(found.told))
    return 0


def _version(base_url: str) -> str | None:
    """What the server says that it is."""
    try:
        answer = httpx2.get(base_url.removesuffix("/v1") + "/version", timeout=10)
        return f"vLLM {answer.json()['version']}" if answer.status_code == 200 else None
    except (httpx2.HTTPError, ValueError, KeyError):
        return None


if __name__ == "__main__":
    sys.exit(main())
