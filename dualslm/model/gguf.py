"""Frozen LLMs in GGUF files, as llama.cpp and its kind use them: read by transformers, which dequantizes them (ours).

A name is `org/repo:file.gguf` on the hub, the path of a local file, or `pocket:llm`. The LLM then runs on the file's
own values in the trunk's dtype, so its fingerprint is that of the file's tensors.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

from transformers.utils.hub import cached_file

from dualslm.errors import DualSLMError
from dualslm.pocket import LLM
from dualslm.pocket.parts import resolve


class Source(NamedTuple):
    """Where transformers finds a model.

    Attributes:
        name: hub id or folder.
        gguf_file: the file in it; None for a model in safetensors.
    """

    name: str
    gguf_file: str | None = None

    @property
    def options(self) -> dict[str, str]:
        """What `from_pretrained` needs besides the name."""
        return {} if self.gguf_file is None else {"gguf_file": self.gguf_file}


def local_file(name: str, revision: str | None = None) -> Path:
    """The GGUF file of a name, fetched from the hub where it is there.

    Raises:
        DualSLMError: the name is no GGUF file's, or there is none.
    """
    source = source_of(name)
    if source.gguf_file is None:
        do = "name a .gguf file by --llm, or leave out --llama-cpp"
        raise DualSLMError("llama.cpp reads GGUF files alone", got=f"the LLM {name!r}", do=do)
    return Path(str(cached_file(source.name, source.gguf_file, revision=revision)))


def source_of(name: str) -> Source:
    """Takes a name apart.

    Raises:
        DualSLMError: a local GGUF file that is not there, or the package that reads them is missing.
    """
    if not name.endswith(".gguf") and name != LLM:
        return Source(name)
    if importlib.util.find_spec("gguf") is None:
        do = "pip install 'dualslm[gguf]'"
        raise DualSLMError("a GGUF file needs one more package", got="no gguf", do=do)
    name = resolve(name)  # after the package was looked for: nothing is fetched that cannot be read
    repo, colon, file = name.rpartition(":")
    if colon and not Path(name).exists():
        return Source(repo, file)
    path = Path(name)
    if not path.is_file():
        do = "give the path of a .gguf file, or org/repo:file.gguf on the hub"
        raise DualSLMError(f"cannot find the LLM {name!r}", got="no such file", do=do)
    return Source(str(path.parent), path.name)
