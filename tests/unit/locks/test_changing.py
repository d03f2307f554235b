"""Upgrade and downgrade."""

from __future__ import annotations

import pytest

from distsync_node.locks.commands import Granted, LockMode, RefusalCode, Waiting
from unit.locks.driver import SHARED, Locks, code_of, deadline_of, tokens_of


def test_the_only_reader_is_upgraded_at_once_under_a_new_token() -> None:
    locks = Locks()
    old = locks.share("owner", "a", ttl_ms=700)
    locks.pass_time(100)
    outcome = locks.upgrade("owner", "a", old)
    assert isinstance(outcome, Granted)
    assert outcome.mode is LockMode.EXCLUSIVE
    assert tokens_of(outcome)[0] > old
    assert deadline_of(outcome) == 1_700  # the lease is the one it had
    assert code_of(locks.acquire("reader", "a", mode=SHARED)) is RefusalCode.LOCK_HELD


def test_after_an_upgrade_the_old_token_is_worth_nothing() -> None:
    locks = Locks()
    old = locks.share("owner", "a")
    locks.upgrade("owner", "a", old)
    assert code_of(locks.release("owner", "a", old)) is RefusalCode.NOT_HOLDER
    assert code_of(locks.renew("owner", "a", old)) is RefusalCode.NOT_HOLDER
    assert locks.holders("a") == ["owner"]


def test_an_upgrade_waits_ahead_of_all_other_waiters() -> None:
    locks = Locks()
    first = locks.share("first", "a")
    second = locks.share("second", "a")
    locks.wait("writer", "a")
    outcome = locks.upgrade("second", "a", second, wait_ms=1_000, key="upgrade")
    assert isinstance(outcome, Waiting)
    assert locks.waiters("a") == ["second", "writer"]
    locks.release("first", "a", first)
    assert locks.holders("a") == ["second"]
    assert tokens_of(locks.endings["upgrade"])[0] > second
    assert locks.waiters("a") == ["writer"]


def test_while_an_upgrade_waits_no_reader_enters() -> None:
    locks = Locks()
    first = locks.share("first", "a")
    locks.share("second", "a")
    locks.upgrade("first", "a", first, wait_ms=1_000)
    assert code_of(locks.acquire("late", "a", mode=SHARED)) is RefusalCode.LOCK_HELD
    locks.wait_shared("patient", "a")
    assert locks.holders("a") == ["first", "second"]


def test_an_upgrade_that_may_not_wait_is_refused_beside_other_readers() -> None:
    locks = Locks()
    first = locks.share("first", "a")
    locks.share("second", "a")
    assert code_of(locks.upgrade("first", "a", first)) is RefusalCode.LOCK_HELD


@pytest.mark.parametrize("wait_ms", [0, 1_000])
def test_only_a_current_shared_grant_can_be_upgraded(wait_ms: int) -> None:
    locks = Locks()
    writer = locks.hold("writer", "a")
    reader = locks.share("reader", "b")
    refused = RefusalCode.NOT_HOLDER
    assert code_of(locks.upgrade("writer", "a", writer, wait_ms=wait_ms)) is refused
    assert code_of(locks.upgrade("reader", "b", reader + 1, wait_ms=wait_ms)) is refused
    assert code_of(locks.upgrade("other", "b", reader, wait_ms=wait_ms)) is refused
    assert code_of(locks.upgrade("reader", "nothing", reader, wait_ms=wait_ms)) is refused


def test_a_grant_past_its_deadline_cannot_be_upgraded() -> None:
    locks = Locks()
    token = locks.share("owner", "a", ttl_ms=500)
    locks.pass_time(500)
    assert code_of(locks.upgrade("owner", "a", token)) is RefusalCode.NOT_HOLDER


@pytest.mark.parametrize("how", ["release", "force", "expire", "close", "session"])
def test_an_upgrade_is_lost_with_its_shared_grant(how: str) -> None:
    locks = Locks()
    locks.open_session("s", ttl_ms=500)
    session = "s" if how in ("close", "session") else None
    token = locks.share("owner", "a", ttl_ms=500, session=session)
    locks.share("other", "a", ttl_ms=60_000)
    locks.upgrade("owner", "a", token, wait_ms=5_000, key="upgrade")
    locks.wait_shared("patient", "a")
    match how:
        case "release":
            locks.release("owner", "a", token)
        case "force":
            locks.release("", "a", token, force=True)
        case "close":
            locks.close_session("s")
        case _:
            locks.pass_time_and_expire(500)
    assert code_of(locks.endings["upgrade"]) is RefusalCode.LOCK_LOST
    assert locks.holders("a") == ["other", "patient"]


def test_an_upgrade_is_not_granted_on_a_lease_that_is_over() -> None:
    locks = Locks()
    token = locks.share("owner", "a", ttl_ms=500)
    other = locks.share("other", "a", ttl_ms=60_000)
    locks.upgrade("owner", "a", token, wait_ms=5_000, key="upgrade")
    locks.pass_time(500)  # over, and no entry has ended it yet
    locks.release("other", "a", other)
    assert code_of(locks.endings["upgrade"]) is RefusalCode.LOCK_LOST
    view = locks.machine.lock_view("a")
    assert view is not None
    assert [holder.mode for holder in view.holders] == [LockMode.SHARED]


@pytest.mark.parametrize("ending", ["timeout", "cancel"])
def test_an_upgrade_given_up_keeps_the_shared_grant(ending: str) -> None:
    locks = Locks()
    token = locks.share("owner", "a", ttl_ms=60_000)
    locks.share("other", "a", ttl_ms=60_000)
    locks.upgrade("owner", "a", token, wait_ms=500, key="upgrade")
    locks.wait_shared("patient", "a")
    if ending == "timeout":
        locks.pass_time_and_expire(500)
        assert code_of(locks.endings["upgrade"]) is RefusalCode.WAIT_TIMEOUT
    else:
        locks.cancel("upgrade")
        assert code_of(locks.endings["upgrade"]) is RefusalCode.CANCELLED
    assert locks.holders("a") == ["owner", "other", "patient"]
    assert locks.token("a", "owner") == token


def test_an_owner_upgrading_twice_is_a_deadlock_with_itself() -> None:
    locks = Locks()
    token = locks.share("owner", "a")
    locks.share("other", "a")
    locks.upgrade("owner", "a", token, wait_ms=1_000)
    outcome = locks.upgrade("owner", "a", token, wait_ms=1_000)
    assert code_of(outcome) is RefusalCode.DEADLOCK
    assert outcome.cycle == ("owner",)  # type: ignore[union-attr]


# --- Downgrade ------------------------------------------------------------------------------


def test_a_downgrade_keeps_token_and_deadline_and_lets_readers_in() -> None:
    locks = Locks()
    token = locks.hold("owner", "a", ttl_ms=700)
    locks.wait_shared("reader", "a")
    locks.wait("writer", "a")
    locks.pass_time(100)
    outcome = locks.downgrade("owner", "a", token)
    assert isinstance(outcome, Granted)
    assert outcome.mode is LockMode.SHARED
    assert tokens_of(outcome) == [token]
    assert deadline_of(outcome) == 1_700
    assert locks.holders("a") == ["owner", "reader"]
    assert locks.waiters("a") == ["writer"]


def test_a_downgrade_lets_no_reader_pass_a_waiting_writer() -> None:
    locks = Locks()
    token = locks.hold("owner", "a")
    locks.wait("writer", "a")
    locks.wait_shared("reader", "a")
    locks.downgrade("owner", "a", token)
    assert locks.holders("a") == ["owner"]


def test_a_downgraded_grant_takes_a_place_of_the_semaphore() -> None:
    locks = Locks()
    token = locks.hold("owner", "a")
    for number in range(3):
        locks.wait_shared(f"reader-{number}", "a", limit=2)
    locks.downgrade("owner", "a", token)
    assert locks.holders("a") == ["owner", "reader-0"]


def test_a_downgraded_grant_is_released_under_its_token() -> None:
    locks = Locks()
    token = locks.hold("owner", "a")
    locks.downgrade("owner", "a", token)
    locks.release("owner", "a", token)
    assert locks.holders("a") == []


def test_only_a_current_exclusive_grant_can_be_downgraded() -> None:
    locks = Locks()
    writer = locks.hold("writer", "a")
    reader = locks.share("reader", "b")
    refused = RefusalCode.NOT_HOLDER
    assert code_of(locks.downgrade("reader", "b", reader)) is refused
    assert code_of(locks.downgrade("writer", "a", writer - 1)) is refused
    assert code_of(locks.downgrade("other", "a", writer)) is refused
    locks.downgrade("writer", "a", writer)
    assert code_of(locks.downgrade("writer", "a", writer)) is refused
