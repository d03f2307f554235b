"""Reading and writing, on scripted nodes with one table."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest

from distsync import (
    AsyncClient,
    Cache,
    CacheEntry,
    Fenced,
    LineLost,
    NotFound,
    OutcomeUnknown,
    Unavailable,
    VersionMismatch,
)
from unit.client.cache.conftest import CacheCluster
from unit.client.scripted_cluster import problem
from waiting_for import eventually

MakeClient = Callable[..., AsyncClient]


@pytest.fixture
def cache(client: AsyncClient) -> Cache:
    return client.cache


@pytest.mark.parametrize("value", [{"name": "Ada", "n": [1, 2.5, None]}, "é", 0, None, "", []])
async def test_json_values_come_back_as_they_were(cache: Cache, value: object) -> None:
    await cache.set("k", value)
    assert await cache.get("k", default="none") == value


@pytest.mark.parametrize("value", [b"", b"\x00\xff", bytearray(b"abc"), memoryview(b"abc")])
async def test_bytes_come_back_as_they_were(cache: Cache, value: bytes) -> None:
    await cache.set("k", value)
    read = await cache.get("k")
    assert type(read) is bytes
    assert read == bytes(value)


async def test_what_json_cannot_say_is_refused_before_it_is_sent(
    cache: Cache, cluster: CacheCluster
) -> None:
    with pytest.raises(TypeError):
        await cache.set("k", object())
    assert cluster.cache_asks() == []


async def test_a_key_without_a_value_gives_the_default(cache: Cache) -> None:
    assert await cache.get("k") is None
    assert await cache.get("k", default=7) == 7
    assert await cache.get_entry("k") == CacheEntry(found=False, version="0.0")


async def test_an_entry_has_version_state_and_time(cache: Cache) -> None:
    for value in ("text", b"bytes"):
        version = await cache.set("k", value, ttl=1.5)
        entry = await cache.get_entry("k")
        assert entry == CacheEntry(found=True, value=value, version=version, state="E", ttl=1.5)
    await cache.set("k", 1, ttl=timedelta(minutes=2))
    assert (await cache.get_entry("k")).ttl == 120
    await cache.set("k", 1)
    assert (await cache.get_entry("k")).ttl is None


@pytest.mark.parametrize("value", ["text", b"bytes"])
async def test_a_write_goes_only_to_the_version_that_was_read(cache: Cache, value: object) -> None:
    first = await cache.set("k", value, if_version="0.0")
    with pytest.raises(VersionMismatch) as caught:
        await cache.set("k", value, if_version="0.0")
    assert (caught.value.version, caught.value.status) == (first, 412)
    await cache.delete("k", if_version=first)
    deleted = await cache.get_entry("k")
    assert not deleted.found
    await cache.set("k", value, if_version=deleted.version)


@pytest.mark.parametrize("value", ["text", b"bytes"])
async def test_an_old_holder_of_the_lock_is_refused(cache: Cache, value: object) -> None:
    await cache.set("k", value, fence=("orders/42", 10))
    with pytest.raises(Fenced) as caught:
        await cache.set("k", value, fence=("orders/42", 9))
    assert caught.value.newest == 10


async def test_what_is_not_there_may_be_deleted(cache: Cache) -> None:
    await cache.delete("k")
    await cache.set("k", 1)
    for _ in range(2):
        await cache.delete("k")
        assert await cache.get_entry("k") == CacheEntry(found=False, version="0.0")


@pytest.mark.parametrize("value", ["text", b"bytes"])
async def test_tags_remove_what_was_set_with_them(cache: Cache, value: object) -> None:
    await cache.set("a", value, tags=["x&y=ö", "t"])
    await cache.set("b", value, tags=["t"])
    await cache.invalidate_tag("x&y=ö")
    assert await cache.get_many(["a", "b"]) == {"b": value}


async def test_a_lost_line_is_not_a_missing_one(cache: Cache, cluster: CacheCluster) -> None:
    cluster.cache.lost.add("k")
    with pytest.raises(LineLost):
        await cache.get("k")
    await cache.set("k", 1)
    assert await cache.get("k") == 1


async def test_keys_are_one_segment_whatever_they_contain(cache: Cache) -> None:
    for key in ("orders/42", "..", "a b%2Fc?d#e", "schloß", "/", "a/compute"):
        await cache.set(key, key)
        assert await cache.get(key) == key
        await cache.delete(key)


async def test_a_404_that_is_not_of_the_cache_is_not_a_missing_value(
    cache: Cache, cluster: CacheCluster
) -> None:
    for node in cluster.nodes.values():
        node.fault("/cache/k", answer=problem(404, "not_found"))
    with pytest.raises(NotFound):
        await cache.get("k")


# --- Many keys -------------------------------------------------------------------------------


async def test_many_keys_are_read_and_written_in_batches(
    cache: Cache, cluster: CacheCluster
) -> None:
    values: dict[str, object] = {f"k{number}": number for number in range(2100)}
    values["k7"] = b"\xff"
    versions = await cache.set_many(values, ttl=60, tags=["t"])
    assert versions.keys() == values.keys()
    sets = [len(ask.body["set"]) for ask in cluster.cache_asks()]
    assert sets == [1000, 1000, 100]
    assert await cache.get_many([*values, "absent", "k7"]) == values
    gets = [len(ask.body["get"]) for ask in cluster.cache_asks() if "get" in ask.body]
    assert gets == [1000, 1000, 101]
    assert (await cache.get_entry("k7")).ttl == 60


async def test_large_values_go_in_batches_that_a_node_takes(
    cache: Cache, cluster: CacheCluster
) -> None:
    await cache.set_many({f"k{number}": "x" * 1024 * 1024 for number in range(6)})
    assert [len(ask.body["set"]) for ask in cluster.cache_asks()] == [4, 2]


async def test_nothing_asked_for_asks_for_nothing(cache: Cache, cluster: CacheCluster) -> None:
    assert await cache.get_many([]) == {}
    assert await cache.set_many({}) == {}
    assert cluster.cache_asks() == []


async def test_one_key_that_fails_tells_what_became_of_the_others(
    cache: Cache, cluster: CacheCluster
) -> None:
    await cache.set_many({"a": 1, "c": 3})
    cluster.cache.lost.add("b")
    with pytest.raises(LineLost) as lost:
        await cache.get_many(["a", "b", "c"])
    assert (lost.value.fields["key"], lost.value.fields["values"]) == ("b", {"a": 1, "c": 3})
    with pytest.raises(Fenced) as fenced:
        await cache.set_many({"a": 2, "d": 4}, fence=("lock", 3))
    assert (fenced.value.fields["key"], fenced.value.newest) == ("a", 10)
    assert fenced.value.fields["versions"] == {}


async def test_a_key_of_a_batch_that_could_not_be_served_is_asked_for_by_itself(
    cache: Cache, cluster: CacheCluster
) -> None:
    await cache.set("a", 1)
    too_large = {"code": "limit_reached", "detail": "read it alone", "limit": "batch_bytes"}
    error = {"code": "unavailable", "detail": "its home is not there"}
    for of_item in (error, too_large):
        for node in cluster.nodes.values():
            node.fault("/cache/batch", answer=_batch({"get": {"a": {"error": of_item}}}))
        assert await cache.get_many(["a"]) == {"a": 1}
        cluster.forget_faults()
    for node in cluster.nodes.values():
        node.fault("/cache/batch", answer=_batch({"set": [{"key": "a", "error": error}]}))
    versions = await cache.set_many({"a": 2})
    assert versions == {"a": (await cache.get_entry("a")).version}


def _batch(answer: object) -> Callable[[], object]:
    from aiohttp import web

    return lambda: web.json_response(answer)


# --- What is repeated ------------------------------------------------------------------------


async def test_reads_are_repeated_over_lost_connections(
    cache: Cache, cluster: CacheCluster
) -> None:
    await cache.set("k", 1)
    for node in cluster.nodes.values():
        node.fault("/cache", drop="after")
    assert await cache.get("k") == 1
    assert await cache.get_many(["k"]) == {"k": 1}


@pytest.mark.parametrize("value", ["text", b"bytes"])
async def test_a_write_in_doubt_is_sent_once(
    cache: Cache, cluster: CacheCluster, value: object
) -> None:
    """Also not by the HTTP library, which repeats a PUT of its own accord."""
    await cache.get("warm-up")  # so that the connection is one that was used before
    await eventually(lambda: len(cluster.cache_asks()) == 1)
    for node in cluster.nodes.values():
        node.fault("/cache", drop="after")
    for write in (
        lambda: cache.set("k", value),
        lambda: cache.set_many({"k": value}),
        lambda: cache.delete("k"),
    ):
        cluster.forget_faults()
        await cache.get("k")
        cluster.asked.clear()
        for node in cluster.nodes.values():
            node.fault("/cache", drop="after")
        with pytest.raises(OutcomeUnknown):
            await write()
        assert len(cluster.cache_asks()) == 1


@pytest.mark.parametrize("value", ["text", b"bytes"])
async def test_a_write_that_was_not_done_is_repeated(
    cache: Cache, cluster: CacheCluster, value: object
) -> None:
    for node in cluster.nodes.values():
        node.fault("/cache", answer=problem(503, "redis_unavailable"))
    await cache.set("k", value)
    assert await cache.get("k") == value


@pytest.mark.parametrize("value", ["text", b"bytes"])
async def test_a_write_with_a_version_is_repeated_and_done_once(
    cache: Cache, cluster: CacheCluster, value: object
) -> None:
    version = await cache.set("k", "first")
    cluster.asked.clear()
    for node in cluster.nodes.values():
        node.fault("/cache", drop="before")
    await cache.set("k", value, if_version=version)
    assert len(cluster.cache_asks()) > 1
    assert await cache.get("k") == value


async def test_a_repetition_that_is_refused_leaves_the_outcome_unknown(
    cache: Cache, cluster: CacheCluster
) -> None:
    """The first attempt was done, and its version is why the second is refused."""
    version = await cache.set("k", 0)
    for node in cluster.nodes.values():
        node.fault("/cache", drop="after")
    with pytest.raises(OutcomeUnknown):
        await cache.set("k", 1, if_version=version)
    assert await cache.get("k") == 1


async def test_a_write_where_there_was_no_value_is_sent_once(
    cache: Cache, cluster: CacheCluster, make_client: MakeClient
) -> None:
    """Its answer is lost, and another client has read and deleted the value before a second one."""
    await cache.get("warm-up")
    node = cluster.nodes[nodes_asked(cluster)[0]]
    go_on = asyncio.Event()
    node.fault("/cache", hold_answer=go_on, drop="after")
    writing = asyncio.ensure_future(cache.set("k", 1, if_version="0.0"))
    await eventually(lambda: "k" in cluster.cache.stored)
    other = make_client(next(one.url for one in cluster.nodes.values() if one is not node)).cache
    assert await other.get("k") == 1
    await other.delete("k")
    go_on.set()
    with pytest.raises(OutcomeUnknown):
        await writing
    assert await other.get("k") is None


async def test_a_tag_is_invalidated_over_lost_connections(
    cache: Cache, cluster: CacheCluster
) -> None:
    await cache.set("k", 1, tags=["t"])
    for node in cluster.nodes.values():
        node.fault("/cache/invalidate_tag", drop="after")
    await cache.invalidate_tag("t")
    assert await cache.get("k") is None


# --- Which node is asked ---------------------------------------------------------------------


def nodes_asked(cluster: CacheCluster) -> list[str]:
    return [ask.node for ask in cluster.cache_asks()]


async def test_calls_keep_to_one_node_whoever_leads(
    cluster: CacheCluster, make_client: MakeClient
) -> None:
    kept = set()
    for name in cluster.nodes:
        client = make_client(cluster.nodes[name].url)
        await client.lock_info("a")
        nodes = client._core.transport.nodes
        await eventually(lambda nodes=nodes: nodes.leader_is_reachable)
        cluster.asked.clear()
        for number in range(4):
            await client.cache.get(f"k{number}")
        kept |= set(nodes_asked(cluster))
        assert set(nodes_asked(cluster)) == {name}
    assert kept == set(cluster.nodes)


async def test_a_client_that_knows_one_url_of_all_nodes_keeps_to_a_member(
    cluster: CacheCluster, make_client: MakeClient
) -> None:
    """As behind a Service: each connection to its URL may lead to another node."""
    service = await cluster.add("service")
    for name in ("node-1", "node-2", "node-3"):
        cluster.nodes[name].advertised_url = cluster.nodes[name].url
    members = cluster.members
    cluster.members = lambda: tuple(m for m in members() if m.name != "service")  # type: ignore[method-assign]
    client = make_client(service.url)
    await client.cache.get("k")
    nodes = client._core.transport.nodes
    await eventually(lambda: nodes.kept(0).url != service.url)
    cluster.asked.clear()
    for _ in range(4):
        await client.cache.get("k")
    assert len(set(nodes_asked(cluster))) == 1
    assert "service" not in nodes_asked(cluster)


async def test_a_dead_node_is_left_and_the_next_one_is_kept(
    cluster: CacheCluster, client: AsyncClient
) -> None:
    await client.cache.get("k")
    nodes = client._core.transport.nodes
    await eventually(lambda: nodes.leader_is_reachable and not nodes.unproven(0))
    await client.cache.get("k")
    first = nodes_asked(cluster)[-1]
    await cluster.nodes[first].stop()
    cluster.asked.clear()
    for _ in range(4):
        async with asyncio.timeout(2):
            await client.cache.get("k")
    (second,) = set(nodes_asked(cluster))
    assert second != first


async def test_a_node_that_could_not_serve_once_is_not_left(
    cluster: CacheCluster, client: AsyncClient
) -> None:
    await client.cache.get("k")
    nodes = client._core.transport.nodes
    await eventually(lambda: nodes.leader_is_reachable and not nodes.unproven(0))
    await client.cache.get("k")
    kept = nodes_asked(cluster)[-1]
    cluster.nodes[kept].fault("/cache", answer=problem(503, "unavailable"))
    cluster.asked.clear()
    await client.cache.get("k")
    await client.cache.get("k")
    asked = nodes_asked(cluster)
    assert (asked[0], asked[-1]) == (kept, kept)
    assert asked[1] != kept


async def test_a_cache_that_nobody_serves_ends_unavailable(
    cluster: CacheCluster, make_client: MakeClient
) -> None:
    cache = make_client(timeout=0.2).cache
    for node in cluster.nodes.values():
        node.fault("/cache", 1000, answer=problem(503, "redis_unavailable"))
    for call in (cache.get("k"), cache.set("k", 1), cache.delete("k"), cache.get_many(["k"])):
        with pytest.raises(Unavailable) as caught:
            await call
        assert caught.value.code == "redis_unavailable"


async def test_the_node_tells_of_itself_and_of_its_lines(cache: Cache) -> None:
    for key in "abc":
        await cache.set(key, 1)
    stats = await cache.stats()
    assert (stats.lines.modified, stats.lines.exclusive, stats.misses) == (1, 3, {"cold": 2})
    assert [line.key async for line in cache.lines()] == ["a", "b", "c"]
