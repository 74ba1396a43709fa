"""What a request took of the memory goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
from threading import Thread
import numpy as np
import psutil
from dualslm.serve.memory import return_freed

if sys.argv[1] == "mended" and not return_freed():
    print("no glibc")
    sys.exit()
size = lambda: psutil.Process().memory_info().rss / 2**20

def work(small):
    for _ in range(3):
        blocks = [np.ones(20 * 2**17) for _ in range(3)]  # of 20 MiB each
        small.append(np.ones(2**10))  # stays, above them
        del blocks

before = size()
kept = [[] for _ in range(4)]
threads = [Thread(target=work, args=(some,)) for some in kept]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(size() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_blocks_are_given_back() -> None:
    pytest.importorskip("psutil")

    def kept(how: str) -> str:
        return subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True).stdout

    mended = kept("mended")
    if "no glibc" in mended:
        pytest.skip("another C library")
    assert float(mended) < 10 < float(kept("as it was")), "MiB"
