"""What the bytes of a sound file bear out: its true length, and where it was cut off.

Writers that cannot go back, such as pipes, leave a placeholder where the length belongs, and a copy that broke off
states more than it holds. So a stated length is believed as far as the bytes bear it out, in both directions. Here are
wav files, and which file is asked for what; nothing here imports torch.
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import BinaryIO, Literal

from dualslm.audio import studio
from dualslm.audio.contents import (
    HEAD,
    LONG_PLACEHOLDER,
    MAX_CHUNKS,
    MAX_PADDING,
    PLACEHOLDER,
    Contents,
    at,
    cut_off,
)
from dualslm.audio.frames import frame_bytes, mp3, ogg_fault

MPEG_IN_WAV = (0x50, 0x55)  # format tags of wav files that hold mp3


def look(file: BinaryIO) -> Contents:
    """What a file holds, by its bytes; any file that is not known here is taken as it is."""
    size = file.seek(0, io.SEEK_END)
    head = at(file, 0, HEAD)
    whole = Contents(0, size)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
        return _wav(file, size, head[:4])
    if head[:4] == b"fLaC" and len(head) > 26:
        # The lower 36 of 40 bits are the number of samples, 0 where the writer did not know it. Always patched to 0:
        # libsndfile reads no further than a header says, even where more follows.
        stated = int.from_bytes(head[21:26], "big") & (1 << 36) - 1
        return Contents(0, size, {21: bytes([head[21] & 0xF0, 0, 0, 0, 0])}, stated=stated or None)
    if head[:4] == b"OggS":
        return Contents(0, size, fault=ogg_fault(file, size))
    if head[:3] == b"ID3" or (head[:1] == b"\xff" and len(head) > 4 and frame_bytes(head[:4])):
        return mp3(file, 0, size)
    return studio.look(file, size) or whole


def _wav(file: BinaryIO, size: int, kind: bytes) -> Contents:
    """A wav file with the size of its sound corrected; of one that holds mp3, the mp3."""
    order: Literal["big", "little"] = "big" if kind == b"RIFX" else "little"
    position = 12
    tag = 0
    ds64 = None
    for _ in range(MAX_CHUNKS):
        head = at(file, position, 8)
        if len(head) < 8 or head[:4] == b"data":
            break
        if head[:4] == b"fmt ":
            tag = int.from_bytes(file.read(2), order)
        elif head[:4] == b"ds64":
            ds64 = position
        length = int.from_bytes(head[4:], order)
        position += 8 + length + length % 2  # chunks begin at even positions
    if len(head) < 8 or head[:4] != b"data":
        return Contents(0, size)
    start = position + 8
    stated = int.from_bytes(head[4:], order)
    limit = PLACEHOLDER
    if kind == b"RF64" and ds64 is not None:
        stated = int.from_bytes(at(file, ds64 + 16, 8), order)
        limit = LONG_PLACEHOLDER if stated != 0xFFFFFFFF else PLACEHOLDER
    available = size - start
    fault = cut_off(available, stated) if available < stated < limit else None
    if stated >= limit or stated == 0:
        available -= _tail(file, start, size, order)
        size = start + available
    more = stated < available and _is_sound(file, start + stated, size, order, any_length=stated == 0)
    stop = size if more or stated > available else start + stated
    if tag in MPEG_IN_WAV:
        inner = mp3(file, start, stop)
        return replace(inner, fault=fault or inner.fault)
    if stop == start + stated or stop >= 1 << 32:
        second = _second(file, stop, order)
        return Contents(0, stop if second else size, fault=fault or second)  # libsndfile refuses what has two
    # As plain RIFF or RIFX, whose sizes libsndfile reads alike everywhere.
    plain = b"RIFX" if order == "big" else b"RIFF"
    patches = {
        0: plain + (stop - 8).to_bytes(4, order),
        position + 4: (stop - start).to_bytes(4, order),
    }
    if ds64 is not None:
        patches[ds64] = b"JUNK"
    return Contents(0, size, patches, fault)


def _second(file: BinaryIO, position: int, order: Literal["big", "little"]) -> str | None:
    """The fault of a file in which more sound follows the first: decoders read the first alone."""
    position += position % 2
    for _ in range(MAX_CHUNKS):
        head = at(file, position, 8)
        if len(head) < 8:
            return None
        length = int.from_bytes(head[4:], order)
        if head[:4] in (b"data", b"RIFF", b"RIFX") and length:
            return f"two recordings in one: the second begins at byte {position:,}"
        position += 8 + length + length % 2
    return None


def _tail(file: BinaryIO, start: int, size: int, order: Literal["big", "little"]) -> int:
    """The bytes of a list of tags that ends the file, behind sound whose length is not stated."""
    first = max(start, size - MAX_PADDING)
    data = at(file, first, size - first)
    for name in (b"LIST", b"id3 "):
        found = data.rfind(name)
        if found >= 0 and found + 8 + int.from_bytes(data[found + 4 : found + 8], order) in (
            len(data),
            len(data) - 1,
        ):
            return len(data) - found
    return 0


def _is_sound(file: BinaryIO, position: int, size: int, order: Literal["big", "little"], *, any_length: bool) -> bool:
    """Whether sound goes on behind its stated end, where other chunks, tags or padding may follow."""
    # A writer that forgot the padding byte begins its next chunk one byte early.
    for first in (position, position + position % 2):
        head = at(file, first, 8)
        is_name = len(head) == 8 and head[:4].strip() and all(32 <= letter < 127 for letter in head[:4])
        if is_name and int.from_bytes(head[4:], order) <= size - first - 8:
            return False
    return size - position > (0 if any_length else MAX_PADDING)
