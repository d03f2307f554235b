"""Sessions and sets of locks: one lease for many."""

# ruff: noqa: PT012 - what is raised comes out of the end of an `async with`
from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from distsync import (
    AsyncClient,
    LockHeld,
    LockLost,
    NotHolder,
    OutcomeUnknown,
    SessionLost,
    SessionNotFound,
)
from unit.client.jump_clock import JumpClock
from unit.client.scripted_cluster import ScriptedCluster, problem
from waiting_for import eventually

MakeClient = Callable[..., AsyncClient]
KEEPALIVE, RENEW = "/session/keepalive", "/lock/renew"


def held_names(cluster: ScriptedCluster) -> list[str]:
    return [view.name for view in cluster.table.machine.lock_views()]


async def test_many_locks_stand_on_one_keepalive(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    async with client.session(ttl=9) as session:
        async with (
            session.lock("a") as a,
            session.semaphore("s", 3) as permit,
            session.lock("b", shared=True),
        ):
            clock.jump(3.1)
            await eventually(lambda: session.expires_in() > 8)
            assert len(cluster.asked_for(KEEPALIVE)) == 1
            assert not cluster.asked_for(RENEW)
            assert a.expires_in() == pytest.approx(session.expires_in(), abs=0.5)
            assert held_names(cluster) == ["a", "b", "s"]
            info = await client.lock_info("a")
            assert info.holders[0].session == session.id
            permit.check()
        assert held_names(cluster) == []
        assert session.is_open
    assert not session.is_open
    assert cluster.table.machine.counts().sessions == 0


async def test_leaving_the_session_gives_back_what_it_holds(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    async with client.session() as session:
        lock = await session.lock("a").acquire()
    assert held_names(cluster) == []
    assert not lock.held
    with pytest.raises(SessionLost):
        lock.check()


async def test_on_loss_everything_is_lost_together(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    lost: list[LockLost] = []
    inside, outside = [], []

    async def hold(name: str) -> None:
        with pytest.raises(SessionLost):
            async with session.lock(name, on_lost=lost.append):
                inside.append(name)
                await asyncio.Event().wait()
        outside.append(name)

    with pytest.raises(SessionLost):
        async with client.session(ttl=9) as session:
            tasks = [asyncio.create_task(hold(name)) for name in ("a", "b")]
            await eventually(lambda: len(inside) == 2)
            for node in cluster.nodes.values():
                await node.stop()
            clock.jump(9)
            await asyncio.Event().wait()
    await asyncio.gather(*tasks)
    assert sorted(outside) == ["a", "b"]
    assert sorted(error.fields["name"] for error in lost) == ["a", "b"]
    assert all(isinstance(error, SessionLost) for error in lost)


async def test_locks_lost_with_a_session_can_be_taken_again_at_once(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    for node in cluster.nodes.values():
        node.fault(KEEPALIVE, 1000, answer=problem(503, "no_leader"))
    with pytest.raises(SessionLost):
        async with client.session(ttl=9) as session, session.lock("a"), session.lock("b"):
            clock.jump(9)
            await asyncio.Event().wait()
    with pytest.raises(SessionLost):
        async with client.acquire_many(["c", "d"], ttl=9):
            clock.jump(9)
            await asyncio.Event().wait()
    async with asyncio.timeout(5), client.acquire_many(["a", "b", "c", "d"], ttl=60) as locks:
        locks.check()


async def test_a_session_ended_by_the_cluster_is_lost_at_its_keepalive(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    with pytest.raises(SessionLost, match="the cluster ended it"):
        async with client.session(ttl=9):
            cluster.table.advance(10)
            clock.jump(3.1)
            await asyncio.Event().wait()


async def test_locks_of_an_ended_session_cannot_be_taken(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    session = await client.session(ttl=9).open()
    cluster.table.advance(10)
    with pytest.raises(SessionNotFound):
        await session.lock("a").acquire()
    await session.close()
    with pytest.raises(NotHolder):
        await session.lock("a").acquire()


async def test_a_lost_reply_to_the_opening_gives_the_same_session(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    for node in cluster.nodes.values():
        node.fault("/session", drop="after")
    async with client.session() as session:
        asked = cluster.asked_for("/session")
        assert len(asked) >= 2
        assert len({a.body["request_id"] for a in asked}) == 1
        assert cluster.table.machine.counts().sessions == 1
        assert session.is_open


async def test_a_session_that_cannot_be_closed_ends_by_itself(
    cluster: ScriptedCluster, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    client = make_client(timeout=1.0)
    async with client.session() as session:
        for node in cluster.nodes.values():
            node.fault("/session/close", 1000, answer=problem(503, "no_leader"))
    assert not session.is_open
    assert "could not be closed" in caplog.text


# --- Several locks at once --------------------------------------------------------------------


async def test_several_locks_are_taken_in_one_step_and_given_back_together(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    async with client.acquire_many(["b", "a", "c"]) as locks:
        assert held_names(cluster) == ["a", "b", "c"]
        assert sorted(locks.tokens) == ["a", "b", "c"]
        assert len(set(locks.tokens.values())) == 3
        locks.check()
    assert held_names(cluster) == []
    assert cluster.table.machine.counts().sessions == 0
    with pytest.raises(NotHolder):
        locks.check()


async def test_all_or_none(cluster: ScriptedCluster, client: AsyncClient) -> None:
    async with client.lock("b"):
        many = client.acquire_many(["a", "b"], owner="other")
        assert not await many.try_acquire()
        assert held_names(cluster) == ["b"]
        with pytest.raises(LockHeld):
            await client.acquire_many(["a", "b"], owner="other", wait=0).acquire()
    await eventually(lambda: cluster.table.machine.counts().sessions == 0)
    assert await many.try_acquire()
    await many.release()


async def test_several_locks_are_lost_together(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    lost: list[LockLost] = []
    with pytest.raises(SessionLost):
        async with client.acquire_many(["a", "b"], ttl=9, on_lost=lost.append):
            for node in cluster.nodes.values():
                await node.stop()
            clock.jump(9)
            await asyncio.Event().wait()
    assert len(lost) == 1


async def test_several_locks_of_a_session_leave_the_session_open(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    async with client.session() as session, session.lock("kept"):
        async with session.acquire_many(["a", "b"]):
            assert held_names(cluster) == ["a", "b", "kept"]
        assert held_names(cluster) == ["kept"]


async def test_a_cancelled_wait_for_several_leaves_nothing(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    async with client.session() as session:
        for make in (client.acquire_many, session.acquire_many):
            async with client.lock("a"):
                waiting = asyncio.create_task(make(["a", "b"]).acquire())
                await eventually(lambda: cluster.table.waiting_count() == 1)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                await eventually(lambda: cluster.table.waiting_count() == 0)
            await eventually(lambda: held_names(cluster) == [])


async def test_grants_in_doubt_of_a_session_are_given_back(
    cluster: ScriptedCluster, make_client: MakeClient
) -> None:
    client = make_client(timeout=1.0)
    async with client.session(ttl=60) as session:
        for node in cluster.nodes.values():
            node.fault("/lock/acquire_many", 1, drop="after")
            node.fault("/lock/acquire_many", 1000, answer=problem(503, "no_leader"))
        with pytest.raises(OutcomeUnknown):
            await session.acquire_many(["a", "b"]).acquire()
        assert held_names(cluster) == ["a", "b"]
        cluster.forget_faults()
        await eventually(lambda: held_names(cluster) == [])
