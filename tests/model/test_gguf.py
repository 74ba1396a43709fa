"""A frozen LLM in a GGUF file is the same LLM as in safetensors."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from support.factory import save_encoder, save_llm
from support.ggufkit import as_gguf

from dualslm import DualSLM
from dualslm.errors import DualSLMError
from dualslm.model.embedding_only import embedding_only
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


def test_the_token_embeddings_of_a_gguf_file_are_read_alone(tmp_path: Path) -> None:
    whole = FrozenLM.from_pretrained(str(save_llm(tmp_path / "llm", "qwen2")))
    file = as_gguf(whole, tmp_path / "small.gguf")
    alone = embedding_only(str(file), revision=None, dtype=torch.float32, device="cpu")
    text = "I lost my umbrella at the station."
    ids = alone.tokenizer.encode(text, add_special_tokens=False)
    assert ids == whole.tokenizer.encode(text, add_special_tokens=False)
    assert torch.equal(alone.embed(torch.tensor(ids)), whole.embed(torch.tensor(ids)))
    assert alone.stops == FrozenLM.from_pretrained(str(file)).stops
    assert alone.context == whole.context
    assert sum(not weight.is_meta for weight in alone.parameters()) == 1


def test_a_gguf_file_of_other_values_is_refused_wherever_it_runs(tmp_path: Path) -> None:
    whole = FrozenLM.from_pretrained(str(save_llm(tmp_path / "llm", "qwen2")))
    file = as_gguf(whole, tmp_path / "small.gguf")
    parts = DualSLM.from_parts(str(save_encoder(tmp_path / "encoder")), str(file), linguistic={"hidden": 16})
    saved = parts.save_pretrained(tmp_path / "adapters")
    DualSLM.from_pretrained(saved, load_llm=False, device="cpu")
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1  # in a layer, which nothing here reads
    file.write_bytes(data)
    with pytest.raises(DualSLMError, match="is not the LLM that these adapters were trained with"):
        DualSLM.from_pretrained(saved, load_llm=False, device="cpu")


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
    for load in (FrozenLM.from_pretrained, partial(embedding_only, revision=None, dtype=torch.float32, device="cpu")):
        with pytest.raises(DualSLMError, match="cannot load the LLM") as told:
            load(str(file))
        assert "\n" not in str(told.value)
