"""What the queue store costs beside bare Redis, on one Redis with `appendfsync always`.

    cd tests && python -m bench.queue_store [--seconds 2] [--callers 64]

Push, pop and ack of 200-byte bodies. Each way for the same time, in turn:

    store             QueueStore, calls of many callers sharing one pipeline
    redis-py          the same scripts by redis.asyncio, a connection per caller
    bare scripts      the same scripts in prepared pipelines of 64, nothing else: the limit of Redis
    bare commands     HSET, ZADD; ZPOPMIN, HGET, ZADD; ZREM, HDEL in pipelines: nothing promised

CPU is of this process and of Redis, per message.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import resource
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import redis
import redis.asyncio
import uvloop

from distsync_node.queues import limits, model
from distsync_node.queues.scripts import load_scripts
from distsync_node.queues.store import QueueStore, new_attempt, new_push_id
from distsync_node.queues.types import NewMessage
from redis_server import RedisServer

BODY = b"x" * 200
PIPELINE = 64
SCRIPTS = load_scripts()
Step = Callable[[int], Awaitable[None]]


def script_command(name: str, request: Sequence[Any], *bodies: bytes) -> tuple[Any, ...]:
    script = SCRIPTS[name]
    keys = model.keys("bench", script)
    packed = msgspec.msgpack.encode(request)
    return ("EVALSHA", script.sha, len(keys), *keys, packed, *bodies)


def push_command(count: int) -> tuple[Any, ...]:
    items = [(0, 0, 0, "", "")] * count
    request = (new_push_id(), "0" * 16, new_push_id(), ("", 0, ""), items)
    return script_command("push", request, *[BODY] * count)


def pop_command(count: int) -> tuple[Any, ...]:
    request = (new_push_id(), "0" * 16, new_attempt(), count, 30_000, limits.MAX_POP_BYTES)
    return script_command("pop", request)


def ack_command(popped: Sequence[Any]) -> tuple[Any, ...]:
    messages = msgspec.msgpack.decode(popped[0])[1]
    ids, tokens = [one[0] for one in messages], [one[1] for one in messages]
    return script_command("ack", (new_push_id(), "0" * 16, ids, tokens))


@dataclass(frozen=True)
class Rate:
    """Messages a second, and the CPU of this process and of Redis for each of them."""

    messages: int
    messages_per_s: float
    own_us: float
    redis_us: float


class Meter:
    """Runs callers for a time and tells what came of it."""

    def __init__(self, client: redis.Redis, seconds: float) -> None:
        self._client = client
        self._seconds = seconds

    def redis_cpu_s(self) -> float:
        told = self._client.info("cpu")
        return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])

    async def run(self, step: Step, callers: int, messages_per_step: int) -> Rate:
        self._client.flushall()
        steps = 0
        until = time.perf_counter() + self._seconds

        async def caller(index: int) -> None:
            nonlocal steps
            while time.perf_counter() < until:
                await step(index)
                steps += 1

        before, redis_before = cpu_s(), self.redis_cpu_s()
        started = time.perf_counter()
        await asyncio.gather(*[caller(index) for index in range(callers)])
        elapsed = time.perf_counter() - started
        messages = steps * messages_per_step
        return Rate(
            messages=messages,
            messages_per_s=messages / elapsed,
            own_us=(cpu_s() - before) / messages * 1e6,
            redis_us=(self.redis_cpu_s() - redis_before) / messages * 1e6,
        )


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def through_store(store: QueueStore, batch: int) -> Step:
    messages = [NewMessage(body=BODY)] * batch

    async def step(_: int) -> None:
        await store.push("bench", messages)
        popped = await store.pop("bench", count=batch)
        if popped.messages:
            await store.ack("bench", [one.receipt for one in popped.messages])

    return step


def through_redis_py(client: redis.asyncio.Redis, batch: int) -> Step:
    async def step(_: int) -> None:
        await client.execute_command(*push_command(batch))
        popped = await client.execute_command(*pop_command(batch))
        if len(popped) > 1:
            await client.execute_command(*ack_command(popped))

    return step


def bare_scripts(clients: Sequence[redis.asyncio.Redis], batch: int, pipeline: int) -> Step:
    async def all_of(client: redis.asyncio.Redis, commands: list[tuple[Any, ...]]) -> list[Any]:
        pipe = client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        replies: list[Any] = await pipe.execute()
        return replies

    async def step(index: int) -> None:
        client = clients[index]
        await all_of(client, [push_command(batch) for _ in range(pipeline)])
        popped = await all_of(client, [pop_command(batch) for _ in range(pipeline)])
        await all_of(client, [ack_command(one) for one in popped if len(one) > 1])

    return step


def bare_commands(clients: Sequence[redis.asyncio.Redis], pipeline: int) -> Step:
    numbers = itertools.count()

    async def step(index: int) -> None:
        client = clients[index]
        names = [f"{next(numbers):020}" for _ in range(pipeline)]
        pipe = client.pipeline(transaction=False)
        for name in names:
            pipe.hset("bare:bodies", name, BODY)
            pipe.zadd("bare:ready", {name: 1})
        await pipe.execute()
        pipe = client.pipeline(transaction=False)
        for name in names:
            pipe.zpopmin("bare:ready")
            pipe.hget("bare:bodies", name)
            pipe.zadd("bare:in_flight", {name: 1})
        await pipe.execute()
        pipe = client.pipeline(transaction=False)
        for name in names:
            pipe.zrem("bare:in_flight", name)
            pipe.hdel("bare:bodies", name)
        await pipe.execute()

    return step


async def raw_limit(server: RedisServer, seconds: float, batch: int) -> Rate:
    """The scripts of push, pop and ack in bare pipelines: as fast as Redis runs them."""
    await (await QueueStore.open(server.url)).close()  # it loads the scripts
    some = [redis.asyncio.Redis(unix_socket_path=str(server.socket)) for _ in range(4)]
    pipeline = PIPELINE if batch == 1 else 2
    step = bare_scripts(some, batch, pipeline)
    rate = await Meter(server.client(), seconds).run(step, len(some), pipeline * batch)
    for client in some:
        await client.aclose()
    return rate


async def measure(server: RedisServer, seconds: float, callers: int) -> None:
    store = await QueueStore.open(server.url)
    pool = redis.asyncio.Redis(unix_socket_path=str(server.socket), max_connections=callers)
    some = [redis.asyncio.Redis(unix_socket_path=str(server.socket)) for _ in range(4)]
    meter = Meter(server.client(), seconds)

    async def show(name: str, step: Step, callers: int, messages_per_step: int) -> None:
        rate = await meter.run(step, callers, messages_per_step)
        print(
            f"  {name:34} {rate.messages_per_s:9.0f} messages/s"
            f"   CPU {rate.own_us:6.1f} us + Redis {rate.redis_us:6.1f} us"
        )

    print(f"one message a call, {callers} callers")
    await show("store", through_store(store, 1), callers, 1)
    await show("redis-py, a connection per caller", through_redis_py(pool, 1), callers, 1)
    await show("bare scripts, 4 x 64", bare_scripts(some, 1, PIPELINE), 4, PIPELINE)
    await show("bare commands, 4 x 64", bare_commands(some, PIPELINE), 4, PIPELINE)
    print("100 messages a call, 8 callers")
    await show("store", through_store(store, 100), 8, 100)
    await show("redis-py, a connection per caller", through_redis_py(pool, 100), 8, 100)
    await show("bare scripts, 4 x 2", bare_scripts(some, 100, 2), 4, 200)
    await show("bare commands, 4 x 200", bare_commands(some, 200), 4, 200)
    await store.close()
    for client in (pool, *some):
        await client.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each way")
    parser.add_argument("--callers", type=int, default=64)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        RedisServer(Path(directory) / "redis") as server,
    ):
        uvloop.run(measure(server, options.seconds, options.callers))


if __name__ == "__main__":
    main()
