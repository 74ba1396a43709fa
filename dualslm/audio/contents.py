"""What a sound file holds, and reading it with other bytes in some places. Nothing here imports torch."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

HEAD = 64  # bytes by which a container is recognized
PLACEHOLDER = 0x7FFF0000  # bytes; from here on a stated size is one of sox's, ffmpeg's or a browser's placeholders
LONG_PLACEHOLDER = 1 << 62  # bytes; the same of sizes of 64 bits
LONGEST_FILE = 1 << 42  # bytes; file systems refuse to seek far beyond
MAX_PADDING = 4096  # bytes behind the stated end that may be padding or a tag of an unknown kind, and not sound
# No recording within our limits has more; a file made to keep a reader busy is given to the decoder as it is.
MAX_CHUNKS = 1000


@dataclass(frozen=True)
class Contents:
    """What is in a file.

    Attributes:
        start: first byte of what a decoder should read.
        stop: byte after the last one.
        patches: bytes to be read in place of a header's, by position.
        prefix: bytes to be read in front of the first one.
        fault: how the file is cut off or damaged, where its bytes show it.
        stated: samples that a header states which is patched away; None where there is none.
    """

    start: int
    stop: int
    patches: Mapping[int, bytes] = field(default_factory=dict)
    fault: str | None = None
    stated: int | None = None
    prefix: bytes = b""


class Patched(io.RawIOBase):
    """A part of a file, with other bytes in some places and in front.

    Args:
        file: the file.
        contents: the part, and the other bytes.
    """

    def __init__(self, file: BinaryIO, contents: Contents) -> None:
        self.file = file
        self.contents = contents
        self.first = contents.start - len(contents.prefix)  # position that stands for the first byte
        self.position = self.first

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position in the part."""
        return self.position - self.first

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves in the part."""
        base = {io.SEEK_SET: self.first, io.SEEK_CUR: self.position, io.SEEK_END: self.contents.stop}[whence]
        self.position = min(max(base + offset, self.first), self.contents.stop)
        return self.tell()

    def readinto(self, buffer: Any) -> int:
        """Reads the next bytes."""
        start = self.contents.start
        if self.position < start:
            data = bytearray(self.contents.prefix[self.position - start :][: len(buffer)])
        else:
            self.file.seek(self.position)
            data = bytearray(self.file.read(min(len(buffer), self.contents.stop - self.position)))
        for offset, wanted in self.contents.patches.items():
            first = max(offset, self.position)
            last = min(offset + len(wanted), self.position + len(data))
            if first < last:
                data[first - self.position : last - self.position] = wanted[first - offset : last - offset]
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def at(file: BinaryIO, position: int, count: int) -> bytes:
    """At most so many bytes from a position on; none from one that no file reaches, as damaged sizes give."""
    if position > LONGEST_FILE:
        return b""
    file.seek(position)
    return file.read(max(count, 0))


def cut_off(available: int, stated: int, unit: str = "bytes") -> str:
    """The fault of a file that holds less than it states."""
    return f"cut off: {available:,} of {stated:,} {unit}"
