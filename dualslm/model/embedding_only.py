"""An LLM of which no more is here than its tokenizer and its token embeddings: it answers elsewhere (ours).

The table is read alone from the safetensors file; every other weight stays on the meta device.
"""

from __future__ import annotations

from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dualslm.errors import DualSLMError
from dualslm.model.llm import FrozenLM
from dualslm.pocket import LLM


def embedding_only(name: str, *, revision: str | None, dtype: torch.dtype, device: str) -> FrozenLM:
    """An LLM of which only the tokenizer and the input embeddings are here; it can embed, and nothing more.

    Args:
        name: hub id or folder.
        revision: of the hub.
        dtype: of the embeddings.
        device: where they lie.

    Raises:
        DualSLMError: nothing there, or no table in it.
    """
    if name == LLM or name.endswith(".gguf"):
        do = "serve without --vllm, or name the LLM's folder with safetensors weights by --llm"
        raise DualSLMError("the token embeddings of a GGUF file are not read alone", got=name, do=do)
    try:
        wanted = ["*.json", "*.jinja", "*.model", "*.safetensors"]
        there = Path(name).is_dir()
        folder = Path(name if there else snapshot_download(name, revision=revision, allow_patterns=wanted))
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with torch.device("meta"):
            shell = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (OSError, ValueError) as error:
        got = str(error).strip().splitlines()[0]
        raise DualSLMError(
            f"cannot load the LLM {name!r}", got=got, do="give a hub id that you can reach, or a folder"
        ) from error
    table = shell.get_input_embeddings()
    # Families name their table differently; the parameter itself tells its key in the file.
    key = next(key for key, value in shell.named_parameters() if value is table.weight)
    if any(True for _ in table.buffers()):  # some families scale their embeddings, by a number that is in no file
        table.to_empty(device="cpu")
        shell._init_weights(table)
    table.weight = nn.Parameter(_read(folder, key).to(device, dtype), requires_grad=False)
    table.to(device)
    return FrozenLM(shell, tokenizer, name=name, revision=revision, identity="")


def _read(folder: Path, key: str) -> Tensor:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if key in tensors.keys():  # noqa: SIM118 - not a mapping
                found: Tensor = tensors.get_tensor(key)
                return found
    raise DualSLMError("the LLM's token embeddings are missing", got=f"no {key} in {folder}", do="use whole weights")
