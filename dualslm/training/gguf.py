"""The header of a GGUF file: what `plan` needs of it, without the package that loads such files (ours).

The format, little-endian: magic, version, number of tensors, number of keys; then each key with its value, and each
tensor's name, shape, type and offset.
"""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING = 8  # types of values beside the scalars
ARRAY = 9
MAX_LISTED = 4096  # elements; of a longer list, such as the vocabulary, the number alone is kept
MAX_COUNT = 1 << 24  # keys, tensors or letters; more stand in no header but a damaged one


def header(file: BinaryIO) -> tuple[dict[str, Any], set[str]]:
    """The keys with their values, and the names of the tensors; of a list of text the number of its elements.

    Raises:
        ValueError, struct.error: not a GGUF file, or a damaged one.
    """
    if file.read(4) != b"GGUF":
        raise ValueError("no GGUF file")
    if (version := _scalar(file, "I")) not in (2, 3):
        raise ValueError(f"GGUF version {version}")
    tensors = _count(file)
    keys = _count(file)
    known = {_string(file): _value(file, _scalar(file, "I")) for _ in range(keys)}
    names = set()
    for _ in range(tensors):
        names.add(_string(file))
        file.seek(8 * _scalar(file, "I") + 4 + 8, 1)  # shape, type, offset
    return known, names


def _scalar(file: BinaryIO, kind: str) -> Any:
    return struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0]


def _count(file: BinaryIO) -> int:
    count = int(_scalar(file, "Q"))
    if count > MAX_COUNT:
        raise ValueError(f"a count of {count}")
    return count


def _string(file: BinaryIO) -> str:
    return file.read(_count(file)).decode("utf-8", errors="replace")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == STRING:
        return _string(file)
    if kind != ARRAY:
        if kind not in SCALARS:
            raise ValueError(f"a value of type {kind}")
        return _scalar(file, SCALARS[kind])
    inner = _scalar(file, "I")
    count = _count(file)
    if inner == STRING:
        for _ in range(count):
            file.seek(_count(file), 1)
        return count
    if count > MAX_LISTED and inner in SCALARS:
        file.seek(count * struct.calcsize(f"<{SCALARS[inner]}"), 1)
        return count
    return [_value(file, inner) for _ in range(count)]
