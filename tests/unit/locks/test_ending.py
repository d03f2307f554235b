"""Release, renew, cancel and expiry."""

from __future__ import annotations

import pytest

from distsync_node.locks import limits
from distsync_node.locks.commands import (
    Done,
    Expire,
    ExpiredGrant,
    ExpiredSession,
    ExpiredWait,
    FencingToken,
    RefusalCode,
    SessionId,
)
from distsync_node.locks.machine import LockMachine
from unit.locks.driver import EXCLUSIVE, SHARED, Locks, code_of, deadline_of, key_of

# --- Release --------------------------------------------------------------------------------


def test_a_release_ends_the_grant() -> None:
    locks = Locks()
    token = locks.hold("owner", "a")
    assert locks.release("owner", "a", token) == Done()
    assert locks.holders("a") == []


def test_a_release_with_an_old_token_is_refused() -> None:
    locks = Locks()
    old = locks.hold("owner", "a")
    locks.release("owner", "a", old)
    locks.hold("owner", "a")
    assert code_of(locks.release("owner", "a", old)) is RefusalCode.NOT_HOLDER
    assert locks.holders("a") == ["owner"]


def test_a_release_by_another_owner_is_refused() -> None:
    locks = Locks()
    token = locks.hold("owner", "a")
    assert code_of(locks.release("other", "a", token)) is RefusalCode.NOT_HOLDER
    assert locks.holders("a") == ["owner"]


def test_an_administrator_ends_a_grant_whoever_holds_it() -> None:
    locks = Locks()
    first = locks.share("first", "a")
    locks.share("second", "a")
    assert code_of(locks.release("", "a", first + 9, force=True)) is RefusalCode.NOT_HOLDER
    assert locks.release("", "a", first, force=True) == Done()
    assert locks.holders("a") == ["second"]


def test_an_administrator_ends_every_grant_of_a_lock() -> None:
    locks = Locks()
    locks.share("first", "a")
    locks.share("second", "a")
    locks.wait("writer", "a")
    assert locks.release("", "a", 0, force=True) == Done()
    assert locks.holders("a") == ["writer"]


def test_a_forced_release_of_a_free_lock_is_refused() -> None:
    assert code_of(Locks().release("", "a", 0, force=True)) is RefusalCode.NOT_HOLDER


# --- Renew ----------------------------------------------------------------------------------


def test_a_renewal_counts_from_its_own_stamp() -> None:
    locks = Locks()
    token = locks.hold("owner", "a", ttl_ms=500)
    locks.pass_time(300)
    assert deadline_of(locks.renew("owner", "a", token, 500)) == locks.now_ms + 500
    assert locks.pass_time_and_expire(499) is None
    assert locks.pass_time_and_expire(1) is not None
    assert locks.holders("a") == []


def test_a_renewal_may_shorten_the_lease() -> None:
    locks = Locks()
    token = locks.hold("owner", "a", ttl_ms=60_000)
    locks.renew("owner", "a", token, 100)
    assert locks.machine.next_deadline_ms() == locks.now_ms + 100
    locks.pass_time_and_expire(100)
    assert locks.holders("a") == []


def test_a_renewal_under_another_token_or_owner_is_refused() -> None:
    locks = Locks()
    token = locks.hold("owner", "a")
    assert code_of(locks.renew("owner", "a", token - 1)) is RefusalCode.NOT_HOLDER
    assert code_of(locks.renew("other", "a", token)) is RefusalCode.NOT_HOLDER
    assert code_of(locks.renew("owner", "b", token)) is RefusalCode.NOT_HOLDER


def test_a_lease_past_its_deadline_may_be_renewed_until_it_is_ended() -> None:
    locks = Locks()
    token = locks.hold("owner", "a", ttl_ms=500)
    locks.pass_time(800)
    assert deadline_of(locks.renew("owner", "a", token, 500)) == locks.now_ms + 500
    assert locks.expire() is None
    locks.pass_time_and_expire(500)
    assert code_of(locks.renew("owner", "a", token, 500)) is RefusalCode.NOT_HOLDER


# --- Cancel ---------------------------------------------------------------------------------


def test_a_cancel_ends_the_wait_of_the_attempt_it_names() -> None:
    locks = Locks()
    locks.hold("holder", "a")
    locks.wait("waiter", "a")
    assert locks.cancel("waiter", attempt=1) == Done()
    assert locks.waiters("a") == []
    assert code_of(locks.endings["waiter"]) is RefusalCode.CANCELLED


@pytest.mark.parametrize("attempt", [0, 2])
def test_a_cancel_of_another_attempt_does_nothing(attempt: int) -> None:
    locks = Locks()
    locks.hold("holder", "a")
    locks.wait("waiter", "a")
    locks.cancel("waiter", attempt=attempt)
    assert locks.waiters("a") == ["waiter"]


def test_a_cancel_never_ends_a_grant() -> None:
    locks = Locks()
    token = locks.hold("holder", "a", key="held")
    locks.wait("waiter", "a")
    locks.cancel("held")
    locks.release("holder", "a", token)
    locks.cancel("waiter")
    assert locks.holders("a") == ["waiter"]


def test_a_cancel_of_an_unknown_request_does_nothing() -> None:
    assert Locks().cancel("nothing") == Done()


# --- Expiry ---------------------------------------------------------------------------------


def expired(name: str, owner: str, token: int, deadline_ms: int) -> Expire:
    return Expire(grants=(ExpiredGrant(name, owner, FencingToken(token), deadline_ms),))


def test_a_stale_expiry_after_a_renewal_is_a_no_op() -> None:
    locks = Locks()
    token = locks.hold("owner", "a", ttl_ms=500)
    locks.pass_time(500)
    proposed = locks.machine.due(locks.now_ms)
    assert proposed is not None
    locks.renew("owner", "a", token, 500)
    locks.apply(proposed)
    assert locks.holders("a") == ["owner"]


@pytest.mark.parametrize("off_by", [-1, 1])
def test_an_expiry_that_names_another_deadline_is_a_no_op(off_by: int) -> None:
    locks = Locks()
    token = locks.hold("owner", "a", ttl_ms=500)
    locks.pass_time(5_000)
    locks.apply(expired("a", "owner", token, 1_500 + off_by))
    assert locks.holders("a") == ["owner"]
    locks.apply(expired("a", "owner", token, 1_500))
    assert locks.holders("a") == []


def test_an_expiry_of_another_grant_is_a_no_op() -> None:
    locks = Locks()
    token = locks.hold("owner", "a", ttl_ms=500)
    locks.pass_time(500)
    for item in (
        expired("a", "other", token, 1_500),
        expired("a", "owner", token + 1, 1_500),
        expired("b", "owner", token, 1_500),
    ):
        locks.apply(item)
    assert locks.holders("a") == ["owner"]


def test_nothing_ends_before_its_deadline_whatever_is_proposed() -> None:
    locks = Locks()
    locks.open_session("s", ttl_ms=500)
    token = locks.hold("owner", "a", ttl_ms=500)
    locks.wait("waiter", "a", wait_ms=500)
    locks.pass_time(499)
    locks.apply(expired("a", "owner", token, 1_500))
    locks.apply(Expire(sessions=(ExpiredSession(SessionId("s"), 1_500),)))
    locks.apply(Expire(waits=(ExpiredWait(key_of("waiter"), 1_500),)))
    assert locks.holders("a") == ["owner"]
    assert locks.waiters("a") == ["waiter"]
    assert locks.machine.counts().sessions == 1


def test_an_expired_wait_leaves_with_a_timeout() -> None:
    locks = Locks()
    locks.hold("holder", "a", ttl_ms=60_000)
    locks.wait("waiter", "a", wait_ms=500)
    assert locks.pass_time_and_expire(499) is None
    locks.pass_time_and_expire(1)
    assert code_of(locks.endings["waiter"]) is RefusalCode.WAIT_TIMEOUT
    assert locks.waiters("a") == []


def test_a_holder_paused_beyond_its_ttl_is_fenced() -> None:
    locks = Locks()
    old = locks.hold("paused", "a", ttl_ms=500)
    locks.pass_time_and_expire(500)
    new = locks.hold("next", "a")
    assert new > old
    assert locks.token("a", "next") == new
    assert code_of(locks.release("paused", "a", old)) is RefusalCode.NOT_HOLDER
    assert code_of(locks.renew("paused", "a", old)) is RefusalCode.NOT_HOLDER


def test_ten_leaders_in_a_row_end_nothing_early_and_let_nothing_live_for_ever() -> None:
    """Each leader proposes what it sees due; entries of several arrive late and twice."""
    locks = Locks()
    token = locks.hold("owner", "a", ttl_ms=1_000)
    late: list[Expire] = []
    for _ in range(10):
        locks.pass_time(900)
        leader = LockMachine.restore(locks.machine.snapshot())
        due = leader.due(locks.now_ms)
        assert due is None
        locks.renew("owner", "a", token, 1_000)
        foreseen = leader.due(locks.now_ms + 100)
        assert foreseen is not None
        late.append(foreseen)
        for entry in late:
            locks.apply(entry)
        assert locks.holders("a") == ["owner"]
    locks.pass_time(1_000)
    for _ in range(10):
        due = LockMachine.restore(locks.machine.snapshot()).due(locks.now_ms)
        if due is not None:
            locks.apply(due)
    assert locks.holders("a") == []


def test_a_lock_idle_for_an_hour_and_then_ten_failovers() -> None:
    locks = Locks()
    old = locks.hold("owner", "a", ttl_ms=1_000)
    locks.pass_time(3_600_000)
    for _ in range(10):
        locks = locks.restored()
        due = locks.machine.due(locks.now_ms)
        if due is not None:
            locks.apply(due)
    assert locks.holders("a") == []
    assert locks.hold("next", "a") > old


# --- Many at once ---------------------------------------------------------------------------


def test_ten_thousand_leases_expire_together() -> None:
    locks = Locks(checked=False)
    for number in range(10_000):
        locks.hold(f"owner-{number}", f"lock-{number}", ttl_ms=500)
        if number % 10 == 0:
            locks.wait(f"next-{number}", f"lock-{number}")
    locks.pass_time(500)
    due = locks.expire()
    assert due is not None
    assert len(due.grants) == 10_000
    assert locks.machine.counts().grants == 1_000
    assert locks.machine.counts().places == 0
    assert locks.machine.due(locks.now_ms) is None


def test_ten_thousand_holders_of_one_lock_expire_together() -> None:
    locks = Locks(checked=False)
    for number in range(10_000):
        locks.share(f"owner-{number}", "a", ttl_ms=500)
    locks.wait("writer", "a")
    locks.pass_time_and_expire(500)
    assert locks.holders("a") == ["writer"]


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
def test_ten_thousand_waiters_give_up_together(mode: object) -> None:
    locks = Locks(checked=False)
    locks.hold("holder", "a", ttl_ms=60_000)
    for number in range(limits.MAX_WAITERS_PER_LOCK):
        locks.wait(f"owner-{number}", "a", mode=mode, wait_ms=500)
    locks.pass_time_and_expire(500)
    assert locks.waiters("a") == []
    assert len(locks.endings) == limits.MAX_WAITERS_PER_LOCK


def test_ten_thousand_waiters_are_served_one_after_the_other() -> None:
    locks = Locks(checked=False)
    token = locks.hold("owner", "a")
    for number in range(limits.MAX_WAITERS_PER_LOCK):
        locks.wait(f"owner-{number}", "a")
    holder = "owner"
    for number in range(limits.MAX_WAITERS_PER_LOCK):
        locks.release(holder, "a", token)
        holder = f"owner-{number}"
        token = locks.token("a", holder) if number % 1_000 == 0 else locks.machine.last_token
    assert locks.holders("a") == [holder]


def test_what_is_due_is_limited_to_one_entry_at_a_time() -> None:
    locks = Locks()
    locks.open_session("s", ttl_ms=300)
    for number in range(5):
        locks.hold(f"owner-{number}", f"lock-{number}", ttl_ms=500 - number)
    locks.wait("waiter", "lock-0", wait_ms=100)
    locks.pass_time(500)
    due = locks.machine.due(locks.now_ms, limit=3)
    assert due is not None
    assert [one.session for one in due.sessions] == ["s"]
    assert [one.name for one in due.grants] == ["lock-4", "lock-3"]
    assert due.waits == ()
    while locks.machine.due(locks.now_ms, limit=3) is not None:
        locks.apply(locks.machine.due(locks.now_ms, limit=3) or Expire())
    assert locks.machine.counts().grants == 0
    assert not locks.machine.has_leases
