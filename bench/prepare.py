"""Memory and speed of `dualslm prepare` on a manifest of millions of rows.

    python bench/prepare.py --rows 2000000

The rows are made here, and name two thousand short recordings again and again. The last lines give the rows a second
and the memory that the preparation takes beyond that of the imports.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.standins import Voice

from dualslm.data.corpora import CORPORA
from dualslm.data.corpora.prepare import prepare

CLIPS = 2000


def main() -> int:
    """Makes the rows, prepares them, and prints time and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--verify", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "mine", args.rows)
        # One row first: what is imported and allocated once does not count.
        prepare(CORPORA["jsonl"], folder / "mine" / "warm.jsonl", folder / "warm")
        before = memory_mb()
        began = time.monotonic()
        report = prepare(CORPORA["jsonl"], folder / "mine" / "all.jsonl", folder / "out", verify=args.verify)
        seconds = time.monotonic() - began
    examples = sum(counts["talks"] for counts in report["splits"].values())
    print(f"{examples:,} examples in {seconds:.0f} s: {examples / seconds:,.0f} rows and checked clips a second")
    print(f"extra memory: {memory_mb() - before:.0f} MB")
    return 0


def make(folder: Path, rows: int) -> None:
    """Writes a file of rows, a file of one row, and the recordings."""
    voice = Voice(folder)
    for number in range(CLIPS):
        voice.say(folder / f"{number}.wav")
    with (folder / "all.jsonl").open("w") as file:
        for number in range(rows):
            clip = number % CLIPS
            row = {"audio": f"{clip}.wav", "transcript": f"These are the words of row {number}.", "speaker": f"s{clip}"}
            file.write(json.dumps({**row, "gender": "female", "emotion": "sad"}) + "\n")
    (folder / "warm.jsonl").write_text(json.dumps(row) + "\n")


def memory_mb() -> float:
    """The most that this process has used so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


if __name__ == "__main__":
    sys.exit(main())
