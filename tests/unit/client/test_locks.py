"""What the holder of a lock may rely on."""

# ruff: noqa: PT012 - what is raised comes out of the end of an `async with`
from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import timedelta

import pytest
from aiohttp import web

from distsync import (
    AsyncClient,
    Deadlock,
    LimitMismatch,
    Lock,
    LockHeld,
    LockLost,
    NotHolder,
    OutcomeUnknown,
    Unavailable,
    WaitTimeout,
)
from unit.client.jump_clock import JumpClock
from unit.client.scripted_cluster import ScriptedCluster, problem
from waiting_for import eventually

MakeClient = Callable[..., AsyncClient]
ACQUIRE, RENEW, RELEASE = "/lock/acquire", "/lock/renew", "/lock/release"


async def cut_off(cluster: ScriptedCluster) -> None:
    for node in cluster.nodes.values():
        await node.stop()


async def holders(client: AsyncClient, name: str) -> list[str]:
    return [holder.owner for holder in (await client.lock_info(name)).holders]


# --- Taking and giving back -----------------------------------------------------------------


async def test_a_lock_is_held_in_the_body_and_free_after_it(client: AsyncClient) -> None:
    async with client.lock("orders/42", ttl=timedelta(seconds=10)) as lock:
        assert lock.held
        assert await holders(client, "orders/42") == [lock.owner]
        assert 9 < lock.expires_in() <= 10
        lock.check()
    assert not lock.held
    assert lock.expires_in() == 0
    assert await holders(client, "orders/42") == []
    with pytest.raises(NotHolder):
        lock.check()


async def test_tokens_rise_from_holder_to_holder(client: AsyncClient) -> None:
    tokens = []
    for _ in range(3):
        async with client.lock("a") as lock:
            tokens.append(lock.token)
    assert tokens == sorted(set(tokens))


async def test_waiters_are_served_in_their_order(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    served = []

    async def serve(number: int) -> None:
        async with client.lock("a"):
            served.append(number)

    async with asyncio.TaskGroup() as group, client.lock("a"):
        for number in range(5):
            group.create_task(serve(number))
            await eventually(lambda n=number: cluster.table.waiting_count() == n + 1)
    assert served == list(range(5))


async def test_each_task_is_an_owner_of_its_own(client: AsyncClient) -> None:
    async def owner() -> str | None:
        async with client.lock("a") as lock:
            return lock.owner

    owners = await asyncio.gather(owner(), owner(), owner())
    assert len(set(owners)) == 3
    async with client.lock("b") as first, client.lock("c") as second:
        assert first.owner == second.owner


async def test_a_task_that_waits_for_itself_is_told(client: AsyncClient) -> None:
    async with client.lock("a") as lock:
        with pytest.raises(Deadlock) as caught:
            await client.lock("a").acquire()
    assert caught.value.cycle == [lock.owner]


async def test_a_deadlock_between_tasks_is_found(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    async def take(first: str, second: str) -> None:
        async with client.lock(first):
            await both.wait()
            async with client.lock(second):
                pass

    both = asyncio.Barrier(2)
    results = await asyncio.gather(take("a", "b"), take("b", "a"), return_exceptions=True)
    assert sorted(type(result) for result in results if result) == [Deadlock]


async def test_not_waiting_and_waiting_for_a_while(client: AsyncClient) -> None:
    async with client.lock("a"):
        other = client.lock("a", owner="other", wait=0)
        assert not await other.try_acquire()
        with pytest.raises(LockHeld):
            await other.acquire()
        with pytest.raises(LockHeld):
            async with other:
                pass
    assert await other.try_acquire()
    await other.release()


async def test_a_wait_that_passes_is_told(cluster: ScriptedCluster, client: AsyncClient) -> None:
    async with client.lock("a"):
        waiting = asyncio.create_task(client.lock("a", wait=5).acquire())
        await eventually(lambda: cluster.table.waiting_count() == 1)
        cluster.table.advance(5)
        with pytest.raises(WaitTimeout):
            await waiting


async def test_a_wait_without_end_is_asked_for_in_pieces(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    """The cluster lets one request wait for ten minutes at most."""
    async with client.lock("a", ttl=3600):
        waiting = asyncio.create_task(client.lock("a").acquire())
        await eventually(lambda: cluster.table.waiting_count() == 1)
        cluster.table.advance(600)
        await eventually(lambda: len(cluster.asked_for(ACQUIRE)) == 3)
    await (await waiting).release()
    first, second = cluster.asked_for(ACQUIRE)[1:]
    assert first.body["wait_ms"] == second.body["wait_ms"] == 600_000
    assert first.body["request_id"] != second.body["request_id"]


async def test_shared_holders_share_and_semaphores_count(client: AsyncClient) -> None:
    async with client.lock("a", shared=True), client.lock("a", shared=True, owner="other") as two:
        assert two.shared
        assert not await client.lock("a", owner="writer").try_acquire()
    permits = [client.semaphore("s", 2, owner=f"user-{n}", wait=0) for n in range(3)]
    assert [await permit.try_acquire() for permit in permits] == [True, True, False]
    with pytest.raises(LimitMismatch):
        await client.semaphore("s", 3, owner="other").acquire()
    await permits[0].release()
    assert await permits[2].try_acquire()


async def test_upgrade_and_downgrade(cluster: ScriptedCluster, client: AsyncClient) -> None:
    async with client.lock("a", shared=True) as lock:
        reader = await client.lock("a", shared=True, owner="reader").acquire()
        before = lock.token
        upgrading = asyncio.create_task(lock.upgrade())
        await eventually(lambda: cluster.table.waiting_count() == 1)
        await reader.release()
        await upgrading
        assert lock.token > before
        assert not lock.shared
        await lock.downgrade()
        assert lock.shared
        await reader.acquire()
        await reader.release()
    assert await holders(client, "a") == []


async def test_double_upgrade_is_a_deadlock_and_the_shared_grant_stays(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    one = await client.lock("a", shared=True, owner="one").acquire()
    two = await client.lock("a", shared=True, owner="two").acquire()
    upgrading = asyncio.create_task(one.upgrade())
    await eventually(lambda: cluster.table.waiting_count() == 1)
    with pytest.raises(Deadlock):
        await two.upgrade()
    assert two.held
    await two.release()
    await upgrading
    await one.release()


async def test_an_upgrade_in_doubt_that_was_done_is_adopted(
    cluster: ScriptedCluster, clock: JumpClock, make_client: MakeClient
) -> None:
    client = make_client(timeout=1.0)
    async with client.lock("a", shared=True) as lock:
        before = lock.token
        for node in cluster.nodes.values():
            node.fault("/lock/upgrade", 1000, drop="after")
        with pytest.raises(OutcomeUnknown):
            await lock.upgrade()
        clock.jump(4)  # the renewal of the old token is refused
        await eventually(lambda: lock.token > before)
        assert lock.held
        assert not lock.shared
    assert await holders(client, "a") == []


async def test_one_object_is_held_once_at_a_time(client: AsyncClient) -> None:
    lock = client.lock("a")
    with pytest.raises(RuntimeError, match="never acquired"):
        _ = lock.token
    await lock.acquire()
    with pytest.raises(RuntimeError, match="in use"):
        await lock.acquire()
    await lock.release()
    with pytest.raises(NotHolder):
        await lock.release()
    await lock.acquire()
    await lock.release()


async def test_a_lock_taken_before_can_be_entered_once(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    lock = client.lock("a", ttl=10)
    if await lock.try_acquire():
        async with lock:
            assert lock.held
            with pytest.raises(RuntimeError, match="already"):
                async with lock:
                    pass
            lock.check()
    assert not is_held(cluster, "a")
    assert repr(lock) == "<Lock 'a': not held>"


async def test_a_lock_with_a_limit_is_a_semaphore(client: AsyncClient) -> None:
    async with client.lock("s", shared=True, limit=1):
        assert not await client.semaphore("s", limit=1, owner="other").try_acquire()


# --- Keeping it -----------------------------------------------------------------------------


async def test_the_lease_is_renewed_at_a_third_of_it(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    async with client.lock("a", ttl=9) as lock:
        clock.jump(2.0)
        await asyncio.sleep(0.01)
        assert not cluster.asked_for(RENEW)
        clock.jump(1.1)
        await eventually(lambda: lock.expires_in() > 8)
        assert len(cluster.asked_for(RENEW)) == 1
        clock.jump(3.1)
        await eventually(lambda: len(cluster.asked_for(RENEW)) == 2 and lock.expires_in() > 8)
        lock.check()


async def test_a_renewal_counts_from_its_sending_too(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    hold = asyncio.Event()
    async with client.lock("a", ttl=60) as lock:
        before = len(cluster.asked_for(RENEW))  # a grant that was long on its way is renewed first
        for node in cluster.nodes.values():
            node.fault(RENEW, hold_answer=hold)
        clock.jump(24)
        await eventually(lambda: len(cluster.asked_for(RENEW)) > before)
        clock.jump(12)  # the answer is that long on its way
        hold.set()
        await eventually(lambda: lock.expires_in() > 30)
        assert lock.expires_in() < 60 - 0.65 - 12


async def test_a_waited_grant_is_renewed_before_the_body_runs(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    holder = await client.lock("a", ttl=60, owner="holder").acquire()
    renewals_at_entry: list[int] = []

    async def wait_and_run() -> float:
        async with client.lock("a", ttl=10) as lock:
            renewals_at_entry.append(len(cluster.asked_for(RENEW)))
            lock.check()
            return lock.expires_in()

    waiting = asyncio.create_task(wait_and_run())
    await eventually(lambda: cluster.table.waiting_count() == 1)
    clock.jump(15)  # longer than the lease: counted from sending, it is over before it begins
    before = len(cluster.asked_for(RENEW))
    await holder.release()
    assert await waiting > 9
    assert renewals_at_entry[0] > before


async def test_a_waited_grant_that_ended_before_its_renewal_is_waited_for_anew(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    holder = await client.lock("a", ttl=60, owner="holder").acquire()

    def expired() -> web.Response:
        cluster.table.advance(11)
        return problem(409, "not_holder", retriable=False)()

    waiting = asyncio.create_task(client.lock("a", ttl=10, owner="waiter").acquire())
    await eventually(lambda: cluster.table.waiting_count() == 1)
    clock.jump(1)
    for node in cluster.nodes.values():
        node.fault(RENEW, answer=expired)
    await holder.release()
    lock = await waiting
    assert len(cluster.asked_for(ACQUIRE)) == 3
    assert lock.token == (await client.lock_info("a")).token
    await lock.release()


async def test_the_body_is_cancelled_at_the_deadline_while_offline(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    was_cancelled = False
    with pytest.raises(LockLost) as caught:
        async with client.lock("a", ttl=10) as lock:
            await cut_off(cluster)
            clock.jump(lock.expires_in() - 3)
            await asyncio.sleep(0.05)
            lock.check()  # not yet
            clock.jump(3)
            try:
                async with asyncio.timeout(10):
                    await asyncio.Event().wait()
            except asyncio.CancelledError:
                was_cancelled = True
                raise
    assert was_cancelled
    assert caught.value.fields["name"] == "a"
    assert caught.value.fields["token"] == lock.token
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0


async def test_a_body_stopped_past_the_deadline_cannot_go_on_as_if_nothing_was(
    clock: JumpClock, client: AsyncClient
) -> None:
    """The event loop stood still, as after SIGSTOP: the next await does not return."""
    reached = []
    with pytest.raises(LockLost):
        async with client.lock("a", ttl=10) as lock:
            clock.offset += 11  # no timer can have fired
            with pytest.raises(LockLost):
                lock.check()
            clock.jump(0)
            await asyncio.sleep(1)
            reached.append("after")
    assert not reached


async def test_a_body_that_never_awaits_is_told_at_its_end(
    clock: JumpClock, client: AsyncClient
) -> None:
    with pytest.raises(LockLost):
        async with client.lock("a", ttl=10):
            clock.offset += 11


async def test_a_late_renewal_reply_does_not_bring_a_lost_lock_back(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    hold = asyncio.Event()
    lost: list[LockLost] = []
    lock = await client.lock("a", ttl=10, on_lost=lost.append).acquire()
    for node in cluster.nodes.values():
        node.fault(RENEW, 100, hold=hold)
    clock.jump(4)
    await eventually(lambda: cluster.asked_for(RENEW))
    clock.jump(6)
    await eventually(lambda: lost)
    hold.set()
    await asyncio.sleep(0.02)
    assert not lock.held
    with pytest.raises(LockLost):
        lock.check()
    with pytest.raises(LockLost):
        await lock.release()
    assert len(lost) == 1


async def test_a_grant_ended_by_the_cluster_is_lost_at_the_next_renewal(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    lost: list[LockLost] = []

    async def on_lost(error: LockLost) -> None:
        lost.append(error)

    with pytest.raises(LockLost, match="the cluster ended it"):
        async with client.lock("a", ttl=10, on_lost=on_lost):
            cluster.table.advance(11)
            clock.jump(4)
            await asyncio.Event().wait()
    await eventually(lambda: lost)
    assert lost[0].fields["name"] == "a"


async def test_renewals_ride_out_failures_until_the_deadline(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    async with client.lock("a", ttl=10) as lock:
        for node in cluster.nodes.values():
            node.fault(RENEW, 1, drop="before")
            node.fault(RENEW, 1, answer=problem(503, "no_leader"))
        clock.jump(4)
        await eventually(lambda: lock.expires_in() > 9)
        lock.check()


# --- Whose error wins -----------------------------------------------------------------------


async def test_the_bodys_own_error_wins_over_the_loss(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        async with client.lock("a", ttl=10):
            clock.offset += 11
            raise ZeroDivisionError
    assert "could not be renewed" in caught.value.__notes__[0]
    with pytest.raises(ZeroDivisionError):
        async with client.lock("b", ttl=10):
            await cut_off(cluster)
            clock.jump(11)
            try:
                await asyncio.Event().wait()
            finally:
                raise ZeroDivisionError
    await asyncio.sleep(0)  # no cancellation is left behind


async def test_a_cancellation_from_elsewhere_is_never_swallowed(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    entered = asyncio.Event()

    async def hold() -> None:
        async with client.lock("a", ttl=10):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await holders(client, "a") == []


async def test_a_cancellation_together_with_a_loss_stays_a_cancellation(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    entered = asyncio.Event()

    async def hold() -> None:
        async with client.lock("a", ttl=10):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await entered.wait()
    await cut_off(cluster)
    task.add_done_callback(lambda _: None)
    clock.jump(11)
    asyncio.get_running_loop().call_soon(task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_lost_lock_is_given_back_also_when_its_task_is_cancelled(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    async def hold() -> None:
        async with client.lock("a", ttl=10) as lock:
            await lose(lock, cluster, clock)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(hold())
    await eventually(lambda: not is_held(cluster, "a"))


async def test_a_timeout_around_a_lock_stays_a_timeout(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as scope, client.lock("a"):
            scope.reschedule(0)
            await asyncio.Event().wait()
    assert await holders(client, "a") == []


async def test_nested_locks_lost_together_raise_the_outer_loss(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    with pytest.raises(LockLost) as caught:
        async with client.lock("outer", ttl=10), client.lock("inner", ttl=10):
            await cut_off(cluster)
            clock.jump(11)
            await asyncio.Event().wait()
    assert caught.value.fields["name"] == "outer"
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0


async def test_a_task_group_in_the_body_is_cancelled_and_the_loss_told(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    with pytest.raises(LockLost):
        async with client.lock("a", ttl=10), asyncio.TaskGroup() as group:
            group.create_task(asyncio.Event().wait())
            await cut_off(cluster)
            clock.jump(11)


# --- Giving back ----------------------------------------------------------------------------


async def test_a_lost_release_reply_is_retried_under_the_same_request_id(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    for node in cluster.nodes.values():
        node.fault(RELEASE, drop="after")
    async with client.lock("a"):
        pass
    asked = cluster.asked_for(RELEASE)
    assert len(asked) >= 2
    assert len({a.body["request_id"] for a in asked}) == 1


async def test_a_failed_release_does_not_mask_the_bodys_error(
    cluster: ScriptedCluster, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    client = make_client(timeout=1.0)
    with pytest.raises(ZeroDivisionError):
        async with client.lock("a"):
            await cut_off(cluster)
            raise ZeroDivisionError
    assert "could not be released" in caplog.text


async def test_release_gives_up_when_the_lease_is_over(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    lock = await client.lock("a", ttl=10).acquire()
    for node in cluster.nodes.values():
        node.fault(RELEASE, 1000, answer=problem(503, "no_leader"))
    releasing = asyncio.create_task(lock.release())
    await eventually(lambda: cluster.asked_for(RELEASE))
    clock.jump(10.1)
    async with asyncio.timeout(2):
        with pytest.raises(Exception, match="no answer"):
            await releasing


async def test_a_cancelled_release_goes_on_in_the_background(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    hold = asyncio.Event()
    lock = await client.lock("a").acquire()
    for node in cluster.nodes.values():
        node.fault(RELEASE, hold=hold)
    releasing = asyncio.create_task(lock.release())
    await eventually(lambda: cluster.asked_for(RELEASE))
    releasing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await releasing
    hold.set()
    await eventually(lambda: cluster.table.machine.lock_view("a") is None)


async def test_a_grant_ended_before_its_release_is_told(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    with pytest.raises(LockLost, match="the cluster ended it"):
        async with client.lock("a", ttl=10):
            cluster.table.advance(11)


# --- Abandoned requests ---------------------------------------------------------------------


async def test_a_cancelled_wait_leaves_the_queue(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    async with client.lock("a"):
        waiting = asyncio.create_task(client.lock("a").acquire())
        await eventually(lambda: cluster.table.waiting_count() == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await eventually(lambda: cluster.table.waiting_count() == 0)


def hold_answers(cluster: ScriptedCluster) -> asyncio.Event:
    """Have the next acquire at each node be done, but not answered."""
    hold = asyncio.Event()
    for node in cluster.nodes.values():
        node.fault(ACQUIRE, hold_answer=hold)
    return hold


def is_held(cluster: ScriptedCluster, name: str) -> bool:
    return cluster.table.machine.lock_view(name) is not None


async def test_a_grant_that_raced_with_the_cancellation_is_given_back(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    hold_answers(cluster)
    waiting = asyncio.create_task(client.lock("a").acquire())
    await eventually(lambda: is_held(cluster, "a"))
    cluster.forget_faults()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await eventually(lambda: not is_held(cluster, "a"))


async def test_the_next_acquire_of_an_owner_does_not_meet_its_own_ghost(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    """The abandoned grant of the same owner would look like a deadlock."""

    async def give_up_and_try_again() -> Lock:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as scope:
                scopes.append(scope)
                await client.lock("a").acquire()
        return await client.lock("a").acquire()

    scopes: list[asyncio.Timeout] = []
    hold_answers(cluster)
    task = asyncio.create_task(give_up_and_try_again())
    await eventually(lambda: is_held(cluster, "a"))
    cluster.forget_faults()
    scopes[0].reschedule(0)
    async with asyncio.timeout(5):
        lock = await task
    await lock.release()


async def test_what_another_request_of_the_owner_holds_is_not_taken_away(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    """Two clients share an owner; the abandoned request of one was never granted."""
    lock = await client.lock("a", owner="shared").acquire()
    hold = asyncio.Event()
    for node in cluster.nodes.values():
        node.fault(ACQUIRE, hold=hold)
    trying = asyncio.create_task(client.lock("a", owner="shared", wait=0).acquire())
    await eventually(lambda: len(cluster.asked_for(ACQUIRE)) == 2)
    trying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trying
    hold.set()
    await eventually(lambda: not client._core.ghosts._by_owner)
    assert await holders(client, "a") == ["shared"]
    await lock.release()


async def test_a_grant_in_doubt_is_given_back(
    cluster: ScriptedCluster, make_client: MakeClient
) -> None:
    client = make_client(timeout=1.0)
    for node in cluster.nodes.values():
        node.fault(ACQUIRE, 1, drop="after")
        node.fault(ACQUIRE, 1000, answer=problem(503, "no_leader"))
    with pytest.raises(OutcomeUnknown):
        await client.lock("a").acquire()
    assert is_held(cluster, "a")
    cluster.forget_faults()
    await eventually(lambda: not is_held(cluster, "a"))


async def lose(lock: Lock, cluster: ScriptedCluster, clock: JumpClock) -> None:
    """Lose it by the holder's clock; the cluster still knows the grant."""
    faults = [
        node.fault(RENEW, 1000, answer=problem(503, "no_leader")) for node in cluster.nodes.values()
    ]
    clock.jump(10)
    await eventually(lambda: not lock.held)
    for fault in faults:  # a grant that comes late is renewed before it is used
        fault.times = 0


async def test_a_task_that_lost_a_lock_can_take_it_again(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    """The cluster still knows the grant: the same owner asking again looks like a deadlock."""
    for _ in range(2):
        with pytest.raises(LockLost):
            async with client.lock("a", ttl=10) as lock:
                await lose(lock, cluster, clock)
                await asyncio.Event().wait()
        assert is_held(cluster, "a")
        cluster.forget_faults()
    async with asyncio.timeout(5), client.lock("a") as again:
        assert again.token > lock.token
        assert again.owner == lock.owner


async def test_a_lock_is_given_back_only_when_the_body_has_ended(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    with pytest.raises(LockLost):
        async with client.lock("a", ttl=10) as lock:
            await lose(lock, cluster, clock)
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.05)  # it takes its time to clean up
                assert not cluster.asked_for(RELEASE)
    await eventually(lambda: not is_held(cluster, "a"))


async def test_a_ghost_that_does_not_go_away_is_met_by_another_owner(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    for node in cluster.nodes.values():
        node.fault(RELEASE, 1000, answer=problem(503, "no_leader"))

    async def lose_and_take_again() -> tuple[Lock, Lock]:
        lock = await client.lock("a", ttl=10).acquire()
        await lose(lock, cluster, clock)
        with pytest.raises(LockLost):
            await lock.release()
        return lock, await client.lock("a").acquire()

    taking = asyncio.create_task(lose_and_take_again())
    await eventually(lambda: cluster.table.waiting_count() == 1)
    cluster.table.advance(11)
    lock, again = await taking
    assert again.owner != lock.owner
    cluster.forget_faults()
    await again.release()


async def test_an_owner_that_the_user_named_stays(
    cluster: ScriptedCluster, clock: JumpClock, make_client: MakeClient
) -> None:
    client = make_client(timeout=1.0)
    for node in cluster.nodes.values():
        node.fault(RELEASE, 1000, answer=problem(503, "no_leader"))
    lock = await client.lock("a", ttl=10, owner="me").acquire()
    with pytest.raises(Unavailable):
        await lock.release()
    with pytest.raises(Deadlock) as caught:
        await client.lock("a", owner="me").acquire()
    assert caught.value.cycle == ["me"]


# --- Closing --------------------------------------------------------------------------------


async def test_closing_the_client_ends_what_is_held(make_client: MakeClient) -> None:
    client = make_client()
    entered = asyncio.Event()

    async def hold() -> Lock:
        async with client.lock("a") as lock:
            entered.set()
            await asyncio.Event().wait()
        return lock

    task = asyncio.create_task(hold())
    await entered.wait()
    await client.close()
    with pytest.raises(LockLost, match="client was closed"):
        await task
