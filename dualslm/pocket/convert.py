"""Whisper-base's encoder as a Hugging Face folder, from the hub's file or two halves of a CTranslate2 model (ours).

Both ways end in the same tensors in fp16, in which OpenAI published Whisper. Files are read as data and nothing in
them is run. Only the encoder is kept, 41 MB instead of 290.

Dimensions: D encoder width.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

Tensors: TypeAlias = dict[str, NDArray[Any]]

LAYERS = 6
WEIGHTS = "model.safetensors"
PREFIX = "model.encoder."  # transformers' name of the encoder within Whisper
DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)  # by CTranslate2's number of a dtype
CONFIGS = Path(__file__).parent / "whisper-base"  # config.json and preprocessor_config.json


def write_encoder(tensors: Mapping[str, NDArray[Any]], folder: Path) -> None:
    """Writes a folder that transformers reads as a Whisper model.

    Args:
        tensors: the encoder's, by transformers' names.
        folder: made here.
    """
    folder.mkdir()
    save_file(dict(tensors), folder / WEIGHTS, metadata={"format": "pt"})
    for config in CONFIGS.glob("*.json"):
        (folder / config.name).write_bytes(config.read_bytes())


def read_encoder(file: Path) -> Tensors:
    """The encoder's tensors of a safetensors file of Whisper, in fp16.

    Raises:
        SafetensorError: no such file, or a damaged one.
    """
    with safe_open(file, framework="np") as stored:
        names = [key for key in stored.keys() if key.startswith(PREFIX)]  # noqa: SIM118 - safe_open is not a dict
        return {key: stored.get_tensor(key).astype(np.float16) for key in sorted(names)}


def contents_hash(tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of names, shapes and values: the same whichever version of safetensors wrote the file."""
    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def encoder_of(model: Mapping[str, NDArray[Any]]) -> Tensors:
    """CTranslate2's tensors of a Whisper model → the encoder's by transformers' names."""
    found: Tensors = {}

    def take(ours: str, theirs: str) -> None:
        found[f"{PREFIX}{ours}.weight"] = model[f"encoder/{theirs}/weight"]
        found[f"{PREFIX}{ours}.bias"] = model[f"encoder/{theirs}/bias"]

    def take_norm(ours: str, theirs: str) -> None:
        found[f"{PREFIX}{ours}.weight"] = model[f"encoder/{theirs}/gamma"]
        found[f"{PREFIX}{ours}.bias"] = model[f"encoder/{theirs}/beta"]

    take("conv1", "conv1")
    take("conv2", "conv2")
    found[f"{PREFIX}embed_positions.weight"] = model["encoder/position_encodings/encodings"]
    for index in range(LAYERS):
        ours = f"layers.{index}"
        theirs = f"layer_{index}"
        # CTranslate2 stacks queries, keys and values in one matrix (3 D, D)
        weights = np.split(model[f"encoder/{theirs}/self_attention/linear_0/weight"], 3)
        biases = np.split(model[f"encoder/{theirs}/self_attention/linear_0/bias"], 3)
        for letter, weight_DD, bias_D in zip("qkv", weights, biases, strict=True):
            found[f"{PREFIX}{ours}.self_attn.{letter}_proj.weight"] = weight_DD
            if letter != "k":  # Whisper's keys have no bias; the stacked matrix holds zeros there
                found[f"{PREFIX}{ours}.self_attn.{letter}_proj.bias"] = bias_D
        take(f"{ours}.self_attn.out_proj", f"{theirs}/self_attention/linear_1")
        take_norm(f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm")
        take(f"{ours}.fc1", f"{theirs}/ffn/linear_0")
        take(f"{ours}.fc2", f"{theirs}/ffn/linear_1")
        take_norm(f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm")
    take_norm("layer_norm", "layer_norm")
    return found


def read_ctranslate2(data: bytes) -> Tensors:
    """The tensors of a CTranslate2 `model.bin` of version 6, as views of its bytes."""
    position = 0

    def number(form: str) -> int:
        nonlocal position
        (value,) = struct.unpack_from(form, data, position)
        position += struct.calcsize(form)
        return int(value)

    def text() -> str:
        nonlocal position
        size = number("<H")  # with the zero byte that ends the text
        position += size
        return data[position - size : position - 1].decode()

    number("<I")  # the version of the format: the file's hash was checked, so it is known
    text()  # the name of the model's specification
    number("<I")  # its revision
    found: Tensors = {}
    for _ in range(number("<I")):
        name = text()
        shape = [number("<I") for _ in range(number("<B"))]
        dtype = DTYPES[number("<B")]
        size = number("<I")
        found[name] = np.frombuffer(data[position : position + size], dtype).reshape(shape)
        position += size
    return found
