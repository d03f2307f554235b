"""Reading: one lock, all locks, a lock as it changes, the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import pytest

from distsync import AsyncClient, BadRequest, LockInfo, Unavailable
from unit.client.jump_clock import JumpClock
from unit.client.scripted_cluster import ScriptedCluster, problem
from waiting_for import eventually

MakeClient = Callable[..., AsyncClient]


async def test_a_watch_shows_the_present_and_each_change(client: AsyncClient) -> None:
    async with aclosing(client.watch("a/b")) as states:
        first = await anext(states)
        assert not first.held
        async with client.lock("a/b") as lock:
            assert (await anext(states)).token == lock.token
        assert not (await anext(states)).held


async def test_a_watch_goes_on_at_another_node(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    seen: list[LockInfo] = []

    async def watch() -> None:
        async for state in client.watch("a"):
            seen.append(state)  # noqa: PERF401

    watching = asyncio.create_task(watch())
    await eventually(lambda: seen)
    node = next(n for n in cluster.nodes.values() if cluster.asked_for("/lock/a/watch", n.name))
    await node.stop()
    await eventually(lambda: len(cluster.asked_for("/lock/a/watch")) == 2)
    async with client.lock("a") as lock:
        await eventually(lambda: seen[-1].token == lock.token)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching


async def test_a_watch_leaves_a_node_that_fell_silent(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    async with aclosing(client.watch("a")) as states:
        await anext(states)
        name = cluster.asked_for("/lock/a/watch")[0].node
        following = asyncio.ensure_future(anext(states))
        cluster.nodes[name].fall_silent()
        clock.jump(1.1)  # time for a probe, which gets no answer
        async with asyncio.timeout(5):
            await following
        assert cluster.asked_for("/lock/a/watch")[-1].node != name


async def test_a_watch_of_nothing_reachable_ends_unavailable(make_client: MakeClient) -> None:
    client = make_client("http://127.0.0.1:9", timeout=0.2)
    with pytest.raises(Unavailable):
        async for _ in client.watch("a"):
            pass


async def test_a_watch_that_is_refused_says_why(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    for node in cluster.nodes.values():
        node.fault("/lock/a/watch", answer=problem(422, "bad_request", field="name"))
    with pytest.raises(BadRequest):
        async for _ in client.watch("a"):
            pass


async def test_all_locks_are_listed_page_by_page(
    cluster: ScriptedCluster, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distsync.core._PAGE", 2)
    names = ["a/1", "a/2", "a/3", "a/4", "a/5", "b"]
    async with client.acquire_many(names):
        assert [lock.name async for lock in client.locks("a/")] == names[:5]
        assert [lock.name async for lock in client.locks()] == names
    assert [lock async for lock in client.locks()] == []


async def test_waiters_are_shown(cluster: ScriptedCluster, client: AsyncClient) -> None:
    async with client.lock("a"):
        waiting = asyncio.create_task(client.lock("a", owner="me", wait=60).acquire())
        await eventually(lambda: cluster.table.waiting_count() == 1)
        info = await client.lock_info("a")
        assert info.waiter_count == 1
        assert info.waiters[0].owner == "me"
        assert 59 < info.waiters[0].gives_up_in <= 60
        assert 9 < info.holders[0].expires_in <= 10
    await (await waiting).release()


async def test_the_status_of_any_or_of_one_node(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    status = await client.status()
    assert status.leader == "node-1"
    assert [member.name for member in status.members] == ["node-1", "node-2", "node-3"]
    for node in cluster.nodes.values():
        assert (await client.status(node.url)).node == node.name
    with pytest.raises(Unavailable):
        await client.status("http://127.0.0.1:9")
