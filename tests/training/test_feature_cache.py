"""The cache of frames: equal to live ones, resumable, strict about whose frames they are."""

from __future__ import annotations

import errno
import json
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.badaudio import wav
from support.factory import save_encoder

from dualslm.audio import load
from dualslm.conversation import Speech
from dualslm.errors import DualSLMError
from dualslm.model.encoder import SpeechEncoder
from dualslm.training import feature_cache
from dualslm.training.feature_cache import FrameCache, Rule, build


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SpeechEncoder:
    return SpeechEncoder.from_pretrained(str(save_encoder(tmp_path_factory.mktemp("encoder"))))


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(0)
    lengths = [0.2, 0.9, 0.5, 4.5, 0.31]
    waves = [(0.1 * rng.standard_normal(round(16_000 * seconds))).astype(np.float32) for seconds in lengths]
    return [str(wav(tmp_path / f"{number}.wav", samples)) for number, samples in enumerate(waves)]


def quiet(_: str) -> None: ...


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("every_layer", [False, True])
def test_cached_frames_are_the_live_ones(
    encoder: SpeechEncoder, paths: list[str], tmp_path: Path, every_layer: bool
) -> None:
    counts = build(encoder, paths, tmp_path / "cache", every_layer=every_layer, say=quiet)
    assert counts == {"usable": len(paths)}
    cache = FrameCache(tmp_path / "cache", Rule.of(encoder, every_layer=every_layer))
    cached = cache.hear([Speech(path) for path in paths])
    for row, path in enumerate(paths):
        live = encoder.encode([load(path)], every_layer=every_layer)
        length = int(live.lengths_B[0])
        assert int(cached.lengths_B[row]) == cache.frames(path) == length
        expected = live.layers_NBTD[:, 0].to(torch.bfloat16)
        torch.testing.assert_close(cached.layers_NBTD[:, row, :length], expected, atol=2e-2, rtol=2e-2)


def test_a_killed_build_goes_on_and_ends_with_the_same_bytes(
    encoder: SpeechEncoder, paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "PART", 2)
    build(encoder, paths, tmp_path / "whole", say=quiet)
    calls: list[int] = []

    def killed(*arguments: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        save_file(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(feature_cache, "save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            build(encoder, paths, tmp_path / "stopped", say=quiet)
    said: list[str] = []
    build(encoder, paths, tmp_path / "stopped", say=said.append)
    assert sum("part" in line for line in said) == 2
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


def test_shards_hold_everything_once(encoder: SpeechEncoder, paths: list[str], tmp_path: Path) -> None:
    for number in (1, 2):
        build(encoder, paths, tmp_path / "cache", shard=(number, 2), say=quiet)
    cache = FrameCache(tmp_path / "cache", Rule.of(encoder))
    assert sorted(cache.rows) == sorted(paths)


def test_what_cannot_be_read_is_listed_with_its_reason(
    encoder: SpeechEncoder, paths: list[str], tmp_path: Path
) -> None:
    Path(paths[1]).write_bytes(b"")
    counts = build(encoder, paths, tmp_path / "cache", say=quiet)
    assert counts["usable"] == len(paths) - 1
    cache = FrameCache(tmp_path / "cache", Rule.of(encoder))
    assert list(cache.faults) == [paths[1]]
    with pytest.raises(DualSLMError, match="zero bytes"):
        cache.get(paths[1])


def test_another_encoders_cache_is_refused(encoder: SpeechEncoder, paths: list[str], tmp_path: Path) -> None:
    build(encoder, paths[:1], tmp_path / "cache", say=quiet)
    other = SpeechEncoder.from_pretrained(str(save_encoder(tmp_path / "other", seed=1)))
    for use in (
        lambda: build(other, paths, tmp_path / "cache", say=quiet),
        lambda: FrameCache(tmp_path / "cache", Rule.of(other)),
    ):
        with pytest.raises(DualSLMError, match="another encoder or rule: got encoder"):
            use()
    with pytest.raises(DualSLMError, match="not a cache of frames"):
        FrameCache(tmp_path, Rule.of(encoder))


def test_the_size_is_said_before_anything_is_written(
    encoder: SpeechEncoder, paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100))
    said: list[str] = []
    with pytest.raises(DualSLMError, match="too little disk space for the cache"):
        build(encoder, paths, tmp_path / "cache", say=said.append)
    assert "5 recordings" in said[0]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["cache.json", "part-1.lock"]


def test_a_full_disk_leaves_nothing_half_written(
    encoder: SpeechEncoder, paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(feature_cache, "save_file", full)
    with pytest.raises(DualSLMError, match="got No space left on device; free some space"):
        build(encoder, paths, tmp_path / "cache", say=quiet)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["cache.json", "part-1.lock"]


def test_the_estimate_is_close(encoder: SpeechEncoder, paths: list[str], tmp_path: Path) -> None:
    build(encoder, paths, tmp_path / "cache", say=quiet)
    written = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.safetensors"))
    stated = Rule.of(encoder).bytes(sum(map(feature_cache.duration, paths)))
    assert 0.5 < stated / written < 1.1
    assert json.loads((tmp_path / "cache" / "cache.json").read_text())["dtype"] == "bfloat16"


def test_what_could_not_be_read_is_tried_again_and_listed_once(encoder: SpeechEncoder, paths: list[str]) -> None:
    whole, folder = Path(paths[0]).read_bytes(), Path(paths[0]).parent / "cache"
    Path(paths[0]).write_bytes(b"")
    for _ in range(3):
        assert build(encoder, paths, folder, say=quiet)["usable"] == len(paths) - 1
    assert len(list(folder.glob("part-*.json"))) == 1
    Path(paths[0]).write_bytes(whole)
    assert build(encoder, paths, folder, say=quiet) == {"usable": len(paths)}


def test_a_replaced_recording_is_encoded_again_when_asked(encoder: SpeechEncoder, paths: list[str]) -> None:
    folder, said = Path(paths[0]).parent / "cache", list[str]()
    for shard in (1, 2):
        build(encoder, paths, folder, shard=(shard, 2), say=quiet)
    shutil.copy(paths[3], paths[0])
    Path(paths[1]).unlink()
    assert build(encoder, paths, folder, say=quiet) == {"usable": len(paths)}
    rule = Rule.of(encoder)
    assert FrameCache(folder, rule).frames(paths[0]) == 10
    assert build(encoder, paths, folder, check=True, say=said.append) == {"usable": len(paths)}
    assert said[0] == "features: 4 recordings compared, 1 replaced"
    cache = FrameCache(folder, rule)
    assert torch.equal(cache.get(paths[0]), cache.get(paths[3]))
    assert build(encoder, paths, folder, check=True, say=said.append) == {"usable": len(paths)}
    assert "features: 4 recordings compared, 0 replaced" in said


def flips(file: Path) -> Iterator[int]:
    """Flips one bit at each of some forty places, one at a time; yields the place."""
    whole = file.read_bytes()
    for place in range(0, len(whole), len(whole) // 40):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        file.unlink()  # written over, it would change under those who have it mapped
        file.write_bytes(data)
        yield place


def test_flipped_bytes_are_found_when_frames_are_read(encoder: SpeechEncoder, paths: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    build(encoder, paths, folder, say=quiet)
    for _ in flips(folder / "part-1-00000.safetensors"):
        cache = FrameCache(folder, Rule.of(encoder))
        with pytest.raises(DualSLMError, match=r"is damaged: got part-1-00000: .*; delete part-1-00000\.json and part"):
            cache.hear([Speech(path) for path in paths])


def test_flipped_bytes_are_found_in_a_list(encoder: SpeechEncoder, paths: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    build(encoder, paths, folder, say=quiet)
    for _ in flips(folder / "part-1-00000.json"):
        for use in (lambda: FrameCache(folder, Rule.of(encoder)), lambda: build(encoder, paths, folder, say=quiet)):
            with pytest.raises(DualSLMError, match="is damaged"):
                use()


def test_a_cache_of_the_last_version_is_read(encoder: SpeechEncoder, paths: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    build(encoder, paths, folder, say=quiet)
    right = FrameCache(folder, Rule.of(encoder)).hear([Speech(path) for path in paths])
    file = folder / "part-1-00000.json"
    rows = json.loads(file.read_text())["recordings"]
    file.write_text(json.dumps([{key: row[key] for key in ("audio", "sha256", "frames")} for row in rows]))
    assert build(encoder, paths, folder, say=quiet) == {"usable": len(paths)}
    old = FrameCache(folder, Rule.of(encoder)).hear([Speech(path) for path in paths])
    assert torch.equal(old.layers_NBTD, right.layers_NBTD)
