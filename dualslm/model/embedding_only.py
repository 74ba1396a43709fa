"""An LLM of which no more is here than its tokenizer and its token embeddings: it answers elsewhere (ours).

The table is read alone from the safetensors or GGUF file; every other weight stays on the meta device.
"""

from __future__ import annotations

from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from dualslm.errors import DualSLMError
from dualslm.model.configuration import first_line, read_config, read_tokenizer
from dualslm.model.frozen_files import tensors_in
from dualslm.model.gguf import local_file, source_of
from dualslm.model.llm import FrozenLM
from dualslm.model.llm_probe import DO

GGUF_TABLE = "token_embd.weight"  # its name in every GGUF file


def embedding_only(name: str, *, revision: str | None, dtype: torch.dtype, device: str) -> FrozenLM:
    """An LLM of which only the tokenizer and the input embeddings are here; it can embed, and nothing more.

    Args:
        name: hub id, folder or GGUF file.
        revision: of the hub.
        dtype: of the embeddings.
        device: where they lie.

    Raises:
        DualSLMError: nothing there, no table in it, or an LLM that reads more than embeddings.
    """
    source = source_of(name)
    try:
        if source.gguf_file:
            file = local_file(name, revision)
            config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
            tokenizer = read_tokenizer(file.parent, gguf_file=file.name)
        else:
            wanted = ["*.json", "*.jinja", "*.model", "*.safetensors"]
            there = Path(name).is_dir()
            file = Path(name if there else snapshot_download(name, revision=revision, allow_patterns=wanted))
            config = read_config(str(file), None)
            tokenizer = read_tokenizer(file)
        with torch.device("meta"):
            shell = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except Exception as error:  # transformers reads whatever is in the folder, and fails at it in its own ways
        do = "give a hub id that you can reach, a folder or a GGUF file"
        raise DualSLMError(f"cannot load the LLM {name!r}", got=first_line(error), do=do) from error
    # It cannot be tried, because its layers are not here. What can be told from its configuration is.
    if getattr(config.get_text_config(), "hidden_size_per_layer_input", None):
        wrong = f"an LLM of type {config.model_type!r} looks token ids up in every layer, and P and L have none"
        raise DualSLMError(wrong, got=name, do=DO)
    table = shell.get_input_embeddings()
    # Families name their table differently; the parameter itself tells its key in the file.
    key = next(key for key, value in shell.named_parameters() if value is table.weight)
    if any(True for _ in table.buffers()):  # some families scale their embeddings, by a number that is in no file
        table.to_empty(device="cpu")
        shell._init_weights(table)
    values = _of_gguf(file) if source.gguf_file else _of_folder(file, key)
    if values.shape != table.weight.shape:
        got = f"{tuple(values.shape)}, not {tuple(table.weight.shape)}"
        raise DualSLMError(f"the token embeddings of {name} do not fit", got=got, do="use whole weights")
    table.weight = nn.Parameter(values.to(device, dtype), requires_grad=False)
    table.to(device)
    return FrozenLM(shell, tokenizer, name=name, revision=revision, identity="")


def _of_folder(folder: Path, key: str) -> Tensor:
    for file in sorted(folder.glob("*.safetensors")):
        with tensors_in(file) as tensors:
            if key in tensors.keys():  # noqa: SIM118 - not a mapping
                found: Tensor = tensors.get_tensor(key)
                return found
    raise DualSLMError("the LLM's token embeddings are missing", got=f"no {key} in {folder}", do="use whole weights")


def _of_gguf(file: Path) -> Tensor:
    """The file is mapped into memory: only the table is read, and turned into numbers as transformers does."""
    import gguf

    for tensor in gguf.GGUFReader(file).tensors:
        if tensor.name == GGUF_TABLE:
            return torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
    raise DualSLMError(
        "the LLM's token embeddings are missing", got=f"no {GGUF_TABLE} in {file}", do="use whole weights"
    )
