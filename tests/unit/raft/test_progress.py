"""The leader's notes on one follower."""

from __future__ import annotations

from distsync_node.raft.progress import Progress, ProgressState
from distsync_node.raft.reads import ROUNDS_REMEMBERED, ReadQueue, RoundClock
from distsync_node.raft.types import LogIndex, MemberId, RaftOptions
from unit.raft.cluster import configuration, snapshot

OPTIONS = RaftOptions(max_inflight_requests=2, max_inflight_bytes=100)


def progress() -> Progress:
    return Progress(MemberId("2"), LogIndex(10), voter=True)


def replicating() -> Progress:
    result = progress()
    result.accepted(LogIndex(9))
    result.become_replicate()
    return result


def test_probing_waits_for_each_answer() -> None:
    probed = progress()
    assert probed.may_send_entries(OPTIONS)
    probed.entries_sent(LogIndex(12), 10)
    assert probed.next_index == 10
    assert not probed.may_send_entries(OPTIONS)


def test_replication_runs_ahead_within_its_window() -> None:
    followed = replicating()
    followed.entries_sent(LogIndex(10), 10)
    followed.entries_sent(LogIndex(12), 10)
    assert followed.next_index == 13
    assert not followed.may_send_entries(OPTIONS)
    assert followed.accepted(LogIndex(11))
    assert (followed.inflight_count, followed.inflight_bytes) == (1, 10)
    assert followed.may_send_entries(OPTIONS)


def test_many_bytes_close_the_window_too() -> None:
    followed = replicating()
    followed.entries_sent(LogIndex(10), 100)
    assert not followed.may_send_entries(OPTIONS)


def test_an_old_answer_is_no_news() -> None:
    followed = replicating()
    assert not followed.accepted(LogIndex(9))
    assert not followed.accepted(LogIndex(3))
    assert followed.match_index == 9


def test_going_back_to_probing_empties_the_window_and_stays_above_the_match() -> None:
    followed = replicating()
    followed.entries_sent(LogIndex(12), 10)
    followed.become_probe(4)
    assert (followed.state, followed.next_index) == (ProgressState.PROBE, 10)
    assert (followed.inflight_count, followed.inflight_bytes) == (0, 0)


def test_nothing_else_is_sent_while_a_snapshot_is() -> None:
    followed = progress()
    followed.become_snapshot(snapshot(configuration("12")), 1_000)
    assert not followed.may_send_entries(OPTIONS)
    followed.become_replicate()
    assert followed.snapshot is None


def test_rounds_know_when_they_were_sent_for_a_while() -> None:
    clock = RoundClock()
    first = clock.begin(100)
    second = clock.begin(150)
    assert (clock.sent_ms(first), clock.sent_ms(second)) == (100, 150)
    assert clock.sent_ms(second + 1) is None
    for now_ms in range(ROUNDS_REMEMBERED):
        clock.begin(1_000 + now_ms)
    assert clock.sent_ms(second) is None
    assert clock.sent_ms(second + 1) == 1_000


def test_reads_are_answered_once_and_in_order() -> None:
    reads = ReadQueue()
    reads.add(1)
    reads.join_round(4, LogIndex(10))
    reads.add(2)
    assert not reads.wants_round
    assert list(reads.confirmed(3)) == []
    assert list(reads.confirmed(4)) == [(1, 10)]
    assert list(reads.confirmed(4)) == []
    assert reads.wants_round
    assert list(reads.drain()) == [2]
    assert not reads.wants_round
