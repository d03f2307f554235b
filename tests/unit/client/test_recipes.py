"""Election, barrier and latch: what they promise, also when participants die."""

# ruff: noqa: PT012 - what is raised comes out of the end of an `async with`
from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import pytest

from distsync import (
    AsyncClient,
    BadRequest,
    Barrier,
    Election,
    Leader,
    LimitMismatch,
    LockLost,
    OutcomeUnknown,
    SessionLost,
    WaitTimeout,
)
from unit.client.jump_clock import JumpClock
from unit.client.scripted_cluster import ScriptedCluster, problem
from waiting_for import eventually

MakeClient = Callable[..., AsyncClient]


async def die(client: AsyncClient, cluster: ScriptedCluster) -> None:
    """Let a client vanish: its connections break, and it says nothing more."""
    client._core.transport.post = client._core.transport.get = _dead  # type: ignore[method-assign,assignment]
    client._core.background._closed = True
    for task in list(client._core.background._tasks):
        task.cancel()
    await client._core.transport.close()


async def _dead(*_: object, **__: object) -> None:
    await asyncio.Event().wait()


# --- Election ---------------------------------------------------------------------------------


async def test_election_hands_over_when_the_leader_resigns(client: AsyncClient) -> None:
    one = client.election("boss", candidate="one")
    two = client.election("boss", candidate="two")
    async with one:
        standing = asyncio.create_task(two.campaign())
        assert one.is_leader
        assert not two.is_leader
        assert await two.leader() == Leader(candidate="one", token=one.token)
    await standing
    assert two.is_leader
    assert two.token > one.token
    assert await one.leader() == Leader(candidate="two", token=two.token)
    await two.resign()
    assert await one.leader() is None


async def test_election_hands_over_when_the_leader_dies(
    cluster: ScriptedCluster, make_client: MakeClient
) -> None:
    first, second = make_client(), make_client()
    old = first.election("boss", ttl=10)
    await old.campaign()
    new = second.election("boss")
    standing = asyncio.create_task(new.campaign())
    await eventually(lambda: cluster.table.waiting_count() == 1)
    await die(first, cluster)
    await asyncio.sleep(0.01)
    assert not standing.done()
    cluster.table.advance(10)
    await standing
    assert new.token > old.token
    await new.resign()


async def test_a_leader_that_is_cut_off_stops_before_another_may_be_elected(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    lost: list[LockLost] = []
    election = client.election("boss", ttl=10, on_lost=lost.append)
    with pytest.raises(LockLost):
        async with election:
            for node in cluster.nodes.values():
                await node.stop()
            clock.jump(9.86)
            await asyncio.Event().wait()
    assert not election.is_leader
    assert len(lost) == 1


async def test_run_leads_again_after_a_loss_until_the_work_is_done(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    elected: list[Election] = []
    tokens: list[int] = []

    async def lead(term: Election) -> str:
        tokens.append(term.token)
        if len(tokens) == 1:
            cluster.table.advance(11)
            clock.jump(4)
            await asyncio.Event().wait()
        return "done"

    election = client.election("boss", ttl=10, on_elected=elected.append)
    running = asyncio.create_task(election.run(lead))
    await eventually(lambda: len(tokens) == 1)
    clock.jump(2)
    assert await running == "done"
    assert len(tokens) == len(elected) == 2
    assert tokens[1] > tokens[0]
    assert await election.leader() is None


async def test_run_leads_again_although_the_cluster_still_knows_the_lost_term(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    tokens: list[int] = []

    async def lead(term: Election) -> str:
        tokens.append(term.token)
        if len(tokens) == 1:
            for node in cluster.nodes.values():
                node.fault("/lock/renew", 1000, answer=problem(503, "no_leader"))
            clock.jump(10)
            await asyncio.Event().wait()
        return "done"

    running = asyncio.create_task(client.election("boss", ttl=10).run(lead))
    await eventually(lambda: len(tokens) == 1)
    await asyncio.sleep(0.05)
    cluster.forget_faults()
    clock.jump(2)
    async with asyncio.timeout(10):
        assert await running == "done"
    assert tokens[1] > tokens[0]


async def test_run_passes_on_what_the_work_raises(client: AsyncClient) -> None:
    async def lead(term: Election) -> None:
        raise ZeroDivisionError

    election = client.election("boss")
    with pytest.raises(ZeroDivisionError):
        await election.run(lead)
    assert await election.leader() is None


async def test_observe_shows_each_leader(client: AsyncClient) -> None:
    one, two = (client.election("boss", candidate=name) for name in ("one", "two"))
    async with aclosing(two.observe()) as leaders:
        assert await anext(leaders) is None
        async with one:
            assert await anext(leaders) == Leader(candidate="one", token=one.token)
        assert await anext(leaders) is None
        async with two:
            assert await anext(leaders) == Leader(candidate="two", token=two.token)


# --- Barrier ----------------------------------------------------------------------------------


async def arrive(barrier: Barrier, passed: list[int], number: int) -> None:
    await barrier.wait()
    passed.append(number)


async def test_nobody_passes_before_all_are_there(client: AsyncClient) -> None:
    barrier = client.barrier("b", 3)
    passed: list[int] = []
    async with asyncio.TaskGroup() as group:
        for number in range(2):
            group.create_task(arrive(barrier, passed, number))
        while await barrier.waiting() < 2:
            await asyncio.sleep(0.005)
        assert not passed
        group.create_task(arrive(barrier, passed, 2))
    assert sorted(passed) == [0, 1, 2]


async def test_a_barrier_is_used_again_and_again(
    cluster: ScriptedCluster, make_client: MakeClient
) -> None:
    clients = [make_client() for _ in range(3)]
    rounds = [0, 0, 0]

    async def take_part(number: int) -> None:
        barrier = clients[number].barrier("b", 3)
        for round_number in range(4):
            await barrier.wait()
            rounds[number] += 1
            assert all(abs(other - round_number - 1) <= 1 for other in rounds)

    async with asyncio.timeout(20):
        await asyncio.gather(*(take_part(number) for number in range(3)))
    assert rounds == [4, 4, 4]


async def test_more_than_the_parties_form_the_next_group(client: AsyncClient) -> None:
    barrier = client.barrier("b", 2)
    passed: list[int] = []
    tasks = [asyncio.create_task(arrive(barrier, passed, number)) for number in range(5)]
    await eventually(lambda: len(passed) == 4)
    while await barrier.waiting() != 1:
        await asyncio.sleep(0.005)
    assert len(passed) == 4
    tasks.append(asyncio.create_task(arrive(barrier, passed, 5)))
    await asyncio.gather(*tasks)
    assert len(passed) == 6


async def test_a_crashed_party_is_not_counted_when_its_lease_has_ended(
    cluster: ScriptedCluster, make_client: MakeClient
) -> None:
    client, doomed = make_client(), make_client()
    passed: list[int] = []
    crashed = asyncio.create_task(doomed.barrier("b", 3, ttl=5).wait())
    barrier = client.barrier("b", 3, ttl=60)
    while await barrier.waiting() < 1:
        await asyncio.sleep(0.005)
    await die(doomed, cluster)
    while not crashed.done():
        crashed.cancel()
        await asyncio.sleep(0)
    cluster.table.advance(6)
    tasks = [asyncio.create_task(arrive(barrier, passed, number)) for number in range(2)]
    while await barrier.waiting() < 2:
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.02)
    assert not passed  # two live ones and a dead one are not three
    tasks.append(asyncio.create_task(arrive(barrier, passed, 2)))
    await asyncio.gather(*tasks)
    assert sorted(passed) == [0, 1, 2]


async def test_all_pass_although_those_who_saw_it_full_died_at_once(
    cluster: ScriptedCluster, clock: JumpClock, make_client: MakeClient
) -> None:
    """One party does not hear of anything while the other passes, leaves and its lease ends."""
    slow, quick = make_client(timeout=60), make_client()
    waiting = asyncio.create_task(slow.barrier("b", 2, ttl=30).wait())
    barrier = quick.barrier("b", 2, ttl=5)
    while await barrier.waiting() < 1:
        await asyncio.sleep(0.005)
    hold = asyncio.Event()
    reads = slow._core.transport.get

    async def late(*arguments: object, **options: object) -> object:
        await hold.wait()
        return await reads(*arguments, **options)  # type: ignore[arg-type]

    slow._core.transport.get = late  # type: ignore[method-assign,assignment]
    await barrier.wait()
    await die(quick, cluster)
    cluster.table.advance(6)
    views = cluster.table.machine.lock_views()
    assert [v.holder_count for v in views if v.name.endswith("/here")] == [1]
    hold.set()
    async with asyncio.timeout(15):
        clock.jump(10)
        await waiting


async def test_nobody_joins_a_group_that_is_complete(
    cluster: ScriptedCluster, make_client: MakeClient
) -> None:
    """One of two has passed and left, the other has not heard of it: there is no place free."""
    slow, others = make_client(), make_client()
    waiting = asyncio.create_task(slow.barrier("b", 2).wait())
    barrier = others.barrier("b", 2)
    while await barrier.waiting() < 1:
        await asyncio.sleep(0.005)
    hold = asyncio.Event()
    reads = slow._core.transport.get

    async def late(*arguments: object, **options: object) -> object:
        await hold.wait()
        return await reads(*arguments, **options)  # type: ignore[arg-type]

    slow._core.transport.get = late  # type: ignore[method-assign,assignment]
    await barrier.wait()
    passed: list[int] = []
    third = asyncio.create_task(arrive(barrier, passed, 3))
    while await barrier.waiting() < 1:
        await asyncio.sleep(0.005)
    assert not passed
    hold.set()
    await waiting
    assert not passed
    await barrier.wait()
    await third


async def test_a_party_that_gives_up_is_not_counted(client: AsyncClient) -> None:
    barrier = client.barrier("b", 2)
    with pytest.raises(WaitTimeout, match="1 of 2"):
        await barrier.wait(wait=0.05)
    cancelled = asyncio.create_task(barrier.wait())
    while await barrier.waiting() < 1:
        await asyncio.sleep(0.005)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    while await barrier.waiting():
        await asyncio.sleep(0.005)
    passed: list[int] = []
    waiting = asyncio.create_task(arrive(barrier, passed, 0))
    while await barrier.waiting() < 1:
        await asyncio.sleep(0.005)
    assert not passed
    await barrier.wait()
    await waiting


async def test_a_party_whose_lease_ends_while_it_waits_is_told(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    waiting = asyncio.create_task(client.barrier("b", 2, ttl=5).wait())
    await eventually(lambda: any("/here" in v.name for v in cluster.table.machine.lock_views()))
    for node in cluster.nodes.values():
        await node.stop()
    clock.jump(6)
    with pytest.raises(SessionLost):
        await waiting


async def test_an_arrival_that_was_paused_past_its_lease_joins_nothing(
    cluster: ScriptedCluster, make_client: MakeClient
) -> None:
    """It looked behind the door, and its session ended before it took its permit."""
    paused, other = make_client(), make_client()
    hold = asyncio.Event()
    post = paused._core.transport.post

    async def slow(path: str, body: object, *arguments: object, **options: object) -> object:
        if getattr(body, "limit", None) is not None:
            await hold.wait()
        return await post(path, body, *arguments, **options)  # type: ignore[arg-type]

    paused._core.transport.post = slow  # type: ignore[method-assign,assignment]
    late = asyncio.create_task(paused.barrier("b", 2, ttl=5).wait())
    await eventually(lambda: any("/door" in v.name for v in cluster.table.machine.lock_views()))
    await asyncio.sleep(0.05)
    cluster.table.advance(6)
    passed: list[int] = []
    waiting = asyncio.create_task(arrive(other.barrier("b", 2, ttl=60), passed, 0))
    await eventually(lambda: any("/here" in v.name for v in cluster.table.machine.lock_views()))
    hold.set()
    with pytest.raises(Exception, match="session"):
        await late
    assert not passed
    await other.barrier("b", 2, ttl=60).wait()
    await waiting


async def test_parties_that_disagree_are_told(client: AsyncClient) -> None:
    waiting = asyncio.create_task(client.barrier("b", 2).wait())
    barrier = client.barrier("b", 3)
    while await barrier.waiting() < 1:
        await asyncio.sleep(0.005)
    with pytest.raises(LimitMismatch):
        await barrier.wait()
    await client.barrier("b", 2).wait()
    await waiting
    with pytest.raises(BadRequest):
        client.barrier("b", 0)
    with pytest.raises(BadRequest):
        client.barrier("b", 2, ttl=100_000)


# --- Latch ------------------------------------------------------------------------------------


async def test_a_latch_opens_with_the_last_count(client: AsyncClient) -> None:
    latch = client.latch("l", 3)
    waiting = [asyncio.create_task(latch.wait()) for _ in range(2)]
    for expected in (2, 1):
        await latch.count_down()
        assert await latch.missing() == expected
    await asyncio.sleep(0.02)
    assert not any(task.done() for task in waiting)
    await latch.count_down()
    await asyncio.gather(*waiting)
    assert await latch.is_open()
    await latch.count_down()  # more than needed changes nothing
    await latch.wait(wait=0)


async def test_counts_outlive_those_who_made_them(
    cluster: ScriptedCluster, make_client: MakeClient
) -> None:
    for _ in range(2):
        worker = make_client()
        await worker.latch("l", 2, keep=3600).count_down()
        await die(worker, cluster)
        cluster.table.advance(60)
    await make_client().latch("l", 2).wait(wait=1)


async def test_a_party_counts_once(client: AsyncClient) -> None:
    latch = client.latch("l", 2)
    for _ in range(3):
        await latch.count_down("worker-1")
    assert await latch.missing() == 1
    await latch.count_down("worker-2")
    assert await latch.is_open()


async def test_a_count_in_doubt_stays_and_is_not_made_twice(
    cluster: ScriptedCluster, make_client: MakeClient
) -> None:
    latch = make_client(timeout=1.0).latch("l", 2)
    for node in cluster.nodes.values():
        node.fault("/lock/acquire", 1, drop="after")
        node.fault("/lock/acquire", 1000, answer=problem(503, "no_leader"))
    with pytest.raises(OutcomeUnknown):
        await latch.count_down("worker-1")
    cluster.forget_faults()
    await latch.count_down("worker-1")
    assert await latch.missing() == 1


async def test_waiting_for_a_latch_ends_in_time(client: AsyncClient) -> None:
    with pytest.raises(WaitTimeout, match="2 counts missing"):
        await client.latch("l", 2).wait(wait=0.05)
    with pytest.raises(BadRequest):
        client.latch("l", 0)


async def test_a_latch_is_reset(client: AsyncClient) -> None:
    latch = client.latch("l", 2)
    await latch.count_down("a")
    await latch.count_down("b")
    await latch.reset()
    assert await latch.missing() == 2
    with pytest.raises(LimitMismatch):
        await latch.count_down("a")
        await client.latch("l", 3).count_down()
