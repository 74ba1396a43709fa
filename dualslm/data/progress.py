"""How far a long piece of work is: a bar on a terminal, and a line every so often where there is none (a batch job).

No torch; rich is imported when a bar is shown.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Self

from dualslm.errors import visible

LINE_SECONDS = 30.0  # between lines: a log of a day stays short, and nobody thinks that a run hangs


class Pace:
    """Says when the next line is due, and how long the rest will take.

    Args:
        total: number of all units; None where it is not known.
        done: number of units that were done before.
    """

    def __init__(self, total: int | None, done: int = 0) -> None:
        self.total = total
        self.before = done
        self.began = self.last = time.monotonic()

    def due(self) -> bool:
        """Whether a line is due; if so, the next one is due `LINE_SECONDS` later."""
        now = time.monotonic()
        if now - self.last < LINE_SECONDS:
            return False
        self.last = now
        return True

    def stated(self, done: int) -> str:
        """How much is done, and the time that the rest will take at the rate so far: "12 of 90, 3.5 min left"."""
        if self.total is None:
            return str(done)
        new = done - self.before
        if not new or done >= self.total:
            return f"{done} of {self.total}"
        minutes = (time.monotonic() - self.began) / new * (self.total - done) / 60
        left = f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
        return f"{done} of {self.total}, {left} left"


class Progress:
    """Shows on standard error how far some work is; a context manager.

    Args:
        label: what is done.
        total: number of units; None where it is not known yet.
        done: number of units that were done before.
        active: whether anything is shown.
    """

    def __init__(self, label: str, total: int | None, done: int = 0, *, active: bool = True) -> None:
        self.label = label
        self.done = done
        self.pace = Pace(total, done)
        self.bar = bar() if active and sys.stderr.isatty() else None
        self.lines = active and self.bar is None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Shows the bar, or the first line."""
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task(self.label, total=self.pace.total, completed=self.done)
        self._line()

    def stop(self) -> None:
        """Leaves the bar as it is, or prints a last line."""
        if self.bar is not None:
            self.bar.stop()
        elif self.done > self.pace.before:
            self._line()

    def advance(self) -> None:
        """One more unit is done."""
        self.update(self.done + 1)

    def update(self, done: int, total: int | None = None, label: str | None = None) -> None:
        """Shows how much is done.

        Args:
            done: number of units that are done.
            total: number of all units, where it has become known.
            label: another label.
        """
        self.done = done
        self.label = label or self.label
        self.pace.total = total or self.pace.total
        if self.bar is not None:
            self.bar.update(self.task, completed=done, total=self.pace.total, description=self.label)
        elif self.lines and self.pace.due():
            self._line()

    def _line(self) -> None:
        if self.lines:
            print(visible(f"{self.label}: {self.pace.stated(self.done)}"), file=sys.stderr, flush=True)


def bar(*, transient: bool = False, disable: bool = False) -> Any:
    """A bar of rich on standard error; a context manager.

    Args:
        transient: whether it goes when the work is done.
        disable: whether nothing is shown.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from dualslm.errors import new_console

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=new_console(stderr=True),
        transient=transient,
        disable=disable,
    )
