"""The cache in the client against three real nodes and a real Redis, which are killed meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import textwrap
import threading
import urllib.error
import urllib.request

import pytest

from distsync import (
    AsyncClient,
    Client,
    ComputeTimeout,
    DistSyncError,
    Fenced,
    OutcomeUnknown,
    VersionMismatch,
)
from process.cluster import Cluster
from waiting_for import eventually


async def test_what_one_client_wrote_all_read_at_once_through_every_node(cluster: Cluster) -> None:
    async with (
        AsyncClient(cluster.urls[0]) as one,
        AsyncClient(cluster.urls[1]) as two,
        AsyncClient(cluster.urls[2]) as three,
    ):
        for number in range(20):
            value = b"\x00%d" % number if number % 2 else {"number": number}
            writer, *readers = (one, two, three)[number % 3 :] + (one, two, three)[: number % 3]
            version = await writer.cache.set("shared/ä", value)
            for reader in (*readers, writer):
                entry = await reader.cache.get_entry("shared/ä")
                assert (entry.value, entry.version) == (value, version)
        await one.cache.delete("shared/ä")
        for reader in (one, two, three):
            assert await reader.cache.get("shared/ä", "none") == "none"


async def test_of_many_that_count_by_version_none_is_lost(cluster: Cluster) -> None:
    async def count(client: AsyncClient) -> None:
        for _ in range(10):
            while True:
                entry = await client.cache.get_entry("counter")
                try:
                    await client.cache.set(
                        "counter", (entry.value or 0) + 1, if_version=entry.version
                    )
                    break
                except VersionMismatch:
                    continue

    async with AsyncClient(cluster.urls) as one, AsyncClient(cluster.urls[::-1]) as two:
        await asyncio.gather(*(count(client) for client in (one, two, one, two)))
        assert await one.cache.get("counter") == 40


async def test_what_was_absent_is_written_by_one_alone(cluster: Cluster) -> None:
    async with AsyncClient(cluster.urls) as client:
        cache = client.cache
        await cache.set("once", 1, if_version=(await cache.get_entry("once")).version)
        with pytest.raises(VersionMismatch):
            await cache.set("once", 2, if_version="0.0")
        await cache.delete("once")
        await cache.set("once", 3, if_version=(await cache.get_entry("once")).version)
        assert await cache.get("once") == 3


async def test_a_value_ends_with_its_time(cluster: Cluster) -> None:
    async with AsyncClient(cluster.urls) as client:
        await client.cache.set("brief", 1, ttl=0.5)
        entry = await client.cache.get_entry("brief")
        if entry.found:  # else this machine was slow, and it is over already
            assert 0 < (entry.ttl or 0) <= 0.5
        async with asyncio.timeout(30):
            while await client.cache.get("brief") is not None:
                await asyncio.sleep(0.02)


async def test_many_keys_and_a_tag(cluster: Cluster) -> None:
    values = {f"many/{number}": number if number % 2 else b"%d" % number for number in range(300)}
    async with AsyncClient(cluster.urls) as one, AsyncClient(cluster.urls[::-1]) as two:
        versions = await one.cache.set_many(values, tags=["batch"])
        assert versions.keys() == values.keys()
        assert await two.cache.get_many([*values, "many/absent"]) == values
        await two.cache.set("many/0", "later", tags=["other"])
        await two.cache.invalidate_tag("batch")
        assert await one.cache.get_many(values) == {"many/0": "later"}


async def test_a_fence_keeps_an_old_holder_out(cluster: Cluster) -> None:
    async with AsyncClient(cluster.urls) as client:
        async with client.lock("orders/42") as old:
            await client.cache.set("order", "a", fence=old)
        async with client.lock("orders/42") as new:
            await client.cache.set("order", b"b", fence=new)
            with pytest.raises(Fenced) as caught:
                await client.cache.set("order", "c", fence=old)
        assert caught.value.newest == new.token
        assert await client.cache.get("order") == b"b"


async def test_one_of_a_hundred_on_all_nodes_computes(cluster: Cluster) -> None:
    calls = 0
    go = asyncio.Event()

    async def function() -> dict[str, int]:
        nonlocal calls
        calls += 1
        await go.wait()
        return {"calls": calls}

    async with (
        AsyncClient(cluster.urls[0]) as one,
        AsyncClient(cluster.urls[1]) as two,
        AsyncClient(cluster.urls[2]) as three,
    ):
        clients = (one, two, three)
        waiting = [
            asyncio.create_task(clients[n % 3].cache.compute("computed", function, lease=60))
            for n in range(100)
        ]
        await eventually(lambda: calls)
        with pytest.raises(ComputeTimeout):
            await one.cache.compute("computed", function, wait=0.1)
        go.set()
        assert await asyncio.gather(*waiting) == [{"calls": 1}] * 100
    assert calls == 1


DYING = """
    import os, sys
    from distsync import Client

    def function():
        print("computing", flush=True)
        sys.stdin.read()

    with Client(sys.argv[1]) as client:
        client.cache.compute("orphan", function, lease=1.5)
"""


async def test_one_of_a_hundred_takes_over_from_a_client_that_dies(
    cluster: Cluster,
) -> None:
    dying = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DYING), cluster.urls[0]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    calls = 0

    async def function() -> str:
        nonlocal calls
        calls += 1
        return "taken over"

    try:
        assert dying.stdout is not None
        assert await asyncio.to_thread(dying.stdout.readline) == b"computing\n"
        async with AsyncClient(cluster.urls[1]) as one, AsyncClient(cluster.urls[2]) as two:
            waiting = [
                asyncio.create_task(client.cache.compute("orphan", function, lease=60))
                for client in (one, two)
                for _ in range(50)
            ]
            dying.kill()
            async with asyncio.timeout(30):
                assert await asyncio.gather(*waiting) == ["taken over"] * 100
        assert calls == 1
    finally:
        dying.kill()
        dying.communicate()


async def test_a_function_that_is_cached_is_called_once_for_all_clients(cluster: Cluster) -> None:
    calls: list[int] = []

    async with AsyncClient(cluster.urls[0]) as one, AsyncClient(cluster.urls[1]) as two:

        def decorated(client: AsyncClient):  # type: ignore[no-untyped-def]
            @client.cache.cached(key="user:{user_id}", ttl=60, tags=["users"])
            async def load(user_id: int) -> dict[str, int]:
                calls.append(user_id)
                return {"id": user_id}

            return load

        here, there = decorated(one), decorated(two)
        assert await here(1) == await there(1) == {"id": 1}
        await there.invalidate(1)
        assert await here(1) == {"id": 1}
        await one.cache.invalidate_tag("users")
        assert await there(1) == {"id": 1}
    assert calls == [1, 1, 1]


def test_threads_share_what_one_of_them_computes(cluster: Cluster) -> None:
    calls = []
    with Client(cluster.urls) as client:

        @client.cache.cached(ttl=60)
        def load(part: str) -> list[str]:
            calls.append(threading.get_ident())
            return [part]

        found: list[list[str]] = []
        threads = [threading.Thread(target=lambda: found.append(load("x"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert found == [["x"]] * 8
        assert len(calls) == 1
        load.invalidate("x")
        assert load("x") == ["x"]
        assert len(calls) == 2


async def test_a_client_keeps_to_one_node_which_has_what_it_reads(cluster: Cluster) -> None:
    async with AsyncClient(cluster.urls) as client:
        await client.cache.set("hot", 1)
        nodes = client._core.transport.nodes
        await eventually(lambda: nodes.leader_is_reachable and not nodes.unproven(1e9))
        await client.cache.get("hot")
        kept = nodes.kept(0).url
        before = {url: served(url) for url in cluster.urls}
        for _ in range(30):
            assert (await client.cache.get_entry("hot")).state in "MES"
        gained = {url: served(url) - before[url] for url in cluster.urls}
        assert gained == {url: 30 if url == kept else 0 for url in cluster.urls}
        lines = (await client.cache.stats()).lines
        assert lines.modified + lines.exclusive + lines.shared >= 1
        assert "hot" in [line.key async for line in client.cache.lines()]


async def test_no_acknowledged_write_is_lost_when_nodes_are_killed(cluster: Cluster) -> None:
    """Each writer knows which of its values are possible; what is read must be one of them."""
    done = 0
    is_over = False
    possible: dict[str, set[int]] = {}

    async def write(client: AsyncClient, key: str) -> None:
        nonlocal done
        for number in itertools.count():
            if is_over:
                return
            before = possible.get(key, set())
            possible[key] = before | {number}
            try:
                await client.cache.set(key, number)
            except OutcomeUnknown:
                pass  # it, or one before it, is there
            except DistSyncError:
                possible[key] = before
                raise
            else:
                possible[key] = {number}
            entry = await client.cache.get_entry(key)
            assert entry.value in possible[key], (key, entry, possible[key])
            possible[key] = {entry.value}
            done += 1

    async def progress(operations: int) -> None:
        goal = done + operations
        await eventually(lambda: done >= goal, within_seconds=60)

    async def kill() -> None:
        nonlocal is_over
        for victim in cluster.names[:2]:
            await progress(60)
            # A crash before the values of the one before are in two places again may lose some.
            await eventually(lambda: is_settled(cluster.urls), within_seconds=60)
            await asyncio.to_thread(cluster.kill, victim)
            await progress(60)
            cluster.start(victim)
            await asyncio.to_thread(cluster.wait_ready)
        is_over = True

    async with (
        AsyncClient(cluster.urls, timeout=30) as one,
        AsyncClient(cluster.urls[::-1], timeout=30) as two,
    ):
        async with asyncio.timeout(100), asyncio.TaskGroup() as group:
            group.create_task(kill())
            for number in range(8):
                client = (one, two)[number % 2]
                group.create_task(write(client, f"safe/{number}"))
        found = await two.cache.get_many(possible)
        for key, values in possible.items():
            assert found[key] in values


def is_settled(urls: list[str]) -> bool:
    """Whether all nodes go by one ring, and say that any one of them may crash."""
    answers = []
    for url in urls:
        try:
            with urllib.request.urlopen(f"{url}/cache") as answer:
                answers.append(json.load(answer))
        except urllib.error.HTTPError:
            return False  # it is not in the ring yet
    rings = {answer["epoch"] for answer in answers}
    return len(rings) == 1 and all(answer["settled"] for answer in answers)


def served(url: str) -> float:
    """How many values clients have read at a node."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith("distsync_http_requests_total")
        and "/cache/{key}" in line
        and 'method="GET"' in line
    )
