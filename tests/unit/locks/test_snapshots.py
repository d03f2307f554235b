"""Snapshots carry everything, and the state hash tells equal from different."""

from __future__ import annotations

import gc
import time

import msgspec
import pytest

from distsync_node.errors import InvariantViolation
from distsync_node.locks.commands import (
    Acquire,
    Granted,
    LockMode,
    RefusalCode,
    RequestKey,
    Waiting,
)
from distsync_node.locks.hashing import MAX_PENDING
from distsync_node.locks.machine import LockMachine
from unit.locks.driver import Locks, attempt_of, code_of, tokens_of


def furnished() -> Locks:
    """Return locks with some of everything."""
    locks = Locks()
    locks.open_session("s", ttl_ms=60_000, key="open")
    locks.acquire("ann", "a", "b", session="s", key="several")
    locks.share("ben", "c", limit=3, key="semaphore")
    token = locks.share("cid", "c", limit=3)
    locks.upgrade("cid", "c", token, wait_ms=9_000, key="upgrade")
    locks.wait("dan", "a", "b", wait_ms=8_000)
    locks.acquire("dan", "a", "b", wait_ms=8_000, key="dan")
    locks.wait_shared("eve", "c", limit=3, session="s")
    locks.wait("gone", "a")
    locks.cancel("gone")
    locks.release("fay", "d", locks.hold("fay", "d", key="over"), key="release")
    down = locks.hold("gus", "e")
    locks.downgrade("gus", "e", down, key="downgrade")
    locks.acquire("hal", "a", key="refused")
    return locks


def test_queues_tokens_and_dedupe_are_inside_the_snapshot() -> None:
    locks = furnished()
    locks.endings.clear()
    restored = locks.restored()
    assert restored.machine.lock_views() == locks.machine.lock_views()
    assert restored.machine.session_deadline_ms("s") == locks.machine.session_deadline_ms("s")
    assert restored.machine.counts() == locks.machine.counts()
    assert restored.machine.last_token == locks.machine.last_token
    assert restored.machine.next_deadline_ms() == locks.machine.next_deadline_ms()
    restored.machine.check_invariants()
    for one in (locks, restored):
        assert one.hold("new", "z") == 7
        assert attempt_of(one.acquire("dan", "a", "b", wait_ms=8_000, key="dan")) == 3
        assert tokens_of(one.acquire("ann", "a", "b", session="s", key="several")) == [1, 2]
        assert code_of(one.acquire("fay", "d", key="over")) is RefusalCode.LOCK_LOST
        assert code_of(one.acquire("hal", "a", key="refused")) is RefusalCode.LOCK_HELD
        assert attempt_of(one.acquire("gone", "a", wait_ms=60_000, key="gone")) == 2
        one.close_session("s")
        assert one.holders("a") == ["dan"]
    assert restored.endings == locks.endings
    assert restored.machine.state_hash() == locks.machine.state_hash()


def test_a_restored_session_ends_its_grants_in_the_same_order() -> None:
    """The order decides the tokens of those who waited."""
    locks = Locks()
    locks.open_session("s")
    locks.share("other", "older")
    locks.share("owner", "newer", session="s")
    locks.share("owner", "older", session="s")
    locks.release("", "older", locks.token("older", "other"), force=True)
    locks.wait("waits-for-older", "older")
    locks.wait("waits-for-newer", "newer")
    restored = locks.restored()
    for one in (locks, restored):
        one.close_session("s")
    assert restored.endings == locks.endings
    assert locks.token("newer", "waits-for-newer") < locks.token("older", "waits-for-older")
    assert restored.machine.state_hash() == locks.machine.state_hash()


def test_two_snapshots_in_a_row_are_the_same_bytes() -> None:
    locks = furnished()
    snapshot = locks.machine.snapshot()
    assert locks.machine.snapshot() == snapshot
    again = LockMachine.restore(snapshot)
    assert again.snapshot() == again.snapshot()


def test_an_empty_machine_survives_a_snapshot() -> None:
    machine = LockMachine()
    assert LockMachine.restore(machine.snapshot()).state_hash() == machine.state_hash()


def test_notices_and_changes_already_due_are_not_repeated_after_a_restore() -> None:
    restored = furnished().restored()
    assert restored.machine.take_notices() == []
    assert restored.machine.take_changes() == []


def test_any_damage_to_a_snapshot_is_noticed() -> None:
    data = bytearray(furnished().machine.snapshot())
    for position in range(len(data)):
        data[position] ^= 0x04
        with pytest.raises(InvariantViolation):
            LockMachine.restore(bytes(data))
        data[position] ^= 0x04
    with pytest.raises(InvariantViolation):
        LockMachine.restore(bytes(data[:-1]))
    with pytest.raises(InvariantViolation):
        LockMachine.restore(b"")


def test_a_snapshot_of_another_format_is_refused() -> None:
    image = msgspec.msgpack.decode(LockMachine().snapshot())
    image[0] += 1
    with pytest.raises(InvariantViolation, match="format"):
        LockMachine.restore(msgspec.msgpack.encode(image))


# --- The state hash -------------------------------------------------------------------------


def test_the_hash_does_not_depend_on_when_it_was_asked_for() -> None:
    seldom, often = Locks(), Locks()
    for number in range(50):
        for locks in (seldom, often):
            token = locks.hold("owner", f"lock-{number % 7}")
            locks.share("reader", f"shared-{number}", limit=number % 3 + 1)
            if number % 3:
                locks.release("owner", f"lock-{number % 7}", token)
            else:
                locks.release("", f"lock-{number % 7}", 0, force=True)
        often.machine.state_hash()
        if number % 10 == 0:
            often.machine = LockMachine.restore(often.machine.snapshot())
    assert often.machine.state_hash() == seldom.machine.state_hash()


def test_every_part_of_the_state_counts() -> None:
    def variants(locks: Locks) -> list[Locks]:
        copies = [locks.restored() for _ in range(12)]
        copies[1].renew("ben", "c", locks.token("c", "ben"), 77)
        copies[2].acquire("dan", "a", "b", wait_ms=8_000, key="dan")
        copies[3].cancel("dan", attempt=2)
        copies[4].keep_alive("s")
        copies[5].release("ben", "c", locks.token("c", "ben"))
        copies[6].downgrade("ann", "a", locks.token("a", "ann"))
        copies[7].hold("new", "z", key="k")
        copies[8].hold("new", "z", key="l")
        copies[9].share("new", "z", limit=2, key="k")
        copies[10].share("new", "z", limit=3, key="k")
        copies[11].machine.raise_tokens(1_000)
        return copies

    locks = furnished()
    locks.pass_time(1)
    hashes = [copy.machine.state_hash() for copy in variants(locks)]
    assert len(set(hashes)) == len(hashes)
    assert all(0 <= value < 2**64 for value in hashes)


def test_the_stamp_counts() -> None:
    first, second = Locks(), Locks()
    second.pass_time(1)
    for locks in (first, second):
        locks.cancel("nothing")
    assert first.machine.state_hash() != second.machine.state_hash()


def test_notes_for_the_hash_are_worked_off_without_being_asked() -> None:
    locks = Locks(checked=False)
    for _ in range(MAX_PENDING):
        locks.release("owner", "a", locks.hold("owner", "a"))
    pending = locks.machine._state.hash
    assert len(pending._added) < MAX_PENDING
    assert len(pending._removed) < MAX_PENDING
    locks.machine.check_invariants()


# --- Size -----------------------------------------------------------------------------------


def test_a_hundred_thousand_held_locks_are_encoded_and_restored_quickly() -> None:
    """Generous bounds, to notice a wrong order of growth and not a busy machine."""
    machine = LockMachine()
    for number in range(100_000):
        outcome = machine.apply(
            Acquire(
                key=RequestKey(f"client-{number % 64}", f"request-{number}"),
                digest=b"12345678",
                names=(f"lock/{number}",),
                owner=f"owner-{number}",
                mode=LockMode.EXCLUSIVE,
                ttl_ms=10_000,
                wait_ms=0,
            ),
            1_000,
        )
        assert isinstance(outcome, Granted | Waiting)
    gc.collect()
    started = time.process_time()
    data = machine.snapshot()
    encoded = time.process_time()
    restored = LockMachine.restore(data)
    done = time.process_time()
    assert encoded - started < 1.0
    assert done - encoded < 4.0
    assert restored.state_hash() == machine.state_hash()
    assert restored.lock_views(prefix="lock/99", limit=2) == machine.lock_views(
        prefix="lock/99", limit=2
    )
