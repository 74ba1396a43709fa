"""Proof that splits are disjoint: no clip, dialogue or speaker on two sides.

Names are kept as 64-bit hashes, so that millions of them fit; two of two million collide with a chance of
one in ten million, and then the run is refused, never a leak let through.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dualslm.data.corpora.base import ApartKind
from dualslm.data.corpora.schema import read
from dualslm.errors import DualSLMError

KINDS: tuple[ApartKind, ...] = ("clip", "dialogue", "speaker")


class Apart:
    """Remembers which side everything stood on.

    Args:
        kinds: what may not stand on two sides.
    """

    def __init__(self, kinds: Sequence[ApartKind] = KINDS) -> None:
        self.kinds = kinds
        self.sides: list[str] = []
        self.seen: dict[int, int] = {}

    def add(self, split: str, row: Mapping[str, Any]) -> None:
        """Takes in a talk.

        Args:
            split: that it stands in; what follows a "-" is a part of the same side: `test-reversed` is `test`.
            row: of the manifest.

        Raises:
            DualSLMError: something of it stands on another side too.
        """
        side = split.partition("-")[0]
        if side not in self.sides:
            self.sides.append(side)
        number = self.sides.index(side)
        for kind, name in keys(row):
            if kind not in self.kinds:
                continue
            key = int.from_bytes(hashlib.blake2b(f"{kind}\0{name}".encode(), digest_size=8).digest(), "big")
            before = self.seen.setdefault(key, number)
            if before != number:
                raise DualSLMError(
                    f"the {kind} {name} is in two splits",
                    got=f"{self.sides[before]} and {side}",
                    do="split the corpus so that it is in one",
                )


def keys(row: Mapping[str, Any]) -> Iterator[tuple[ApartKind, str]]:
    """The clips, the dialogue and the speaker of a talk."""
    for turn in row["turns"]:
        for part in turn["parts"]:
            if isinstance(part, dict) and "audio" in part:
                yield "clip", part["audio"]
    if "dialogue" in row:
        yield "dialogue", f"{row.get('corpus', '')}/{row['dialogue']}"
    if "speaker" in row:
        yield "speaker", f"{row.get('corpus', '')}/{row['speaker']}"


def prove(manifests: Mapping[str, Path], kinds: Sequence[ApartKind] = KINDS) -> None:
    """Reads manifests and refuses them where they share what they must not.

    Args:
        manifests: by split; they stand in one folder, or name audio by absolute paths.
        kinds: what may not stand on two sides.

    Raises:
        DualSLMError: a clip, dialogue or speaker on two sides, or a broken line.
    """
    apart = Apart(kinds)
    for split, path in manifests.items():
        for _, row in read(path):
            apart.add(split, row)
