"""The one error a user of dualslm meets: what was wrong, what we got, what to do next.

Anything that a user can cause raises `DualSLMError`; the command line prints its message as one line and
exits with status 2. `assert` is kept for our own bugs.
"""

from __future__ import annotations


class DualSLMError(ValueError):
    """A mistake that the user can mend.

    Args:
        wrong: what is wrong, in a few words.
        got: what was found instead of what was expected.
        do: what to do next.
    """

    def __init__(self, wrong: str, *, got: object, do: str) -> None:
        self.wrong, self.got, self.do = wrong, got, do
        super().__init__(f"{wrong}: got {got}; {do}")
