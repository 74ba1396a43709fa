"""Sound in frames and pages that follow one another, of mp3, ogg and aac: how many there are, and where they end early.

Nothing here imports torch.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from dualslm.audio.contents import HEAD, Contents, at, cut_off

# No recording within our limits has more; a file made to keep a reader busy is given to the decoder as it is.
MAX_FRAMES = 100_000  # of an mp3: half an hour has 75,000
MAX_PAGES = 200_000  # of an ogg file: half an hour has 90,000 of 20 ms
RESYNC_BYTES = 1 << 16  # in which the first frame of an mp3 must begin
KBIT_PER_S = {  # of an mp3 frame by its index, for MPEG 1, and for MPEG 2 and 2.5
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
KBIT_PER_S_MP2 = (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384)  # of layer II of MPEG 1
TAGS = (b"TAG", b"APETAGEX", b"ID3", b"LYRICSBEGIN", b"3DI")  # what may follow the last frame of an mp3


def mp3(file: BinaryIO, start: int, stop: int) -> Contents:
    """An mp3, with a fault where its frames end early or do not follow one another."""
    position = start
    head = at(file, start, 10)
    if head[:3] == b"ID3" and len(head) == 10:
        length = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
        position += 10 + length + (10 if head[5] & 0x10 else 0)  # a footer is as long as the header
        if position >= stop:
            position = start + 10  # a damaged tag, longer than the file
    whole = Contents(start, stop)
    first = _first_frame(file, position, stop)
    if first is None:
        return whole
    length = frame_bytes(at(file, first, 4))
    # libsndfile gives up on what stands between a tag and the first frame.
    start = start if first == position else first
    frame = at(file, first, min(length, 256))
    mark = max(frame.find(b"Xing"), frame.find(b"Info"))
    stated = int.from_bytes(frame[mark + 8 : mark + 12], "big") if mark > 0 and frame[mark + 7] & 1 else None
    count, fault = _mp3_frames(file, first + (length if mark > 0 else 0), stop)
    if not _is_layer_3(frame):
        return Contents(start, stop, fault=fault)
    if stated is None:
        # libsndfile guesses the length from the first frame, and reads no further than that.
        return Contents(first, stop, {first + mark: b"\0\0\0\0"} if mark > 0 else {}, fault, prefix=_xing(frame, count))
    # One frame less is no fault: some encoders count the frame that states the number.
    if fault is None and count < stated - 1:
        fault = cut_off(count, stated, "frames")
    if count > stated + 1:
        # Two files in one, of which a decoder would give the first: the number is corrected.
        return Contents(start, stop, {first + mark + 8: struct.pack(">I", count)}, fault)
    return Contents(start, stop, fault=fault)


def _xing(frame: bytes, count: int) -> bytes:
    """A frame in the format of another that holds no sound but states the number of frames."""
    mpeg1 = frame[1] & 0x08 != 0
    mono = frame[3] & 0xC0 == 0xC0
    head = bytes([frame[0], frame[1] | 1, 0xA0 | frame[2] & 0x0C, frame[3]])  # no checksum, and a high bit rate
    side = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    return (head + bytes(side) + b"Xing" + struct.pack(">II", 1, count)).ljust(frame_bytes(head), b"\0")


def frame_bytes(head: bytes) -> int:
    """The length of a frame of mp3, or of mp2, by its first four bytes; 0 where they begin none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0 or head[1] & 0x18 == 0x08:
        return 0
    if head[1] & 0x06 not in (0x02, 0x04):
        return 0
    index = head[2] >> 4
    rate_index = head[2] >> 2 & 3
    if index in (0, 15) or rate_index == 3:
        return 0
    mpeg1 = head[1] & 0x18 == 0x18
    rate = (44_100, 48_000, 32_000)[rate_index] // (1 if mpeg1 else 2 if head[1] & 0x10 else 4)
    if _is_layer_3(head):
        return (144_000 if mpeg1 else 72_000) * KBIT_PER_S[mpeg1][index] // rate + (head[2] >> 1 & 1)
    return 144_000 * (KBIT_PER_S_MP2 if mpeg1 else KBIT_PER_S[False])[index] // rate + (head[2] >> 1 & 1)


def _is_layer_3(head: bytes) -> bool:
    """Whether a frame is one of mp3, and not of mp2."""
    return head[1] & 0x06 == 0x02


def _first_frame(file: BinaryIO, position: int, stop: int) -> int | None:
    """The position of the first mp3 frame that another one follows."""
    data = at(file, position, min(RESYNC_BYTES, stop - position))
    found = data.find(b"\xff")
    while found >= 0:
        length = frame_bytes(data[found : found + 4])
        if length and frame_bytes(at(file, position + found + length, 4)):
            return position + found
        found = data.find(b"\xff", found + 1)
    return None


def _mp3_frames(file: BinaryIO, position: int, stop: int) -> tuple[int, str | None]:
    """The number of mp3 frames, and the first fault in their sequence."""
    count = 0
    fault = None
    while position < stop and count < MAX_FRAMES:
        length = frame_bytes(at(file, position, min(4, stop - position)))
        if not length:
            rest = at(file, position, min(HEAD, stop - position))
            if rest.startswith(TAGS):
                break
            following = _first_frame(file, position, stop)
            if following is None and not any(rest):  # an encoder may fill the file with zeros
                break
            fault = fault or f"damaged: no frame at byte {position:,}"
            if following is None:
                break
            position = following
            continue
        if position + length > stop:
            return count, fault or "cut off in its last frame"
        count += 1
        position += length
    return count, fault


def ogg_fault(file: BinaryIO, size: int) -> str | None:
    """How the pages of an ogg file show that it is cut off or damaged."""
    position = 0
    last_flags = 0
    begun = False  # whether a page with sound has come
    for _ in range(MAX_PAGES):
        if position >= size:
            break
        head = at(file, position, 27)
        if len(head) < 27:
            return "cut off in its last page"
        if head[:4] != b"OggS":
            return f"damaged: no page at byte {position:,}"
        last_flags = head[5]
        if last_flags & 2 and begun:
            return f"two recordings in one: the second begins at byte {position:,}"
        begun = begun or not last_flags & 2
        position += 27 + head[26] + sum(file.read(head[26]))
    if position > size:
        return "cut off in its last page"
    return None if position < size or last_flags & 4 else "cut off: the page that ends it is missing"


def adts_fault(file: BinaryIO, size: int) -> str | None:
    """How the frames of an aac file without a container show that it is cut off or damaged."""
    position = 0
    for _ in range(MAX_FRAMES):
        head = at(file, position, 7)
        if not head or head.startswith(TAGS):
            break
        if head[0] != 0xFF or (len(head) > 1 and head[1] & 0xF6 != 0xF0):
            return f"damaged: no frame at byte {position:,}"
        length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5 if len(head) == 7 else size
        if position + length > size:
            return "cut off in its last frame"
        if length < len(head):
            return f"damaged: no frame at byte {position:,}"
        position += length
    return None
