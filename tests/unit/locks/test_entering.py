"""Who may enter a lock: modes, queues, limits, several locks at once."""

from __future__ import annotations

import pytest

from distsync_node.locks.commands import Granted, LockMode, RefusalCode, Waiting
from unit.locks.driver import EXCLUSIVE, SHARED, Locks, code_of, deadline_of, tokens_of

X = EXCLUSIVE
S = SHARED

# A table of one lock: who holds it, who waits (in order), who comes, and may the newcomer enter?
ENTRY = [
    ("", "", "X", True),
    ("", "", "S", True),
    ("X", "", "X", False),
    ("X", "", "S", False),
    ("S", "", "X", False),
    ("S", "", "S", True),
    ("SS", "", "S", True),
    ("X", "X", "X", False),
    ("X", "S", "S", False),
    ("S", "X", "S", False),  # a waiting writer is not passed
    ("S", "X", "X", False),
    ("S", "XS", "S", False),
]


def mode_of(letter: str) -> LockMode:
    return X if letter == "X" else S


@pytest.mark.parametrize(("holders", "waiters", "newcomer", "enters"), ENTRY)
@pytest.mark.parametrize("wait_ms", [0, 1_000])
def test_a_newcomer_enters_only_where_nothing_blocks_it(
    holders: str, waiters: str, newcomer: str, enters: bool, wait_ms: int
) -> None:
    locks = Locks()
    for number, letter in enumerate(holders):
        locks.hold(f"holder-{number}", "a", mode=mode_of(letter))
    for number, letter in enumerate(waiters):
        locks.wait(f"waiter-{number}", "a", mode=mode_of(letter))
    outcome = locks.acquire("newcomer", "a", mode=mode_of(newcomer), wait_ms=wait_ms)
    if enters:
        assert isinstance(outcome, Granted)
        assert outcome.mode is mode_of(newcomer)
    elif wait_ms:
        assert isinstance(outcome, Waiting)
    else:
        assert code_of(outcome) is RefusalCode.LOCK_HELD
        assert "newcomer" not in locks.waiters("a")


# Who holds, who waits, and who holds after every holder has left.
WAKING = [
    ("X", "XX", [0]),
    ("X", "XS", [0]),
    ("X", "SX", [0]),
    ("X", "SSX", [0, 1]),
    ("X", "SSXSS", [0, 1]),
    ("X", "SSS", [0, 1, 2]),
    ("S", "XSS", [0]),
    ("SS", "XXS", [0]),
]


@pytest.mark.parametrize(("holders", "waiters", "woken"), WAKING)
def test_a_lock_let_go_wakes_the_head_of_its_queue(
    holders: str, waiters: str, woken: list[int]
) -> None:
    locks = Locks()
    held = {
        f"holder-{n}": locks.hold(f"holder-{n}", "a", mode=mode_of(letter))
        for n, letter in enumerate(holders)
    }
    for number, letter in enumerate(waiters):
        locks.wait(f"waiter-{number}", "a", mode=mode_of(letter))
    for owner, token in held.items():
        assert locks.holders("a")[-1].startswith("holder")
        locks.release(owner, "a", token)
    assert locks.holders("a") == [f"waiter-{number}" for number in woken]
    assert set(locks.endings) == {f"waiter-{number}" for number in woken}


def test_waiters_are_served_first_come_first_served() -> None:
    locks = Locks()
    token = locks.hold("first", "a")
    owners = [f"owner-{number}" for number in range(20)]
    for owner in owners:
        locks.wait(owner, "a")
    holder = "first"
    for owner in owners:
        locks.release(holder, "a", token)
        (token,) = tokens_of(locks.endings[owner])
        assert locks.holders("a") == [owner]
        holder = owner


def test_a_try_does_not_overtake_waiters() -> None:
    locks = Locks()
    locks.share("reader", "a")
    locks.wait("writer", "a")
    assert code_of(locks.acquire("late", "a", mode=S)) is RefusalCode.LOCK_HELD


def test_writers_do_not_starve_under_a_stream_of_readers() -> None:
    locks = Locks()
    tokens = {"reader-0": locks.share("reader-0", "a"), "reader-1": locks.share("reader-1", "a")}
    locks.wait("writer", "a")
    for number in range(2, 30):
        locks.wait_shared(f"reader-{number}", "a")
    for owner, token in tokens.items():
        locks.release(owner, "a", token)
    assert locks.holders("a") == ["writer"]


def test_a_reader_never_waits_for_a_later_writer() -> None:
    locks = Locks()
    token = locks.hold("holder", "a")
    locks.wait_shared("reader", "a")
    locks.wait("writer", "a")
    locks.release("holder", "a", token)
    assert locks.holders("a") == ["reader"]
    assert locks.waiters("a") == ["writer"]


def test_a_cancelled_waiter_wakes_compatible_successors() -> None:
    locks = Locks()
    locks.share("reader", "a")
    locks.wait("writer", "a")
    locks.wait_shared("second", "a")
    locks.wait_shared("third", "a")
    locks.wait("last", "a")
    locks.cancel("writer")
    assert locks.holders("a") == ["reader", "second", "third"]
    assert locks.waiters("a") == ["last"]


def test_a_waiter_whose_wait_is_over_wakes_compatible_successors() -> None:
    locks = Locks()
    locks.share("reader", "a", ttl_ms=60_000)
    locks.wait("writer", "a", wait_ms=500)
    locks.wait_shared("second", "a")
    locks.pass_time_and_expire(500)
    assert code_of(locks.endings["writer"]) is RefusalCode.WAIT_TIMEOUT
    assert locks.holders("a") == ["reader", "second"]


def test_a_lock_exists_only_while_it_is_held_or_waited_for() -> None:
    locks = Locks()
    token = locks.hold("holder", "a")
    locks.wait("waiter", "a")
    locks.release("holder", "a", token)
    locks.release("waiter", "a", locks.token("a", "waiter"))
    assert locks.machine.lock_view("a") is None
    assert locks.machine.counts().locks == 0


# --- Tokens ---------------------------------------------------------------------------------


def test_tokens_rise_over_all_locks_and_over_delete_and_recreate() -> None:
    locks = Locks()
    seen = []
    for name in ("a", "b", "a", "a", "c"):
        token = locks.hold("owner", name)
        locks.release("owner", name, token)
        seen.append(token)
    assert seen == sorted(set(seen))


def test_every_lock_of_one_request_has_its_own_token() -> None:
    locks = Locks()
    tokens = tokens_of(locks.acquire("owner", "c", "a", "b"))
    assert tokens == sorted(set(tokens))
    assert [locks.token(name, "owner") for name in "cab"] == tokens


# --- Owners ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [X, S])
@pytest.mark.parametrize("again", [X, S])
def test_one_owner_asking_twice_is_another_request(mode: LockMode, again: LockMode) -> None:
    locks = Locks()
    locks.hold("owner", "a", mode=mode)
    assert code_of(locks.acquire("owner", "a", mode=again)) is RefusalCode.LOCK_HELD
    waiting = locks.acquire("owner", "a", mode=again, wait_ms=1_000)
    assert code_of(waiting) is RefusalCode.DEADLOCK
    assert waiting.cycle == ("owner",)  # type: ignore[union-attr]
    assert locks.waiters("a") == []


def test_one_owner_waiting_twice_for_a_lock_is_a_deadlock() -> None:
    locks = Locks()
    locks.hold("holder", "a")
    locks.wait_shared("owner", "a")
    second = locks.acquire("owner", "a", mode=S, wait_ms=1_000)
    assert code_of(second) is RefusalCode.DEADLOCK
    assert code_of(locks.acquire("owner", "a", mode=S)) is RefusalCode.LOCK_HELD


def test_one_owner_may_hold_many_locks() -> None:
    locks = Locks()
    tokens = [locks.hold("owner", f"lock-{number}") for number in range(10)]
    for number, token in enumerate(tokens):
        locks.release("owner", f"lock-{number}", token)
    assert locks.machine.counts().grants == 0


# --- Semaphores -----------------------------------------------------------------------------


def test_a_semaphore_admits_as_many_as_its_limit() -> None:
    locks = Locks()
    tokens = [locks.share(f"owner-{number}", "s", limit=3) for number in range(3)]
    late = locks.acquire("late", "s", mode=S, limit=3)
    assert code_of(late) is RefusalCode.LOCK_HELD
    locks.wait_shared("first", "s", limit=3)
    locks.wait_shared("second", "s", limit=3)
    locks.release("owner-1", "s", tokens[1])
    assert locks.holders("s") == ["owner-0", "owner-2", "first"]
    assert locks.waiters("s") == ["second"]


@pytest.mark.parametrize(("first", "second"), [(2, 3), (2, None), (None, 2)])
@pytest.mark.parametrize("wait_ms", [0, 1_000])
def test_another_limit_is_refused_while_the_lock_is_held(
    first: int | None, second: int | None, wait_ms: int
) -> None:
    locks = Locks()
    locks.share("holder", "s", limit=first)
    outcome = locks.acquire("other", "s", mode=S, limit=second, wait_ms=wait_ms)
    assert code_of(outcome) is RefusalCode.LIMIT_MISMATCH


def test_another_limit_is_refused_while_the_lock_is_waited_for() -> None:
    locks = Locks()
    locks.hold("holder", "s")
    locks.wait_shared("waiter", "s", limit=2)
    outcome = locks.acquire("other", "s", mode=S, limit=3, wait_ms=1_000)
    assert code_of(outcome) is RefusalCode.LIMIT_MISMATCH


def test_the_limit_is_free_again_once_the_lock_is_gone() -> None:
    locks = Locks()
    token = locks.share("holder", "s", limit=2)
    locks.release("holder", "s", token)
    locks.share("other", "s", limit=3)
    view = locks.machine.lock_view("s")
    assert view is not None
    assert view.limit == 3


def test_an_exclusive_request_does_not_care_for_the_limit() -> None:
    locks = Locks()
    token = locks.share("reader", "s", limit=2)
    locks.wait("writer", "s")
    locks.release("reader", "s", token)
    assert locks.holders("s") == ["writer"]


def test_who_gives_up_before_it_held_leaves_no_limit_behind() -> None:
    locks = Locks()
    locks.hold("holder", "s", "t", ttl_ms=60_000)
    locks.wait_shared("first", "s", "t", limit=3, wait_ms=1_000)
    locks.wait_shared("second", "s", limit=3)
    locks.pass_time_and_expire(1_000)
    late = locks.acquire("third", "s", mode=S, limit=5, wait_ms=1_000)
    assert code_of(late) is RefusalCode.LIMIT_MISMATCH  # the second still waits
    locks.wait_shared("third", "t", limit=5)
    locks.cancel("second")
    locks.wait_shared("fourth", "s", limit=5)


def test_a_limit_that_somebody_holds_by_outlasts_who_gives_up() -> None:
    locks = Locks()
    locks.share("holder", "s", limit=1)
    locks.wait_shared("waiter", "s", limit=1)
    locks.cancel("waiter")
    outcome = locks.acquire("other", "s", mode=S, limit=2, wait_ms=1_000)
    assert code_of(outcome) is RefusalCode.LIMIT_MISMATCH


@pytest.mark.parametrize("limit", [0, -1, -2, 1_000_001])
def test_a_limit_out_of_range_is_refused(limit: int) -> None:
    outcome = Locks().acquire("owner", "s", mode=S, limit=limit)
    assert code_of(outcome) is RefusalCode.LIMIT_MISMATCH


def test_a_semaphore_keeps_a_place_for_an_earlier_waiter_held_up_elsewhere() -> None:
    locks = Locks()
    locks.share("holder", "s", limit=2)
    blocking = locks.hold("blocker", "t")
    locks.wait_shared("both", "s", "t", limit=2)
    assert code_of(locks.acquire("late", "s", mode=S, limit=2)) is RefusalCode.LOCK_HELD
    locks.release("blocker", "t", blocking)
    assert locks.holders("s") == ["holder", "both"]


# --- Several locks at once ------------------------------------------------------------------


def test_several_locks_are_granted_together_or_not_at_all() -> None:
    locks = Locks()
    locks.hold("holder", "b")
    assert code_of(locks.acquire("owner", "a", "b", "c")) is RefusalCode.LOCK_HELD
    assert locks.machine.lock_view("a") is None
    assert locks.machine.lock_view("c") is None


def test_a_wait_for_several_locks_is_granted_when_all_are_free() -> None:
    locks = Locks()
    first = locks.hold("first", "a")
    second = locks.hold("second", "b")
    locks.wait("both", "a", "b", "c")
    locks.release("first", "a", first)
    assert locks.holders("a") == []
    assert locks.waiters("a") == locks.waiters("b") == locks.waiters("c") == ["both"]
    locks.release("second", "b", second)
    tokens = tokens_of(locks.endings["both"])
    assert tokens == sorted(set(tokens))
    assert locks.holders("a") == locks.holders("b") == locks.holders("c") == ["both"]


def test_a_wait_for_several_locks_is_not_passed_in_any_of_them() -> None:
    locks = Locks()
    token = locks.hold("holder", "a")
    locks.wait("both", "a", "b")
    assert code_of(locks.acquire("late", "b")) is RefusalCode.LOCK_HELD
    locks.wait("later", "b")
    locks.release("holder", "a", token)
    assert locks.holders("b") == ["both"]
    assert locks.waiters("b") == ["later"]


def test_a_cancelled_wait_for_several_locks_leaves_every_queue() -> None:
    locks = Locks()
    locks.hold("holder", "a")
    locks.wait("both", "a", "b")
    locks.wait("later", "b")
    locks.cancel("both")
    assert locks.waiters("a") == []
    assert locks.holders("b") == ["later"]


def test_a_reader_held_up_elsewhere_does_not_hold_up_readers() -> None:
    locks = Locks()
    locks.hold("holder", "a")
    locks.wait_shared("both", "a", "b")
    locks.share("reader", "b")
    assert locks.holders("b") == ["reader"]
    assert locks.waiters("b") == ["both"]


def test_a_name_given_twice_is_one_lock() -> None:
    locks = Locks()
    assert len(tokens_of(locks.acquire("owner", "a", "b", "a"))) == 2
    locks.wait("waiter", "a", "a")
    assert locks.waiters("a") == ["waiter"]


# --- Grants and time ------------------------------------------------------------------------


def test_the_deadline_counts_from_the_stamp_of_the_granting_entry() -> None:
    locks = Locks()
    token = locks.hold("holder", "a", ttl_ms=500)
    outcome = locks.acquire("other", "b", ttl_ms=700)
    assert deadline_of(outcome) == locks.now_ms + 700
    locks.wait("waiter", "a", ttl_ms=300)
    locks.pass_time(400)
    locks.release("holder", "a", token)
    assert deadline_of(locks.endings["waiter"]) == locks.now_ms + 300


def test_granting_moves_nobody_elses_deadline() -> None:
    locks = Locks()
    locks.share("first", "a", ttl_ms=500)
    locks.pass_time(200)
    locks.share("second", "a", ttl_ms=500)
    view = locks.machine.lock_view("a")
    assert view is not None
    assert [holder.deadline_ms for holder in view.holders] == [1_500, 1_700]


def test_a_waiter_whose_wait_is_over_is_not_granted() -> None:
    locks = Locks()
    token = locks.hold("holder", "a")
    locks.wait("late", "a", wait_ms=500)
    locks.wait("patient", "a", wait_ms=5_000)
    locks.pass_time(500)  # the deadline is now, and no entry has ended the wait yet
    locks.release("holder", "a", token)
    assert code_of(locks.endings["late"]) is RefusalCode.WAIT_TIMEOUT
    assert locks.holders("a") == ["patient"]


def test_a_waiter_is_granted_up_to_the_last_millisecond_of_its_wait() -> None:
    locks = Locks()
    token = locks.hold("holder", "a")
    locks.wait("waiter", "a", wait_ms=500)
    locks.pass_time(499)
    locks.release("holder", "a", token)
    assert locks.holders("a") == ["waiter"]


def test_a_waiter_whose_session_is_over_is_not_granted() -> None:
    locks = Locks()
    locks.open_session("s", ttl_ms=500)
    token = locks.hold("holder", "a")
    locks.wait("dead", "a", session="s")
    locks.wait("alive", "a")
    locks.pass_time(500)
    locks.release("holder", "a", token)
    assert code_of(locks.endings["dead"]) is RefusalCode.SESSION_NOT_FOUND
    assert locks.holders("a") == ["alive"]
