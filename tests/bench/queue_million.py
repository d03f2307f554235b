"""How long Redis is held by one script on a queue of a million messages.

    cd tests && python -m bench.queue_million [--messages 1000000]

For each operation: calls, the mean and the longest time that one script took (SLOWLOG; on a busy
machine the longest includes times at which Redis was not running), and what others saw meanwhile:
the longest time that a PING took, which on a busy machine includes times of this process.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import redis
import uvloop

from distsync_node.queues.store import QueueStore
from distsync_node.queues.types import NewMessage, Order, PurgeTarget, QueueConfigChange
from queue_harness import Clock, open_store
from redis_server import RedisServer

QUEUE = "million"
BODY = b"x" * 200
CALLS_IN_TURN = 10


@dataclass(frozen=True)
class Held:
    """What SLOWLOG says of the scripts of one operation; times in milliseconds."""

    calls: int
    mean_ms: float
    longest_ms: list[float]
    ping_ms: float

    def __str__(self) -> str:
        longest = " ".join(f"{one:.1f}" for one in self.longest_ms[:3])
        return (
            f"{self.calls:7} scripts, mean {self.mean_ms:6.2f} ms, longest {longest} ms,"
            f" longest PING {self.ping_ms:.1f} ms"
        )


@asynccontextmanager
async def watched(client: redis.Redis, told: list[Held]) -> AsyncIterator[None]:
    """Take note of every script that runs inside."""
    client.config_set("slowlog-log-slower-than", 0)
    client.config_set("slowlog-max-len", 100_000)
    client.config_resetstat()
    client.slowlog_reset()
    other = redis.asyncio.Redis(unix_socket_path=client.connection_pool.connection_kwargs["path"])
    pings: list[float] = []

    async def ping() -> None:
        while True:
            started = time.perf_counter()
            await other.ping()
            pings.append(time.perf_counter() - started)
            await asyncio.sleep(0.001)

    task = asyncio.create_task(ping())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await other.aclose()
    client.config_set("slowlog-log-slower-than", -1)
    stats = client.info("commandstats").get("cmdstat_evalsha", {"calls": 0, "usec": 0})
    entries = client.slowlog_get(100_000)
    scripts = [one["duration"] / 1e3 for one in entries if one["command"].startswith(b"EVALSHA")]
    told.append(
        Held(
            calls=stats["calls"],
            mean_ms=stats["usec"] / max(1, stats["calls"]) / 1e3,
            longest_ms=sorted(scripts, reverse=True)[:20],
            ping_ms=max(pings, default=0) * 1e3,
        )
    )


async def fill(store: QueueStore, count: int, **fields: int) -> None:
    """Push messages, many calls at a time."""
    batch = [NewMessage(body=BODY, **fields)] * 100  # type: ignore[arg-type]
    left = count // 100
    while left > 0:
        now = min(50, left)
        await asyncio.gather(*[store.push(QUEUE, batch) for _ in range(now)])
        left -= now


@dataclass(frozen=True)
class Took:
    """How long each call took, milliseconds, as its caller saw it."""

    push_ms: list[float]
    pop_ms: list[float]


async def one_by_one(store: QueueStore, queue: str = QUEUE, calls: int = 1_000) -> Took:
    took = Took(push_ms=[], pop_ms=[])
    for _ in range(calls):
        began = time.perf_counter()
        await store.push(queue, [NewMessage(body=BODY)])
        pushed = time.perf_counter()
        popped = await store.pop(queue, visibility_ms=600_000)
        took.pop_ms.append((time.perf_counter() - pushed) * 1e3)
        took.push_ms.append((pushed - began) * 1e3)
        await store.ack(queue, [one.receipt for one in popped.messages])
    return took


async def compare(server: RedisServer, count: int, calls: int) -> tuple[Took, Took]:
    """Calls on an empty queue and on one of `count` messages, a few of each in turn."""
    store = await QueueStore.open(server.url)
    await fill(store, count)
    empty, full = Took(push_ms=[], pop_ms=[]), Took(push_ms=[], pop_ms=[])
    for _ in range(calls // CALLS_IN_TURN):
        for queue, all_of in (("empty", empty), (QUEUE, full)):
            some = await one_by_one(store, queue, CALLS_IN_TURN)
            all_of.push_ms.extend(some.push_ms)
            all_of.pop_ms.extend(some.pop_ms)
    await store.close()
    return empty, full


async def bury_all(store: QueueStore) -> None:
    await store.configure(QUEUE, QueueConfigChange(max_deliveries=1))
    while (popped := await store.pop(QUEUE, count=100)).messages:
        await store.nack(QUEUE, [one.receipt for one in popped.messages])


async def sweep_all(store: QueueStore) -> None:
    while (await store.sweep(QUEUE)).more:
        pass


async def claim_all(store: QueueStore, visibility_ms: int) -> None:
    while (await store.pop(QUEUE, count=100, visibility_ms=visibility_ms)).messages:
        pass


async def list_all(store: QueueStore, order: Order) -> None:
    cursor: str | None = ""
    while cursor is not None:
        cursor = (await store.list_page(QUEUE, order, cursor=cursor)).cursor


async def peek(store: QueueStore) -> None:
    for _ in range(100):
        await store.peek(QUEUE, count=100)
        await store.stats(QUEUE)


async def measure(server: RedisServer, count: int) -> dict[str, Held]:
    """Do everything that has to do with many messages and tell how long scripts took."""
    client = server.client()
    clock = Clock(client)
    store = await open_store(server)
    results: dict[str, Held] = {}

    async def step(name: str, work: Callable[[], Awaitable[object]]) -> None:
        told: list[Held] = []
        async with watched(client, told):
            await work()
        results[name] = told[0]
        print(f"{name:28} {told[0]}", flush=True)

    await store.push(QUEUE, [NewMessage(body=BODY)])
    await store.purge(QUEUE)
    await step("push, pop, ack when empty", lambda: one_by_one(store))
    await fill(store, count)
    await step("push, pop, ack when full", lambda: one_by_one(store))
    await step("peek and stats", lambda: peek(store))
    await step("list", lambda: list_all(store, Order.READY))
    await step("dead letters", lambda: bury_all(store))
    await step("redrive", lambda: store.redrive(QUEUE))
    await step("claim", lambda: claim_all(store, 600_000))
    await step("purge of claimed messages", lambda: store.purge(QUEUE))
    await store.configure(QUEUE, QueueConfigChange(max_deliveries=0))
    await fill(store, count, delay_ms=1)
    clock.advance(1)
    await step("sweep of delays", lambda: sweep_all(store))
    await step("purge", lambda: store.purge(QUEUE))
    await fill(store, count, ttl_ms=1)
    clock.advance(1)
    await step("sweep of ttls", lambda: sweep_all(store))
    await fill(store, count)
    await claim_all(store, 1)
    clock.advance(1)
    await step("sweep of deadlines", lambda: sweep_all(store))
    await bury_all(store)
    await step("purge of dead letters", lambda: store.purge(QUEUE, PurgeTarget.DEAD))
    await store.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--messages", type=int, default=1_000_000)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        RedisServer(Path(directory) / "redis", options={"appendonly": "no"}) as server,
    ):
        uvloop.run(measure(server, options.messages))


if __name__ == "__main__":
    main()
