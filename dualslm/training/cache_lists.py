"""The lists of a cache of frames: which recordings each part holds, and the hashes by which damage is found (ours).

`part-1-00003.json` lists the recordings of `part-1-00003.safetensors`, with a hash of the list itself, of every
recording's file, and of its frames.

Dimensions: N encoder layers kept, T frames, D encoder width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualslm.errors import DualSLMError
from dualslm.files import replacing


def recordings_hash(folder: Path, paths: Iterable[str]) -> str:
    """One hash of many recordings as they were encoded: their paths, their bytes, and which could not be read."""
    known = listed(folder)
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path}\0{known.get(path, {}).get('sha256', 'unreadable')}\n".encode())
    return digest.hexdigest()


def listed(folder: Path) -> dict[str, dict[str, Any]]:
    """The row of each recording with the name of its part; one that could be read stands before one that could not."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("part-*.json")):
        for row in read_list(file.with_suffix("")):
            if "frames" in row or row["audio"] not in found:
                found[row["audio"]] = {**row, "part": file.stem}
    return found


def read_list(part: Path) -> list[dict[str, Any]]:
    """The rows of a part's list; a list of an earlier version is no more than its rows, and has no hash."""
    try:
        found = json.loads(part.with_suffix(".json").read_bytes())
        rows: list[dict[str, Any]] = found if isinstance(found, list) else found["recordings"]
        if isinstance(found, dict) and found["sha256"] != _rows_hash(rows):
            raise ValueError("another list than was written")
        return rows
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(part, str(error)) from error


def write_list(part: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the list of a part; it comes last, since a part without one does not exist for any reader."""
    with replacing(part.with_suffix(".json")) as partial:
        partial.write_text(json.dumps({"sha256": _rows_hash(rows), "recordings": rows}))


def _rows_hash(rows: Sequence[Mapping[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def frames_hash(frames_NTD: Tensor) -> str:
    """The SHA-256 of frames (N, T, D), their dtype and shape included."""
    head = f"{frames_NTD.dtype} {tuple(frames_NTD.shape)}".encode()
    return hashlib.sha256(head + frames_NTD.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def damaged(part: Path, got: str) -> DualSLMError:
    """The error of a part that is not what was written, and what to do about it."""
    do = f"delete {part.name}.json and {part.name}.safetensors there, and run dualslm features again"
    return DualSLMError(f"the cache of frames {part.parent} is damaged", got=f"{part.name}: {got}", do=do)
