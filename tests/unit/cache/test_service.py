"""The shell of a node's cache: calls that end, what it counts, and how it stops."""

from __future__ import annotations

import asyncio
import time

import pytest

from distsync_node.cache import service as services
from distsync_node.cache.effects import RedisLoad, RedisPut
from distsync_node.cache.events import Event, RedisAnswer
from distsync_node.cache.node import CacheNode
from distsync_node.cache.options import CacheOptions
from distsync_node.cache.scripts import redis_key
from distsync_node.cache.types import Change, Code, Durability, Found, Missing, Refused, Written
from distsync_node.errors import LimitReached, RedisUnavailable, ShuttingDown, Unavailable
from redis_server import RedisServer
from unit.cache.alone import LONG_MS, service_alone

TIMEOUT_MS = 20_000
LOCAL = CacheOptions(durability=Durability.LOCAL, write_back_after_ms=3_600_000)


@pytest.fixture(autouse=True)
def _empty(redis: RedisServer) -> None:
    redis.empty()


async def test_what_was_written_is_read_as_a_hit(redis: RedisServer) -> None:
    async with service_alone(redis.url) as (service, places, _):
        written = await service.write("key", Change(b"value"), TIMEOUT_MS)
        assert isinstance(written, Written)
        found = await service.read("key", TIMEOUT_MS)
        assert found == Found(written.version, b"value", 0, hit=True)
        assert isinstance(await service.read("absent", TIMEOUT_MS), Missing)
        assert service.home_url("key") == "http://node-1:8080"
        assert places.acknowledged == service.node.context.epoch


async def test_without_a_ring_or_redis_or_once_it_has_stopped_it_says_so(
    redis: RedisServer,
) -> None:
    with pytest.raises(RedisUnavailable):
        await services.no_cache().read("key", TIMEOUT_MS)
    async with service_alone(redis.url, in_ring=False) as (service, _, _):
        with pytest.raises(Unavailable):
            await service.read("key", TIMEOUT_MS)
        assert service.hit("key") is None
    with pytest.raises(ShuttingDown):
        await service.read("key", TIMEOUT_MS)


@pytest.mark.parametrize("which", ["copy lease", "node lease"])
async def test_a_lease_ends_while_the_machine_sleeps(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """The next thing that is asked for is served by nothing that was held before."""
    lasts_ms = LONG_MS if which == "copy lease" else 20_000
    options = CacheOptions(copy_lease_ms=20_000 if which == "copy lease" else LONG_MS)
    async with service_alone(redis.url, options, in_ring=False) as (service, places, _):
        places.adopt_ring()
        places.grant(lasts_ms)
        await service.write("key", Change(b"value"), TIMEOUT_MS)
        assert service.hit("key") is not None
        read_clock = time.clock_gettime_ns

        def after_sleep(clock: int) -> int:
            slept_ns = 40_000_000_000 if clock == time.CLOCK_BOOTTIME else 0
            return read_clock(clock) + slept_ns

        with monkeypatch.context() as asleep:
            asleep.setattr(time, "clock_gettime_ns", after_sleep)
            assert service.hit("key") is None


async def test_who_waits_for_the_ring_is_told_when_the_node_is_in_it_or_leaves(
    redis: RedisServer,
) -> None:
    async with service_alone(redis.url, in_ring=False) as (service, places, _):
        assert not await service.is_in(0.01)
        waiting = asyncio.create_task(service.is_in(3_600))
        await asyncio.sleep(0)
        places.adopt_ring()
        assert await waiting
        places.grant()
        assert await service.drain(20)
        assert not await service.is_in(3_600)


async def test_a_write_that_was_not_sent_in_time_is_certainly_not_done(redis: RedisServer) -> None:
    async with service_alone(redis.url, in_ring=False) as (service, places, _):
        places.adopt_ring()  # and no lease: the home has the first write and may not make it
        first = asyncio.create_task(service.write("key", Change(b"first"), TIMEOUT_MS))
        await asyncio.sleep(0)
        assert await service.write("key", Change(b"second"), 30) == Refused(Code.UNAVAILABLE)
        assert await service.read("key", 30) == Refused(Code.UNAVAILABLE)
        places.grant()
        assert isinstance(await first, Written)
        found = await service.read("key", TIMEOUT_MS)
        assert isinstance(found, Found)
        assert found.value == b"first"


async def test_a_write_that_its_home_may_make_yet_is_unknown(redis: RedisServer) -> None:
    async with service_alone(redis.url, in_ring=False) as (service, places, _):
        places.adopt_ring()
        assert await service.write("key", Change(b"value"), 30) == Refused(Code.UNKNOWN)
        places.grant()
        assert isinstance(await service.read("key", TIMEOUT_MS), Found | Missing)


async def test_a_client_that_goes_leaves_nothing_behind(redis: RedisServer) -> None:
    async with service_alone(redis.url, in_ring=False) as (service, places, _):
        places.adopt_ring()
        waiting = asyncio.create_task(service.read("key", TIMEOUT_MS))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        places.grant()
        assert isinstance(await service.read("key", TIMEOUT_MS), Missing)


async def test_too_many_calls_that_wait_are_refused(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "MAX_CALLS", 2)
    async with service_alone(redis.url, in_ring=False) as (service, places, _):
        places.adopt_ring()
        waiting = [asyncio.create_task(service.read(key, TIMEOUT_MS)) for key in "ab"]
        await asyncio.sleep(0)
        with pytest.raises(LimitReached):
            await service.read("c", TIMEOUT_MS)
        places.grant()
        assert [type(one) for one in await asyncio.gather(*waiting)] == [Missing, Missing]


async def test_a_drain_writes_back_and_then_serves_nothing(redis: RedisServer) -> None:
    async with service_alone(redis.url, LOCAL) as (service, _, _):
        await service.write("key", Change(b"value"), TIMEOUT_MS)
        assert (service.state("key"), service.stats().lines["M"]) == ("M", 1)
        with redis.client() as client:
            assert client.hget(redis_key("cluster", "key"), "v") is None
            assert await service.drain(20)
            assert client.hget(redis_key("cluster", "key"), "v") == b"value"
        with pytest.raises(ShuttingDown):
            await service.read("key", TIMEOUT_MS)


async def test_a_cluster_made_anew_on_a_kept_redis_has_a_cache_of_its_own(
    redis: RedisServer,
) -> None:
    async with service_alone(redis.url, in_ring=False, cluster_id="first") as (service, places, _):
        places.change_rings(5)
        places.adopt_ring()
        places.grant()
        await service.write("key", Change(b"first"), TIMEOUT_MS)
        assert await service.drain(20)
    async with service_alone(redis.url, cluster_id="second") as (service, _, _):
        assert isinstance(await service.read("key", TIMEOUT_MS), Missing)
        assert isinstance(await service.write("key", Change(b"second"), TIMEOUT_MS), Written)
        assert await service.drain(20)


async def test_the_age_of_what_redis_does_not_have_counts_from_its_first_write(
    redis: RedisServer,
) -> None:
    """Under local durability only the line of its owner knows of it."""
    async with service_alone(redis.url, LOCAL) as (service, _, _):
        assert service.stats().oldest_dirty_ms == 0
        began = time.monotonic()
        await service.write("key", Change(b"value"), TIMEOUT_MS)
        while (age_ms := service.stats().oldest_dirty_ms) < 50:
            await service.write("key", Change(b"again"), TIMEOUT_MS)
            await service.write("other", Change(b"value"), TIMEOUT_MS)
        assert age_ms <= (time.monotonic() - began) * 1_000 + 1
        assert await service.drain(20)


async def test_a_drain_goes_on_for_as_long_as_it_gets_ahead(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis does one write in each of the times after which it would be given up otherwise."""
    monkeypatch.setattr(services, "STALLED_SECONDS", 1.5)
    options = CacheOptions(durability=Durability.LOCAL, write_backs_at_once=1)
    async with service_alone(redis.url, options) as (service, _, _):
        for number in range(3):
            await service.write(f"key-{number}", Change(b"value"), TIMEOUT_MS)
        memory = service._memory
        assert memory is not None
        turns, request = asyncio.Semaphore(0), memory.request
        unwritten_bytes = CacheNode.unwritten_bytes.fget
        assert unwritten_bytes is not None

        async def request_in_turn(cluster_id: str, effect: RedisLoad | RedisPut) -> RedisAnswer:
            await turns.acquire()
            return await request(cluster_id, effect)

        def look_and_give_turn(node: CacheNode) -> int:
            turns.release()
            return unwritten_bytes(node)

        monkeypatch.setattr(memory, "request", request_in_turn)
        monkeypatch.setattr(CacheNode, "unwritten_bytes", property(look_and_give_turn))
        assert await service.drain(60)


@pytest.mark.parametrize(("most_s", "stalled_s"), [(0.2, 60), (60, 0.2)])
async def test_a_drain_without_redis_ends_in_time_and_says_that_it_is_not_done(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch, most_s: float, stalled_s: float
) -> None:
    monkeypatch.setattr(services, "STALLED_SECONDS", stalled_s)
    async with service_alone(redis.url, LOCAL) as (service, _, _):
        await service.write("key", Change(b"value"), TIMEOUT_MS)
        redis.pause()
        try:
            began = time.monotonic()
            assert not await service.drain(most_s)
            assert time.monotonic() - began >= 0.2
        finally:
            redis.resume()


async def test_a_broken_invariant_stops_the_node_and_answers_who_waits(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service_alone(redis.url, in_ring=False) as (service, places, broken):
        places.adopt_ring()
        waiting = asyncio.create_task(service.read("key", TIMEOUT_MS))
        await asyncio.sleep(0)

        def break_down(_event: Event, _now_ms: int) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(service.node, "step", break_down)
        places.grant()
        assert await waiting == Refused(Code.UNKNOWN)
        assert [type(one) for one in broken] == [ZeroDivisionError]
        assert service.hit("key") is None


async def test_lines_are_paged_in_the_order_of_their_keys(redis: RedisServer) -> None:
    async with service_alone(redis.url) as (service, _, _):
        for key in "cab":
            await service.write(key, Change(key.encode(), ttl_ms=60_000), TIMEOUT_MS)
        first, after = service.lines("", 2)
        rest, end = service.lines(after or "", 2)
        assert [line.key for line in (*first, *rest)] == ["a", "b", "c"]
        assert (after, end) == ("b", None)
        assert all(0 < line.remaining_ms <= 60_000 for line in first)
        assert {line.home for line in first} == {"node-1"}


async def test_who_watches_a_key_is_woken_by_a_write_and_else_by_the_time(
    redis: RedisServer,
) -> None:
    async with service_alone(redis.url) as (service, _, _):
        await service.write("key", Change(b"1"), TIMEOUT_MS)
        await service.changed(["key"], 0.02)
        watching = asyncio.create_task(service.changed(["absent", "key"], 3_600))
        await asyncio.wait_for(watching, 20)  # a key whose line is not here is looked at again
