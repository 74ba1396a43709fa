"""Data work on a Ray cluster: the pieces that one process would do in turn, as tasks on many machines (ours).

A verb gives a function and its pieces: shards of recordings, batches of conversations. Results come back in the order
of the pieces, so that what is written does not depend on the cluster. A task whose process or machine dies is done
again elsewhere. All machines see the folders of the recipe under the same paths, and have dualslm installed.

Ray is an optional extra, which is imported when a cluster is named. No torch.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from dualslm.errors import DualSLMError, visible

RETRIES = 3  # a piece that has killed its process so often will kill the next one too
NOTE_S = 30.0  # s of waiting after which it is said where no machine is left
AHEAD = 2  # tasks waiting for each one that runs, so that no machine idles while a result is written
Piece = TypeVar("Piece")
Found = TypeVar("Found")


class Each(Protocol):
    """Applies a function to pieces, with the results in their order: the built-in `map`, or `Cluster.map`."""

    def __call__(self, do: Callable[[Piece], Found], pieces: Iterable[Piece], /) -> Iterator[Found]:
        """The result of each piece."""


class Cluster:
    """A Ray cluster, left at the end of a `with` block.

    Args:
        address: "HOST:PORT" of its head, "auto" for the one that this machine belongs to, or "local" for one that
            consists of this machine and ends with the block.
        device: device that tasks work on, "cpu" or "cuda"; where it is None, "cuda" if the cluster was told of GPUs.

    Attributes:
        device: that device.
        slots: number of tasks that run at the same time: one for each GPU, or for each CPU without GPUs.

    Raises:
        DualSLMError: Ray is not installed, no cluster is there, or it has no GPU where one is asked for.
    """

    def __init__(self, address: str, device: str | None = None) -> None:
        self.ray = _connected(address)
        resources = self.ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        self.device = device or ("cuda" if gpus else "cpu")
        self.slots = gpus if self.device == "cuda" else int(resources.get("CPU", 0))
        if not self.slots:
            self.ray.shutdown()
            do = "start its machines with ray start --num-gpus N, or --num-cpus N"
            raise DualSLMError("the cluster can run no task", got=f"no {self.device} in {address}", do=do)
        machines = sum(node["Alive"] for node in self.ray.nodes())
        unit = "GPU" if self.device == "cuda" else "CPU"
        print(visible(f"ray: {machines} machines, {self.slots} tasks at a time, one {unit} each"), file=sys.stderr)

    def __enter__(self) -> Self:
        # A thread of Ray prints what becomes of its machines, and standard output is for what a verb finds.
        self._aside = redirect_stdout(sys.stderr)
        self._aside.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.ray.shutdown()  # ends this program's tasks too
        self._aside.__exit__(None, None, None)

    def map(self, do: Callable[[Piece], Found], pieces: Iterable[Piece], /) -> Iterator[Found]:
        """The result of each piece, in order; no more pieces are taken than tasks can soon run.

        Args:
            do: function of a module, or a `partial` of one. A process does many tasks, so what it loads it may keep.
            pieces: its arguments.

        Raises:
            DualSLMError: what a task raised, or a piece whose process died again and again.
        """
        # Ray ends a process that used a GPU after every task, unless told otherwise: it would load its model anew.
        gpus = int(self.device == "cuda")
        task = self.ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES, max_calls=0)(_do)
        shared = self.ray.put(do)
        running: deque[Any] = deque()
        for piece in pieces:
            running.append(task.remote(shared, piece, str(Path.cwd())))
            if len(running) >= AHEAD * self.slots:
                yield self._result(running.popleft())
        while running:
            yield self._result(running.popleft())

    def _result(self, running: Any) -> Any:
        unit = "GPU" if self.device == "cuda" else "CPU"
        try:
            while not self.ray.wait([running], timeout=NOTE_S)[0]:
                if not self.ray.cluster_resources().get(unit):  # Ray itself waits for ever, and says nothing
                    said = f"ray: no machine with a {unit} is left; waiting for one"
                    print(visible(said), file=sys.stderr, flush=True)
            found = self.ray.get(running)
        except self.ray.exceptions.RayTaskError:
            raise  # a fault of ours, with the traceback of the task
        except self.ray.exceptions.RayError as error:
            got = f"{type(error).__name__} after {RETRIES + 1} tries"
            do = "look into Ray's logs, most likely for memory, and run again: what is done is kept"
            raise DualSLMError("the cluster gave up on a piece of the work", got=got, do=do) from error
        if isinstance(found, DualSLMError):
            raise found
        return found


def _connected(address: str) -> Any:
    """Ray, connected to a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster begun here reports to nobody
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise DualSLMError("no cluster without Ray", got=str(error), do="pip install 'dualslm[ray]'") from error
    print(visible(f"dualslm: connecting to the Ray cluster {address}"), file=sys.stderr, flush=True)
    try:
        # Workers' lines would stand among ours, each with a prefix; what they find comes back as results.
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        do = "give HOST:PORT of its head, auto on one of its machines, or local"
        raise DualSLMError("no Ray cluster there", got=f"{address}: {error}", do=do) from error
    return ray


def _do(do: Callable[[Any], Any], piece: Any, folder: str) -> Any:
    """A task: the result of a piece, or the user's error, which Ray would wrap in a traceback."""
    try:
        os.chdir(folder)  # a recipe may name its files relative to it
    except OSError as error:
        do_next = "start from a folder that all machines share"
        return DualSLMError(f"a machine of the cluster has no folder {folder}", got=error.strerror, do=do_next)
    try:
        return do(piece)
    except DualSLMError as error:
        return error
