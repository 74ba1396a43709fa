"""Start-up, random access and memory of what training reads: a manifest of millions of rows, a cache of many parts.

    python bench/data_paths.py [--rows 2000000] [--parts 1000] [--out docs/results/data_paths.json]

The rows name recordings that do not exist: opening a manifest reads none. The cache has the real number of parts and
recordings with few and narrow frames, so that it fits any disk; a real part is only longer. Files are in the page
cache. Opening is timed by the clock, because it has helpers, readings by the CPU, which other programs do not change.
Each measure has a process of its own, whose memory is counted beyond what importing takes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dualslm.data.manifest import Examples, recordings
from dualslm.recipe import TASK_KINDS
from dualslm.training.feature_cache import META, PART, FrameCache, Rule

GETS = 3000
RULE = Rule("bench", 1, 8)


def main() -> int:
    """Makes the files, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--parts", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    found: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "rows": args.rows}
    found |= {"parts": args.parts, "cores": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_manifest(folder / "train.jsonl", args.rows)
        make_cache(folder / "frames", args.parts)
        for what, measure, path in (
            ("manifest, first opening, one core", on_one_core, folder / "train.jsonl"),
            ("manifest, first opening", manifest, folder / "train.jsonl"),
            ("manifest", manifest, folder / "train.jsonl"),
            ("cache", cache, folder / "frames"),
        ):
            if "first" in what:
                (folder / ".train.jsonl.index.npz").unlink(missing_ok=True)
            found[what] = alone(measure, path)
            print(what, json.dumps(found[what]), flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def make_manifest(path: Path, rows: int) -> None:
    """Half of the rows have tasks, half are talks with their answer."""
    with path.open("w") as file:
        for number in range(rows):
            clip = {"audio": f"clips/{number // 1000:05d}/{number:08d}.flac", "labels": {"gender": "female"}}
            clip["transcript"] = f"These are the words of row {number}, as many as people say at once."
            row: dict[str, Any] = {"id": f"train/{number}", "turns": [{"role": "user", "parts": [clip]}]}
            if number % 2:
                row |= {"tasks": ["asr", "gender"], "seconds": 4.2, "speaker": f"s{number % 2000}"}
            else:
                row |= {
                    "kind": "dual",
                    "turns": [*row["turns"], {"role": "assistant", "parts": ["I am glad to hear."]}],
                }
            file.write(json.dumps(row) + "\n")


def make_cache(folder: Path, parts: int) -> None:
    """Parts as `dualslm.training.feature_cache` writes them."""
    folder.mkdir()
    (folder / META).write_text(json.dumps(RULE.__dict__))
    for number in range(parts):
        names = [f"data/clips/{number:05d}/{place:08d}.flac" for place in range(PART)]
        part = folder / f"part-1-{number:05d}"
        save_file({name: torch.zeros(1, 4, RULE.width, dtype=torch.bfloat16) for name in names}, f"{part}.safetensors")
        rows = [{"audio": name, "sha256": "0" * 64, "frames": 4} for name in names]
        part.with_suffix(".json").write_text(json.dumps(rows))


def alone(measure: Callable[[Path], dict[str, float]], path: Path) -> dict[str, float]:
    """A measure in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (path,))


def manifest(path: Path) -> dict[str, float]:
    """Opens a manifest, lists its recordings, and reads talks at random."""
    before, began = memory_mb(), time.perf_counter()
    examples = Examples([path])
    opened = time.perf_counter() - began
    assert len(recordings(examples)) > 0
    listed, opened_mb = time.perf_counter() - began, memory_mb() - before
    rng = random.Random(0)
    kinds = [kind for kind in TASK_KINDS if examples.count(kind)]

    def get() -> None:
        kind = rng.choice(kinds)
        examples.get(kind, rng.randrange(examples.count(kind)))

    return {
        "talks": sum(map(examples.count, kinds)),
        "open_s": opened,
        "listed_s": listed,
        "open_mb": opened_mb,
        **reading(get),
    }


def on_one_core(path: Path) -> dict[str, float]:
    """The same where no other core may help (Linux)."""
    os.sched_setaffinity(0, [0])
    return manifest(path)


def cache(path: Path) -> dict[str, float]:
    """Opens a cache and reads recordings at random."""
    before, began = memory_mb(), time.perf_counter()
    frames = FrameCache(path, RULE)
    opened, opened_mb = time.perf_counter() - began, memory_mb() - before
    rng, parts = random.Random(0), len(list(path.glob("*.safetensors")))

    def get() -> None:
        frames.get(f"data/clips/{rng.randrange(parts):05d}/{rng.randrange(PART):08d}.flac").sum()

    return {"recordings": parts * PART, "open_s": opened, "open_mb": opened_mb, **reading(get)}


def reading(get: Callable[[], None]) -> dict[str, float]:
    """Milliseconds of a reading, and memory that many of them add to that of the first ones."""
    times = []
    for number in range(GETS):
        began = time.process_time()
        get()
        times.append(1000 * (time.process_time() - began))
        if number == GETS // 10:
            before = memory_mb()
    slow = statistics.quantiles(times, n=100)[-1]
    return {"get_ms": statistics.median(times), "get_p99_ms": slow, "grown_mb": memory_mb() - before}


def memory_mb() -> float:
    """The most that this process has used so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


if __name__ == "__main__":
    sys.exit(main())
