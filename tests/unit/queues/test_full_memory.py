"""Redis at maxmemory: nothing more comes in, everything goes out. On every server that is found."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from distsync_node.errors import RedisFull
from distsync_node.queues.store import QueueStore
from distsync_node.queues.types import NewMessage, PurgeTarget, Pushed, QueueConfigChange
from redis_server import RedisServer, find_servers

BODY = b"x" * 1_000
SERVERS = find_servers()


@pytest.fixture(scope="module", params=sorted(SERVERS))
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    directory = Path(tmp_path_factory.mktemp("full"))
    with RedisServer(directory, program=SERVERS[request.param]) as server:
        yield server


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[QueueStore]:
    with server.client() as client:
        client.config_set("maxmemory", 0)
        client.flushall()
        store = await QueueStore.open(server.url)
        yield store
        await store.close()


async def fill(store: QueueStore, server: RedisServer) -> int:
    """Push until there is something to drain, then make memory full."""
    for _ in range(10):
        await store.push("orders", [NewMessage(body=BODY, group=f"g{i}") for i in range(20)])
        await store.push("orders", [NewMessage(body=BODY, delay_ms=5) for _ in range(20)])
    popped = await store.pop("orders", count=30)
    await store.nack("orders", [one.receipt for one in popped.messages[:15]], dead=True)
    with server.client() as client:
        client.config_set("maxmemory", 100_000)
    return 400


async def test_push_and_redrive_are_refused_whole(store: QueueStore, server: RedisServer) -> None:
    await fill(store, server)
    before = await store.stats("orders")
    with pytest.raises(RedisFull) as refused:
        await store.push("orders", [NewMessage(body=b"x")])
    assert (refused.value.status, refused.value.retriable) == (507, True)
    with pytest.raises(RedisFull):
        await store.push("orders", [NewMessage(body=b"x", dedupe_id="d", group="g1", ttl_ms=9)])
    with pytest.raises(RedisFull):
        await store.push("new queue", [NewMessage(body=b"x")])
    with pytest.raises(RedisFull):
        await store.redrive("orders")
    after = await store.stats("orders")
    assert (after.pushed, after.dead, after.requests_remembered) == (
        before.pushed,
        before.dead,
        before.requests_remembered,
    )


async def test_every_call_that_empties_the_queue_goes_on(
    store: QueueStore, server: RedisServer
) -> None:
    count = await fill(store, server)
    popped = await store.pop("orders", count=8, visibility_ms=60_000, request_id="r")
    receipts = [one.receipt for one in popped.messages]
    assert len(receipts) == 8
    extended = await store.extend("orders", receipts, visibility_ms=90_000)
    nacked = await store.nack("orders", receipts[:2], delay_ms=1)
    buried = await store.nack("orders", receipts[2:3], dead=True)
    acked = await store.ack("orders", receipts[3:7])
    assert not any(one.stale for one in (extended, nacked, buried, acked))
    assert len(buried.dead) == 1
    config = await store.configure("orders", QueueConfigChange(paused=True))
    assert config.paused
    await store.configure("orders", QueueConfigChange(paused=False))
    await store.sweep("orders")
    await store.cancel("orders", popped.messages[0].id)
    unclaimed = await store.unclaim("orders", request_id="r", attempt=popped.attempt)
    assert unclaimed.returned == 1
    drained = 0
    while (popped := await store.pop("orders", count=50)).messages:
        receipts = [one.receipt for one in popped.messages]
        assert (await store.ack("orders", receipts)).stale == ()
        drained += len(receipts)
    stats = await store.stats("orders")
    assert stats.acked == drained + 4
    assert stats.in_flight == 15  # claimed before it was full
    gone = stats.acked + stats.cancelled + stats.dead
    assert gone + stats.in_flight + stats.grouped == count  # grouped: behind those in flight
    await store.purge("orders", PurgeTarget.DEAD)
    await store.purge("orders")
    assert (await store.stats("orders")).in_flight == 0


async def test_pushes_come_in_again_once_there_is_room(
    store: QueueStore, server: RedisServer
) -> None:
    await fill(store, server)
    with pytest.raises(RedisFull):
        await store.push("orders", [NewMessage(body=b"x")], request_id="r")
    with server.client() as client:
        client.config_set("maxmemory", 0)
    pushed = await store.push("orders", [NewMessage(body=b"x")], request_id="r")
    assert isinstance(pushed, Pushed)
    assert not pushed.repeated
