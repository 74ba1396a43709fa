"""Terminals that cannot show every character: cp1252, ASCII and the like; none at all; and full disks (ours)."""

from __future__ import annotations

import codecs
import io
import os
import sys
import unicodedata
from typing import Any

NAME = "dualslm"
LOOKALIKES = {"▮": "#", "×": "x", "·": "-", "→": "->", "…": "...", "≤": "<=", "≥": ">=", "━": "-", "●": "*"}  # noqa: RUF001


def tolerate() -> None:
    """Lets standard output and error show a lookalike of what they cannot encode, instead of a traceback.

    One that is closed, as in `>&-` or under some daemons, is None: in its place comes one that holds nothing.
    """
    # In the order of their descriptors: the next file to be opened would get the closed one's number, and whatever is
    # printed by others would be written into it.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - until the process ends
    codecs.register_error(NAME, _lookalikes)
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        raw = _Lossy(sys.stderr.fileno(), "w", closefd=False)
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(raw), sys.stderr.encoding, NAME, line_buffering=True)
    for stream in (sys.stdout, sys.stderr):
        # tests and notebooks put other streams in their place, which take any text
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", None):
            stream.reconfigure(errors=NAME)


class _Lossy(io.FileIO):
    """A file into which nothing more is written where its disk is full, or nobody reads it.

    What goes to standard error is told beside the work: a note that cannot be written must not end it.
    """

    def write(self, data: Any, /) -> int:
        """Writes what can be written, and calls it all."""
        try:
            return super().write(data)
        except OSError:
            return len(memoryview(data).cast("B"))


def is_unicode() -> bool:
    """Whether standard output can show every character."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")


def _lookalikes(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that cannot be encoded: a lookalike, the letter without its accent, or "?"."""
    assert isinstance(error, UnicodeEncodeError), "only what is written is replaced"
    shown = "".join(_lookalike(letter, error.encoding) for letter in error.object[error.start : error.end])
    return shown, error.end


def _lookalike(letter: str, encoding: str) -> str:
    plain = LOOKALIKES.get(letter) or unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    if "\u2800" <= letter <= "\u28ff":  # a spinner's dots
        plain = "."
    if plain:
        return plain
    kind = unicodedata.category(letter)
    if kind == "Pd":
        return "-"
    return {"Pi": '"' if letter in "“«" else "'", "Pf": '"' if letter in "”»" else "'"}.get(kind, "?")
