"""Start-up, random access and memory of what training reads: a manifest of millions of rows, a cache of many parts.

    python bench/data_paths.py [--rows 2000000] [--parts 1000] [--out docs/results/data_paths.json]

The rows name recordings that do not exist, since opening a manifest reads none. The cache has the real number of parts
and recordings, with few and narrow frames, so that it fits any disk. All files are in the page cache. Opening is timed
by the clock, because it runs in several processes; a reading by CPU time, which other programs do not change. Each
measurement has a process of its own, and its memory is counted beyond that of the imports.
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

READINGS = 3000
RULE = Rule("bench", 1, 8)  # frames of 8 numbers


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
    """Writes a manifest; half of its rows have tasks, half are conversations with their reply."""
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
    """Writes the parts of a cache as `dualslm.training.feature_cache` does."""
    folder.mkdir()
    (folder / META).write_text(json.dumps(RULE.__dict__))
    for number in range(parts):
        names = [f"data/clips/{number:05d}/{index:08d}.flac" for index in range(PART)]
        part = folder / f"part-1-{number:05d}"
        save_file({name: torch.zeros(1, 4, RULE.width, dtype=torch.bfloat16) for name in names}, f"{part}.safetensors")
        rows = [{"audio": name, "sha256": "0" * 64, "frames": 4} for name in names]
        part.with_suffix(".json").write_text(json.dumps(rows))


def alone(measure: Callable[[Path], dict[str, float]], path: Path) -> dict[str, float]:
    """Runs a measurement in a fresh process."""
    # Spawned, not forked: a forked process would start with the memory of this one.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (path,))


def manifest(path: Path) -> dict[str, float]:
    """Opens a manifest, lists its recordings, and reads examples at random."""
    before = memory_mb()
    began = time.perf_counter()
    examples = Examples([path])
    opened = time.perf_counter() - began
    assert len(recordings(examples)) > 0
    listed = time.perf_counter() - began
    opened_mb = memory_mb() - before
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
    """The same on a single core (Linux alone can restrict a process to one)."""
    os.sched_setaffinity(0, [0])
    return manifest(path)


def cache(path: Path) -> dict[str, float]:
    """Opens a cache and reads recordings at random."""
    before = memory_mb()
    began = time.perf_counter()
    frames = FrameCache(path, RULE)
    opened = time.perf_counter() - began
    opened_mb = memory_mb() - before
    rng = random.Random(0)
    parts = len(list(path.glob("*.safetensors")))

    def get() -> None:
        # The sum reads the frames: a mapped file is not read before its values are.
        frames.get(f"data/clips/{rng.randrange(parts):05d}/{rng.randrange(PART):08d}.flac").sum()

    return {"recordings": parts * PART, "open_s": opened, "open_mb": opened_mb, **reading(get)}


def reading(get: Callable[[], None]) -> dict[str, float]:
    """The time of a reading in ms, and the memory in MB that later readings add to that of the first ones."""
    times = []
    for number in range(READINGS):
        began = time.process_time()
        get()
        times.append(1000 * (time.process_time() - began))
        if number == READINGS // 10:  # the first readings fill buffers and caches of a fixed size
            before = memory_mb()
    slow = statistics.quantiles(times, n=100)[-1]
    return {"get_ms": statistics.median(times), "get_p99_ms": slow, "grown_mb": memory_mb() - before}


def memory_mb() -> float:
    """The most that this process has used so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


if __name__ == "__main__":
    sys.exit(main())
