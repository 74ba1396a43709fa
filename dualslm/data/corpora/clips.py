"""Probing of recordings, with a log on disk, so that a run that was stopped need not probe them again.

Without `verify` only the header is read. The log holds the results in the order of the recordings; a second run
probes in the same order and takes each result from the log as long as the file is the same in name, size and date.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from dualslm.data.corpora.base import CUT_OFF, MISSING, NO_SPEECH, POINTER, TOO_LONG, UNREADABLE, AudioInfo
from dualslm.errors import DualSLMError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NoSpeechRule: TypeAlias = "Callable[[NDArray[np.float32]], str | None]"
"""Gives for 16 kHz samples why they hold no speech, None where they do. Ours needs torch, so it is handed down."""
FLUSH_EVERY = 200  # recordings between two flushes of the log; as many are probed again after a kill, at most


def probe(path: Path, max_seconds: float, *, verify: bool = False, no_speech: NoSpeechRule | None = None) -> AudioInfo:
    """Finds out whether a recording can be used, and its length.

    Args:
        path: path of the recording.
        max_seconds: greatest length in s of a usable recording.
        verify: decode the whole file; otherwise its header is trusted.
        no_speech: gives for 16 kHz samples why they hold no speech, or None; asked of decoded files alone.
    """
    # Imported here, so that the help of the command line does not wait for it.
    from dualslm import audio

    try:
        # A pipe is refused before it is opened, which would wait for ever.
        if path.exists() and not path.is_file():
            return AudioInfo(reason=UNREADABLE, detail="a folder, a pipe or a device")
        with path.open("rb") as file:
            if file.read(len(audio.LFS_POINTER)) == audio.LFS_POINTER:
                return AudioInfo(reason=POINTER, detail="run `git lfs pull`")
        if verify:
            samples, fault = audio.read(path)
            if fault is not None:
                return AudioInfo(reason=CUT_OFF, detail=fault)
            seconds = len(samples) / audio.SAMPLE_RATE
        else:
            seconds = audio.duration(path)
    except OSError as error:
        absent = isinstance(error, FileNotFoundError)
        return AudioInfo(reason=MISSING if absent else UNREADABLE, detail=str(error.strerror))
    except DualSLMError as error:
        return AudioInfo(reason=UNREADABLE, detail=f"{error.got}")
    except ValueError as error:  # a null byte in the path
        return AudioInfo(reason=UNREADABLE, detail=str(error))
    if seconds > max_seconds:
        return AudioInfo(reason=TOO_LONG, detail=f"{seconds:.1f} s")
    if seconds <= 0:
        return AudioInfo(reason=UNREADABLE, detail="no sound in it")
    # last, because a recording that is left out anyway need not be listened to
    if verify and no_speech is not None and (reason := no_speech(samples)) is not None:
        return AudioInfo(reason=NO_SPEECH, detail=reason)
    # Never rounded to 0, which the manifest's schema forbids.
    return AudioInfo(max(0.001, round(seconds, 3)))


class LoggedProbe:
    """Probes recordings one after the other and logs the results; used in a `with` statement.

    Args:
        path: path of the log; its folder must exist.
        max_seconds: greatest length in s of a usable recording.
        verify: decode every recording.
        no_speech: gives for 16 kHz samples why they hold no speech, or None.

    Attributes:
        probed: number of recordings that were probed.
        reused: number of recordings whose result came from the log.
    """

    def __init__(
        self, path: Path, max_seconds: float, *, verify: bool = False, no_speech: NoSpeechRule | None = None
    ) -> None:
        self.path = path
        self.max_seconds = max_seconds
        self.verify = verify
        self.no_speech = no_speech
        # The log is first read, in `old`, until a result is missing or of another file, and from there on written,
        # in `new`.
        self.old: IO[bytes] | None = None
        self.new: IO[bytes] | None = None
        self.probed = 0
        self.reused = 0

    def __enter__(self) -> LoggedProbe:
        # Results hold for one pair of settings; a log of other settings is discarded.
        settings = {"verify": self.verify, "max_seconds": self.max_seconds}
        if self.no_speech is not None:
            settings["speech"] = True
        head = json.dumps(settings).encode() + b"\n"
        with self.path.open("a+b") as file:
            file.seek(0)
            if file.read(len(head)) != head:
                file.truncate(0)
                file.write(head)
        self.old = self.path.open("rb")
        self.old.seek(len(head))
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for file in (self.old, self.new):
            if file is not None:
                file.close()

    def __call__(self, path: Path) -> AudioInfo:
        """Probes a recording, or takes the result from the log."""
        key = _key(path)
        if (logged := self._next(key)) is not None:
            self.reused += 1
            return logged
        info = probe(path, self.max_seconds, verify=self.verify, no_speech=self.no_speech)
        self.probed += 1
        assert self.new is not None
        self.new.write(json.dumps([*key, info.seconds, info.reason, info.detail]).encode() + b"\n")
        if self.probed % FLUSH_EVERY == 0:
            self.new.flush()
        return info

    def _next(self, key: list[Any]) -> AudioInfo | None:
        """The next result of the log if it is of this file; otherwise the rest of the log is discarded."""
        if self.old is None:
            return None
        start = self.old.tell()
        line = self.old.readline()
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:  # a line of which a full disk or a kill left a part, then more lines
            row = None
        if row is not None and row[:3] == key:
            return AudioInfo(*row[3:])
        self.old.close()
        self.old = None
        self.new = self.path.open("r+b")
        self.new.truncate(start)
        self.new.seek(start)
        return None


def _key(path: Path) -> list[Any]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a null byte in the path
        return [str(path), None, None]
    return [str(path), status.st_size, status.st_mtime_ns]
