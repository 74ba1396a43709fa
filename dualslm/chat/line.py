"""What a typed line means: recordings by their paths, as terminals and file managers drop them, or text (ours)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

from dualslm.audio import load
from dualslm.conversation import Part, Speech
from dualslm.errors import DualSLMError

RECORDING = re.compile(r"\.(wav|flac|mp3|ogg|opus|aiff?|m4a|aac|w64|caf|au)$", re.IGNORECASE)
WORD = re.compile(r"""\s*("[^"]*"|'[^']*'|(?:\\.|[^\s\\])+)""")  # quoted, or with escaped spaces


def spoken(line: str) -> Iterator[Part]:
    """The recordings that a line begins with and the text after them; nothing where it begins with none.

    Raises:
        DualSLMError: something that is named like a recording and is none.
    """
    # a sentence with a full stop or a slash is text; a word is a recording by its ending, or because the file exists
    if "/" in line and _is(Path.is_dir, line):
        raise DualSLMError(f"{line} is a folder", got="no recording", do="name a file in it")
    if _names_a_file(line):  # a name with spaces that nobody quoted
        yield Speech(load(path_of(line)))
        return
    end = 0  # of the recordings
    word = WORD.match(line)
    while word and (RECORDING.search(_unquoted(word[1])) or (end == 0 and _names_a_file(word[1]))):
        yield Speech(load(path_of(word[1])))
        end = word.end()
        word = WORD.match(line, end)
    if end and (rest := line[end:].strip()):
        yield rest


def path_of(word: str) -> Path:
    """A path as terminals and file managers drop it: quoted, escaped or as a URL."""
    word = _unquoted(word)
    if word.startswith("file://"):
        return Path(unquote(word.removeprefix("file://")))
    return Path(os.path.expanduser(word))  # Path.expanduser fails for unknown users


def _names_a_file(word: str) -> bool:
    """Whether a word, or a whole line of text, names a file."""
    return ("/" in word or "." in word) and _is(Path.is_file, word)


def _is(kind: Callable[[Path], bool], word: str) -> bool:
    """Whether a word is the path of a file or folder, as `kind` asks."""
    try:
        return kind(path_of(word))
    except (OSError, ValueError):  # too long for a name, or with a null in it
        return False


def _unquoted(word: str) -> str:
    quoted = len(word) > 1 and word[0] == word[-1] and word[0] in "'\""
    return word[1:-1] if quoted else re.sub(r"\\(.)", r"\1", word)
