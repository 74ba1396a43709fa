"""A look at every recording, and a journal of it, so that a run that was stopped need not look again.

Without `verify` only the header is read. The journal holds the looks in their order; a second run asks in the
same order and takes each answer from there as long as the file is the same in name, size and date.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from dualslm.data.corpora.base import MISSING, POINTER, TOO_LONG, UNREADABLE, Heard
from dualslm.errors import DualSLMError

FLUSH_EVERY = 200  # looks; what a kill may cost


def look(path: Path, max_seconds: float, *, verify: bool = False) -> Heard:
    """Whether a recording can be used.

    Args:
        path: of the recording.
        max_seconds: longest length in s that is taken.
        verify: decode it all; otherwise its header is believed.
    """
    import soundfile

    from dualslm import audio

    try:
        with path.open("rb") as begin:
            if begin.read(len(audio.LFS_POINTER)) == audio.LFS_POINTER:
                return Heard(reason=POINTER, detail="run `git lfs pull`")
        if verify:
            seconds = len(audio.load(path)) / audio.SAMPLE_RATE
        else:
            with soundfile.SoundFile(str(path)) as file:  # half the time of soundfile.info
                seconds = file.frames / file.samplerate
    except OSError as error:
        absent = isinstance(error, FileNotFoundError)
        return Heard(reason=MISSING if absent else UNREADABLE, detail=str(error.strerror))
    except DualSLMError as error:
        return Heard(reason=UNREADABLE, detail=f"{error.got}")
    except (soundfile.LibsndfileError, TypeError, ValueError, ZeroDivisionError) as error:
        return Heard(reason=UNREADABLE, detail=str(error).rpartition(": ")[2])
    if seconds > max_seconds:
        return Heard(reason=TOO_LONG, detail=f"{seconds:.1f} s")
    if seconds <= 0:
        return Heard(reason=UNREADABLE, detail="no sound in it")
    return Heard(max(0.001, round(seconds, 3)))


class Clips:
    """Looks at recordings one after the other; used in a `with` statement.

    Args:
        journal: file that remembers the looks; its folder must exist.
        max_seconds: longest length in s that is taken.
        verify: decode every recording.
    """

    def __init__(self, journal: Path, max_seconds: float, *, verify: bool = False) -> None:
        self.journal, self.max_seconds, self.verify = journal, max_seconds, verify
        self.old: IO[bytes] | None = None
        self.new: IO[bytes] | None = None
        self.looks = self.remembered = 0

    def __enter__(self) -> Clips:
        head = json.dumps({"verify": self.verify, "max_seconds": self.max_seconds}).encode() + b"\n"
        with self.journal.open("a+b") as file:
            file.seek(0)
            if file.read(len(head)) != head:
                file.truncate(0)
                file.write(head)
        self.old = self.journal.open("rb")
        self.old.seek(len(head))
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for file in (self.old, self.new):
            if file is not None:
                file.close()

    def __call__(self, path: Path) -> Heard:
        """Looks at a recording, or remembers it."""
        key = _key(path)
        if (known := self._remember(key)) is not None:
            self.remembered += 1
            return known
        heard = look(path, self.max_seconds, verify=self.verify)
        self.looks += 1
        assert self.new is not None
        self.new.write(json.dumps([*key, heard.seconds, heard.reason, heard.detail]).encode() + b"\n")
        if self.looks % FLUSH_EVERY == 0:
            self.new.flush()
        return heard

    def _remember(self, key: list[Any]) -> Heard | None:
        """The next look of the journal if it is of this file; otherwise what follows there is given up."""
        if self.old is None:
            return None
        place = self.old.tell()
        line = self.old.readline()
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:  # half a line, then more: a disk that was full
            row = None
        if row is not None and row[:3] == key:
            return Heard(*row[3:])
        self.old.close()
        self.old = None
        self.new = self.journal.open("r+b")
        self.new.truncate(place)
        self.new.seek(place)
        return None


def _key(path: Path) -> list[Any]:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # a name with a null byte
        return [str(path), None, None]
    return [str(path), found.st_size, found.st_mtime_ns]
