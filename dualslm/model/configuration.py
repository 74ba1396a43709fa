"""The configuration in a model's folder, read so that nothing in the folder is executed.

Code beside the weights is never run (`trust_remote_code=False`, at every call of transformers), nor is anybody asked
whether it may be. A configuration may also name a way of computing attention or experts that transformers would
download from the hub as compiled code: only names that are part of transformers itself are taken from it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from dualslm.files import read_json, read_text

log = logging.getLogger("dualslm")

MAX_LAYERS = 1000  # the deepest LLMs have some 130
OWN_IMPLEMENTATIONS = {
    "_attn_implementation": ("eager", "sdpa", "flex_attention"),
    "_experts_implementation": ("eager", "batched_mm", "grouped_mm"),
}


def read_config(name: str, revision: str | None) -> Any:
    """The transformers configuration of a hub id or folder.

    Raises:
        OSError: nothing there.
        ValueError: nothing that transformers knows, without code of its own, or a damaged file beside it.
    """
    if os.path.isfile(name):  # of transformers some would read it as a configuration, and as weights in a pickle
        raise ValueError("a file, and not a folder")
    if os.path.isdir(name):
        _check_beside(Path(name))
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    for part in _with_parts(config):
        for field, value in part.to_dict().items():
            if "layers" in field and isinstance(value, int) and value > MAX_LAYERS:
                # Each is built, before a weight is looked for: a billion of them would fill the memory.
                raise ValueError(f"{value} as {field}")
        for field, own in OWN_IMPLEMENTATIONS.items():
            asked = getattr(part, field, None)
            if asked is not None and asked not in own:
                log.warning("%s asks for %s, which is no part of transformers: its own choice is taken", name, asked)
                setattr(part, field, None)
    return config


def read_tokenizer(name: str | os.PathLike[str], revision: str | None = None, **options: Any) -> Any:
    """The tokenizer of a hub id, a folder or a GGUF file.

    Raises:
        ValueError: it has no words: transformers makes an empty one where a folder lacks tokenizer.json.
    """
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False, **options)
    if not set(tokenizer.get_vocab()) - set(tokenizer.get_added_vocab()):
        raise ValueError("a tokenizer without words: is tokenizer.json missing?")
    return tokenizer


def first_line(error: Exception) -> str:
    """The first line of an error; of one about code in a model's folder, what it means here."""
    text = str(error).strip()
    if "trust_remote_code" in text:
        return "code of its own in the model's folder, which is never run"
    return (text or type(error).__name__).splitlines()[0]


def _check_beside(folder: Path) -> None:
    """Refuses what transformers passes over in silence: the LLM would go on after its reply's end, or hear no turns."""
    do = "copy or download the folder again"
    settings = folder / "generation_config.json"
    if settings.exists():
        found = read_json(settings, "the settings of generation", do)
        if not isinstance(found, dict):
            raise ValueError(f"{settings.name} without settings")
        stops = found.get("eos_token_id", 0)
        if not all(type(stop) is int for stop in (stops if isinstance(stops, list) else [stops or 0])):
            raise ValueError(f"{stops!r:.80} as eos_token_id in {settings.name}")
    template = folder / "chat_template.jinja"
    if template.exists() and not read_text(template, "the chat template", do).strip():
        raise ValueError(f"an empty {template.name}")


def _with_parts(config: Any) -> Iterator[Any]:
    yield config
    for name in getattr(config, "sub_configs", {}):
        if (part := getattr(config, name, None)) is not None:
            yield from _with_parts(part)
