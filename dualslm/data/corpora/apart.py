"""Proof that splits are disjoint: no clip, dialogue or speaker in two of them.

Names are kept as 64-bit hashes, so that millions of them fit in memory. Two of two million names collide with a
probability of one in ten million; then the run is refused, so that no leak is ever let through.
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
    """Checks row by row that splits are disjoint.

    Args:
        kinds: kinds of names that must not occur in two splits.
    """

    def __init__(self, kinds: Sequence[ApartKind] = KINDS) -> None:
        self.kinds = kinds
        self.sides: list[str] = []
        self.seen: dict[int, int] = {}  # hash of a name → index of its side

    def add(self, split: str, row: Mapping[str, Any]) -> None:
        """Adds a row of a manifest.

        Args:
            split: split of the row; what follows a "-" names a part of the same side: `test-reversed` is `test`.
            row: row of the manifest.

        Raises:
            DualSLMError: one of its names occurs on another side too.
        """
        side = split.partition("-")[0]
        if side not in self.sides:
            self.sides.append(side)
        number = self.sides.index(side)
        for kind, name in keys(row):
            if kind not in self.kinds:
                continue
            # Not `hash`, which differs between processes: a collision should be the same in every run.
            key = int.from_bytes(hashlib.blake2b(f"{kind}\0{name}".encode(), digest_size=8).digest(), "big")
            before = self.seen.setdefault(key, number)
            if before != number:
                raise DualSLMError(
                    f"the {kind} {name} is in two splits",
                    got=f"{self.sides[before]} and {side}",
                    do="split the corpus so that it is in one",
                )


def keys(row: Mapping[str, Any]) -> Iterator[tuple[ApartKind, str]]:
    """The clips, the dialogue and the speaker of a row."""
    for turn in row["turns"]:
        for part in turn["parts"]:
            if isinstance(part, dict) and part.get("audio"):
                yield "clip", part["audio"]
    # Corpora number their dialogues and speakers alike, so the names count within a corpus.
    if "dialogue" in row:
        yield "dialogue", f"{row.get('corpus', '')}/{row['dialogue']}"
    if "speaker" in row:
        yield "speaker", f"{row.get('corpus', '')}/{row['speaker']}"


def prove(manifests: Mapping[str, Path], kinds: Sequence[ApartKind] = KINDS) -> None:
    """Reads manifests and refuses them where their splits are not disjoint.

    Args:
        manifests: paths by split; the files lie in one folder, or name audio by absolute paths.
        kinds: kinds of names that must not occur in two splits.

    Raises:
        DualSLMError: a clip, dialogue or speaker in two splits, or a line that is not valid.
    """
    apart = Apart(kinds)
    for split, path in manifests.items():
        for _, row in read(path):
            apart.add(split, row)
