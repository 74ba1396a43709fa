"""The files of a frozen part: recorded when adapters are saved, compared when they are loaded (ours).

A record names the commit on the hub and the SHA-256 of every file that loading reads: weights, settings, tokenizer,
chat template. Whole, the comparison reads gigabytes. The quick one, made at every load, compares settings, tokenizer
and template whole, and of the weights the names, shapes and some values from all over each tensor, rounded to bfloat16:
so a copy in another dtype, or split into other files, is the same part, and a tensor with its values in another order
is not. `fingerprint` is looser still, and is what manifests and caches of frames name a part by.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import cached_file

from dualslm.errors import DualSLMError
from dualslm.files import read_json, sha256
from dualslm.model.gguf import local_file, source_of

Kind: TypeAlias = Literal["encoder", "LLM"]
Record: TypeAlias = Mapping[str, Any]
"""`commit` (None of a folder), `sample` of the weights, `files`: name → `bytes`, `sha256` and, of JSON, `content`."""

WEIGHTS = (".safetensors", ".gguf")
SAMPLES = 251  # values of a tensor; a prime, or those of a matrix could all be of one column
BLOCKS, BLOCK_BYTES = 4096, 4096  # of a file that is read as a whole, evenly spread
SETTINGS: Mapping[Kind, Sequence[str]] = {
    "encoder": ("config.json", "preprocessor_config.json"),
    "LLM": (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
    ),
}
# Read where there is no tokenizer.json, which holds all that they hold.
SLOW_TOKENIZER = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
# Of settings: what saving a model anew changes, and what another dtype of the weights does.
CHANGES_NOTHING = {"transformers_version", "dtype", "torch_dtype", "_name_or_path", "name_or_path", "architectures"}


def record(kind: Kind, name: str, revision: str | None) -> Record:
    """The record of a frozen part.

    Args:
        kind: what it is.
        name: hub id, folder or GGUF file.
        revision: of the hub.

    Returns:
        The record; empty for a part that was not loaded from files, and for a part of the pocket model.
    """
    found = _files(kind, name, revision)
    if found is None:
        return {}
    settings, weights = found
    stated: dict[str, dict[str, Any]] = {}
    for file in sorted([*settings, *weights], key=lambda one: one.name):
        whole, content = _signs(file)
        stated[file.name] = {"bytes": file.stat().st_size, "sha256": whole}
        stated[file.name] |= {} if content is None else {"content": content}
    folder = weights[0].parent if weights else settings[0].parent
    commit = folder.name if folder.parent.name == "snapshots" else None  # as the hub's cache lays its files out
    return {"commit": commit, "sample": _sample(kind, weights), "files": stated}


def check(kind: Kind, name: str, revision: str | None, known: Record, *, verify: bool, here: bool = True) -> None:
    """Refuses a frozen part that is not the one of a record.

    Args:
        kind: what it is.
        name: hub id, folder or GGUF file.
        revision: of the hub.
        known: the record; an empty one is not compared.
        verify: compare every byte of the weights too.
        here: whether its weights are; of an LLM that runs elsewhere only the rest is compared.

    Raises:
        DualSLMError: another part, or files that a record of every byte does not name.
    """
    if not known:
        return
    found = _files(kind, name, revision)
    if found is None:
        raise _other(kind, name, "no files of it")
    settings, weights = found
    here = here or any(file.suffix == ".gguf" for file in weights)  # which is read here wherever its LLM runs
    try:
        stated = known["files"]
        there = {file.name: file for file in settings}
        for file_name in sorted(there.keys() | {one for one in stated if not one.endswith(WEIGHTS)}):
            if file_name not in there:
                raise _other(kind, name, f"no {file_name}")
            if file_name not in stated:
                raise _other(kind, name, f"one more file, {file_name}")
            if not _same(there[file_name], stated[file_name]):
                raise _other(kind, name, f"another {file_name}")
        if here and _sample(kind, weights) != known["sample"]:
            raise _other(kind, name, "other values in its weights")
        for file in weights if here and verify else ():
            if file.name not in stated:
                do = "name the files that the adapters were trained with, or leave out --verify"
                got = f"{file.name}, which the record does not name"
                raise DualSLMError(f"{name} cannot be verified byte by byte", got=got, do=do)
            if file.stat().st_size != stated[file.name]["bytes"] or sha256(file) != stated[file.name]["sha256"]:
                raise _other(kind, name, f"other bytes in {file.name}")
    except (KeyError, TypeError, AttributeError) as error:
        do = "save the model anew, or load the adapters from where they came"
        raise DualSLMError(f"the record of the {kind}'s files is damaged", got=repr(error), do=do) from error


def weight_files(name: str, revision: str | None) -> list[Path]:
    """The safetensors files of a hub id or folder.

    Raises:
        DualSLMError: there are none.
    """
    find = {"_raise_exceptions_for_missing_entries": False, "revision": revision}
    index = cached_file(name, "model.safetensors.index.json", **find)
    if index is None:
        files = ["model.safetensors"]
    else:
        do = "copy or download it again"
        try:
            files = sorted({str(Path(file)) for file in read_json(Path(index), "the list", do)["weight_map"].values()})
        except (AttributeError, KeyError, TypeError) as error:
            raise DualSLMError(f"the list {index} is damaged", got=repr(error), do=do) from error
    found = [cached_file(name, file, **find) for file in files]
    if None in found:
        raise DualSLMError(
            f"{name} holds no safetensors weights",
            got=f"no {files[found.index(None)]}",
            do="convert the checkpoint with save_pretrained(..., safe_serialization=True)",
        )
    return [Path(file) for file in found if file is not None]


@contextmanager
def tensors_in(file: Path) -> Iterator[Any]:
    """Opens a file of tensors, which are mapped: only what is looked at is read.

    Raises:
        DualSLMError: it cannot be read, or is cut off or damaged.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise DualSLMError(f"cannot read {file}", got=str(error), do="copy or download it again") from error


def encoder_key(key: str) -> str | None:
    """The name that a tensor of a Whisper checkpoint has in the encoder alone; None for one of the decoder."""
    bare = key.removeprefix("model.")
    if bare.startswith(("decoder.", "proj_out.")):
        return None
    return bare.removeprefix("encoder.")


# ---------------------------------------------------------------------- files and what they hold


def _files(kind: Kind, name: str, revision: str | None) -> tuple[list[Path], list[Path]] | None:
    """The settings and the weights of a part; None where its name leads nowhere, as of one made in memory."""
    if not name or name.startswith("pocket:"):  # which is compared with the package's own hashes whenever it is found
        return None
    if kind == "LLM" and source_of(name).gguf_file:
        return [], [local_file(name, revision)]  # all that an LLM has is in the one file
    config = cached_file(name, "config.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    if config is None:
        return None
    folder = Path(config).parent
    slow = kind == "LLM" and not (folder / "tokenizer.json").exists()
    names = [*SETTINGS[kind], *(SLOW_TOKENIZER if slow else ())]
    return [folder / one for one in names if (folder / one).is_file()], weight_files(name, revision)


def _same(file: Path, stated: Mapping[str, Any]) -> bool:
    whole, content = _signs(file)
    return whole == stated["sha256"] or (content is not None and content == stated.get("content"))


def _signs(file: Path) -> tuple[str, str | None]:
    """The SHA-256 of a file's bytes and, of settings in JSON, of what they mean."""
    stat = file.stat()
    return _signs_of(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(256)  # a run saves the same record many times, and an LLM takes half a minute to hash
def _signs_of(file: Path, _size: int, _changed_ns: int) -> tuple[str, str | None]:
    if file.suffix != ".json":
        return sha256(file), None
    try:
        meaning = json.dumps(_meaning(json.loads(file.read_bytes())), sort_keys=True)
    except (ValueError, RecursionError):
        return sha256(file), None
    return sha256(file), hashlib.sha256(meaning.encode()).hexdigest()


def _meaning(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _meaning(part) for key, part in value.items() if key not in CHANGES_NOTHING}
    return value


def _sample(kind: Kind, weights: Sequence[Path]) -> str:
    """A hash of some values from all over every tensor, of names and of shapes."""
    digest = hashlib.sha256()
    if weights and weights[0].suffix == ".gguf":
        for block in _blocks(weights[0]):
            digest.update(block)
        return digest.hexdigest()
    for key, value in sorted(_tensors(kind, weights), key=lambda pair: pair[0]):
        digest.update(f"{key} {tuple(value.shape)}".encode())
        digest.update(_some(kind, value))
    return digest.hexdigest()


def _tensors(kind: Kind, weights: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of some files."""
    for file in weights:
        with tensors_in(file) as opened:
            for key in opened.keys():  # noqa: SIM118 - safe_open is not a dict
                name = encoder_key(key) if kind == "encoder" else key
                if name is not None:
                    yield name, opened.get_tensor(key)


def _some(kind: Kind, value: Tensor) -> bytes:
    flat = value.flatten()
    count = min(SAMPLES, len(flat))
    some = flat[torch.arange(count) * (len(flat) - 1) // max(1, count - 1)]
    if some.element_size() > 1 and some.is_floating_point():
        # As in `fingerprint`: encoders were published in fp16, and files in fp32 hold no more.
        some = (some.half() if kind == "encoder" and some.dtype == torch.float32 else some).bfloat16()
    return some.view(torch.uint8).numpy().tobytes()


def _blocks(file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    yield str(size).encode()
    with file.open("rb") as opened:
        for number in range(BLOCKS):
            opened.seek(number * max(0, size - BLOCK_BYTES) // (BLOCKS - 1))
            yield opened.read(BLOCK_BYTES)


def _other(kind: Kind, name: str, got: str) -> DualSLMError:
    return DualSLMError(
        f"{name} is not the {kind} that these adapters were trained with",
        got=got,
        do="load the one that the checkpoint's config.json names, as it was",
    )
