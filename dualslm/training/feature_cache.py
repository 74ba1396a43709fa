"""Frames of the frozen encoder, kept on disk: it never changes, so each recording is encoded once (ours).

A cache is a folder. `cache.json` names the encoder, the rule and the dtype; another encoder's cache is refused.
Recordings are written in parts: `part-1-00003.safetensors` holds the frames of at most 256 recordings (of shard 1, part
3), and `part-1-00003.json`, written after it, lists them with the hashes of recording and frames, and those that could
not be read with the reason. A part is written under another name and renamed, so a build that was killed is resumed
where it stopped, and several machines may each build a shard of the same folder. A list is known by its own hash, and
frames by theirs when they are first read, so that a damaged cache is found and never learnt from.

Dimensions: N encoder layers kept, T frames, D encoder width.
"""

from __future__ import annotations

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
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dualslm import audio
from dualslm.audio import FRAMES_PER_SECOND, layers_kept, load
from dualslm.conversation import Speech
from dualslm.data.progress import Pace
from dualslm.errors import DualSLMError, one_line
from dualslm.files import locked, read_json, replacing, sha256, system_error
from dualslm.model.encoder import Frames, SpeechEncoder
from dualslm.model.fingerprint import fingerprint
from dualslm.training.cache_lists import damaged, frames_hash, listed, read_list, write_list

META = "cache.json"
PART = 256  # recordings in a part
ENCODER_BATCH = 16  # recordings
MAX_OPEN_PARTS = 1024  # a mapped file and 50 kB each; opening one takes longer than reading ten recordings
DISK_OVERHEAD = 1.02  # safetensors headers and lists take 2 % beside the frames
Recording: TypeAlias = tuple[dict[str, Any], NDArray[np.float32] | None]
"""The row of a recording in a part's list, and its samples at 16 kHz; None where it cannot be read."""


@dataclass(frozen=True)
class Rule:
    """What decides the numbers in a cache; two caches of one rule hold the same frames.

    Attributes:
        encoder: fingerprint of the encoder's weights.
        layers: number of layers kept, of which the encoder's last is the last.
        width: D, width of the encoder.
        dtype: dtype of the frames on disk.
        rule: version of the way from a file to frames, raised when other frames come of the same file.
        window: what the encoder pads clips to; see `dualslm.model.encoder.Window`.
        layer: index of the layer kept beside the last one; None where there is none, or where every one is kept.
    """

    encoder: str
    layers: int
    width: int
    dtype: str = "bfloat16"
    rule: int = 1
    window: str = "full"
    layer: int | None = None

    @classmethod
    def of(cls, encoder: SpeechEncoder, *, every_layer: bool = False, layer: int | None = None) -> Rule:
        """The rule of an encoder as it is now."""
        layers = len(layers_kept(encoder.depth, every_layer=every_layer, layer=layer))
        return cls(fingerprint(encoder), layers, encoder.width, window=encoder.window, layer=layer)

    def bytes(self, seconds: float) -> int:
        """Bytes that so many seconds of audio take on disk, in 16-bit numbers."""
        return round(seconds * FRAMES_PER_SECOND * self.layers * self.width * 2 * DISK_OVERHEAD)


def duration(path: str | Path) -> float:
    """Seconds of a recording by its header; 0 where it cannot be read."""
    try:
        return audio.duration(Path(path))
    except DualSLMError:
        return 0.0


def _say(line: str) -> None:
    print(one_line(line), file=sys.stderr, flush=True)


def build(
    encoder: SpeechEncoder,
    paths: Sequence[str],
    folder: Path,
    *,
    every_layer: bool = False,
    layer: int | None = None,
    shard: tuple[int, int] = (1, 1),
    check: bool = False,
    say: Callable[[str], None] = _say,
) -> Counter[str]:
    """Encodes recordings into a cache; those that are in it already are not encoded again.

    Args:
        encoder: the frozen encoder.
        paths: paths of the recordings; one that is named twice counts once.
        folder: folder of the cache; made where it is missing.
        every_layer: keep all layers, for a learned mix.
        layer: index of a layer that is kept beside the last one.
        shard: (i, n): this call encodes part i of n, counted from 1.
        check: compare recordings with what was encoded, by their SHA-256, and encode again those that were replaced.
        say: takes lines of progress.

    Returns:
        How many recordings are in the cache ("usable"), and how many could not be read, by reason.

    Raises:
        DualSLMError: a cache of another encoder, a damaged one, or too little space on the disk; nothing half-written
            is left.
    """
    rule = Rule.of(encoder, every_layer=every_layer, layer=layer)
    folder.mkdir(parents=True, exist_ok=True)
    # Two runs may share a cache, and both would give their new part the same name.
    with locked(folder / f"part-{shard[0]}.lock", lambda: say(f"features: another process fills {folder}; waiting")):
        return _build(encoder, paths, folder, rule, every_layer, shard, check, say)


def _build(
    encoder: SpeechEncoder,
    paths: Sequence[str],
    folder: Path,
    rule: Rule,
    every_layer: bool,
    shard: tuple[int, int],
    check: bool,
    say: Callable[[str], None],
) -> Counter[str]:
    if (folder / META).exists():
        _check_rule(folder, rule)
    else:
        with replacing(folder / META, f"{shard[0]}-of-{shard[1]}") as partial:  # all shards may begin at once
            partial.write_text(json.dumps(asdict(rule), indent=1) + "\n")
    own = list(dict.fromkeys(paths))[shard[0] - 1 :: shard[1]]
    if check:
        _forget_replaced(folder, own, say)
    known = listed(folder)
    todo = [path for path in own if "frames" not in known.get(path, {})]  # one that could not be read is tried again
    parts = [todo[start : start + PART] for start in range(0, len(todo), PART)]
    _check_space(folder, rule, todo, say)
    # No part is ever written over: it may be of a build that was killed, or of other recordings.
    numbers = [int(file.stem.rsplit("-", 1)[1]) for file in folder.glob(f"part-{shard[0]}-*.json")]
    first = 1 + max(numbers, default=-1)
    pace = Pace(len(todo))
    done = 0

    def encoded(count: int) -> None:
        if pace.due():
            say(f"features: {pace.stated(done + count)}")

    for number, loaded in enumerate(_prefetched(parts)):
        new = [
            (row, samples)
            for row, samples in loaded
            # A fault that is listed already is not listed again.
            if samples is not None or row["fault"] != known.get(row["audio"], {}).get("fault")
        ]
        if new:
            part = folder / f"part-{shard[0]}-{first + number:05d}"
            _write_part(encoder, new, part, rule, every_layer, encoded)
        done += len(loaded)
        say(f"features: part {number + 1} of {len(parts)}, {len(loaded)} recordings")
    known = listed(folder)
    return Counter(known[path].get("fault", "usable") for path in own)


class FrameCache:
    """Gives the frames of recordings from a cache, in place of `DualSLM.hear`.

    Args:
        folder: folder that `build` filled.
        rule: rule that the cache must follow.

    Attributes:
        rows: part and number of frames of each recording, by path.
        hashes: SHA-256 of the frames of each recording, by path; a cache of an earlier version has none.
        faults: why a recording could not be read, by path.

    Raises:
        DualSLMError: no cache there, a damaged one, or one of another encoder or rule.
    """

    def __init__(self, folder: Path, rule: Rule) -> None:
        self.folder = folder
        _check_rule(folder, rule)
        self.rows: dict[str, tuple[str, int]] = {}
        self.hashes: dict[str, bytes] = {}
        self.faults: dict[str, str] = {}
        self._sound: set[str] = set()  # recordings whose frames this process has compared with their hash
        for file in sorted(folder.glob("part-*.json")):
            for row in read_list(file.with_suffix("")):
                if "frames" in row:
                    self.rows[row["audio"]] = (file.stem, row["frames"])
                    self.hashes.pop(row["audio"], None)  # of a part before
                    if "frames_sha256" in row:
                        self.hashes[row["audio"]] = bytes.fromhex(row["frames_sha256"])
                else:
                    self.faults[row["audio"]] = row["fault"]
        for path in self.faults.keys() & self.rows.keys():  # it could be read when it was tried again
            del self.faults[path]
        self._open = lru_cache(MAX_OPEN_PARTS)(lambda part: safe_open(self.folder / f"{part}.safetensors", "pt"))

    def frames(self, path: str) -> int:
        """The number of frames of a recording."""
        return self.rows[path][1]

    def get(self, path: str) -> Tensor:
        """The frames (N, T, D) of one recording.

        Raises:
            DualSLMError: it is not in the cache, or its frames are not those that were written.
        """
        if path not in self.rows:
            got = self.faults.get(path, "no frames of it")
            raise DualSLMError(f"{path} is not in the cache {self.folder}", got=got, do="run dualslm features again")
        name, length = self.rows[path]
        try:
            frames_NTD: Tensor = self._open(name).get_tensor(path)  # type: ignore[no-untyped-call]
        except (SafetensorError, FileNotFoundError) as error:
            raise damaged(self.folder / name, str(error)) from error
        if path not in self._sound:
            same = path not in self.hashes or frames_hash(frames_NTD) == self.hashes[path].hex()
            if not same or frames_NTD.shape[1] != length:
                raise damaged(self.folder / name, f"other frames of {path} than were written")
            self._sound.add(path)
        return frames_NTD

    def hear(self, clips: Sequence[Speech]) -> Frames:
        """The frames of some clips, padded to the longest."""
        return Frames.stack([self.get(str(clip.audio)) for clip in clips])

    def __getstate__(self) -> Mapping[str, Any]:
        return {name: getattr(self, name) for name in ("folder", "rows", "hashes", "faults")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Opens the parts anew: a mapped file cannot be sent to a worker process."""
        self.__dict__.update(state)
        self._sound = set()
        self._open = lru_cache(MAX_OPEN_PARTS)(lambda part: safe_open(self.folder / f"{part}.safetensors", "pt"))


# ---------------------------------------------------------------------- parts


def _forget_replaced(folder: Path, paths: Sequence[str], say: Callable[[str], None]) -> None:
    """Deletes recordings from the lists of their parts whose files are no longer those that were encoded."""
    known = listed(folder)
    encoded = [path for path in paths if "frames" in known.get(path, {}) and Path(path).is_file()]
    replaced = {path for path in encoded if sha256(Path(path)) != known[path]["sha256"]}
    say(f"features: {len(encoded)} recordings compared, {len(replaced)} replaced")
    for part in {known[path]["part"] for path in replaced}:
        write_list(folder / part, [row for row in read_list(folder / part) if row["audio"] not in replaced])


def _write_part(
    encoder: SpeechEncoder,
    loaded: Iterable[Recording],
    part: Path,
    rule: Rule,
    every_layer: bool,
    encoded: Callable[[int], None],
) -> None:
    rows = []
    frames = {}
    readable: list[tuple[dict[str, Any], NDArray[np.float32]]] = []
    for row, samples in loaded:
        rows.append(row)
        if samples is not None:
            readable.append((row, samples))
    if rule.window != "full":
        readable.sort(key=lambda one: len(one[1]))  # neighbours share a window
    for start in range(0, len(readable), ENCODER_BATCH):
        batch = readable[start : start + ENCODER_BATCH]
        found = encoder.encode([samples for _, samples in batch], every_layer=every_layer, layer=rule.layer)
        for index, (row, _) in enumerate(batch):
            row["frames"] = int(found.lengths_B[index])
            frames_NTD = found.layers_NBTD[:, index, : row["frames"]]
            # Contiguous, or the file would hold the padding of the whole batch.
            frames[row["audio"]] = frames_NTD.to("cpu", getattr(torch, rule.dtype)).contiguous()
            row["frames_sha256"] = frames_hash(frames[row["audio"]])
        encoded(start + len(batch))
    try:
        with replacing(part.with_suffix(".safetensors")) as partial:
            save_file(frames, partial)
        # The list comes last: a part without one does not exist for any reader.
        write_list(part, rows)
    except OSError as error:
        raise system_error(error) from error
    except SafetensorError as error:  # what the disk answered stands in its text
        do = "free some space, check the disk, and run again: what was encoded so far is kept"
        raise DualSLMError(f"cannot write {part}.safetensors", got=str(error), do=do) from error


def _prefetched(parts: Sequence[Sequence[str]]) -> Iterator[list[Recording]]:
    """The recordings of each part; those of the next part are read while the encoder works on this one."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        pending = [pool.submit(_load_recording, path) for part in parts[:1] for path in part]
        for following in [*parts[1:], []][: len(parts)]:
            current = pending
            pending = [pool.submit(_load_recording, path) for path in following]
            yield [one.result() for one in current]


def _load_recording(path: str) -> Recording:
    try:
        samples = load(path)
        return {"audio": path, "sha256": sha256(Path(path))}, samples
    except DualSLMError as error:
        # Without the path, so that faults of one kind can be counted.
        return {"audio": path, "fault": str(error).replace(f" {path}", "").replace(path, "").strip()}, None


# ---------------------------------------------------------------------- the folder


def _check_rule(folder: Path, rule: Rule) -> None:
    """Refuses a folder that is no cache, or one of another encoder or rule."""
    try:
        found = dict(read_json(folder / META, "the rule", "build the cache with dualslm features"))
    except (OSError, ValueError, TypeError) as error:
        raise DualSLMError(
            f"{folder} is not a cache of frames", got=f"no readable {META}", do="build it with dualslm features"
        ) from error
    wanted = asdict(rule)
    found = {"window": "full", "layer": None} | found  # a cache of the last version, when there was no choice
    if other := [f"{key} {found.get(key)}, not {wanted[key]}" for key in wanted if found.get(key) != wanted[key]]:
        raise DualSLMError(
            f"the cache {folder} was made by another encoder or rule",
            got="; ".join(other),
            do="give another folder, or delete that one",
        )


def _check_space(folder: Path, rule: Rule, paths: Sequence[str], say: Callable[[str], None]) -> None:
    """Says how much will be written, and refuses a disk that cannot hold it before hours of encoding."""
    seconds = sum(map(duration, paths))
    needed = rule.bytes(seconds)
    free = shutil.disk_usage(folder).free
    sizes = f"{needed / 1e9:.2f} GB to write, {free / 1e9:.1f} GB free"
    say(f"features: {len(paths)} recordings, {seconds / 3600:.2f} h, {sizes}")
    if needed > free:
        raise DualSLMError(
            f"too little disk space for the cache {folder}",
            got=f"{free / 1e9:.2f} GB free",
            do=f"free {needed / 1e9:.2f} GB, or give another folder",
        )
