"""llama.cpp in the place of PyTorch: the same logits from the same embeddings, and the same replies in company."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
import torch
from support.factory import prompt_of, save_llm
from support.ggufkit import as_gguf

from dualslm import tiny
from dualslm.errors import DualSLMError
from dualslm.inference.continuous_batch import ContinuousBatch, RequestBatch
from dualslm.inference.llama_cpp import LlamaCppBatch
from dualslm.inference.local import LocalBackend
from dualslm.model.generation import GenerationSettings
from dualslm.model.gguf import local_file
from dualslm.model.inputs import PromptEmbeds
from dualslm.model.llm import FrozenLM

pytest.importorskip("llama_cpp", reason="pip install 'dualslm[llama-cpp]'")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> FrozenLM:
    return FrozenLM.from_pretrained(str(save_llm(tmp_path_factory.mktemp("llm"), "qwen2")))


@pytest.fixture(scope="module")
def file(llm: FrozenLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_gguf(llm, tmp_path_factory.mktemp("gguf") / "small.gguf")


@pytest.fixture
def batch(llm: FrozenLM, file: Path) -> LlamaCppBatch:
    return LlamaCppBatch(llm, file, context=400, size=3)


def prompts(llm: FrozenLM, lengths: list[int]) -> list[PromptEmbeds]:
    """Prompts of any tokens, the first ten of which they share."""
    draw = torch.Generator().manual_seed(0)
    return [
        prompt_of(llm, [*range(20, 30), *torch.randint(10, 300, (length,), generator=draw).tolist()])
        for length in lengths
    ]


def replies(batch: RequestBatch, asked: list[tuple[PromptEmbeds, GenerationSettings]]) -> list[list[int]]:
    """Replies to all; one joins at every second step where there is room."""
    waiting = list(enumerate(asked))
    places: dict[int, int] = {}
    said: list[list[int]] = [[] for _ in asked]
    for step in range(10_000):
        if waiting and len(batch.requests) < batch.size and step % 2 == 0:
            place, (prompt, generation) = waiting.pop(0)
            places[id(batch.join(prompt, generation))] = place
        for request, token in batch.step():
            if token is not None:
                said[places[id(request)]].append(token)
        if not waiting and not batch.requests:
            return said
    raise AssertionError("it never ends")


def test_embeddings_and_tokens_give_the_logits_of_pytorch(llm: FrozenLM, batch: LlamaCppBatch) -> None:
    (prompt,) = prompts(llm, [300])  # more than one chunk
    soft = PromptEmbeds(
        prompt.embeds_TD + 0.01, [*prompt.keys[:-1], ("para", "soft", 0)], prompt.labels_T
    )  # embeddings of no token
    here, there = ContinuousBatch(llm, 1), batch
    a, b = (one.join(soft, GenerationSettings(6)) for one in (here, there))
    torch.testing.assert_close(b.logits_V, a.logits_V, atol=1e-2, rtol=0)  # it keeps keys and values in 16 bits
    for _ in range(4):
        assert here.step()[0][1] == there.step()[0][1]
        torch.testing.assert_close(b.logits_V, a.logits_V, atol=1e-2, rtol=0)


def test_replies_in_company_are_those_of_pytorch(llm: FrozenLM, batch: LlamaCppBatch) -> None:
    hows = [
        GenerationSettings(24),
        GenerationSettings(5),
        GenerationSettings(24, repetition_penalty=1.5),
        GenerationSettings(24, temperature=1.0, seed=3),
        GenerationSettings(1),
    ]
    asked = list(zip(prompts(llm, [3, 40, 12, 25, 1]), hows, strict=True))
    want = replies(ContinuousBatch(llm, 3), asked)
    assert replies(batch, asked) == want
    assert batch.kept_positions > 0
    assert replies(batch, asked) == want, "what was read before changes nothing"


def test_what_was_read_is_reused_within_one_salt(llm: FrozenLM, batch: LlamaCppBatch) -> None:
    first, other = prompts(llm, [30, 40])

    def read(prompt: PromptEmbeds, **how: object) -> int:
        changed = PromptEmbeds(prompt.embeds_TD, prompt.keys, prompt.labels_T, **how)  # type: ignore[arg-type]
        request = batch.join(changed, GenerationSettings(2))
        batch.leave(request)
        return request.reused

    assert read(first) == 0
    assert read(first) == len(first.keys) - 1  # the last position gives the logits
    assert read(other) == 10
    assert read(first, salt="another key") == 0
    assert read(first, salt="another key", reuse=False) == 0
    batch.clear()
    assert batch.kept_positions == 0
    assert read(first) == 0


def test_a_cache_that_cannot_be_cut_is_read_anew(
    llm: FrozenLM, batch: LlamaCppBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = prompts(llm, [30, 40])
    want = replies(ContinuousBatch(llm, 1), [(other, GenerationSettings(8))])
    batch.size = 1  # so that there is no empty sequence to take
    batch.leave(batch.join(first, GenerationSettings(2)))
    cut = batch._cpp.llama_memory_seq_rm
    # as caches of some LLMs refuse it: all or nothing
    monkeypatch.setattr(
        batch._cpp, "llama_memory_seq_rm", lambda memory, one, start, end: start < 1 and cut(memory, one, start, end)
    )
    assert replies(batch, [(other, GenerationSettings(8))]) == want
    request = batch.join(first, GenerationSettings(2))
    assert request.reused == 0


def test_a_request_that_leaves_makes_room_at_once(llm: FrozenLM, batch: LlamaCppBatch) -> None:
    requests = [batch.join(prompt, GenerationSettings(50)) for prompt in prompts(llm, [5, 6, 7])]
    batch.step()
    batch.leave(requests[1])
    batch.leave(requests[1])  # twice is once
    batch.join(prompts(llm, [8])[0], GenerationSettings(50))
    assert [len(drawn) for drawn in (batch.step(), batch.step())] == [3, 3]


def test_what_cannot_be_run_is_one_line(llm: FrozenLM, file: Path, tmp_path: Path, batch: LlamaCppBatch) -> None:
    with pytest.raises(DualSLMError, match=r"llama\.cpp has 400 positions"):
        batch.join(prompts(llm, [395])[0], GenerationSettings(5))
    (broken := tmp_path / "broken.gguf").write_bytes(b"GGUF and no more")
    with pytest.raises(DualSLMError, match="cannot read this GGUF file"):
        LlamaCppBatch(llm, broken)
    with pytest.raises(DualSLMError, match="LLM is 192 wide: got a GGUF file of 32"):
        LlamaCppBatch(tiny.load().llm, file)
    with pytest.raises(DualSLMError, match="GGUF files alone"):
        LlamaCppBatch.of(llm, context=400)
    with pytest.raises(DualSLMError, match="GGUF files alone"):
        local_file("Qwen/Qwen2.5-0.5B-Instruct")
    assert local_file(str(file)) == file


def test_it_is_named_where_it_is_not_installed(llm: FrozenLM, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(DualSLMError, match=r"dualslm\[llama-cpp\]"):
        LlamaCppBatch(llm, file)


def test_a_server_streams_what_it_draws(llm: FrozenLM, batch: LlamaCppBatch) -> None:
    (prompt,) = prompts(llm, [12])

    async def text(backend: LocalBackend) -> str:
        pieces = [piece async for piece in backend.stream(prompt, GenerationSettings(16))]
        await backend.close()
        assert pieces[-1].reason is not None
        return "".join(piece.text for piece in pieces)

    llama = LocalBackend(llm, batch=batch)
    assert llama.context == 400
    assert asyncio.run(text(llama)) == asyncio.run(text(LocalBackend(llm)))
