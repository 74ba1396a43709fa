"""Captured steps: the same tokens and the same cache as without capturing, and a graph without a break."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.factory import FAMILIES, save_llm
from torch import Tensor

from dualslm.errors import DualSLMError
from dualslm.model import cuda_graphs
from dualslm.model.cuda_graphs import GraphDecoder
from dualslm.model.dualslm import DualSLM
from dualslm.model.generation import GenerationSettings
from dualslm.model.llm import FrozenLM, Prefilled
from dualslm.tiny import ADAPTERS, CLIPS, load
from dualslm.tiny.world import LISTEN

HOW = GenerationSettings(max_new_tokens=12)


def prompts(model: FrozenLM, *lengths: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [model.embed(torch.randint(10, 300, (length,), generator=rng)) for length in lengths]


def decoded(model: FrozenLM, *lengths: int) -> tuple[list[list[int | None]], Prefilled]:
    read = model.prefill(prompts(model, *lengths))
    return list(model.decode(read, HOW)), read


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FrozenLM:
    made = FrozenLM.from_pretrained(str(save_llm(tmp_path_factory.mktemp("llm"), request.param)))
    if not made.keeps_every_position:
        with pytest.raises(DualSLMError, match="cannot be CUDA graphs"):
            made.enable_cuda_graphs()
        pytest.skip("a sliding window")
    made.stops = frozenset()  # go on to the end
    return made


@pytest.mark.parametrize("lengths", [(9,), (9, 5, 14)])
def test_captured_decoding_is_plain_decoding(model: FrozenLM, lengths: tuple[int, ...]) -> None:
    model.graph_decoder = None
    plain, one = decoded(model, *lengths)
    model.enable_cuda_graphs()
    decoded(model, *(length + 3 for length in lengths))  # leaves its keys in the static cache
    again, two = decoded(model, *lengths)
    assert again == plain
    for left, right in zip(one.cache.layers, two.cache.layers, strict=True):
        assert left.keys.shape[-2] == max(lengths) + HOW.max_new_tokens - 1
        torch.testing.assert_close(left.keys, right.keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(left.values, right.values, atol=1e-5, rtol=1e-5)


def test_a_reply_that_is_cut_short_and_two_at_once_keep_apart(model: FrozenLM) -> None:
    model.graph_decoder = None
    plain, _ = decoded(model, 9)
    model.enable_cuda_graphs()
    one, two = (model.decode(model.prefill(prompts(model, 9)), HOW) for _ in range(2))
    assert [next(one) for _ in range(3)] == [next(two) for _ in range(3)] == plain[:3]
    one.close()
    assert list(two) == plain[3:]
    assert model.graph_decoder is not None
    assert len(model.graph_decoder.free) == 2


def test_a_long_reply_moves_to_larger_caches(model: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MIN_CACHE_TOKENS": 16, "TOKENS_AHEAD": 4, "IDLE_CACHES": 2}.items():
        monkeypatch.setattr(cuda_graphs, name, value)
    generation = GenerationSettings(max_new_tokens=80)
    model.graph_decoder = None
    plain = list(model.decode(model.prefill(prompts(model, 9, 5)), generation))
    model.enable_cuda_graphs()
    read = model.prefill(prompts(model, 9, 5))
    assert list(model.decode(read, generation)) == plain
    assert read.cache.layers[0].keys.shape[-2] == 9 + 79
    assert model.graph_decoder is not None
    assert [size for (_, size), _ in model.graph_decoder.free] == [64, 128], "more than two are not kept"


def test_the_shipped_model_answers_the_same_when_captured() -> None:
    clip = str(CLIPS / "hear_3_sad.wav")
    quick = DualSLM.from_pretrained(ADAPTERS, device="cpu", cuda_graphs=True)
    assert quick.llm.graph_decoder is not None
    assert "".join(quick.stream(clip, system=LISTEN)) == load().reply(clip, system=LISTEN)


def test_the_step_is_one_graph(tmp_path: Path) -> None:
    made = FrozenLM.from_pretrained(str(save_llm(tmp_path, "qwen2")))
    made.stops = frozenset()
    plain, _ = decoded(made, 9)
    torch._dynamo.reset()
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    made.graph_decoder = GraphDecoder(made.model, torch.compile(made.model.__call__, backend=backend, fullgraph=True))
    same, _ = decoded(made, 9)
    again, _ = decoded(made, 12)
    assert same == plain
    assert len(again) == HOW.max_new_tokens
    assert len(graphs) == 1, "every step and every talk of a cache is the same graph"
