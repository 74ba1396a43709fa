"""The one error a user of dualslm meets: what was wrong, what we got, what to do next.

Anything that a user can cause raises `DualSLMError`; the command line prints its message as one line and
exits with status 2. `assert` is kept for our own bugs.
"""

from __future__ import annotations

from collections.abc import Callable


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

    def __reduce__(self) -> tuple[Callable[..., DualSLMError], tuple[object, ...]]:
        """Another process gets the same error."""
        return _again, (type(self), self.wrong, self.got, self.do)


def _again(kind: type[DualSLMError], wrong: str, got: object, do: str) -> DualSLMError:
    return kind(wrong, got=got, do=do)
