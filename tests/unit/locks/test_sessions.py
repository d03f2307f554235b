"""Sessions: leases that many locks share."""

from __future__ import annotations

import pytest

from distsync_node.locks.commands import Done, RefusalCode
from unit.locks.driver import Locks, code_of, deadline_of


def test_an_open_session_has_a_deadline() -> None:
    locks = Locks()
    assert locks.open_session("s", ttl_ms=700) == Done(deadline_ms=1_700, session="s")
    assert locks.machine.session_deadline_ms("s") == 1_700
    assert locks.machine.has_leases
    assert locks.machine.next_deadline_ms() == 1_700


def test_a_grant_lives_while_its_session_does() -> None:
    locks = Locks()
    locks.open_session("s", ttl_ms=500)
    outcome = locks.acquire("owner", "a", session="s")
    assert deadline_of(outcome) == 1_500
    locks.pass_time(400)
    assert locks.keep_alive("s") == Done(deadline_ms=1_900)
    view = locks.machine.lock_view("a")
    assert view is not None
    assert view.holders[0].deadline_ms == 1_900
    assert locks.pass_time_and_expire(499) is None
    locks.pass_time_and_expire(1)
    assert locks.holders("a") == []
    assert locks.machine.session_deadline_ms("s") is None


def test_a_renewal_of_a_session_bound_grant_answers_with_the_sessions_deadline() -> None:
    locks = Locks()
    locks.open_session("s", ttl_ms=500)
    token = locks.hold("owner", "a", session="s")
    locks.pass_time(100)
    assert locks.renew("owner", "a", token, 60_000) == Done(deadline_ms=1_500)
    assert locks.machine.next_deadline_ms() == 1_500


def test_closing_a_session_ends_its_grants_and_waits() -> None:
    locks = Locks()
    locks.open_session("s")
    locks.open_session("t")
    locks.hold("owner", "a", "b", session="s")
    locks.share("reader", "c", session="s")
    locks.share("reader-of-t", "c", session="t")
    locks.hold("other", "d")
    locks.wait("waiter", "d", session="s")
    locks.wait("next", "a", session="t")
    locks.wait("behind", "d")
    assert locks.close_session("s") == Done()
    assert locks.holders("a") == ["next"]
    assert locks.holders("b") == []
    assert locks.holders("c") == ["reader-of-t"]
    assert locks.waiters("d") == ["behind"]
    assert code_of(locks.endings["waiter"]) is RefusalCode.SESSION_NOT_FOUND
    assert code_of(locks.close_session("s")) is RefusalCode.SESSION_NOT_FOUND


def test_an_expired_session_ends_its_grants_and_waits() -> None:
    locks = Locks()
    locks.open_session("s", ttl_ms=500)
    locks.hold("owner", "a", session="s")
    locks.wait("next", "a")
    locks.hold("other", "b", ttl_ms=60_000)
    locks.wait("waiter", "b", session="s")
    locks.pass_time_and_expire(500)
    assert locks.holders("a") == ["next"]
    assert code_of(locks.endings["waiter"]) is RefusalCode.SESSION_NOT_FOUND


def test_a_stale_expiry_of_a_session_kept_alive_is_a_no_op() -> None:
    locks = Locks()
    locks.open_session("s", ttl_ms=500)
    locks.pass_time(500)
    proposed = locks.machine.due(locks.now_ms)
    assert proposed is not None
    locks.keep_alive("s")
    locks.apply(proposed)
    assert locks.machine.session_deadline_ms("s") is not None


def test_an_expiry_of_a_session_names_the_very_deadline_in_force() -> None:
    locks = Locks()
    locks.open_session("s", ttl_ms=500)
    stale = locks.machine.due(locks.now_ms + 500)
    assert stale is not None
    locks.pass_time(100)
    locks.keep_alive("s")
    locks.pass_time(500)  # the deadline in force has passed as well
    locks.apply(stale)
    assert locks.machine.session_deadline_ms("s") is not None
    assert locks.expire() is not None
    assert locks.machine.session_deadline_ms("s") is None


def test_many_sessions_are_kept_alive_at_once_and_the_missing_are_named() -> None:
    locks = Locks()
    locks.open_session("s", ttl_ms=500)
    locks.open_session("t", ttl_ms=300)
    locks.pass_time(100)
    assert locks.keep_alive("s", "gone", "t", "never") == Done(
        deadline_ms=1_400, missing=("gone", "never")
    )
    assert locks.keep_alive() == Done()


def test_a_session_past_its_deadline_may_be_kept_alive_until_it_is_ended() -> None:
    locks = Locks()
    locks.open_session("s", ttl_ms=500)
    locks.pass_time(600)
    assert locks.keep_alive("s") == Done(deadline_ms=2_100)
    assert locks.expire() is None


@pytest.mark.parametrize("wait_ms", [0, 1_000])
def test_nothing_is_acquired_under_a_session_that_is_over(wait_ms: int) -> None:
    locks = Locks()
    unknown = locks.acquire("owner", "a", session="never", wait_ms=wait_ms)
    assert code_of(unknown) is RefusalCode.SESSION_NOT_FOUND
    locks.open_session("s", ttl_ms=500)
    locks.pass_time(500)
    late = locks.acquire("owner", "a", session="s", wait_ms=wait_ms)
    assert code_of(late) is RefusalCode.SESSION_NOT_FOUND
    assert locks.machine.lock_view("a") is None


def test_a_session_id_that_is_open_cannot_be_opened_by_another_request() -> None:
    locks = Locks()
    locks.open_session("s")
    assert code_of(locks.open_session("s")) is RefusalCode.SESSION_EXISTS
    locks.close_session("s")
    assert locks.open_session("s") == Done(deadline_ms=11_000, session="s")


def test_a_waiter_bound_to_a_session_is_granted_for_the_sessions_life() -> None:
    locks = Locks()
    locks.open_session("s", ttl_ms=5_000)
    token = locks.hold("holder", "a")
    locks.wait("waiter", "a", session="s")
    locks.pass_time(100)
    locks.release("holder", "a", token)
    assert deadline_of(locks.endings["waiter"]) == 6_000


def test_a_session_may_hold_one_lock_for_two_owners() -> None:
    locks = Locks()
    locks.open_session("s")
    first = locks.share("first", "a", session="s")
    second = locks.share("second", "a", session="s")
    view = locks.machine.lock_view("a")
    assert view is not None
    assert [(one.session, one.token) for one in view.holders] == [("s", first), ("s", second)]
    locks.release("first", "a", first)
    locks.close_session("s")
    assert locks.holders("a") == []


def test_upgrade_and_downgrade_stay_within_the_session() -> None:
    locks = Locks()
    locks.open_session("s", ttl_ms=500)
    token = locks.share("owner", "a", session="s")
    upgraded = locks.upgrade("owner", "a", token)
    assert deadline_of(upgraded) == 1_500
    locks.downgrade("owner", "a", locks.token("a", "owner"))
    locks.pass_time_and_expire(500)
    assert locks.holders("a") == []
