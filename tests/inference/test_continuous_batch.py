"""Talks in one batch: each reply is the one it would get alone, whoever joins and leaves meanwhile."""

from __future__ import annotations

import pytest
import torch
from support.factory import prompt_of, save_llm

from dualslm.inference.continuous_batch import ActiveRequest, ContinuousBatch
from dualslm.inference.prefix_cache import MAX_ENTRIES, PrefixCache
from dualslm.model.embedding_only import embedding_only
from dualslm.model.generation import GenerationSettings
from dualslm.model.inputs import PromptEmbeds
from dualslm.model.llm import FrozenLM


@pytest.fixture(scope="module", params=["qwen2", "llama", "mistral", "gemma2", "llama captured"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FrozenLM:
    family, _, captured = request.param.partition(" ")
    made = FrozenLM.from_pretrained(str(save_llm(tmp_path_factory.mktemp("llm"), family)))
    if captured:
        made.enable_cuda_graphs()
    return made


def prompts(llm: FrozenLM, lengths: list[int]) -> list[PromptEmbeds]:
    """Prompts of any tokens, the first ten of which they share."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for length in lengths:
        ids = [*range(20, 30), *torch.randint(10, 300, (length,), generator=draw).tolist()]
        rows.append(prompt_of(llm, ids))
    return rows


def alone(llm: FrozenLM, prompt: PromptEmbeds, generation: GenerationSettings) -> list[int]:
    steps = llm.decode(llm.prefill([prompt.embeds_TD]), generation)
    return [token for (token,) in steps if token is not None]


def together(
    batch: ContinuousBatch, asked: list[tuple[PromptEmbeds, GenerationSettings]], every: int
) -> list[list[int]]:
    """Replies to all; a new talk joins every few steps where there is a seat."""
    waiting, requests, replies = list(enumerate(asked)), {}, [[] for _ in asked]  # type: ignore[var-annotated]
    for step in range(10_000):
        if waiting and len(batch.requests) < batch.size and step % every == 0:
            place, (prompt, generation) = waiting.pop(0)
            requests[batch.join(prompt, generation)] = place
        for request, token in batch.step():
            if token is not None:
                replies[requests[request]].append(token)
        if not waiting and not batch.requests:
            return replies
    raise AssertionError("it never ends")


@pytest.mark.parametrize("every", [1, 3])
def test_a_talk_in_company_gets_the_reply_it_gets_alone(llm: FrozenLM, every: int) -> None:
    rows = prompts(llm, [3, 40, 12, 25, 1, 18])
    hows = [
        GenerationSettings(24),
        GenerationSettings(5),
        GenerationSettings(24),
        GenerationSettings(24, temperature=1.0, seed=3),
        GenerationSettings(1),
        GenerationSettings(9),
    ]
    asked = list(zip(rows, hows, strict=True))
    want = [alone(llm, *one) for one in asked]
    batch = ContinuousBatch(llm, 4)
    assert batch.size == (4 if llm.keeps_every_position else 1)
    assert together(batch, asked, every) == want
    assert (batch.prefix_cache.tokens > 0) == llm.keeps_every_position
    assert together(batch, asked, every) == want, "what was read before changes nothing"


def test_logits_in_company_are_those_alone(llm: FrozenLM) -> None:
    rows = prompts(llm, [3, 40, 12])[: 3 if llm.keeps_every_position else 1]
    batch = ContinuousBatch(llm, 3)
    requests = [batch.join(row, GenerationSettings(20)) for row in rows]
    for _ in range(6):
        batch.step()
        for request, row in zip(requests, rows, strict=True):
            drawn = [key for key in request.keys[len(row.keys) :] if isinstance(key, int)]
            ids = torch.tensor(drawn, dtype=torch.long)
            again = llm.prefill([torch.cat([row.embeds_TD, llm.embed(ids)])]).logits_BV[0]
            assert torch.allclose(request.logits_V, again, atol=1e-4)


def test_steps_of_a_talk_alone_are_captured(llm: FrozenLM) -> None:
    if llm.graph_decoder is None:
        pytest.skip("nothing is to be captured")
    rows = prompts(llm, [30, 4])
    batch, generation = ContinuousBatch(llm, 2), GenerationSettings(12)
    first = batch.join(rows[0], generation)
    read = first.positions
    for _ in range(3):
        batch.step()
        assert batch._mask_BT.shape[1] == read, "what is drawn stands in the static cache"
    batch.join(rows[1], generation)
    assert batch._mask_BT.shape == (2, read + 3)
    while len(batch.requests) > 1:
        batch.step()
    (left,) = batch.requests
    batch.step()
    assert batch._mask_BT.shape[1] < left.positions + 12
    free = len(llm.graph_decoder.free)
    batch.leave(left)
    assert len(llm.graph_decoder.free) == free + 1, "the static cache is for the next talk"


def test_who_leaves_disturbs_nobody(llm: FrozenLM) -> None:
    if not llm.keeps_every_position:
        pytest.skip("one talk at a time")
    rows = prompts(llm, [30, 4, 9])
    batch, generation = ContinuousBatch(llm, 3), GenerationSettings(16)
    requests = [batch.join(row, generation) for row in rows]
    got: dict[ActiveRequest, list[int]] = {request: [] for request in requests}
    for step in range(16):
        for request, token in batch.step():
            got[request] += [] if token is None else [token]
        if step == 4:
            batch.leave(requests[0])
            batch.leave(requests[0])
    for request, row in list(zip(requests, rows, strict=True))[1:]:
        assert got[request] == alone(llm, row, generation)
    assert batch.requests == []


def test_a_talk_goes_on_from_what_was_read(llm: FrozenLM) -> None:
    if not llm.keeps_every_position:
        pytest.skip("its cache forgets")
    (row,) = prompts(llm, [30])
    batch = ContinuousBatch(llm, 2)
    (said,) = together(batch, [(row, GenerationSettings(8))], 1)
    assert row.token_ids is not None
    ids = [*row.token_ids, *said, 77, 78]
    request = batch.join(prompt_of(llm, ids), GenerationSettings(8))
    assert request.reused >= len(row.keys) + len(said) - 1


def test_the_table_alone_embeds_as_the_whole_llm(llm: FrozenLM) -> None:
    table = embedding_only(llm.name, revision=None, dtype=torch.float32, device="cpu")
    ids = torch.arange(0, 300, 7)
    assert torch.equal(table.embed(ids), llm.embed(ids))
    assert table.stops == llm.stops
    assert (
        sum(weight.numel() for weight in table.parameters() if not weight.is_meta)
        == table.input_embeddings.weight.numel()
    )


def test_a_prefix_cache_keeps_so_many_prompts_however_small() -> None:
    each = (torch.zeros(1, 1, 10, 1), torch.zeros(1, 1, 10, 1))
    cache = PrefixCache()
    for number in range(3 * MAX_ENTRIES):
        cache.keep([number] * 10, [each])
        assert cache.shared([0] * 10)[0] == 9, "what is used is not dropped"
    assert cache.tokens == 10 * MAX_ENTRIES
    assert cache.shared([MAX_ENTRIES] * 10) == (0, [])


def test_a_prefix_cache_keeps_to_its_size() -> None:
    each = (torch.zeros(1, 2, 10, 4), torch.zeros(1, 2, 10, 4))
    cache = PrefixCache(max_bytes=3 * 2 * each[0].nbytes)
    for number in range(6):
        cache.keep([number] * 10, [each])
    assert cache.tokens == 30
    assert cache.shared([5] * 10)[0] == 9, "the last position is read for its logits"
    assert cache.shared([0] * 10) == (0, [])
    cache.keep([5] * 10 + [1] * 5, [(torch.zeros(1, 2, 15, 4),) * 2])
    assert cache.shared([5] * 10 + [1] * 9)[0] == 15
    before = cache.tokens
    cache.keep([5] * 12, [(torch.zeros(1, 2, 12, 4),) * 2])
    cache.keep([5] * 10 + [1] * 2, [(torch.zeros(1, 2, 12, 4),) * 2])
    assert cache.tokens <= before + 12, "what is known with what followed is not kept again"
