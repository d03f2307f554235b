"""A Sentinel failover: what is promised with WAIT, and what is lost without it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from distsync_node.errors import OutcomeUnknown, RedisUnavailable
from distsync_node.queues.store import QueueStore, new_request_id
from distsync_node.queues.types import NewMessage
from distsync_node.redis_link.topology import Timing
from process.running import eventually
from queue_harness import retried
from redis_groups import Watched, watched_redis

pytestmark = pytest.mark.long  # whole groups of Redis servers, minutes on a busy machine

QUICK = Timing(connect_s=1.0, stall_s=1.0)
ACKED, CLAIMED, PUSHED = 1, 2, 3
CLAIM: Final = {"count": 1, "visibility_ms": 600_000}


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    with watched_redis(tmp_path) as watched:
        yield watched


async def push_until(store: QueueStore, stopped: asyncio.Event, start: int) -> list[int]:
    """Push numbers, each under one request id until it is acknowledged; return those that were."""
    acknowledged = []
    number = start
    while not stopped.is_set():
        request_id = new_request_id()
        while not stopped.is_set():
            try:
                await push(store, number, request_id)
            except (RedisUnavailable, OutcomeUnknown):
                continue
            acknowledged.append(number)
            break
        number += 1
    return acknowledged


async def all_numbers(store: QueueStore) -> list[int]:
    numbers: list[int] = []
    while True:
        popped = await retried(
            lambda r: store.pop("orders", count=100, visibility_ms=600_000, request_id=r)
        )
        if not popped.messages:
            return numbers
        numbers += [int(one.body) for one in popped.messages]


async def push(store: QueueStore, number: int, request_id: str) -> None:
    await store.push("orders", [NewMessage(body=str(number).encode())], request_id=request_id)


async def test_with_wait_nothing_acknowledged_is_lost_or_doubled(watched: Watched) -> None:
    store = await QueueStore.open(watched.url(replicas=1), timing=QUICK)
    stopped = asyncio.Event()
    tasks = [
        asyncio.create_task(push_until(store, stopped, start * 1_000_000)) for start in range(8)
    ]

    async def stats_pushed() -> int:
        while True:
            try:
                return (await store.stats("orders")).pushed
            except Exception:
                await asyncio.sleep(0.02)

    while await stats_pushed() < 200:
        await asyncio.sleep(0.01)
    watched.primary.kill()
    await asyncio.to_thread(watched.wait_for_failover)
    before = await stats_pushed()
    watched.primary.options["replicaof"] = f"127.0.0.1 {watched.replica.port}"
    await asyncio.to_thread(watched.primary.start)
    async with asyncio.timeout(30):
        while await stats_pushed() < before + 100:
            await asyncio.sleep(0.01)
    stopped.set()
    acknowledged = [number for numbers in await asyncio.gather(*tasks) for number in numbers]
    found = await all_numbers(store)
    assert len(found) == len(set(found))
    assert set(acknowledged) <= set(found)
    await store.close()


@dataclass(kw_only=True)
class Tried:
    """A push, a claim and the ack of a receipt, and whether each was acknowledged to its caller."""

    receipt: str
    acknowledged: dict[str, bool] = field(default_factory=dict)

    async def call(self, name: str, call: Awaitable[Any]) -> None:
        try:
            await call
        except OutcomeUnknown:
            self.acknowledged[name] = False
        else:
            self.acknowledged[name] = True


async def fail_over_from_an_isolated_primary(watched: Watched, store: QueueStore) -> Tried:
    """Claim a message; while no replica hears the primary, ack it, claim another and push a third;
    then fail over.

    Each call is made once, under its name as request id.
    """
    await retried(lambda r: push(store, ACKED, r))
    (first,) = (await retried(lambda r: store.pop("orders", request_id=r, **CLAIM))).messages
    await retried(lambda r: push(store, CLAIMED, r))
    eventually(
        lambda: watched.replica.client().zcard("dsq:{orders}:ready") == 1,
        what="the replica has both",
    )
    watched.cut_replication()
    tried = Tried(receipt=first.receipt)
    await tried.call("ack", store.ack("orders", [first.receipt], request_id="ack"))
    await tried.call("claim", store.pop("orders", request_id="claim", **CLAIM))
    await tried.call("push", push(store, PUSHED, "push"))
    watched.primary.kill()
    watched.replica.resume()
    await asyncio.to_thread(watched.wait_for_failover)
    return tried


async def test_without_wait_what_the_replica_did_not_hear_is_lost(watched: Watched) -> None:
    """An acknowledged push is gone, an acked message there, a claimed one at once claimed again."""
    store = await QueueStore.open(watched.url(replicas=0), timing=QUICK)
    tried = await fail_over_from_an_isolated_primary(watched, store)
    assert tried.acknowledged == {"ack": True, "claim": True, "push": True}
    stats = await retried(lambda _: store.stats("orders"))
    assert (stats.acked, stats.in_flight, stats.ready) == (0, 1, 1)
    assert await all_numbers(store) == [CLAIMED]
    await store.close()


async def test_with_wait_what_the_replica_did_not_hear_is_not_acknowledged(
    watched: Watched,
) -> None:
    """Asked again under their ids at the new primary, all three are done once."""
    timing = Timing(connect_s=1.0, stall_s=0.4)
    store = await QueueStore.open(watched.url(replicas=1), timing=timing, deadline_s=1.0)
    tried = await fail_over_from_an_isolated_primary(watched, store)
    assert tried.acknowledged == {"ack": False, "claim": False, "push": False}
    watched.primary.options["replicaof"] = f"127.0.0.1 {watched.replica.port}"
    await asyncio.to_thread(watched.primary.start)
    async with asyncio.timeout(30):
        settled = await retried(lambda _: store.ack("orders", [tried.receipt], request_id="ack"))
        claimed = await retried(lambda _: store.pop("orders", request_id="claim", **CLAIM))
        await retried(lambda _: push(store, PUSHED, "push"))
        stats = await retried(lambda _: store.stats("orders"))
    assert settled.stale == ()
    assert [int(one.body) for one in claimed.messages] == [CLAIMED]
    assert (stats.pushed, stats.acked, stats.in_flight, stats.ready) == (3, 1, 1, 1)
    assert await all_numbers(store) == [PUSHED]
    await store.close()


async def test_without_wait_service_goes_on_at_the_new_primary(watched: Watched) -> None:
    store = await QueueStore.open(watched.url(replicas=0), timing=QUICK)
    await push(store, 1, "first")
    eventually(
        lambda: watched.replica.client().exists(b"dsq:{orders}:meta") == 1,
        what="the replica has it",
    )
    watched.primary.kill()
    await asyncio.to_thread(watched.wait_for_failover)
    async with asyncio.timeout(20):
        await retried(lambda r: push(store, 2, r))
    assert sorted(await all_numbers(store)) == [1, 2]
    await store.close()


async def test_with_wait_nothing_is_acknowledged_that_the_replica_has_not(
    watched: Watched,
) -> None:
    timing = Timing(connect_s=1.0, stall_s=0.4)
    url = watched.primary.url + "?replicas=1"
    store = await QueueStore.open(url, timing=timing, deadline_s=1.0)
    await push(store, 1, "first")
    watched.replica.pause()
    request_id = new_request_id()
    try:
        with pytest.raises(OutcomeUnknown):
            await push(store, 2, request_id)
        # The same request again, through this node or another, changes nothing; it is not
        # acknowledged on the strength of that.
        other = await QueueStore.open(url, timing=timing, deadline_s=1.0)
        for node in (store, other):
            with pytest.raises(OutcomeUnknown):
                await push(node, 2, request_id)
        await other.close()
        assert (await store.stats("orders")).pushed == 2  # a read waits for nobody
    finally:
        watched.replica.resume()
    async with asyncio.timeout(20):
        await retried(lambda r: push(store, 2, request_id or r))
    assert sorted(await all_numbers(store)) == [1, 2]
    await store.close()
