"""Cycles in the wait-for graph: found by the request that would close one, and only then."""

from __future__ import annotations

from itertools import pairwise

import pytest

from distsync_node.locks.commands import LockMode, Outcome, RefusalCode, Refused
from unit.locks.driver import EXCLUSIVE, SHARED, Locks, code_of


def cycle_of(outcome: Outcome) -> tuple[str, ...]:
    assert isinstance(outcome, Refused)
    assert outcome.code is RefusalCode.DEADLOCK
    return outcome.cycle


@pytest.mark.parametrize("length", [2, 3, 7])
def test_a_ring_of_owners_is_a_deadlock_for_the_one_who_closes_it(length: int) -> None:
    locks = Locks()
    owners = [f"owner-{number}" for number in range(length)]
    for owner in owners:
        locks.hold(owner, f"lock-of-{owner}")
    for owner, following in pairwise(owners):
        locks.wait(owner, f"lock-of-{following}")
    closing = locks.acquire(owners[-1], f"lock-of-{owners[0]}", wait_ms=1_000)
    assert cycle_of(closing) == (owners[-1], *owners[:-1])


def test_a_deadlock_changes_nothing() -> None:
    locks = Locks()
    locks.hold("ann", "a")
    locks.hold("ben", "b")
    locks.wait("ann", "b")
    views = locks.machine.lock_views()
    assert code_of(locks.acquire("ben", "a", wait_ms=1_000)) is RefusalCode.DEADLOCK
    assert locks.machine.lock_views() == views
    assert locks.endings == {}


def test_a_chain_of_waits_is_no_deadlock() -> None:
    locks = Locks()
    for number in range(10):
        locks.hold(f"owner-{number}", f"lock-{number}")
    for number in range(9):
        locks.wait(f"owner-{number}", f"lock-{number + 1}")


def test_a_try_is_never_a_deadlock() -> None:
    locks = Locks()
    locks.hold("ann", "a")
    locks.hold("ben", "b")
    locks.wait("ann", "b")
    assert code_of(locks.acquire("ben", "a")) is RefusalCode.LOCK_HELD


def test_shared_holders_count() -> None:
    locks = Locks()
    locks.share("ann", "a")
    locks.share("ben", "a")
    locks.hold("cid", "c")
    locks.wait("ben", "c")
    assert cycle_of(locks.acquire("cid", "a", wait_ms=1_000)) == ("cid", "ben")


def test_earlier_waiters_count() -> None:
    locks = Locks()
    locks.hold("holder", "a")
    locks.hold("late", "b")
    locks.wait("early", "a")
    locks.wait("early", "b", key="second")
    assert cycle_of(locks.acquire("late", "a", wait_ms=1_000)) == ("late", "early")


def test_earlier_readers_do_not_count_for_a_reader() -> None:
    locks = Locks()
    locks.hold("holder", "a")
    locks.hold("late", "b")
    locks.wait_shared("early", "a")
    locks.wait("early", "b", key="second")
    locks.wait_shared("late", "a")


def test_later_waiters_do_not_count() -> None:
    locks = Locks()
    locks.hold("holder", "a")
    locks.wait("early", "a")
    locks.hold("late", "b")
    locks.wait("late", "a")
    assert cycle_of(locks.acquire("early", "b", wait_ms=1_000)) == ("early", "late")
    locks.cancel("late")
    locks.wait("early", "b", key="again")


def test_the_holders_of_a_full_semaphore_count() -> None:
    locks = Locks()
    locks.share("ann", "s", limit=2)
    locks.share("ben", "s", limit=2)
    locks.hold("cid", "c")
    locks.wait("ben", "c")
    closing = locks.acquire("cid", "s", mode=SHARED, limit=2, wait_ms=1_000)
    assert cycle_of(closing) == ("cid", "ben")


def test_earlier_waiters_of_a_full_semaphore_count() -> None:
    """Once granted they hold the place the later one waits for."""
    locks = Locks()
    locks.share("holder", "s", limit=1)
    locks.wait_shared("early", "s", limit=1)
    locks.hold("late", "b")
    locks.wait("early", "b", key="second")
    closing = locks.acquire("late", "s", mode=SHARED, limit=1, wait_ms=1_000)
    assert cycle_of(closing) == ("late", "early")


def test_holders_and_earlier_waiters_fill_a_semaphore_together() -> None:
    locks = Locks()
    locks.share("holder", "s", limit=2)
    locks.hold("other", "t")
    locks.wait_shared("early", "s", "t", limit=2)  # held up at t, with a place kept at s
    locks.hold("late", "b")
    locks.wait("early", "b", key="second")
    closing = locks.acquire("late", "s", mode=SHARED, limit=2, wait_ms=1_000)
    assert cycle_of(closing) == ("late", "early")


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
def test_a_queue_reached_in_two_places_is_searched_up_to_the_later_one(mode: LockMode) -> None:
    locks = Locks()
    locks.hold("start", "s")
    locks.share("early", "k")
    locks.share("late", "k")
    locks.hold("holder", "hot")
    locks.wait("early", "hot", mode=mode)
    locks.wait("between", "hot")
    locks.wait("late", "hot", mode=mode)
    locks.wait("between", "s", key="second")
    closing = locks.acquire("start", "k", wait_ms=1_000)
    assert cycle_of(closing) == ("start", "late", "between")


def test_a_semaphore_with_room_does_not_count() -> None:
    locks = Locks()
    locks.share("ann", "s", limit=2)
    locks.hold("cid", "c")
    locks.wait("ann", "c")
    locks.share("cid", "s", limit=2)


def test_every_lock_of_a_wait_for_several_counts() -> None:
    locks = Locks()
    locks.hold("ann", "a")
    locks.hold("ben", "b")
    locks.hold("cid", "c")
    locks.wait("ann", "b", "c")
    assert cycle_of(locks.acquire("cid", "a", wait_ms=1_000)) == ("cid", "ann")


def test_several_waits_of_one_owner_count_together() -> None:
    locks = Locks()
    locks.hold("ann", "a")
    locks.hold("ben", "b")
    locks.hold("cid", "c")
    locks.wait("ann", "b")
    locks.wait("ann", "c", key="second")
    assert cycle_of(locks.acquire("cid", "a", wait_ms=1_000)) == ("cid", "ann")


def test_the_shortest_cycle_is_reported() -> None:
    locks = Locks()
    for owner in ("ann", "ben", "cid"):
        locks.hold(owner, owner)
    locks.share("ben", "s")
    locks.share("cid", "s")
    locks.wait("ben", "cid")
    locks.wait("cid", "ann")
    assert cycle_of(locks.acquire("ann", "s", wait_ms=1_000)) == ("ann", "cid")


@pytest.mark.parametrize("how", ["release", "cancel", "expire"])
def test_what_has_ended_no_longer_closes_a_cycle(how: str) -> None:
    locks = Locks()
    token = locks.hold("ann", "a", ttl_ms=500)
    locks.hold("ben", "b", ttl_ms=60_000)
    locks.wait("ann", "b")
    match how:
        case "release":
            locks.release("ann", "a", token)
            locks.hold("cid", "a")
        case "cancel":
            locks.cancel("ann")
        case _:
            locks.pass_time_and_expire(500)
            locks.hold("cid", "a")
    locks.wait("ben", "a")


def test_a_cycle_through_a_grant_made_to_a_waiter_is_found() -> None:
    locks = Locks()
    token = locks.hold("holder", "a")
    locks.wait("ann", "a")
    locks.hold("ben", "b")
    locks.release("holder", "a", token)
    locks.wait("ann", "b", key="second")
    assert cycle_of(locks.acquire("ben", "a", wait_ms=1_000)) == ("ben", "ann")


# --- Upgrades -------------------------------------------------------------------------------


def test_two_upgrades_of_one_lock_are_a_deadlock() -> None:
    locks = Locks()
    first = locks.share("first", "a")
    second = locks.share("second", "a")
    locks.upgrade("first", "a", first, wait_ms=1_000)
    closing = locks.upgrade("second", "a", second, wait_ms=1_000)
    assert cycle_of(closing) == ("second", "first")


def test_an_upgrade_waits_for_the_other_holders() -> None:
    locks = Locks()
    token = locks.share("ann", "a")
    locks.share("ben", "a")
    locks.hold("ann", "b")
    locks.wait("ben", "b")
    assert cycle_of(locks.upgrade("ann", "a", token, wait_ms=1_000)) == ("ann", "ben")


def test_an_upgrade_granted_at_once_can_close_a_cycle() -> None:
    """A reader queued here, and held up only elsewhere, would have to wait for the upgrade."""
    locks = Locks()
    token = locks.share("ann", "a")
    locks.hold("ben", "b")
    locks.hold("cid", "c")
    locks.wait_shared("ben", "a", "c")
    locks.wait("ann", "b")
    for wait_ms in (0, 1_000):
        assert cycle_of(locks.upgrade("ann", "a", token, wait_ms=wait_ms)) == ("ann", "ben")
    assert locks.token("a", "ann") == token


def test_readers_held_up_by_a_waiting_upgrade_count() -> None:
    locks = Locks()
    token = locks.share("ann", "a")
    locks.share("ben", "a")
    locks.upgrade("ann", "a", token, wait_ms=1_000)
    locks.hold("cid", "c")
    locks.wait("ann", "c")
    closing = locks.acquire("cid", "a", mode=SHARED, wait_ms=1_000)
    assert cycle_of(closing) == ("cid", "ann")


# --- Cost -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
def test_a_long_queue_of_owners_with_locks_of_their_own_is_no_deadlock(mode: LockMode) -> None:
    locks = Locks(checked=False)
    locks.hold("holder", "hot")
    for number in range(5_000):
        locks.hold(f"owner-{number}", f"own-{number}")
        locks.wait(f"owner-{number}", "hot", mode=mode)
    assert len(locks.waiters("hot")) == 1_000  # a view shows so many
    closing = locks.acquire("holder", "own-4999", wait_ms=1_000)
    assert cycle_of(closing) == ("holder", "owner-4999")
