"""Kills a training run with SIGKILL again and again and resumes it: it must end with the same bytes.

    python tests/support/kill.py --times 20 [--processes 2]

Every second kill waits for a moment in which a file is being written, the others come at random times from the start of
the process on. The run is the miniature of the tests: all parts random, two stages, validation, dropout. The last lines
say whether the adapters of every stage are byte for byte those of a run that was never stopped.

A test runs it with a few kills, and by hand it takes many.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil

from dualslm.recipe import to_toml
from support.trainkit import make

STAGES = ("joint", "disentangle")
TIMEOUT_S = 120.0


def main() -> int:
    """Runs the comparison; returns 0 where all bytes are the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return compare(Path(folder), args.times, args.processes, random.Random(args.seed))


def compare(folder: Path, times: int, processes: int, rng: random.Random) -> int:
    """Compares an uninterrupted run with one that is killed so many times; 0 where both end alike."""
    (folder / "recipe.toml").write_text(to_toml(make(folder)))
    began = time.monotonic()
    finish(folder, "whole", processes)
    seconds = time.monotonic() - began
    kinds: Counter[str] = Counter()
    while kinds.total() < times:
        kind = kill(folder, "killed", processes, rng.uniform(0.0, seconds), kinds.total() % 2 == 1)
        if kind == "finished":  # before its kill came: compare, and start anew
            if not same(folder):
                return 1
            shutil.rmtree(folder / "killed")
        else:
            kinds[kind] += 1
    finish(folder, "killed", processes)
    print(f"{times} kills, {kinds['writing']} of them while a file was written")
    return 0 if same(folder) else 1


def same(folder: Path) -> bool:
    """Whether both runs left the same adapters after every stage."""
    for stage in STAGES:
        whole, killed = ((folder / run / stage / "adapters.safetensors").read_bytes() for run in ("whole", "killed"))
        print(f"stage {stage}: {'same bytes' if whole == killed else 'DIFFERENT BYTES'}")
        if whole != killed:
            return False
    return True


def kill(folder: Path, run: str, processes: int, after_s: float, in_writing: bool) -> str:
    """Starts or resumes the run and kills it with all its children.

    Args:
        folder: folder of the recipe and of both runs.
        run: name of the run's folder.
        processes: number of training processes.
        after_s: time of the kill after the start, in s.
        in_writing: whether to wait for a moment in which a file is being written.

    Returns:
        The moment of the kill: "running" or "writing"; "finished" where the run ended before.
    """
    child = start(folder, run, processes)
    kind = "running"
    began = time.monotonic()
    since = time.time()  # by the clock of the file system
    while time.monotonic() - began < (TIMEOUT_S if in_writing else after_s):
        if child.poll() is not None:
            kind = "finished"
            break
        if in_writing and time.monotonic() - began > after_s / 2 and writing(folder / run, since):
            kind = "writing"
            break
        time.sleep(0.0005 if in_writing else 0.01)
    if child.poll() is None:
        for process in family(child.pid):
            process.kill()
    child.wait()
    return kind


def family(pid: int) -> list[psutil.Process]:
    """A process and all its descendants."""
    # Not by process group: torchrun's workers have sessions of their own.
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def writing(run: Path, since: float) -> bool:
    """Whether a file is being written in the run's folder."""
    # Files are written under hidden names and renamed when complete; older hidden ones are left from an earlier kill.
    try:
        return any(path.stat().st_mtime > since for path in run.rglob(".*"))
    except FileNotFoundError:  # renamed between listing and looking
        return False


def finish(folder: Path, run: str, processes: int) -> None:
    """Resumes the run and waits for its end."""
    child = start(folder, run, processes)
    _, errors = child.communicate(timeout=10 * TIMEOUT_S)
    assert child.returncode == 0, errors


def start(folder: Path, run: str, processes: int) -> subprocess.Popen[str]:
    """The real command, in a process group of its own."""
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    command += ["dualslm.cli.main", "train", str(folder / "recipe.toml"), "--out", str(folder / run), "--device", "cpu"]
    command += ["--resume"]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=quiet
    )


if __name__ == "__main__":
    sys.exit(main())
