"""The thread that owns the LLM: what fails ends the talks of the batch, and the next ones are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import pytest
import torch
from support.factory import save_llm

from dualslm.inference.audio_cache import Marked
from dualslm.inference.backend import UnavailableError
from dualslm.inference.continuous_batch import Batch, Seat
from dualslm.inference.local import InProcess
from dualslm.model.generation import Decoding
from dualslm.model.llm import FrozenLM


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> FrozenLM:
    made = FrozenLM.from_pretrained(str(save_llm(tmp_path_factory.mktemp("llm"), "qwen2")))
    made.stops = frozenset()  # go on to the end
    return made


async def reply(backend: InProcess, length: int, how: Decoding) -> int:
    ids = list(range(20, 20 + length))
    pieces = [piece async for piece in backend.stream(Marked(backend.llm.embed(torch.tensor(ids)), ids), how)]
    return pieces[-1].tokens


def test_a_request_for_the_coldest_draw_disturbs_nobody(llm: FrozenLM) -> None:
    async def both(backend: InProcess) -> list[int]:
        asked = [Decoding(40), Decoding(5, temperature=1e-40, seed=0), Decoding(30, temperature=1.0)]
        done = await asyncio.gather(*(reply(backend, 9 + place, how) for place, how in enumerate(asked)))
        await backend.close()
        return done

    assert asyncio.run(both(InProcess(llm, 4))) == [40, 5, 30]


def test_a_fault_while_a_talk_leaves_is_told_and_survived(llm: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [RuntimeError("CUDA out of memory")]
    keep_only = Batch._keep_only

    def failing(batch: Batch, going: Sequence[Seat]) -> None:
        if faults and len(going) < len(batch.seats):
            raise faults.pop()
        keep_only(batch, going)

    async def talks(backend: InProcess) -> int:
        stays = backend.stream(Marked(llm.embed(torch.tensor([30, 31, 32])), [30, 31, 32]), Decoding(100_000))
        await anext(stays)
        async with aclosing(backend.stream(Marked(llm.embed(torch.tensor([20, 21])), [20, 21]), Decoding(500))) as left:
            await anext(left)
        with pytest.raises(UnavailableError, match="out of memory"):
            async for _ in stays:
                pass
        after = await asyncio.wait_for(reply(backend, 9, Decoding(6)), 30)
        await backend.close()
        return after

    monkeypatch.setattr(Batch, "_keep_only", failing)
    assert asyncio.run(talks(InProcess(llm, 4))) == 6
