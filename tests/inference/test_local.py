"""The thread that owns the LLM: what fails ends the talks of the batch, and the next ones are answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace

import pytest
from support.factory import prompt_of, save_llm

from dualslm.inference import local
from dualslm.inference.backend import UnavailableError
from dualslm.inference.continuous_batch import ActiveRequest, ContinuousBatch
from dualslm.inference.local import LocalBackend
from dualslm.model.generation import GenerationSettings
from dualslm.model.inputs import PromptEmbeds
from dualslm.model.llm import FrozenLM


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> FrozenLM:
    made = FrozenLM.from_pretrained(str(save_llm(tmp_path_factory.mktemp("llm"), "qwen2")))
    made.stops = frozenset()  # go on to the end
    return made


async def reply(backend: LocalBackend, length: int, generation: GenerationSettings) -> int:
    ids = list(range(20, 20 + length))
    pieces = [piece async for piece in backend.stream(prompt_of(backend.llm, ids), generation)]
    return pieces[-1].tokens


def test_a_request_for_the_coldest_draw_disturbs_nobody(llm: FrozenLM) -> None:
    async def both(backend: LocalBackend) -> list[int]:
        asked = [
            GenerationSettings(40),
            GenerationSettings(5, temperature=1e-40, seed=0),
            GenerationSettings(30, temperature=1.0),
        ]
        done = await asyncio.gather(*(reply(backend, 9 + place, generation) for place, generation in enumerate(asked)))
        await backend.close()
        return done

    assert asyncio.run(both(LocalBackend(llm, 4))) == [40, 5, 30]


def test_a_fault_while_a_talk_leaves_is_told_and_survived(llm: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [RuntimeError("CUDA out of memory")]
    keep_rows = ContinuousBatch._keep_rows

    def failing(batch: ContinuousBatch, going: Sequence[ActiveRequest]) -> None:
        if faults and len(going) < len(batch.requests):
            raise faults.pop()
        keep_rows(batch, going)

    async def conversations(backend: LocalBackend) -> int:
        stays = backend.stream(prompt_of(llm, [30, 31, 32]), GenerationSettings(100_000))
        await anext(stays)
        async with aclosing(backend.stream(prompt_of(llm, [20, 21]), GenerationSettings(500))) as left:
            await anext(left)
        with pytest.raises(UnavailableError, match="out of memory"):
            async for _ in stays:
                pass
        after = await asyncio.wait_for(reply(backend, 9, GenerationSettings(6)), 30)
        await backend.close()
        return after

    monkeypatch.setattr(ContinuousBatch, "_keep_rows", failing)
    assert asyncio.run(conversations(LocalBackend(llm, 4))) == 6


def joins_and_steps(monkeypatch: pytest.MonkeyPatch, pause: float = 0) -> list[str]:
    """A list that grows with every join, which takes `pause` s longer than it would, and every step of a batch."""
    order: list[str] = []
    join, step = ContinuousBatch.join, ContinuousBatch.step

    def noted_join(batch: ContinuousBatch, prompt: PromptEmbeds, generation: GenerationSettings) -> ActiveRequest:
        order.append("join")
        time.sleep(pause)
        return join(batch, prompt, generation)

    def noted_step(batch: ContinuousBatch) -> list[tuple[ActiveRequest, int | None]]:
        order.append("step")
        return step(batch)

    monkeypatch.setattr(ContinuousBatch, "join", noted_join)
    monkeypatch.setattr(ContinuousBatch, "step", noted_step)
    return order


async def together(backend: LocalBackend, lengths: Iterable[int]) -> None:
    """Replies to prompts of some lengths, asked at once."""
    await asyncio.gather(*(reply(backend, length, GenerationSettings(6)) for length in lengths))
    await backend.close()


def test_long_prompts_are_read_between_the_tokens_of_others(llm: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    order = joins_and_steps(monkeypatch)
    monkeypatch.setattr(local, "JOIN_POSITIONS", 10)
    asyncio.run(together(LocalBackend(llm, 8), range(30, 36)))
    assert order.count("join") == 6
    assert "join join" not in " ".join(order)


def test_slow_prompts_are_read_between_the_tokens_of_others(llm: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    order = joins_and_steps(monkeypatch, pause=0.02)  # as on a machine that others use too
    monkeypatch.setattr(local, "JOIN_S", 0.01)
    asyncio.run(together(LocalBackend(llm, 8), [5] * 6))
    assert order.count("join") == 6
    assert "join join" not in " ".join(order)


def test_the_prompts_of_one_client_hold_up_no_other(llm: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    join = ContinuousBatch.join

    def noted_join(batch: ContinuousBatch, prompt: PromptEmbeds, generation: GenerationSettings) -> ActiveRequest:
        order.append(prompt.client)
        return join(batch, prompt, generation)

    monkeypatch.setattr(ContinuousBatch, "join", noted_join)
    monkeypatch.setattr(local, "JOIN_POSITIONS", 1)

    async def ask(backend: LocalBackend, client: str) -> None:
        prompt = replace(prompt_of(llm, list(range(20, 40))), client=client)
        async for _ in backend.stream(prompt, GenerationSettings(30)):
            pass

    async def together(backend: LocalBackend) -> None:
        await asyncio.gather(*(ask(backend, client) for client in [*"aaaaaaaa", "b"]))
        await backend.close()

    asyncio.run(together(LocalBackend(llm, 16)))
    assert len(order) == 9
    assert "b" in order[:3], "whose only prompt came last"
