"""No client holds up another: in the queue, in threads, in memory, at the encoder."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from dualslm.serve.caller import CALLER, Caller, HeldBytes, client_name
from dualslm.serve.errors import RefusedError
from dualslm.serve.fairness import FairThreads, Queue
from dualslm.serve.limits import Limits


async def as_client(name: str, work: Callable[[], Awaitable[Any]]) -> Any:
    """Work on behalf of a client; a task of its own, so that the context variable is too."""

    async def run() -> Any:
        CALLER.set(Caller(name))
        return await work()

    return await asyncio.create_task(run())


def test_a_free_place_goes_to_the_client_that_has_fewest() -> None:
    async def main() -> list[str]:
        queue = Queue(Limits(running=2, waiting=20))
        order: list[str] = []

        async def ask(client: str) -> None:
            async def work() -> None:
                async with queue.admit():
                    order.append(client)
                    await asyncio.sleep(0.01)

            await as_client(client, work)

        await asyncio.gather(*[ask("greedy") for _ in range(10)], ask("modest"))
        assert (queue.running, queue.waiting) == (0, 0)
        return order

    assert "modest" in asyncio.run(main())[:4]  # and not the last of eleven


def test_one_client_leaves_places_to_others() -> None:
    async def main() -> None:
        queue = Queue(Limits(running=8, waiting=20))
        async with AsyncExitStack() as held:

            async def hold() -> None:
                await held.enter_async_context(queue.admit())

            taken = [asyncio.create_task(as_client("greedy", hold)) for _ in range(12)]
            await asyncio.sleep(0.05)
            assert (queue.running, queue.waiting) == (7, 5)
            await asyncio.wait_for(as_client("modest", hold), 1)
            for task in taken:
                task.cancel()
            await asyncio.gather(*taken, return_exceptions=True)
        assert queue.running == 0

    asyncio.run(main())


def test_a_full_queue_refuses_whoever_has_most_in_it() -> None:
    async def main() -> None:
        queue = Queue(Limits(running=1, waiting=3))
        refused: list[str] = []
        over = asyncio.Event()

        async def ask(client: str) -> None:
            async def work() -> None:
                try:
                    async with queue.admit():
                        await over.wait()
                except RefusedError as error:
                    refused.append(f"{client} {error.status}")

            await as_client(client, work)

        tasks = [asyncio.create_task(ask("greedy")) for _ in range(4)]
        await asyncio.sleep(0.01)
        tasks.append(asyncio.create_task(ask("modest")))
        await asyncio.sleep(0.01)
        assert refused == ["greedy 429"]
        over.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_a_client_that_leaves_the_queue_takes_no_place() -> None:
    async def main() -> None:
        queue = Queue(Limits(running=1, waiting=5))
        async with queue.admit():
            waiting = [asyncio.create_task(queue.admit().__aenter__()) for _ in range(3)]
            await asyncio.sleep(0.01)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            assert (queue.running, queue.waiting) == (1, 0)
        async with asyncio.timeout(1), queue.admit():
            assert queue.running == 1

    asyncio.run(main())


def test_threads_are_shared_by_client_and_not_by_order() -> None:
    async def main() -> list[str]:
        threads = FairThreads(1, "test")
        order: list[str] = []

        async def ask(client: str) -> None:
            def work() -> None:
                order.append(client)
                time.sleep(0.01)

            await as_client(client, lambda: threads.run(work))

        await asyncio.gather(*[ask("greedy") for _ in range(10)], ask("modest"))
        threads.close()
        return order

    assert "modest" in asyncio.run(main())[:3]


def test_one_thread_is_left_to_others() -> None:
    async def main() -> None:
        threads = FairThreads(3, "test")
        over = threading.Event()
        busy = [asyncio.create_task(as_client("greedy", lambda: threads.run(over.wait, 30))) for _ in range(6)]
        await asyncio.sleep(0.05)
        assert await asyncio.wait_for(as_client("modest", lambda: threads.run(lambda: 7)), 5) == 7
        over.set()
        await asyncio.gather(*busy)
        threads.close()

    asyncio.run(main())


def test_work_that_nobody_waits_for_is_not_begun() -> None:
    async def main() -> None:
        threads = FairThreads(1, "test")
        over = threading.Event()
        done: list[int] = []
        first = asyncio.create_task(threads.run(over.wait, 30))
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(threads.run(done.append, number)) for number in range(5)]
        await asyncio.sleep(0.01)
        for other in others[:4]:
            other.cancel()
        over.set()
        await asyncio.gather(first, *others, return_exceptions=True)
        assert done == [4]
        threads.close()

    asyncio.run(main())


def test_memory_is_shared_and_given_back() -> None:
    memory = HeldBytes(100)
    greedy = Caller("greedy", memory=memory)
    greedy.take(50)
    with pytest.raises(RefusedError) as caught:
        greedy.take(1)
    assert (caught.value.status, caught.value.retry_after) == (503, 1)
    modest = Caller("modest", memory=memory)
    modest.take(50)
    for one in (greedy, modest):
        one.end()
    assert not memory.held
    with pytest.raises(RefusedError):  # by a thread that still works for it: nobody would give it back
        greedy.take(50)
    assert not memory.held


def test_a_block_of_ipv6_is_one_client() -> None:
    assert client_name("2001:db8::1", "") == client_name("2001:db8::ffff", "")
    assert client_name("2001:db8::1", "") != client_name("2001:db8:0:1::1", "")
    assert client_name("10.0.0.1", "") != client_name("10.0.0.2", "")
    assert client_name("10.0.0.1", "a") != client_name("10.0.0.1", "b")
