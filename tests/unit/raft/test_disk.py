"""The queue to the disk, and what of it is known to be durable."""

from __future__ import annotations

import pytest

from distsync_node.errors import InvariantViolation
from distsync_node.raft.disk import DiskQueue
from distsync_node.raft.types import HardState, LogIndex, MemberId, Term, TimeoutNow
from unit.raft.cluster import configuration, snapshot
from unit.raft.single import log_of

HARD = HardState(Term(3), MemberId("1"))
TIMEOUT = TimeoutNow(Term(3))


def test_a_step_becomes_one_persist() -> None:
    disk = DiskQueue(LogIndex(1))
    disk.stage_hard_state()
    disk.stage_entries(log_of(3, 3))
    disk.stage_message(MemberId("2"), TIMEOUT)
    persist = disk.flush(HARD)
    assert persist.hard_state == HARD
    assert persist.entries == log_of(3, 3)
    assert [send.message for send in persist.then] == [TIMEOUT]
    assert not disk.staged
    disk.stage_entries(log_of(3, first=4))
    assert disk.flush(HARD).hard_state is None


def test_entries_are_durable_once_reported() -> None:
    disk = DiskQueue(LogIndex(1))
    disk.stage_entries(log_of(3, 3))
    disk.flush(HARD)
    disk.stage_entries(log_of(3, first=4))
    disk.flush(HARD)
    assert disk.durable_index == 1
    disk.persisted(1)
    assert disk.durable_index == 3
    disk.persisted(2)
    assert disk.durable_index == 4


def test_one_report_covers_everything_before() -> None:
    disk = DiskQueue(LogIndex(1))
    for index in (2, 3, 4):
        disk.stage_entries(log_of(3, first=index))
        disk.flush(HARD)
    disk.persisted(3)
    assert disk.durable_index == 4
    disk.persisted(2)
    assert disk.durable_index == 4


def test_a_late_write_of_replaced_entries_vouches_for_nothing() -> None:
    disk = DiskQueue(LogIndex(1))
    disk.stage_entries(log_of(3, 3, 3))
    disk.flush(HARD)
    disk.truncated_from(3)
    disk.stage_entries(log_of(4, first=3))
    disk.flush(HARD)
    disk.persisted(1)
    assert disk.durable_index == 2
    disk.persisted(2)
    assert disk.durable_index == 3


def test_a_truncation_takes_durability_back() -> None:
    disk = DiskQueue(LogIndex(9))
    disk.truncated_from(5)
    assert disk.durable_index == 4


def test_term_and_vote_are_durable_only_when_the_latest_are() -> None:
    disk = DiskQueue(LogIndex(1))
    assert disk.hard_durable
    disk.stage_hard_state()
    assert not disk.hard_durable
    disk.flush(HARD)
    disk.stage_hard_state()
    disk.flush(HARD)
    disk.persisted(1)
    assert not disk.hard_durable
    disk.persisted(2)
    assert disk.hard_durable


def test_noting_the_commit_holds_nothing_back() -> None:
    disk = DiskQueue(LogIndex(1))
    disk.note_commit()
    assert disk.hard_durable
    assert disk.flush(HARD).hard_state == HARD
    assert disk.hard_durable
    disk.stage_entries(log_of(3))
    assert disk.flush(HARD).hard_state is None


def test_a_received_snapshot_is_durable_up_to_its_index() -> None:
    disk = DiskQueue(LogIndex(4))
    disk.truncated_from(3)
    disk.stage_snapshot(snapshot(configuration("1"), 20, 3), LogIndex(21), discard_log=True)
    persist = disk.flush(HARD)
    assert persist.discard_log
    assert persist.keep_from == 21
    assert disk.durable_index == 2
    disk.persisted(1)
    assert disk.durable_index == 20


def test_an_own_snapshot_says_nothing_about_the_log() -> None:
    disk = DiskQueue(LogIndex(4))
    disk.stage_snapshot(snapshot(configuration("1"), 6, 3), LogIndex(2), discard_log=False)
    disk.flush(HARD)
    disk.persisted(1)
    assert disk.durable_index == 4


def test_a_report_from_the_future_stops_the_node() -> None:
    with pytest.raises(InvariantViolation):
        DiskQueue(LogIndex(1)).persisted(1)
