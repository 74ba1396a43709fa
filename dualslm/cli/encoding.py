"""Terminals that cannot show every character: cp1252, ASCII and the like (ours)."""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata

NAME = "dualslm"
LOOKALIKES = {"▮": "#", "×": "x", "·": "-", "→": "->", "…": "...", "≤": "<=", "≥": ">=", "━": "-", "●": "*"}  # noqa: RUF001


def tolerate() -> None:
    """Lets standard output and error show a lookalike of what they cannot encode, instead of a traceback."""
    codecs.register_error(NAME, _lookalikes)
    for stream in (sys.stdout, sys.stderr):
        # tests and notebooks put other streams in their place, which take any text
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", None):
            stream.reconfigure(errors=NAME)


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
