"""Every limit is met with its refusal, and the refusal leaves no trace."""

from __future__ import annotations

import pytest

from distsync_node.errors import InvariantViolation
from distsync_node.locks import limits
from distsync_node.locks.commands import (
    Done,
    FencingToken,
    Granted,
    RaiseTokens,
    RefusalCode,
    Waiting,
)
from distsync_node.locks.machine import LockMachine
from unit.locks.driver import SHARED, Locks, code_of, tokens_of


@pytest.fixture
def locks() -> Locks:
    return Locks()


def test_names_of_one_acquire(locks: Locks) -> None:
    names = [f"lock-{number}" for number in range(limits.MAX_NAMES_PER_ACQUIRE)]
    assert code_of(locks.acquire("owner", *names, "more")) is RefusalCode.TOO_MANY_LOCKS
    assert len(tokens_of(locks.acquire("owner", *names))) == limits.MAX_NAMES_PER_ACQUIRE


def test_an_acquire_of_nothing(locks: Locks) -> None:
    assert code_of(locks.acquire("owner")) is RefusalCode.TOO_MANY_LOCKS


def test_waiters_of_one_lock(locks: Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_WAITERS_PER_LOCK", 2)
    locks.hold("holder", "a")
    locks.hold("holder", "b")
    locks.wait("first", "a")
    locks.wait("second", "a")
    refused = locks.acquire("third", "b", "a", wait_ms=1_000, key="third")
    assert code_of(refused) is RefusalCode.TOO_MANY_WAITERS
    assert refused.name == "a"  # type: ignore[union-attr]
    locks.cancel("first")
    again = locks.acquire("third", "b", "a", wait_ms=1_000, key="third")
    assert isinstance(again, Waiting)  # room has come, and the same request may use it


def test_waiting_upgrades_of_one_lock(locks: Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_WAITERS_PER_LOCK", 1)
    token = locks.share("reader", "a")
    locks.share("other", "a")
    locks.wait("writer", "a")
    outcome = locks.upgrade("reader", "a", token, wait_ms=1_000)
    assert code_of(outcome) is RefusalCode.TOO_MANY_WAITERS


def test_waiters_of_all_locks(locks: Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_WAITERS", 3)
    locks.hold("holder", "a", "b", "c")
    locks.wait("first", "a")
    locks.wait("second", "b", "c")
    refused = locks.acquire("third", "a", wait_ms=1_000)
    assert code_of(refused) is RefusalCode.TOO_MANY_WAITERS
    locks.cancel("second")
    locks.wait("third", "a")
    assert locks.machine.counts().places == 2


def test_locks(locks: Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_LOCKS", 2)
    token = locks.hold("owner", "a")
    assert code_of(locks.acquire("owner", "b", "c", key="r")) is RefusalCode.TOO_MANY_LOCKS
    waiting = locks.acquire("other", "a", "b", "c", wait_ms=1_000)
    assert code_of(waiting) is RefusalCode.TOO_MANY_LOCKS
    assert locks.machine.counts().locks == 1
    locks.release("owner", "a", token)
    assert isinstance(locks.acquire("owner", "b", "c", key="r"), Granted)


def test_grants(locks: Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_GRANTS", 2)
    locks.share("first", "a")
    locks.share("second", "a")
    refused = locks.acquire("third", "a", mode=SHARED)
    assert code_of(refused) is RefusalCode.TOO_MANY_LOCKS


def test_sessions(locks: Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SESSIONS", 1)
    locks.open_session("s")
    assert code_of(locks.open_session("t", key="r")) is RefusalCode.TOO_MANY_SESSIONS
    locks.close_session("s")
    assert locks.open_session("t", key="r").session == "t"  # type: ignore[union-attr]


def test_tokens_are_never_used_up_silently(locks: Locks) -> None:
    locks.machine.raise_tokens(limits.MAX_TOKEN - 1)
    assert locks.hold("owner", "a") == limits.MAX_TOKEN == 2**53 - 1
    with pytest.raises(InvariantViolation, match="used up"):
        locks.acquire("owner", "b")
    with pytest.raises(InvariantViolation):
        locks.machine.raise_tokens(limits.MAX_TOKEN + 1)


def test_tokens_raised_after_a_restore_from_backup_lie_above_all_issued_since() -> None:
    backed_up = Locks()
    backed_up.hold("owner", "a")
    backup = backed_up.machine.snapshot()
    since = backed_up.hold("owner", "b")
    machine = LockMachine.restore(backup)
    for above in (machine.last_token + 2**40, 1):  # never back
        assert machine.apply(RaiseTokens(above=FencingToken(above)), 1_500) == Done()
    restored = Locks(machine)
    restored.now_ms = 2_000
    assert restored.hold("other", "c", key="after") == 2**40 + 2 > since


def test_leader_time_never_goes_back(locks: Locks) -> None:
    locks.hold("owner", "a")
    locks.pass_time(-1)
    with pytest.raises(InvariantViolation, match="went back"):
        locks.hold("owner", "b")
