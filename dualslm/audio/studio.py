"""Stated lengths in the formats of studios and workstations: AIFF, AU, W64 and CAF, against their bytes.

Nothing here imports torch.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from dualslm.audio.contents import HEAD, LONG_PLACEHOLDER, MAX_CHUNKS, MAX_PADDING, PLACEHOLDER, Contents, at, cut_off

W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0"  # W64 names its chunks by 16 bytes
W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\0\xc0\x4f\x8e\xdb\x8a"
W64_HEAD = 24  # bytes of a chunk's name and size, which its size counts too
CAF_EDITS = 4  # bytes in front of the sound in CAF, which count the edits


def look(file: BinaryIO, size: int) -> Contents | None:
    """What such a file holds; None for any other file."""
    head = at(file, 0, HEAD)
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return _aiff(file, size)
    if head[:4] in (b".snd", b"dns.") and len(head) >= 24:
        return _au(head, size)
    if head[:16] == W64_RIFF:
        return _w64(file, size)
    return _caf(file, size) if head[:4] == b"caff" else None


def _aiff(file: BinaryIO, size: int) -> Contents:
    position = 12
    for _ in range(MAX_CHUNKS):
        head = at(file, position, 8)
        length = int.from_bytes(head[4:], "big")
        if len(head) < 8 or head[:4] == b"SSND":
            available = size - position - 8
            # libsndfile finds the end by itself where less is stated.
            short = len(head) == 8 and available < length < PLACEHOLDER
            return Contents(0, size, fault=cut_off(available, length) if short else None)
        position += 8 + length + length % 2
    return Contents(0, size)


def _au(head: bytes, size: int) -> Contents:
    order = ">" if head[:4] == b".snd" else "<"
    start, stated = struct.unpack(f"{order}II", head[4:12])
    available = size - start
    fault = cut_off(available, stated) if available < stated < PLACEHOLDER else None
    # Nothing follows the sound in this format but padding.
    more = available - stated > (0 if stated == 0 else MAX_PADDING)
    return Contents(0, size, {8: b"\xff" * 4} if more else {}, fault)


def _w64(file: BinaryIO, size: int) -> Contents:
    patches = {16: struct.pack("<Q", size)}  # a pipe leaves -1 here, which libsndfile refuses
    position = 40
    for _ in range(MAX_CHUNKS):
        head = at(file, position, W64_HEAD)
        if len(head) < W64_HEAD:
            break
        length = int.from_bytes(head[16:], "little")
        if head[:16] == W64_DATA:
            available = size - position
            if length <= available:
                return Contents(0, size, patches)  # libsndfile finds the end by itself where less is stated
            patches[position + 16] = struct.pack("<Q", available)
            fault = cut_off(available - W64_HEAD, length - W64_HEAD) if length < LONG_PLACEHOLDER else None
            return Contents(0, size, patches, fault)
        position += max(length + -length % 8, W64_HEAD)  # chunks begin at multiples of 8
    return Contents(0, size)


def _caf(file: BinaryIO, size: int) -> Contents:
    position = 8
    for _ in range(MAX_CHUNKS):
        head = at(file, position, 12)
        if len(head) < 12:
            break
        length = int.from_bytes(head[4:], "big", signed=True)
        if head[:4] == b"data":
            available = size - position - 12
            fault = cut_off(available, length) if available < length < LONG_PLACEHOLDER else None
            # -1 is the format's own placeholder, which libsndfile does not take.
            more = length < available and _is_more(file, position + 12 + max(length, 0), size, length <= CAF_EDITS)
            if length < 0 or length > available or more:
                return Contents(0, size, {position + 4: struct.pack(">q", available)}, fault)
            break
        position += 12 + max(length, 0)
    return Contents(0, size)


def _is_more(file: BinaryIO, position: int, size: int, any_length: bool) -> bool:
    """Whether sound goes on behind its stated end in CAF, where other chunks may follow."""
    head = at(file, position, 12)
    is_name = len(head) == 12 and all(32 <= letter < 127 for letter in head[:4])
    if is_name and int.from_bytes(head[4:], "big") <= size - position - 12:
        return False
    return size - position > (0 if any_length else MAX_PADDING)
