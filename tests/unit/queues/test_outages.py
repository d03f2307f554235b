"""Redis that stalls, restarts, forgets scripts or becomes a replica: nothing is lost or doubled."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from distsync_node.errors import OutcomeUnknown, RedisUnavailable
from distsync_node.queues import limits, wakeups
from distsync_node.queues.service import QueueService, Taken
from distsync_node.queues.store import QueueStore, new_request_id
from distsync_node.queues.types import NewMessage, Pushed
from distsync_node.redis_link.topology import Timing
from queue_harness import retried
from redis_server import RedisServer

QUICK = Timing(connect_s=1.0, stall_s=0.3)
CALM = Timing(connect_s=10.0, stall_s=5.0)  # a busy machine is not taken for an outage


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[QueueStore]:
    """It waits for as long as a restart may take."""
    store = await QueueStore.open(server.url, timing=CALM, patience_s=30.0, deadline_s=60.0)
    yield store
    await store.close()


@pytest.fixture
async def hasty(server: RedisServer) -> AsyncIterator[QueueStore]:
    """It gives up soon."""
    store = await QueueStore.open(server.url, timing=QUICK, patience_s=0.5, deadline_s=1.0)
    yield store
    await store.close()


def message(number: int) -> NewMessage:
    return NewMessage(body=str(number).encode())


async def all_bodies(store: QueueStore) -> list[int]:
    """Claim and ack everything there is."""
    bodies = []
    while (popped := await store.pop("orders", count=100)).messages:
        await store.ack("orders", [one.receipt for one in popped.messages])
        bodies += [int(one.body) for one in popped.messages]
    return bodies


async def test_scripts_that_were_flushed_are_loaded_again(
    server: RedisServer, store: QueueStore
) -> None:
    client = server.client()
    for number in range(3):
        client.script_flush()
        await asyncio.gather(*[store.push("orders", [message(number)]) for _ in range(20)])
    client.script_flush()
    assert Counter(await all_bodies(store)) == {0: 20, 1: 20, 2: 20}


async def test_calls_during_a_restart_are_done_once(server: RedisServer, store: QueueStore) -> None:
    acknowledged = []
    stopped = asyncio.Event()

    async def pusher(start: int) -> None:
        number = start
        while not stopped.is_set():
            pushed = await store.push("orders", [message(number)])
            assert isinstance(pushed, Pushed)
            acknowledged.append(number)
            number += 1

    async with asyncio.TaskGroup() as pushers:
        for start in range(20):
            pushers.create_task(pusher(start * 1_000_000))
        for _ in range(3):
            target = len(acknowledged) + 100
            while len(acknowledged) < target:
                await asyncio.sleep(0.001)
            server.kill()
            await asyncio.to_thread(server.start)
        stopped.set()
    assert sorted(await all_bodies(store)) == sorted(acknowledged)


async def test_down_is_503_up_again_is_served(server: RedisServer, hasty: QueueStore) -> None:
    await hasty.push("orders", [message(1)])
    server.kill()
    with pytest.raises((RedisUnavailable, OutcomeUnknown)):  # unknown if it was sent all the same
        await hasty.pop("orders")
    with pytest.raises(RedisUnavailable):
        await hasty.pop("orders")
    with pytest.raises(RedisUnavailable):
        await hasty.stats("orders")
    server.start()
    assert await all_bodies(hasty) == [1]


async def test_a_call_that_may_have_been_done_is_unknown_and_its_retry_is_the_same_call(
    server: RedisServer, hasty: QueueStore
) -> None:
    request_id = new_request_id()
    server.pause()
    try:
        with pytest.raises(OutcomeUnknown) as unknown:
            await hasty.push("orders", [message(1)], request_id=request_id)
    finally:
        server.resume()
    assert (unknown.value.status, unknown.value.retriable) == (504, True)
    pushed = await hasty.push("orders", [message(1)], request_id=request_id)
    assert isinstance(pushed, Pushed)
    assert await all_bodies(hasty) == [1]


async def test_a_push_that_may_have_been_done_stays_in_doubt_when_its_retry_is_refused(
    server: RedisServer,
) -> None:
    store = await QueueStore.open(server.url, timing=QUICK, patience_s=5.0)
    await store.push("orders", [message(0)])
    links = store._runner._redis._topology._server._links  # type: ignore[attr-defined]
    connection = server.client().connection_pool.get_connection()
    server.pause()
    push = asyncio.create_task(store.push("orders", [message(1)]))
    async with asyncio.timeout(10):
        while not links[0].is_lost:
            await asyncio.sleep(0.01)
    connection.send_command("ACL", "SETUSER", "default", "-evalsha", "-eval")
    server.resume()
    with pytest.raises(OutcomeUnknown):
        await push
    assert connection.read_response() == b"OK"
    with pytest.raises(RedisUnavailable) as refused:  # without a doubt
        await store.push("orders", [message(2)])
    assert "NOPERM" in refused.value.detail
    await store.close()


async def test_a_push_whose_queue_cannot_be_registered_afterwards_is_in_doubt(
    server: RedisServer, store: QueueStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    register = store._runner.register

    async def fail_again(queue: str, *, again: bool = False) -> None:
        if again:
            raise RedisUnavailable
        await register(queue)

    monkeypatch.setattr(store._runner, "register", fail_again)
    with pytest.raises(OutcomeUnknown):
        await store.push("orders", [message(1)])
    assert await all_bodies(store) == [1]


async def test_a_redrive_that_is_cut_short_is_in_doubt_and_goes_on_where_it_was(
    store: QueueStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REDRIVE_LIMIT", 2)
    await store.push("orders", [message(number) for number in range(5)])
    popped = await store.pop("orders", count=5)
    await store.nack("orders", [one.receipt for one in popped.messages], dead=True)
    run, calls = store._runner.run, iter(range(10))

    async def fail_second(*arguments: Any, **options: Any) -> list[Any]:
        if next(calls) == 1:
            raise RedisUnavailable
        return await run(*arguments, **options)

    monkeypatch.setattr(store._runner, "run", fail_second)
    with pytest.raises(OutcomeUnknown):
        await store.redrive("orders", request_id="r")
    assert await store.redrive("orders", request_id="r") == 5
    assert sorted(await all_bodies(store)) == list(range(5))


async def test_what_a_cancelled_pop_gives_back_wakes_who_waits(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeups, "RECHECK_MS", 60_000)
    node = QueueService(server.url)
    await node.start()
    ask = {"count": 1, "visibility_ms": 3_600_000}
    await node.store.push("orders", [message(1)])
    server.pause()
    gone = asyncio.create_task(node.pop("orders", wait_ms=0, request_id="gone", **ask))
    await asyncio.sleep(0.01)
    waits = asyncio.create_task(node.pop("orders", wait_ms=30_000, request_id="waits", **ask))
    await asyncio.sleep(0.01)
    gone.cancel()
    server.resume()
    async with asyncio.timeout(5):
        taken = await waits
    assert [(one.body, one.deliveries) for one in taken.messages] == [(b"1", 1)]
    await node.close()


async def test_a_poll_whose_earlier_claims_ran_out_is_served_anew(server: RedisServer) -> None:
    """Its first try claimed, and the answer was lost for longer than the claims lasted."""
    node = QueueService(server.url)
    await node.start()

    async def pop(wait_ms: int) -> Taken:
        return await node.pop(
            "orders", count=1, wait_ms=wait_ms, visibility_ms=1_000, request_id="same"
        )

    await node.store.push("orders", [message(1)])
    (lost,) = (await pop(0)).messages
    assert (await pop(0)).messages[0].receipt == lost.receipt
    async with asyncio.timeout(20):
        while not (await node.store.stats("orders")).ready:
            await node.store.sweep("orders")
        taken = await pop(30_000)
        assert [one.deliveries for one in taken.messages] == [2]
        node.give_back("orders", taken)
        while not (stats := await node.store.stats("orders")).ready:
            await asyncio.sleep(0.01)
    assert stats.in_flight == 0
    await node.close()


async def test_a_pop_that_is_cancelled_gives_back_what_it_claimed(
    server: RedisServer, store: QueueStore
) -> None:
    await store.push("orders", [message(1), message(2)])
    server.pause()
    pop = asyncio.create_task(store.pop("orders", count=2, visibility_ms=3_600_000))
    await asyncio.sleep(0.01)
    pop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pop
    server.resume()

    async def claimed() -> list[tuple[bytes, int]]:
        while not (popped := await store.pop("orders", count=2)).messages:
            await asyncio.sleep(0.001)
        return [(one.body, one.deliveries) for one in popped.messages]

    assert await asyncio.wait_for(claimed(), 20) == [(b"1", 1), (b"2", 1)]


async def test_consumers_and_producers_over_restarts_lose_nothing_and_double_nothing(
    server: RedisServer, tmp_path: Path
) -> None:
    """Two nodes; every message pushed is acked by exactly one consumer: no deadline passes here."""
    nodes = [await QueueStore.open(server.url, timing=CALM) for _ in range(2)]
    pushed: list[int] = []
    handled: list[int] = []
    total = 1_500

    async def produce(node: QueueStore, numbers: range) -> None:
        for number in numbers:
            await retried(lambda r, n=number: node.push("orders", [message(n)], request_id=r))
            pushed.append(number)

    async def consume(node: QueueStore) -> None:
        while len(handled) < total:
            popped = await retried(lambda r: node.pop("orders", count=3, request_id=r))
            for one in popped.messages:
                receipts = [one.receipt]
                settled = await retried(
                    lambda r, some=receipts: node.ack("orders", some, request_id=r)
                )
                assert not settled.stale
                handled.append(int(one.body))
            if not popped.messages:
                await asyncio.sleep(0.002)

    async def restart() -> None:
        for part in (0.2, 0.5, 0.8):
            while len(handled) < total * part:
                await asyncio.sleep(0.002)
            server.kill()
            await asyncio.to_thread(server.start)
            server.client().script_flush()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(restart())
        for index in range(10):
            numbers = range(index * total // 10, (index + 1) * total // 10)
            tasks.create_task(produce(nodes[index % 2], numbers))
            tasks.create_task(consume(nodes[index % 2]))
    assert sorted(pushed) == list(range(total))
    assert sorted(handled) == list(range(total))
    for node in nodes:
        await node.close()
