"""Get-or-compute and functions that are cached."""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest

from distsync import AsyncClient, BadRequest, Cache, ComputeTimeout, Unavailable
from unit.client.cache.conftest import CacheCluster
from unit.client.scripted_cluster import problem
from waiting_for import eventually

MakeClient = Callable[..., AsyncClient]


@pytest.fixture
def cache(client: AsyncClient) -> Cache:
    return client.cache


class Counted:
    """A function that counts its calls and can be held."""

    def __init__(self, value: Any = 7) -> None:
        self.calls = 0
        self.value = value
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self) -> Any:
        self.calls += 1
        await self.go.wait()
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


async def test_a_value_is_computed_once_and_kept(cache: Cache) -> None:
    function = Counted({"a": 1})
    assert await cache.compute("k", function, ttl=9, tags=["t"]) == {"a": 1}
    assert await cache.compute("k", function) == {"a": 1}
    assert function.calls == 1
    assert (await cache.get_entry("k")).ttl == 9
    await cache.invalidate_tag("t")
    await cache.compute("k", function)
    assert function.calls == 2


async def test_a_function_need_not_be_asynchronous_and_may_return_bytes(cache: Cache) -> None:
    assert await cache.compute("k", lambda: b"\x00") == b"\x00"
    assert await cache.get("k") == b"\x00"


async def test_whoever_computes_gets_what_the_others_get(cache: Cache) -> None:
    first = await cache.compute("k", lambda: (1, (2, 3)))
    assert first == await cache.compute("k", lambda: (1, (2, 3))) == [1, [2, 3]]


async def test_none_is_a_value(cache: Cache) -> None:
    function = Counted(None)
    for _ in range(2):
        assert await cache.compute("k", function) is None
    assert function.calls == 1


async def test_one_of_many_computes_and_the_others_wait(
    cluster: CacheCluster, make_client: MakeClient
) -> None:
    clients = [make_client() for _ in range(3)]
    function = Counted()
    function.go.clear()
    running = [
        asyncio.create_task(client.cache.compute("k", function))
        for client in clients
        for _ in range(10)
    ]
    await eventually(lambda: len(cluster.asked_for("/cache/compute")) == 30)
    function.go.set()
    assert await asyncio.gather(*running) == [7] * 30
    assert function.calls == 1


async def test_an_exception_is_raised_and_the_next_one_computes_at_once(cache: Cache) -> None:
    failing = Counted(KeyError("no"))
    failing.go.clear()
    first = asyncio.create_task(cache.compute("k", failing))
    await eventually(lambda: failing.calls)
    second = asyncio.create_task(cache.compute("k", Counted(8), lease=3600))
    failing.go.set()
    with pytest.raises(KeyError):
        await first
    async with asyncio.timeout(5):
        assert await second == 8


async def test_a_call_that_is_cancelled_lets_the_next_one_compute(
    cache: Cache, cluster: CacheCluster
) -> None:
    held = Counted()
    held.go.clear()
    first = asyncio.create_task(cache.compute("k", held, lease=3600))
    await eventually(lambda: held.calls)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await eventually(lambda: not cluster.cache.computing)


async def test_one_whose_lease_ended_is_replaced_once_and_stores_nothing(
    cache: Cache, cluster: CacheCluster, caplog: pytest.LogCaptureFixture
) -> None:
    slow = Counted("slow")
    slow.go.clear()
    first = asyncio.create_task(cache.compute("k", slow))
    await eventually(lambda: slow.calls)
    others = Counted("other")
    waiting = [asyncio.create_task(cache.compute("k", others)) for _ in range(5)]
    await eventually(lambda: len(cluster.asked_for("/cache/compute")) == 6)
    await cluster.cache.end_lease("k")
    assert await asyncio.gather(*waiting) == ["other"] * 5
    assert others.calls == 1
    slow.go.set()
    assert await first == "slow"
    assert await cache.get("k") == "other"
    assert "computed and not stored" in caplog.text


async def test_a_wait_for_another_one_ends(cache: Cache) -> None:
    held = Counted()
    held.go.clear()
    first = asyncio.create_task(cache.compute("k", held))
    await eventually(lambda: held.calls)
    with pytest.raises(ComputeTimeout) as caught:
        await cache.compute("k", held, wait=0.05)
    assert caught.value.retriable
    held.go.set()
    assert await first == 7
    assert held.calls == 1


async def test_a_value_that_cannot_be_stored_is_returned_all_the_same(
    cluster: CacheCluster, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_client(timeout=0.2).cache
    caplog.set_level(logging.WARNING, "distsync")

    def function() -> int:
        for node in cluster.nodes.values():
            node.fault("/cache/k", 1000, answer=problem(503, "unavailable"))
        return 7

    assert await cache.compute("k", function) == 7
    assert "computed and not stored" in caplog.text


async def test_a_value_that_no_node_takes_is_an_error_of_its_caller(
    cache: Cache, cluster: CacheCluster
) -> None:
    def function() -> int:
        for node in cluster.nodes.values():
            node.fault("/cache/k", answer=problem(413, "payload_too_large", retriable=False))
        return 7

    with pytest.raises(BadRequest):
        await cache.compute("k", function)
    with pytest.raises(TypeError):
        await cache.compute("l", object)
    await eventually(lambda: not cluster.cache.computing)


async def test_without_a_cluster_the_function_is_not_called(
    cluster: CacheCluster, make_client: MakeClient
) -> None:
    cache = make_client(timeout=0.2).cache
    for node in cluster.nodes.values():
        node.fault("/cache", 1000, answer=problem(503, "unavailable"))
    function = Counted()
    with pytest.raises(Unavailable):
        await cache.compute("k", function)
    assert function.calls == 0


async def test_what_was_lost_is_computed_anew(cache: Cache, cluster: CacheCluster) -> None:
    cluster.cache.lost.add("k")
    assert await cache.compute("k", lambda: 7) == 7
    assert await cache.get("k") == 7


async def test_a_value_whose_store_was_not_answered_is_stored_once(
    cache: Cache, cluster: CacheCluster
) -> None:
    def function() -> int:
        for node in cluster.nodes.values():
            node.fault("/cache/k", drop="after")
        return 7

    assert await cache.compute("k", function) == 7
    assert await cache.get("k") == 7
    assert len([ask for ask in cluster.asked_for("/cache/k") if ask.body]) > 1


# --- Functions -------------------------------------------------------------------------------


async def test_a_function_is_called_once_for_each_of_its_arguments(cache: Cache) -> None:
    calls = []

    @cache.cached(ttl=60)
    async def load(user_id: int, *, part: str = "name") -> str:
        """Load it."""
        calls.append((user_id, part))
        return f"{user_id} {part}"

    assert load.__name__ == "load"  # type: ignore[attr-defined]
    assert await load(1) == await load(user_id=1) == await load(1, part="name") == "1 name"
    assert await load(1, part="age") == "1 age"
    assert await load(2) == "2 name"
    assert calls == [(1, "name"), (1, "age"), (2, "name")]
    key = load.key(1)
    assert key.endswith(
        "test_a_function_is_called_once_for_each_of_its_arguments"
        ".<locals>.load(user_id=1, part='name')"
    )
    assert (await cache.get_entry(key)).ttl == 60


async def test_what_is_invalidated_is_computed_anew(cache: Cache, cluster: CacheCluster) -> None:
    calls = []

    @cache.cached(key="user:{user_id}", tags=["users", "user {user_id}"])
    def load(user_id: int) -> int:
        calls.append(user_id)
        return user_id

    for number in (1, 2, 1):
        assert await load(number) == number
    assert await cache.get("user:1") == 1
    for node in cluster.nodes.values():
        node.fault("/cache/user", drop="after")
    await load.invalidate(1)
    assert await load(1) == 1
    await cache.invalidate_tag("user 2")
    assert await load(2) == 2
    assert calls == [1, 2, 1, 2]


async def test_key_and_tags_may_be_functions_of_the_arguments(cache: Cache) -> None:
    class Users:
        def __init__(self, shop: str) -> None:
            self.shop = shop

        @cache.cached(key=lambda self, user_id: f"{self.shop}/{user_id}", tags=lambda *_: ["t"])
        async def load(self, user_id: int) -> str:
            return self.shop

        @cache.cached()
        async def none(self) -> None: ...

    a, b = Users("a"), Users("b")
    assert (await a.load(1), await b.load(1)) == ("a", "b")
    assert await cache.get("a/1") == "a"
    await Users.load.invalidate(a, 1)
    assert await cache.get("a/1") is None
    await cache.invalidate_tag("t")
    assert await cache.get("b/1") is None
    with pytest.raises(TypeError, match="give key="):
        await a.none()


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, 1.0),
        ("1", 1),
        (b"1", "1"),
        ([1], (1,)),
        (None, "None"),
        (["a", "b"], ["a, b"]),
        (["a', 'b"], ["a", "b"]),
        ({"a": 1}, {"a": "1"}),
        (date(2026, 1, 2), "2026-01-02"),
        (Colour.RED, 1),
    ],
)
async def test_different_arguments_have_different_keys(
    cache: Cache, one: object, other: object
) -> None:
    @cache.cached()
    async def function(value: object) -> None: ...

    assert function.key(one) != function.key(other)


async def test_equal_arguments_have_one_key(cache: Cache) -> None:
    @cache.cached()
    async def function(*values: object, **more: object) -> None: ...

    assert function.key({"a": 1, "b": 2}) == function.key({"b": 2, "a": 1})
    assert function.key({1, 2, 30}) == function.key({30, 2, 1})
    long = function.key("x" * 2000)
    assert long == function.key("x" * 2000)
    assert long != function.key("x" * 2001)
    assert len(long.encode()) < 1024


async def test_tags_are_not_one_text(cache: Cache) -> None:
    with pytest.raises(TypeError, match="list"):
        cache.cached(tags="users")(lambda: 7)
