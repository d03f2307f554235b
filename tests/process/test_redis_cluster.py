"""Queues on a Redis Cluster of three primaries."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from distsync_node.errors import OutcomeUnknown, RedisUnavailable
from distsync_node.queues import model
from distsync_node.queues.store import QueueStore
from distsync_node.queues.types import NewMessage, Order, PurgeTarget, QueueConfigChange, QueueStats
from distsync_node.redis_link.topology import key_slot
from queue_harness import retried
from redis_groups import RedisCluster, redis_cluster

pytestmark = pytest.mark.long  # whole groups of Redis servers, minutes on a busy machine

NAMES = [f"queue {number} {{x}}" for number in range(12)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with redis_cluster(Path(tmp_path_factory.mktemp("cluster"))) as cluster:
        yield cluster


def test_slots_are_those_of_the_server(cluster: RedisCluster) -> None:
    client = cluster.servers[0].client()
    for key in (b"x", b"dsq:{orders}:meta", b"{}x", b"a{}{b}", b"{a}{b}", b"}{a}", b"{a"):
        assert key_slot(key) == client.execute_command("CLUSTER", "KEYSLOT", key)


async def test_every_script_runs_and_each_queue_is_on_one_node(cluster: RedisCluster) -> None:
    store = await QueueStore.open(cluster.url)
    for name in NAMES:
        messages = [NewMessage(body=b"x", group=group) for group in ("", "", "g", "g", "h")]
        await store.push(name, [*messages, NewMessage(body=b"x", delay_ms=60_000, dedupe_id="d")])
        popped = await store.pop(name, count=4, request_id="r")
        receipts = [one.receipt for one in popped.messages]
        assert len(receipts) == 4
        settled = [
            await store.extend(name, receipts, visibility_ms=9_000),
            await store.ack(name, receipts[:1]),
            await store.nack(name, receipts[1:2], dead=True),
            await store.nack(name, receipts[2:3], delay_ms=1),
        ]
        unclaimed = await store.unclaim(name, request_id="r", attempt=popped.attempt)
        assert unclaimed.returned == 1
        assert not any(one.stale for one in settled)
        assert await store.redrive(name) == 1
        await store.sweep(name)
        assert await store.peek(name, count=10)
        for order in Order:
            await store.list_page(name, order)
        await store.configure(name, QueueConfigChange(max_deliveries=3))
        await store.cancel(name, (await store.peek(name))[0].id)
        await store.get(name, (await store.peek(name))[0].id)
        assert (await store.stats(name)).acked == 1
        await store.purge(name, PurgeTarget.DEAD)
    assert set(await store.queue_names(prefix="queue ")) == set(NAMES)
    owners = {cluster.owner(key_slot(model.key(name, "meta"))) for name in NAMES}
    assert owners == {0, 1, 2}
    await store.close()


async def test_a_queue_moves_to_another_node_under_load(cluster: RedisCluster) -> None:
    """Its slot goes over key by key; meanwhile scripts are answered ASK, TRYAGAIN and MOVED."""
    queue = "moving"
    store = await QueueStore.open(cluster.url)
    pushed: list[int] = []
    handled: list[int] = []
    stopped = asyncio.Event()

    async def produce(start: int) -> None:
        number = start
        while not stopped.is_set():
            messages = [NewMessage(body=str(number).encode())]
            await retried(lambda r, some=messages: store.push(queue, some, request_id=r))
            pushed.append(number)
            number += 1
            await asyncio.sleep(0.001)

    async def consume() -> None:
        while not (stopped.is_set() and len(handled) == len(pushed)):
            popped = await store.pop(queue, count=5, visibility_ms=600_000)
            receipts = [one.receipt for one in popped.messages]
            if receipts:
                assert not (await store.ack(queue, receipts)).stale
                handled.extend(int(one.body) for one in popped.messages)
            else:
                await asyncio.sleep(0.001)

    slot = key_slot(model.key(queue, "meta"))
    async with asyncio.TaskGroup() as tasks:
        for index in range(6):
            tasks.create_task(produce(index * 1_000_000))
        consumer = tasks.create_task(consume())
        for _ in range(3):
            target = len(handled) + 100
            while len(handled) < target:
                await asyncio.sleep(0.005)
            to = (cluster.owner(slot) + 1) % 3
            await asyncio.to_thread(cluster.move, slot, to)
        stopped.set()
        await asyncio.wait_for(consumer, 30)
    assert sorted(handled) == sorted(pushed)
    await store.close()


async def test_a_node_that_is_down_stops_its_queues_and_no_others(cluster: RedisCluster) -> None:
    store = await QueueStore.open(cluster.url, patience_s=0.3)
    by_owner = {cluster.owner(key_slot(model.key(name, "meta"))): name for name in NAMES}
    for name in NAMES:
        await store.push(name, [NewMessage(body=b"before")])
    for server in cluster.servers:
        server.client().config_set("cluster-require-full-coverage", "no")
    cluster.servers[2].kill()
    with pytest.raises((RedisUnavailable, OutcomeUnknown)):
        await store.push(by_owner[2], [NewMessage(body=b"x")])
    for owner in (0, 1):
        await store.push(by_owner[owner], [NewMessage(body=b"x")])
    await asyncio.to_thread(cluster.servers[2].start)
    before = (await asyncio.wait_for(until_served(store, by_owner[2]), 20)).pushed
    await store.push(by_owner[2], [NewMessage(body=b"x")])
    assert (await store.stats(by_owner[2])).pushed == before + 1
    await store.close()


async def until_served(store: QueueStore, queue: str) -> QueueStats:
    while True:
        try:
            return await store.stats(queue)
        except RedisUnavailable:
            continue
