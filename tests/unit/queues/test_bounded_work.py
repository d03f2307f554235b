"""However many messages there are, no script holds Redis for long.

Time on a busy machine says little, so these tests take the processor time of Redis, and count the
work as well: the commands that one script runs, from Redis' own statistics, must not grow with the
queue. `python -m bench.queue_million` has the times for a million.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import redis

from distsync_node.queues import limits
from distsync_node.queues.store import QueueStore
from distsync_node.queues.types import NewMessage, Order, PurgeTarget, QueueConfigChange
from queue_harness import Clock, open_store
from redis_server import RedisServer

MANY = 50_000  # 25 times what one script may do
QUEUE = "many"
MOST_COMMANDS = 20 * limits.MAX_BATCH
MOST_MEAN_CPU_MS = 20.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    directory = Path(tmp_path_factory.mktemp("many"))
    with RedisServer(directory, options={"appendonly": "no"}) as server:
        yield server


async def fill(store: QueueStore, **fields: int) -> None:
    batch = [NewMessage(body=b"x" * 20, **fields)] * 100  # type: ignore[arg-type]
    for _ in range(MANY // 2_000):
        await asyncio.gather(*[store.push(QUEUE, batch) for _ in range(20)])


def cpu_ms(client: redis.Redis) -> float:
    used = client.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"]) * 1e3


async def check(client: redis.Redis, work: Callable[[], Awaitable[object]]) -> None:
    """Do it and fail if it held Redis for long."""
    client.config_resetstat()
    before_ms = cpu_ms(client)
    await work()
    took_ms = cpu_ms(client) - before_ms
    stats = client.info("commandstats")
    scripts = stats.pop("cmdstat_evalsha")
    inside = sum(one["calls"] for one in stats.values())
    assert inside / scripts["calls"] <= MOST_COMMANDS
    assert took_ms / scripts["calls"] <= MOST_MEAN_CPU_MS


async def test_pages_of_many(server: RedisServer) -> None:
    client = server.client()
    clock = Clock(client)
    store = await open_store(server)
    await fill(store)

    async def few_times() -> None:
        for _ in range(20):
            await store.peek(QUEUE, count=100)
            await store.stats(QUEUE)
            await store.push(QUEUE, [NewMessage(body=b"x")])

    async def bury() -> None:
        while (popped := await store.pop(QUEUE, count=100)).messages:
            await store.nack(QUEUE, [one.receipt for one in popped.messages], dead=True)

    async def read() -> None:
        cursor: str | None = ""
        while cursor is not None:
            cursor = (await store.list_page(QUEUE, Order.DEAD, cursor=cursor)).cursor

    async def sweep() -> None:
        while (await store.sweep(QUEUE)).more:
            pass

    await check(client, few_times)
    await check(client, bury)
    await check(client, read)  # all died in the same millisecond
    await check(client, lambda: store.redrive(QUEUE))
    await store.configure(QUEUE, QueueConfigChange(max_deliveries=1))
    while (await store.pop(QUEUE, count=100, visibility_ms=10)).messages:
        pass
    clock.advance(10)
    await check(client, sweep)  # each of them becomes a dead letter
    assert (await store.stats(QUEUE)).dead == MANY + 20
    await check(client, lambda: store.purge(QUEUE, PurgeTarget.DEAD))
    await store.close()


async def test_many_that_expired_hold_up_no_pop(server: RedisServer) -> None:
    client = server.client()
    client.flushall()
    clock = Clock(client)
    store = await open_store(server)
    await fill(store, ttl_ms=10)
    clock.advance(10)
    await store.push(QUEUE, [NewMessage(body=b"alive")])

    async def pop_until_found() -> None:
        pops = 0
        while not (popped := await store.pop(QUEUE)).messages:
            assert popped.more
            pops += 1
        assert popped.messages[0].body == b"alive"
        assert pops >= MANY // limits.MAX_BATCH - 100

    await check(client, pop_until_found)
    await store.close()
