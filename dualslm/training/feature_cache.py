"""Frames of the frozen encoder, kept on disk: it never changes, so each recording is encoded once (ours).

A cache is a folder. `cache.json` names the encoder, the rule and the dtype; another encoder's cache is refused.
Recordings are written in parts: `part-1-00003.safetensors` holds the frames of some hundred of them,
and `part-1-00003.json`, written after it, lists them with their hash, and those that could not be read with
the reason. A part is written under another name and renamed, so a build that was killed goes on where it was,
and several machines may each build a shard of the same folder.

Dimensions: N encoder layers kept, T frames, D encoder width.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dualslm.audio import FRAMES_PER_SECOND, load
from dualslm.conversation import Speech
from dualslm.errors import DualSLMError
from dualslm.files import replacing, sha256
from dualslm.model.checkpoint import fingerprint
from dualslm.model.encoder import Frames, SpeechEncoder

META = "cache.json"
PART = 256  # recordings in a part
AT_ONCE = 16  # recordings in one call of the encoder
OPEN_PARTS = 1024  # a mapped file and 50 kB each; opening one takes longer than reading ten recordings
SPARE = 1.02  # a safetensors header and the lists take about this much beside the frames
Listened: TypeAlias = tuple[dict[str, Any], NDArray[np.float32] | None]
"""The row of a recording, and its samples where it can be read."""


@dataclass(frozen=True)
class Rule:
    """What decides the numbers in a cache; two caches of one rule hold the same frames.

    Attributes:
        encoder: fingerprint of its weights.
        layers: how many are kept, the last one last.
        width: D.
        dtype: of the frames on disk.
        rule: version of the way from a file to frames.
    """

    encoder: str
    layers: int
    width: int
    dtype: str = "bfloat16"
    rule: int = 1

    @classmethod
    def of(cls, encoder: SpeechEncoder, *, every_layer: bool = False) -> Rule:
        """The rule of an encoder as it is now."""
        return cls(fingerprint(encoder), encoder.depth if every_layer else 1, encoder.width)

    def bytes(self, seconds: float) -> int:
        """What so much audio takes on disk."""
        return round(seconds * FRAMES_PER_SECOND * self.layers * self.width * 2 * SPARE)


def duration(path: str | Path) -> float:
    """Seconds of a recording by its header; 0 where it cannot be read."""
    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, OSError, TypeError):
        return 0.0
    return float(info.frames) / float(info.samplerate)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def build(
    encoder: SpeechEncoder,
    paths: Sequence[str],
    folder: Path,
    *,
    every_layer: bool = False,
    shard: tuple[int, int] = (1, 1),
    check: bool = False,
    say: Callable[[str], None] = _say,
) -> Counter[str]:
    """Encodes recordings into a cache; those that are in it already are kept.

    Args:
        encoder: the frozen encoder.
        paths: of the recordings, each once.
        folder: of the cache; made where it is missing.
        every_layer: keep all layers, for a learned mix.
        shard: (i, n): this call does part i of n, counted from 1.
        check: compare recordings with what was encoded, by their SHA-256, and encode again those that were replaced.
        say: gets a line now and then.

    Returns:
        How many recordings were kept ("usable") and how many could not be, by reason.

    Raises:
        DualSLMError: a cache of another encoder, or no room on the disk; nothing half-written is left.
    """
    rule = Rule.of(encoder, every_layer=every_layer)
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, rule)
    own = list(dict.fromkeys(paths))[shard[0] - 1 :: shard[1]]
    if check:
        _forget_replaced(folder, own, say)
    known = _listed(folder)
    todo = [path for path in own if "frames" not in known.get(path, {})]  # what could not be read is tried again
    parts = [todo[start : start + PART] for start in range(0, len(todo), PART)]
    _check_room(folder, rule, todo, say)
    first = _free_number(folder, shard[0])
    for number, listened in enumerate(_ahead(parts)):
        news = [(row, samples) for row, samples in listened if samples is not None or not _known_fault(row, known)]
        if news:
            _write_part(encoder, news, _part(folder, shard[0], first + number), rule, every_layer)
        say(f"features: part {number + 1} of {len(parts)}, {len(listened)} recordings")
    known = _listed(folder)
    return Counter(known[path].get("fault", "usable") for path in own)


class FrameCache:
    """Gives the frames of recordings from a cache, in place of `DualSLM.hear`.

    Args:
        folder: that `build` filled.
        rule: that the cache must follow.

    Raises:
        DualSLMError: no cache there, or one of another encoder or rule.
    """

    def __init__(self, folder: Path, rule: Rule) -> None:
        self.folder = folder
        _check(folder, rule)
        self.rows: dict[str, tuple[str, int]] = {}
        self.faults: dict[str, str] = {}
        for file in sorted(folder.glob("part-*.json")):
            for row in _read_list(file.with_suffix("")):
                if "frames" in row:
                    self.rows[row["audio"]] = (file.stem, row["frames"])
                else:
                    self.faults[row["audio"]] = row["fault"]
        for path in self.faults.keys() & self.rows.keys():  # it could be read when it was tried again
            del self.faults[path]
        self._open = lru_cache(OPEN_PARTS)(lambda part: safe_open(self.folder / f"{part}.safetensors", "pt"))

    def frames(self, path: str) -> int:
        """How many frames a recording has."""
        return self.rows[path][1]

    def get(self, path: str) -> Tensor:
        """The frames (N, T, D) of one recording.

        Raises:
            DualSLMError: it is not in the cache.
        """
        if path not in self.rows:
            got = self.faults.get(path, "no frames of it")
            raise DualSLMError(f"{path} is not in the cache {self.folder}", got=got, do="run dualslm features again")
        part = self._open(self.rows[path][0])
        frames_NTD: Tensor = part.get_tensor(path)  # type: ignore[no-untyped-call]
        return frames_NTD

    def hear(self, clips: Sequence[Speech]) -> Frames:
        """The frames of some clips, padded to the longest."""
        return Frames.stack([self.get(str(clip.audio)) for clip in clips])

    def __getstate__(self) -> Mapping[str, Any]:
        return {"folder": self.folder, "rows": self.rows, "faults": self.faults}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Opened files do not travel to another process."""
        self.__dict__.update(state)
        self._open = lru_cache(OPEN_PARTS)(lambda part: safe_open(self.folder / f"{part}.safetensors", "pt"))


# ---------------------------------------------------------------------- parts


def _part(folder: Path, shard: int, number: int) -> Path:
    return folder / f"part-{shard}-{number:05d}"


def _free_number(folder: Path, shard: int) -> int:
    """The number of a shard's next part: no part is ever written over."""
    return 1 + max((int(file.stem.rsplit("-", 1)[1]) for file in folder.glob(f"part-{shard}-*.json")), default=-1)


def _listed(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of all parts by recording, each with the name of its part; a later one that can be read wins."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("part-*.json")):
        for row in _read_list(file.with_suffix("")):
            if "frames" in row or row["audio"] not in found:
                found[row["audio"]] = {**row, "part": file.stem}
    return found


def _read_list(part: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(part.with_suffix(".json").read_text())
    return rows


def _known_fault(row: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> bool:
    return bool(row["fault"] == known.get(row["audio"], {}).get("fault"))


def _forget_replaced(folder: Path, paths: Sequence[str], say: Callable[[str], None]) -> None:
    """Takes recordings that are no longer what was encoded from the lists of their parts."""
    known = _listed(folder)
    encoded = [path for path in paths if "frames" in known.get(path, {}) and Path(path).is_file()]
    replaced = {path for path in encoded if sha256(Path(path)) != known[path]["sha256"]}
    say(f"features: {len(encoded)} recordings compared, {len(replaced)} replaced")
    for part in {known[path]["part"] for path in replaced}:
        rows = [row for row in _read_list(folder / part) if row["audio"] not in replaced]
        with replacing((folder / part).with_suffix(".json")) as partial:
            partial.write_text(json.dumps(rows))


def _write_part(
    encoder: SpeechEncoder, listened: Iterable[Listened], part: Path, rule: Rule, every_layer: bool
) -> None:
    rows, frames = [], {}
    heard: list[tuple[dict[str, Any], NDArray[np.float32]]] = []
    for row, samples in listened:
        rows.append(row)
        if samples is not None:
            heard.append((row, samples))
    for start in range(0, len(heard), AT_ONCE):
        some = heard[start : start + AT_ONCE]
        out = encoder.encode([samples for _, samples in some], every_layer=every_layer)
        for index, (row, _) in enumerate(some):
            row["frames"] = int(out.lengths_B[index])
            frames_NTD = out.layers_NBTD[:, index, : row["frames"]]
            frames[row["audio"]] = frames_NTD.to("cpu", getattr(torch, rule.dtype)).contiguous()
    try:
        with replacing(part.with_suffix(".safetensors")) as partial:
            save_file(frames, partial)
        with replacing(part.with_suffix(".json")) as partial:
            partial.write_text(json.dumps(rows))
    except Exception as error:
        raise _disk(error, part.parent) from error


def _ahead(parts: Sequence[Sequence[str]]) -> Iterator[list[Listened]]:
    """The recordings of each part; those of the next one are read while the encoder is at work."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        ahead = [pool.submit(_listen, path) for part in parts[:1] for path in part]
        for following in [*parts[1:], []][: len(parts)]:
            now, ahead = ahead, [pool.submit(_listen, path) for path in following]
            yield [one.result() for one in now]


def _listen(path: str) -> Listened:
    """The row of a recording, and its samples where it can be read."""
    try:
        samples = load(path)
        return {"audio": path, "sha256": sha256(Path(path))}, samples
    except DualSLMError as error:
        return {"audio": path, "fault": str(error).replace(f" {path}", "").replace(path, "").strip()}, None


# ---------------------------------------------------------------------- the folder


def _claim(folder: Path, rule: Rule) -> None:
    if (folder / META).exists():
        _check(folder, rule)
        return
    with replacing(folder / META) as partial:
        partial.write_text(json.dumps(asdict(rule), indent=1) + "\n")


def _check(folder: Path, rule: Rule) -> None:
    try:
        found = json.loads((folder / META).read_text())
    except (OSError, ValueError) as error:
        raise DualSLMError(
            f"{folder} is not a cache of frames", got=f"no readable {META}", do="build it with dualslm features"
        ) from error
    wanted = asdict(rule)
    if other := [f"{key} {found.get(key)}, not {wanted[key]}" for key in wanted if found.get(key) != wanted[key]]:
        raise DualSLMError(
            f"the cache {folder} was made by another encoder or rule",
            got="; ".join(other),
            do="give another folder, or delete that one",
        )


def _check_room(folder: Path, rule: Rule, paths: Sequence[str], say: Callable[[str], None]) -> None:
    seconds = sum(map(duration, paths))
    wanted, free = rule.bytes(seconds), shutil.disk_usage(folder).free
    sizes = f"{wanted / 1e9:.2f} GB to write, {free / 1e9:.1f} GB free"
    say(f"features: {len(paths)} recordings, {seconds / 3600:.2f} h, {sizes}")
    if wanted > free:
        raise DualSLMError(
            f"no room for the cache {folder}",
            got=f"{free / 1e9:.2f} GB free",
            do=f"make {wanted / 1e9:.2f} GB free, or give another folder",
        )


def _disk(error: Exception, folder: Path) -> Exception:
    """A full disk as one line; safetensors tells it in words alone."""
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    if not full:
        return error
    return DualSLMError(f"the disk of {folder} is full", got="no space left", do="make room and run again")
