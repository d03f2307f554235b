"""The cache for threads: the same promises."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from distsync import Client, ComputeTimeout, SyncCache, VersionMismatch
from unit.client.cache.conftest import CacheCluster
from unit.client.scripted_cluster import Served


@pytest.fixture
def served() -> Iterator[Served[CacheCluster]]:
    served = Served(CacheCluster, 2)
    yield served
    served.close()


@pytest.fixture
def client(served: Served[CacheCluster]) -> Iterator[Client]:
    with Client(served.cluster.urls()) as client:
        yield client


@pytest.fixture
def cache(client: Client) -> SyncCache:
    return client.cache


def test_values_are_written_read_and_removed(cache: SyncCache) -> None:
    version = cache.set("k", {"a": 1}, ttl=5)
    entry = cache.get_entry("k")
    assert (entry.value, entry.version, entry.ttl) == ({"a": 1}, version, 5)
    with pytest.raises(VersionMismatch):
        cache.set("k", 2, if_version="0.0")
    cache.delete("k", if_version=version)
    assert cache.get("k", default=3) == 3
    assert cache.set_many({"a": 1, "b": b"2"}, tags=["t"]).keys() == {"a", "b"}
    assert cache.get_many(key for key in "abc") == {"a": 1, "b": b"2"}
    assert [line.key for line in cache.lines()] == ["a", "b", "k"]
    assert cache.stats().durability == "mirrored"
    cache.invalidate_tag("t")
    assert cache.get_many("ab") == {}


def test_a_function_runs_in_the_thread_that_calls_and_once(cache: SyncCache) -> None:
    threads: list[int] = []
    together = threading.Barrier(5)

    @cache.cached(key="k", ttl=60)
    def function() -> tuple[int, ...]:
        threads.append(threading.get_ident())
        return (1, 2)

    found: list[object] = []

    def call() -> None:
        together.wait(10)
        found.append(function())

    running = [threading.Thread(target=call) for _ in range(5)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(10)
    assert found == [[1, 2]] * 5
    assert len(threads) == 1
    assert threads[0] in {thread.ident for thread in running}
    function.invalidate()
    assert cache.get(function.key()) is None


def test_an_exception_lets_the_next_one_compute(cache: SyncCache) -> None:
    def fail() -> None:
        with pytest.raises(ComputeTimeout):
            cache.compute("k", lambda: 8, wait=0)
        raise KeyError

    with pytest.raises(KeyError):
        cache.compute("k", fail, lease=3600)
    assert cache.compute("k", lambda: 7, wait=10) == 7


def test_a_function_that_is_cached_works_in_a_process_that_was_forked(
    client: Client, served: Served
) -> None:
    @client.cache.cached(key="k{n}")
    def function(n: int) -> int:
        return n

    assert function(1) == 1
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if function(1) + function(2) == 3 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.cache.get("k2") == 2
