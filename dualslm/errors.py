"""The one error a user of dualslm meets: what was wrong, what was found, what to do next.

Anything that a user can cause raises `DualSLMError`; the command line prints its message as one line and
exits with status 2. `assert` is kept for our own bugs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial


class DualSLMError(ValueError):
    """A mistake that the user can correct.

    Args:
        wrong: what is wrong, in a few words.
        got: what was found instead of what was expected.
        do: what to do next.
    """

    def __init__(self, wrong: str, *, got: object, do: str) -> None:
        self.wrong = wrong
        self.got = got
        self.do = do
        super().__init__(f"{wrong}: got {got}; {do}")

    def __reduce__(self) -> tuple[Callable[[], DualSLMError], tuple[()]]:
        """Pickles the error, so that a worker process can raise it in its parent."""
        # Exceptions are rebuilt from `args`, which here is the finished message and not what __init__ takes.
        return partial(type(self), self.wrong, got=self.got, do=self.do), ()
