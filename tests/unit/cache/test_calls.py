"""What clients do with values: tags, fences, one caller that computes; and what refusals become."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable

import pytest

from distsync_node.cache.calls import CacheCalls, Computation, Got, Put
from distsync_node.cache.service import CacheService
from distsync_node.cache.types import ABSENT, Change, Code, Found, Refused, Version, Written
from distsync_node.cache.values import Value
from distsync_node.errors import (
    BadRequest,
    ComputeLost,
    ComputeTimeout,
    DistSyncError,
    Fenced,
    LimitReached,
    LineLost,
    OutcomeUnknown,
    RedisFull,
    RedisUnavailable,
    Unavailable,
    VersionMismatch,
)
from redis_server import RedisServer
from unit.cache.alone import service_alone

LEASE_MS = 60_000


@pytest.fixture
async def calls(redis: RedisServer) -> AsyncIterator[CacheCalls]:
    redis.empty()
    async with service_alone(redis.url) as (service, _, _):
        calls = CacheCalls(service, 20_000)
        yield calls
        await calls.close()


def put(key: str, value: bytes = b"1", **fields: object) -> Put:
    return Put(key, Value(value), **fields)  # type: ignore[arg-type]


async def begun(calls: CacheCalls, key: str, *tags: str) -> str:
    told = await calls.compute(key, 0, LEASE_MS, tags)
    assert isinstance(told, Computation)
    assert 0 < told.expires_in_ms <= LEASE_MS
    return told.token


# --- Tags and versions ------------------------------------------------------------------------


async def test_a_value_is_gone_with_any_of_its_tags_and_keeps_its_version(
    calls: CacheCalls,
) -> None:
    version = await calls.put(put("key", tags=("one", "two")))
    got = await calls.get("key")
    assert got.value is not None
    assert (got.version, got.value.payload) == (version, b"1")
    await calls.invalidate_tag("two")
    assert await calls.get("key") == Got(version, None, 0, True)


async def test_what_lost_a_tag_is_in_nobodys_way_who_wants_there_to_be_none(
    calls: CacheCalls,
) -> None:
    await calls.put(put("key", tags=("tag",)))
    with pytest.raises(VersionMismatch):
        await calls.put(put("key", b"2", if_version=ABSENT))
    await calls.invalidate_tag("tag")
    await calls.put(put("key", b"2", if_version=ABSENT))
    got = await calls.get("key")
    assert got.value == Value(b"2")


async def test_a_write_under_an_old_version_names_the_one_there_is(calls: CacheCalls) -> None:
    old = await calls.put(put("key"))
    new = await calls.put(put("key", b"2"))
    with pytest.raises(VersionMismatch) as caught:
        await calls.delete("key", if_version=old)
    assert caught.value.fields["version"] == f"{new.epoch}.{new.counter}"
    await calls.delete("key", if_version=new)
    assert (await calls.get("key")).value is None


# --- What is counted --------------------------------------------------------------------------


async def counted(calls: CacheCalls, read: Awaitable[object]) -> dict[str, int]:
    """What was counted meanwhile of hits, and of misses by reason."""
    before = calls.service.stats()
    await read
    after = calls.service.stats()
    gained = {why: count - before.misses[why] for why, count in after.misses.items()}
    gained["hits"] = after.hits - before.hits
    return {what: count for what, count in gained.items() if count}


async def test_a_read_counts_once_whatever_lines_of_our_own_it_takes(calls: CacheCalls) -> None:
    assert await counted(calls, calls.get("key")) == {"absent": 1}
    assert await counted(calls, calls.get("key")) == {"hits": 1}
    assert await counted(calls, calls.put(put("key", tags=("one", "two")))) == {}
    assert await counted(calls, calls.get("key")) == {"hits": 1}


async def test_a_value_that_is_here_without_its_tags_is_a_miss(redis: RedisServer) -> None:
    with redis.client() as client:
        client.flushall()
    async with service_alone(redis.url) as (service, _, _):
        await CacheCalls(service, 20_000).put(put("key", tags=("one", "two")))
        assert await service.drain(20)
    async with service_alone(redis.url, in_ring=False) as (service, places, _):
        places.change_rings(2)
        places.adopt_ring()
        places.grant()
        calls = CacheCalls(service, 20_000)
        assert isinstance(await service.read("key", 20_000), Found)
        assert await counted(calls, calls.get("key")) == {"absent": 1}
        assert await counted(calls, calls.get("key")) == {"hits": 1}


async def test_who_computes_or_waits_for_that_reads_once(calls: CacheCalls) -> None:
    assert await counted(calls, begun(calls, "key", "tag")) == {"absent": 1}
    waits = calls.compute("key", 300, LEASE_MS)
    with pytest.raises(ComputeTimeout):
        await counted(calls, waits)
    assert calls.service.stats().hits == 1


# --- Fences -----------------------------------------------------------------------------------


async def test_a_token_is_looked_up_only_when_it_is_newer_than_any_seen(calls: CacheCalls) -> None:
    looked_up = []

    async def verify(lock: str, token: int) -> None:
        looked_up.append((lock, token))

    calls.verify_with(verify)
    for token in (7, 7, 8):
        await calls.put(put("key", fence=("lock", token)))
    assert looked_up == [("lock", 7), ("lock", 8)]
    with pytest.raises(Fenced) as caught:
        await calls.put(put("key", fence=("lock", 7)))
    assert caught.value.fields["newest"] == 8


async def test_a_token_that_is_not_current_or_cannot_be_looked_up_changes_nothing(
    calls: CacheCalls,
) -> None:
    with pytest.raises(Unavailable):
        await calls.put(put("key", fence=("lock", 7)))

    async def refuse(_lock: str, _token: int) -> None:
        raise Fenced("another holds it", newest=9)

    calls.verify_with(refuse)
    with pytest.raises(Fenced):
        await calls.put(put("key", fence=("lock", 7)))
    assert (await calls.get("key")).value is None


# --- Get or compute ---------------------------------------------------------------------------


async def test_one_caller_computes_and_the_others_get_its_value(calls: CacheCalls) -> None:
    token = await begun(calls, "key")
    with pytest.raises(ComputeTimeout):
        await calls.compute("key", 0, LEASE_MS)
    waiting = [asyncio.create_task(calls.compute("key", 20_000, LEASE_MS)) for _ in range(20)]
    await asyncio.sleep(0)
    await calls.put(put("key", b"computed", token=token))
    for got in await asyncio.gather(*waiting):
        assert isinstance(got, Got)
        assert got.value == Value(b"computed")


async def test_of_two_callers_that_both_find_it_free_one_computes(
    calls: CacheCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, both_want = CacheService.write, asyncio.Barrier(2)

    async def write_together(
        self: CacheService, key: str, change: Change, timeout_ms: int
    ) -> Written | Refused:
        await both_want.wait()
        return await write(self, key, change, timeout_ms)

    with monkeypatch.context() as together:
        together.setattr(CacheService, "write", write_together)
        told = await asyncio.gather(
            *(calls.compute("key", 0, LEASE_MS) for _ in range(2)), return_exceptions=True
        )
    assert sorted(type(one).__name__ for one in told) == ["Computation", "ComputeTimeout"]
    (won,) = (one for one in told if isinstance(one, Computation))
    await calls.put(put("key", b"computed", token=won.token))
    assert (await calls.get("key")).value == Value(b"computed")


async def test_who_gives_up_lets_another_compute_and_a_used_token_is_none(
    calls: CacheCalls,
) -> None:
    first = await begun(calls, "key")
    assert await calls.give_up("key", first)
    assert not await calls.give_up("key", first)
    second = await begun(calls, "key")
    with pytest.raises(ComputeLost):
        await calls.put(put("key", token=first))
    await calls.put(put("key", token=second))
    with pytest.raises(ComputeLost):
        await calls.put(put("key", token=second))


async def test_a_computation_that_is_not_ended_ends_by_itself(calls: CacheCalls) -> None:
    told = await calls.compute("key", 0, 100)
    assert isinstance(told, Computation)
    second = await calls.compute("key", 20_000, LEASE_MS)
    assert isinstance(second, Computation)
    with pytest.raises(ComputeLost):
        await calls.put(put("key", token=told.token))


@pytest.mark.parametrize("what", ["write", "delete", "tag"])
async def test_what_was_computed_from_older_data_is_not_stored_and_another_may_compute(
    calls: CacheCalls, what: str
) -> None:
    token = await begun(calls, "key", "tag")
    if what == "write":
        await calls.put(put("key", b"newer"))
    elif what == "delete":
        await calls.delete("key")
    else:
        await calls.invalidate_tag("tag")
    with pytest.raises(ComputeLost):
        await calls.put(put("key", b"older", tags=("tag",), token=token))
    value = (await calls.get("key")).value
    assert value == (Value(b"newer") if what == "write" else None)
    if what != "write":
        await begun(calls, "key")


async def test_a_token_and_a_version_are_one_too_many(calls: CacheCalls) -> None:
    token = await begun(calls, "key")
    with pytest.raises(BadRequest) as caught:
        await calls.put(put("key", token=token, if_version=ABSENT))
    assert caught.value.fields["field"] == "if_version"


# --- Refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "of_read", "of_write"),
    [
        (Code.TOO_MANY_FENCES, LimitReached, LimitReached),
        (Code.LINE_LOST, LineLost, LineLost),
        (Code.LIMIT, LimitReached, LimitReached),
        (Code.UNAVAILABLE, Unavailable, Unavailable),
        (Code.REDIS_UNAVAILABLE, RedisUnavailable, RedisUnavailable),
        (Code.REDIS_FULL, RedisFull, RedisFull),
        (Code.UNKNOWN, Unavailable, OutcomeUnknown),  # a read has no outcome to know
    ],
)
async def test_a_refusal_becomes_the_error_that_says_what_to_do(
    calls: CacheCalls,
    monkeypatch: pytest.MonkeyPatch,
    code: Code,
    of_read: type[DistSyncError],
    of_write: type[DistSyncError],
) -> None:
    async def refuse_read(_self: CacheService, _key: str, _timeout_ms: int) -> Refused:
        return Refused(code)

    async def refuse_write(
        _self: CacheService, _key: str, _change: Change, _timeout_ms: int
    ) -> Refused:
        return Refused(code, Version(1, 1))

    monkeypatch.setattr(CacheService, "read", refuse_read)
    monkeypatch.setattr(CacheService, "write", refuse_write)
    with pytest.raises(DistSyncError) as caught:
        await calls.get("key")
    assert type(caught.value) is of_read
    with pytest.raises(DistSyncError) as caught:
        await calls.put(put("key"))
    assert type(caught.value) is of_write
