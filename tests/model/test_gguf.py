"""A frozen LLM in a GGUF file is the same LLM as in safetensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.factory import save_llm
from support.ggufkit import as_gguf

from dualslm.errors import DualSLMError
from dualslm.model.fingerprint import fingerprint
from dualslm.model.gguf import source_of
from dualslm.model.llm import FrozenLM


def test_a_gguf_file_is_the_same_llm(tmp_path: Path) -> None:
    whole = FrozenLM.from_pretrained(str(save_llm(tmp_path / "llm", "qwen2")))
    file = as_gguf(whole, tmp_path / "small.gguf")
    read = FrozenLM.from_pretrained(str(file))
    assert fingerprint(read) == fingerprint(whole)
    text = "I lost my umbrella at the station."
    ids = whole.tokenizer.encode(text, add_special_tokens=False)
    assert read.tokenizer.encode(text, add_special_tokens=False) == ids
    embeds_TD = whole.embed(torch.tensor(ids))
    torch.testing.assert_close(read.prefill([embeds_TD]).logits_BV, whole.prefill([embeds_TD]).logits_BV)
    assert read.stops >= {whole.tokenizer.eos_token_id}


def test_names_of_gguf_files(tmp_path: Path) -> None:
    assert source_of("Qwen/Qwen2.5-7B-Instruct") == ("Qwen/Qwen2.5-7B-Instruct", None)
    assert source_of("org/repo:small.Q4_1.gguf") == ("org/repo", "small.Q4_1.gguf")
    (tmp_path / "small.gguf").write_bytes(b"")
    assert source_of(str(tmp_path / "small.gguf")) == (str(tmp_path), "small.gguf")
    with pytest.raises(DualSLMError, match="cannot find the LLM"):
        source_of(str(tmp_path / "missing.gguf"))


def test_a_broken_gguf_file_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF and no more")
    with pytest.raises(DualSLMError, match="cannot load the LLM") as told:
        FrozenLM.from_pretrained(str(file))
    assert "\n" not in str(told.value)
