"""A request sent again is answered, not done again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from distsync_node.locks import limits
from distsync_node.locks.commands import Done, Granted, LockMode, Outcome, RefusalCode
from unit.locks.driver import (
    SHARED,
    Locks,
    attempt_of,
    code_of,
    deadline_of,
    key_of,
    tokens_of,
)

# --- Acquire --------------------------------------------------------------------------------


def test_a_lost_acquire_reply_retried_gives_the_same_token_while_the_grant_is_held() -> None:
    locks = Locks()
    first = locks.acquire("owner", "a", ttl_ms=500, key="r")
    locks.pass_time(100)
    assert locks.acquire("owner", "a", ttl_ms=500, key="r") == first
    (token,) = tokens_of(first)
    locks.renew("owner", "a", token, 500)
    again = locks.acquire("owner", "a", ttl_ms=500, key="r")
    assert tokens_of(again) == [token]
    assert deadline_of(again) == 1_600


@pytest.mark.parametrize("how", ["release", "force", "expire"])
def test_a_lost_acquire_reply_retried_after_the_grant_has_ended_is_lock_lost(how: str) -> None:
    locks = Locks()
    token = locks.hold("owner", "a", ttl_ms=500, key="r")
    match how:
        case "release":
            locks.release("owner", "a", token)
        case "force":
            locks.release("", "a", token, force=True)
        case _:
            locks.pass_time_and_expire(500)
    again = locks.acquire("owner", "a", ttl_ms=500, key="r")
    assert code_of(again) is RefusalCode.LOCK_LOST
    assert again.name == "a"  # type: ignore[union-attr]
    assert locks.holders("a") == []


def test_the_retry_does_not_mistake_a_later_grant_of_the_owner_for_its_own() -> None:
    locks = Locks()
    token = locks.hold("owner", "a", key="r")
    locks.release("owner", "a", token)
    locks.hold("owner", "a")
    assert code_of(locks.acquire("owner", "a", key="r")) is RefusalCode.LOCK_LOST


def test_of_several_grants_the_loss_of_one_is_the_loss_of_the_request() -> None:
    locks = Locks()
    outcome = locks.acquire("owner", "a", "b", "c", key="r")
    assert locks.acquire("owner", "a", "b", "c", key="r") == outcome
    locks.release("owner", "b", tokens_of(outcome)[1])
    again = locks.acquire("owner", "a", "b", "c", key="r")
    assert code_of(again) is RefusalCode.LOCK_LOST
    assert again.name == "b"  # type: ignore[union-attr]
    assert locks.holders("a") == locks.holders("c") == ["owner"]
    locks.release("owner", "a", tokens_of(outcome)[0])
    locks = locks.restored()
    assert code_of(locks.acquire("owner", "a", "b", "c", key="r")) is RefusalCode.LOCK_LOST


def test_of_several_grants_the_earliest_deadline_is_answered() -> None:
    locks = Locks()
    outcome = locks.acquire("owner", "a", "b", ttl_ms=500, key="r")
    locks.renew("owner", "a", tokens_of(outcome)[0], 2_000)
    assert deadline_of(locks.acquire("owner", "a", "b", ttl_ms=500, key="r")) == 1_500


def test_a_grant_made_to_a_waiter_is_answered_to_its_retry() -> None:
    locks = Locks()
    token = locks.hold("holder", "a")
    locks.wait("waiter", "a")
    locks.release("holder", "a", token)
    again = locks.acquire("waiter", "a", wait_ms=60_000, key="waiter")
    assert again == locks.endings["waiter"]


def test_a_retry_under_a_session_has_the_sessions_deadline() -> None:
    locks = Locks()
    locks.open_session("s", ttl_ms=500)
    locks.acquire("owner", "a", session="s", key="r")
    locks.pass_time(200)
    locks.keep_alive("s")
    assert deadline_of(locks.acquire("owner", "a", session="s", key="r")) == 1_700


def test_a_retry_after_an_upgrade_or_downgrade_tells_what_is_held() -> None:
    locks = Locks()
    token = locks.hold("owner", "a", key="r")
    locks.downgrade("owner", "a", token)
    again = locks.acquire("owner", "a", key="r")
    assert isinstance(again, Granted)
    assert again.mode is LockMode.SHARED
    assert tokens_of(again) == [token]
    locks.upgrade("owner", "a", token)
    assert code_of(locks.acquire("owner", "a", key="r")) is RefusalCode.LOCK_LOST


REFUSALS: dict[str, Callable[[Locks], Outcome]] = {
    "LOCK_HELD": lambda locks: locks.acquire("late", "held", key="r"),
    "DEADLOCK": lambda locks: locks.acquire("holder", "held", wait_ms=9, key="r"),
    "LIMIT_MISMATCH": lambda locks: locks.acquire("late", "s", mode=SHARED, limit=7, key="r"),
    "SESSION_NOT_FOUND": lambda locks: locks.acquire("late", "free", session="gone", key="r"),
    "NOT_HOLDER": lambda locks: locks.release("late", "held", 1, key="r"),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_a_lost_refusal_retried_is_the_same_refusal_whatever_has_changed(code: str) -> None:
    locks = Locks()
    token = locks.hold("holder", "held")
    locks.share("holder", "s", limit=2)
    ask = REFUSALS[code]
    first = ask(locks)
    assert code_of(first).name == code
    locks.release("holder", "held", token)
    locks.release("", "s", 0, force=True)
    locks.open_session("gone")
    assert ask(locks) == first
    assert locks.machine.counts().grants == 0


def test_a_lost_timeout_retried_is_again_a_timeout() -> None:
    locks = Locks()
    token = locks.hold("holder", "a")
    locks.wait("waiter", "a", wait_ms=500)
    locks.pass_time_and_expire(500)
    locks.release("holder", "a", token)
    again = locks.acquire("waiter", "a", wait_ms=500, key="waiter")
    assert code_of(again) is RefusalCode.WAIT_TIMEOUT


# --- Attaching to a wait --------------------------------------------------------------------


def test_a_retry_attaches_to_the_waiting_attempt_and_keeps_its_place() -> None:
    locks = Locks()
    token = locks.hold("holder", "a")
    locks.wait("first", "a", wait_ms=500)
    locks.wait("second", "a")
    locks.pass_time(100)
    assert attempt_of(locks.acquire("first", "a", wait_ms=500, key="first")) == 2
    assert attempt_of(locks.acquire("first", "a", wait_ms=500, key="first")) == 3
    assert locks.waiters("a") == ["first", "second"]
    view = locks.machine.lock_view("a")
    assert view is not None
    assert view.waiters[0].deadline_ms == 1_500  # the wait is the first attempt's
    locks.release("holder", "a", token)
    assert locks.holders("a") == ["first"]
    assert locks.attempts["first"] == 3


def test_a_retry_through_another_node_survives_a_later_cancel_of_the_first_attempt() -> None:
    locks = Locks()
    token = locks.hold("holder", "a")
    locks.wait("waiter", "a")
    assert attempt_of(locks.acquire("waiter", "a", wait_ms=60_000, key="waiter")) == 2
    locks.cancel("waiter", attempt=1)
    assert locks.waiters("a") == ["waiter"]
    locks.release("holder", "a", token)
    assert locks.holders("a") == ["waiter"]


def test_a_retry_through_another_node_survives_an_earlier_cancel_of_the_first_attempt() -> None:
    locks = Locks()
    token = locks.hold("holder", "a")
    locks.wait("waiter", "a")
    locks.cancel("waiter", attempt=1)
    assert attempt_of(locks.acquire("waiter", "a", wait_ms=60_000, key="waiter")) == 2
    locks.cancel("waiter", attempt=1)  # the same cancel, sent twice
    assert locks.waiters("a") == ["waiter"]
    locks.release("holder", "a", token)
    assert locks.holders("a") == ["waiter"]


def test_attempts_keep_rising_over_any_number_of_cancels() -> None:
    locks = Locks()
    locks.hold("holder", "a")
    locks.wait("waiter", "a")
    for attempt in range(1, 5):
        locks.cancel("waiter", attempt=attempt)
        assert locks.waiters("a") == []
        locks = locks.restored()
        again = locks.acquire("waiter", "a", wait_ms=60_000, key="waiter")
        assert attempt_of(again) == attempt + 1


def test_a_cancelled_request_asked_again_may_be_granted_at_once() -> None:
    locks = Locks()
    token = locks.hold("holder", "a")
    locks.wait("waiter", "a")
    locks.cancel("waiter")
    locks.release("holder", "a", token)
    assert tokens_of(locks.acquire("waiter", "a", wait_ms=60_000, key="waiter")) == [token + 1]


def test_a_cancelled_wait_starts_anew_with_a_new_wait_deadline_at_the_end_of_the_queue() -> None:
    locks = Locks()
    locks.hold("holder", "a", ttl_ms=60_000)
    locks.wait("waiter", "a", wait_ms=500)
    locks.wait("other", "a")
    locks.cancel("waiter")
    locks.pass_time(300)
    locks.wait("waiter", "a", wait_ms=500)
    assert locks.waiters("a") == ["other", "waiter"]
    assert locks.pass_time_and_expire(499) is None
    locks.pass_time_and_expire(1)
    assert code_of(locks.endings["waiter"]) is RefusalCode.WAIT_TIMEOUT


def test_a_cancelled_upgrade_may_be_asked_again() -> None:
    locks = Locks()
    token = locks.share("owner", "a")
    other = locks.share("other", "a")
    locks.upgrade("owner", "a", token, wait_ms=5_000, key="u")
    locks.cancel("u")
    assert attempt_of(locks.upgrade("owner", "a", token, wait_ms=5_000, key="u")) == 2
    locks.release("other", "a", other)
    assert tokens_of(locks.endings["u"]) == [locks.token("a", "owner")]


# --- Other commands -------------------------------------------------------------------------


def test_a_lost_release_reply_retried_is_done_again_and_ends_nothing_else() -> None:
    locks = Locks()
    token = locks.hold("owner", "a")
    assert locks.release("owner", "a", token, key="r") == Done()
    locks.hold("owner", "a")
    assert locks.release("owner", "a", token, key="r") == Done()
    assert locks.holders("a") == ["owner"]


def test_a_lost_upgrade_reply_retried_gives_the_same_token_while_held() -> None:
    locks = Locks()
    token = locks.share("owner", "a")
    outcome = locks.upgrade("owner", "a", token, key="u")
    assert locks.upgrade("owner", "a", token, key="u") == outcome
    locks.release("owner", "a", tokens_of(outcome)[0])
    assert code_of(locks.upgrade("owner", "a", token, key="u")) is RefusalCode.LOCK_LOST


def test_a_lost_downgrade_reply_retried_is_the_same_grant_while_held() -> None:
    locks = Locks()
    token = locks.hold("owner", "a", ttl_ms=500)
    locks.downgrade("owner", "a", token, key="d")
    locks.pass_time(100)
    locks.renew("owner", "a", token, 500)
    again = locks.downgrade("owner", "a", token, key="d")
    assert tokens_of(again) == [token]
    assert deadline_of(again) == 1_600
    locks.release("owner", "a", token)
    assert code_of(locks.downgrade("owner", "a", token, key="d")) is RefusalCode.LOCK_LOST


def test_a_lost_session_reply_retried_names_the_session_that_is_open() -> None:
    locks = Locks()
    locks.open_session("minted-first", ttl_ms=500, key="r")
    locks.pass_time(100)
    locks.keep_alive("minted-first")
    again = locks.open_session("minted-second", ttl_ms=500, key="r")
    assert again == Done(deadline_ms=1_600, session="minted-first")
    assert locks.machine.session_deadline_ms("minted-second") is None
    locks.close_session("minted-first", key="c")
    ended = locks.open_session("minted-third", ttl_ms=500, key="r")
    assert code_of(ended) is RefusalCode.SESSION_NOT_FOUND
    assert locks.close_session("minted-first", key="c") == Done()


@pytest.mark.parametrize("state", ["held", "waiting", "refused", "released", "cancelled", "open"])
def test_a_request_id_used_for_something_else_is_refused_and_changes_nothing(state: str) -> None:
    locks = Locks()
    token = locks.hold("holder", "a", key="held")
    locks.wait("waiter", "a", key="waiting")
    locks.acquire("late", "a", key="refused")
    locks.release("nobody", "a", 77, key="released")
    locks.wait("quitter", "a", key="cancelled")
    locks.cancel("cancelled")
    locks.open_session("s", key="open")
    before = locks.machine.lock_views()
    for outcome in (
        locks.acquire("other", "b", key=state),
        locks.release("holder", "a", token, key=state),
        locks.close_session("s", key=state),
    ):
        assert code_of(outcome) is RefusalCode.REQUEST_ID_REUSED
    assert locks.machine.lock_views() == before
    assert locks.machine.session_deadline_ms("s") is not None


def test_two_clients_may_use_the_same_request_id() -> None:
    locks = Locks()
    locks.hold("owner", "a", key="r")
    assert key_of("r").client == "client"
    from distsync_node.locks.commands import Acquire, RequestKey

    other = Acquire(
        key=RequestKey("another", "r"),
        digest=b"another",
        names=("b",),
        owner="owner",
        mode=LockMode.EXCLUSIVE,
        ttl_ms=500,
        wait_ms=0,
    )
    assert isinstance(locks.apply(other), Granted)


# --- How long -------------------------------------------------------------------------------


def test_a_finished_request_is_forgotten_after_its_time() -> None:
    locks = Locks()
    token = locks.hold("owner", "a", key="r")
    locks.release("owner", "a", token)
    locks.pass_time(limits.REQUEST_MEMORY_MS - 1)
    assert code_of(locks.acquire("owner", "a", key="r")) is RefusalCode.LOCK_LOST
    locks.pass_time(1)
    assert tokens_of(locks.acquire("owner", "a", key="r")) == [token + 1]


def test_a_held_or_waiting_request_is_never_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_REQUESTS_REMEMBERED", 2)
    locks = Locks()
    held = locks.acquire("owner", "a", ttl_ms=10**9, key="held")
    locks.wait("waiter", "a", wait_ms=10**9)
    locks.open_session("s", ttl_ms=10**9, key="open")
    for _ in range(10):
        locks.acquire("late", "a")
    locks.pass_time(10 * limits.REQUEST_MEMORY_MS)
    assert locks.acquire("owner", "a", ttl_ms=10**9, key="held") == held
    assert attempt_of(locks.acquire("waiter", "a", wait_ms=10**9, key="waiter")) == 2
    assert locks.open_session("t", ttl_ms=10**9, key="open").session == "s"  # type: ignore[union-attr]


def test_beyond_the_limit_the_oldest_finished_request_is_forgotten_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MAX_REQUESTS_REMEMBERED", 3)
    locks = Locks()
    token = locks.hold("owner", "a")
    for number in range(4):
        locks.acquire("late", "a", key=f"try-{number}")
    locks.release("owner", "a", token)  # two more ends: of the acquire and of the release
    assert isinstance(locks.acquire("late", "a", key="try-2"), Granted)
    assert locks.machine.counts().finished_requests == 3
    assert code_of(locks.acquire("late", "a", key="try-3")) is RefusalCode.LOCK_HELD


def test_requests_cancelled_and_asked_again_without_end_take_no_memory() -> None:
    locks = Locks(checked=False)
    locks.hold("holder", "a")
    for attempt in range(1, 1_000):
        locks.acquire("waiter", "a", wait_ms=60_000, key="waiter")
        locks.cancel("waiter", attempt=attempt)
    assert locks.machine.counts().requests == 2
    assert len(locks.machine._state.finished) < 100
    assert len(locks.machine._state.wait_deadlines) < 100
