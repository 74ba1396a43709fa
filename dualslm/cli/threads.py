"""How many threads PyTorch computes with, where nobody has said: as many as the machine has cores to spare (ours).

OpenMP's threads wait for each other by spinning. Two of them on one free core, beside a training that has the other,
take several times as long as one: a small model makes hundreds of parallel steps a token, and each waits for the
thread that has no core. So cores are looked at for a fifth of a second before torch is imported. No torch.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

SETTING = "OMP_NUM_THREADS"
LOOK_SECONDS = 0.2
STAT = Path("/proc/stat")  # Linux: time in each state since the machine started, in 1/100 s


def settle() -> str:
    """Sets the number of threads where it is not set, and says what was chosen in one line.

    Where all cores are free nothing is set: PyTorch then takes one thread for each physical core.
    """
    if (given := os.environ.get(SETTING)) is not None:
        return f"threads: {given}, as {SETTING} says"
    assert "torch" not in sys.modules, "its threads are chosen at its import"
    cores = usable_cores()
    free = free_cores(cores)
    if free > cores - 0.5:
        return f"threads: as PyTorch chooses them, all {cores} cores are free"
    threads = max(1, round(free))
    os.environ[SETTING] = str(threads)
    return f"threads: {threads}, because {free:.1f} of {cores} cores are free; {SETTING} sets another number"


def usable_cores() -> int:
    """The number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_cores(cores: int) -> float:
    """How many of the cores nobody uses, now where the system tells it, else as the mean of the last minute."""
    if STAT.exists():
        idle, busy = _idle_and_busy()
        time.sleep(LOOK_SECONDS)
        later_idle, later_busy = _idle_and_busy()
        idle, busy = later_idle - idle, later_busy - busy
        if idle + busy > 0:
            return cores * idle / (idle + busy)
    if hasattr(os, "getloadavg"):  # not on Windows
        return max(0.0, cores - os.getloadavg()[0])
    return float(cores)


def _idle_and_busy() -> tuple[float, float]:
    """Time of all cores without and with work, in 1/100 s."""
    user, nice, system, idle, iowait, *rest = map(float, STAT.read_text().split("\n", 1)[0].split()[1:9])
    return idle + iowait, user + nice + system + sum(rest)
