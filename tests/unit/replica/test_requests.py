"""Connections and what they wait for: one place each, one final effect each."""

from __future__ import annotations

from distsync_node.locks.commands import (
    Acquire,
    Cancel,
    Expire,
    KeepAlive,
    LockMode,
    RequestKey,
    SessionId,
)
from distsync_node.raft.types import LogIndex
from distsync_node.replica.requests import MAX_COMMANDS_PER_ENTRY, Requests

KEY = RequestKey(client="c", request="r")


def acquire(names: int = 1) -> Acquire:
    return Acquire(
        key=KEY,
        digest=b"12345678",
        names=tuple(f"lock-{i}" for i in range(names)),
        owner="o",
        mode=LockMode.EXCLUSIVE,
        ttl_ms=1_000,
        wait_ms=0,
    )


def test_expiries_come_first_in_an_entry() -> None:
    requests = Requests()
    requests.submit(1, acquire())
    batch = requests.take_batch(Expire(), 1 << 20)
    assert [type(command) for command in batch.commands] == [Expire, Acquire]
    assert batch.refs == [0, 1]
    assert batch.expires


def test_renewals_of_one_session_become_one_command() -> None:
    requests = Requests()
    for ref, session in ((1, "s"), (2, "t"), (3, "s")):
        requests.submit(ref, KeepAlive(sessions=(SessionId(session),)))
    batch = requests.take_batch(None, 1 << 20)
    assert batch.commands == [KeepAlive(sessions=(SessionId("s"), SessionId("t")))]
    assert batch.keepalives == {"s": [1, 3], "t": [2]}
    assert sorted(batch.all_refs()) == [1, 2, 3]
    assert not requests.has_submitted


def test_an_entry_is_bounded_in_commands_and_bytes() -> None:
    requests = Requests()
    for ref in range(1, MAX_COMMANDS_PER_ENTRY + 2):
        requests.submit(ref, acquire())
    assert len(requests.take_batch(None, 1 << 20).commands) == MAX_COMMANDS_PER_ENTRY
    assert len(requests.take_batch(None, 1 << 20).commands) == 1
    requests.submit(1, acquire(names=64))
    requests.submit(2, acquire(names=64))
    assert len(requests.take_batch(None, 1_000).commands) == 1


def test_a_retry_waits_beside_its_first_attempt_and_both_are_told() -> None:
    requests = Requests()
    requests.park(1, KEY, 1)
    requests.park(2, KEY, 2)
    assert requests.disconnect(1) is None
    requests.park(3, KEY, 3)
    assert requests.unpark(KEY) == [2, 3]
    assert requests.unpark(KEY) == []


def test_the_last_connection_to_go_cancels_the_latest_attempt() -> None:
    requests = Requests()
    requests.park(1, KEY, 1)
    requests.park(2, KEY, 2)
    assert requests.disconnect(2) is None
    assert requests.disconnect(1) == (KEY, 2)
    requests.park(3, KEY, 3)
    assert requests.disconnect(3) == (KEY, 3)


def test_an_attempt_that_arrives_late_and_without_its_client_cancels_nobody_elses_wait() -> None:
    requests = Requests()
    requests.park(2, KEY, 1)  # the client's second attempt arrived first
    assert requests.parked_gone(KEY, 2) is None
    assert requests.disconnect(2) == (KEY, 2)
    assert requests.parked_gone(KEY, 3) == 3


def test_a_disconnect_before_the_proposal_leaves_nothing() -> None:
    requests = Requests()
    requests.submit(1, acquire())
    assert requests.disconnect(1) is None
    assert not requests.has_submitted


def test_a_disconnect_in_flight_is_remembered() -> None:
    requests = Requests()
    requests.submit(1, acquire())
    requests.batches[LogIndex(5)] = requests.take_batch(None, 1 << 20)
    assert requests.disconnect(1) is None
    assert requests.abandoned == {1}
    assert requests.drain() == ([], [])


def test_drain_tells_what_was_proposed_from_what_was_not() -> None:
    requests = Requests()
    requests.submit(1, acquire())
    requests.batches[LogIndex(5)] = requests.take_batch(None, 1 << 20)
    requests.submit(2, acquire())
    requests.submit(3, KeepAlive(sessions=(SessionId("s"),)))
    requests.submit(0, Cancel(key=KEY, attempt=1))
    requests.park(4, KEY, 1)
    assert requests.drain() == ([2, 3], [1, 4])
    assert not requests.has_submitted
    assert requests.count == 0


def test_reads_are_served_in_order_of_their_index() -> None:
    requests = Requests()
    requests.await_applied(1, LogIndex(7))
    requests.await_applied(2, LogIndex(5))
    requests.await_applied(3, LogIndex(9))
    assert requests.applied(LogIndex(7)) == [2, 1]
    assert requests.drain_reads() == [3]
