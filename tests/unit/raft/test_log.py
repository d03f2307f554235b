"""The log in memory."""

from __future__ import annotations

import pytest

from distsync_node.errors import InvariantViolation
from distsync_node.raft.log import ENTRY_OVERHEAD_BYTES, Log
from distsync_node.raft.types import LogIndex, Term
from unit.raft.cluster import configuration, snapshot
from unit.raft.single import command, log_of


def log(*terms: int, base: tuple[int, int] = (1, 1)) -> Log:
    result = Log(LogIndex(base[0]), Term(base[1]), 0)
    result.extend(log_of(*terms, first=base[0] + 1))
    return result


def meta(index: int, term: int):
    return snapshot(configuration("1"), index, term).meta


def test_knows_the_term_of_its_base_and_of_every_entry() -> None:
    kept = log(2, 2, 3, base=(5, 1))
    assert [kept.term_at(index) for index in range(5, 9)] == [1, 2, 2, 3]
    assert kept.last_index == 8
    assert kept.last_term == 3


@pytest.mark.parametrize("index", [4, 9])
def test_does_not_guess_terms_outside_of_what_it_keeps(index: int) -> None:
    with pytest.raises(InvariantViolation):
        log(2, 2, 3, base=(5, 1)).term_at(index)


def test_refuses_a_gap() -> None:
    with pytest.raises(InvariantViolation):
        log(1).append(command(4, 1))


def test_refuses_a_falling_term() -> None:
    with pytest.raises(InvariantViolation):
        log(3).append(command(3, 2))


def test_truncation_takes_the_entries_and_their_terms() -> None:
    kept = log(1, 2, 2, 3)
    kept.truncate_from(3)
    assert kept.last_index == 2
    assert kept.last_term == 1
    kept.append(command(3, 4))
    assert kept.last_term == 4
    assert kept.last_index_of_term(Term(2)) is None


def test_the_base_cannot_be_truncated() -> None:
    with pytest.raises(InvariantViolation):
        log(1, 1).truncate_from(1)


def test_compaction_makes_the_last_dropped_entry_the_base() -> None:
    kept = log(1, 2, 2, 3)
    kept.compact_to(4)
    assert (kept.base_index, kept.base_term, kept.first_index) == (4, 2, 5)
    assert kept.term_at(4) == 2
    assert kept.first_index_of_run(4) == 4
    assert kept.slice(5, 5) == (command(5, 3),)


def test_compacting_everything_keeps_the_end() -> None:
    kept = log(1, 2)
    kept.compact_to(3)
    assert (kept.last_index, kept.last_term, kept.last_stamp_ms) == (3, 2, 3)
    kept.append(command(4, 2))
    assert kept.slice(4, 4) == (command(4, 2),)


def test_compacting_below_the_base_changes_nothing() -> None:
    kept = log(2, 2, base=(5, 1))
    kept.compact_to(3)
    assert kept.base_index == 5


def test_slices_only_what_it_keeps() -> None:
    kept = log(2, 2, base=(5, 1))
    with pytest.raises(InvariantViolation):
        kept.slice(5, 6)
    with pytest.raises(InvariantViolation):
        kept.slice(6, 8)
    assert kept.slice(8, 7) == ()


def test_a_batch_is_bounded_by_entries_and_bytes_and_never_empty() -> None:
    kept = Log(LogIndex(0), Term(0), 0)
    size = ENTRY_OVERHEAD_BYTES + 10
    kept.extend(command(index, 1, "x" * 10) for index in range(1, 6))
    assert kept.batch(2, 2, 10_000) == (kept.slice(2, 3), 2 * size)
    assert kept.batch(2, 9, 3 * size) == (kept.slice(2, 4), 3 * size)
    assert kept.batch(2, 9, 1) == (kept.slice(2, 2), size)


def test_finds_the_borders_of_a_term() -> None:
    kept = log(2, 2, 4, 4, 4)
    assert kept.first_index_of_run(3) == 2
    assert kept.first_index_of_run(6) == 4
    assert kept.last_index_of_term(Term(2)) == 3
    assert kept.last_index_of_term(Term(4)) == 6
    assert kept.last_index_of_term(Term(1)) == 1
    assert kept.last_index_of_term(Term(3)) is None
    assert kept.last_index_of_term(Term(0)) is None


@pytest.mark.parametrize(
    ("last", "up_to_date"),
    [((9, 1), False), ((2, 2), False), ((3, 2), True), ((4, 2), True), ((1, 3), True)],
)
def test_a_log_is_up_to_date_by_term_and_then_by_length(
    last: tuple[int, int], up_to_date: bool
) -> None:
    assert log(1, 2).is_up_to_date(last[0], Term(last[1])) is up_to_date


def test_recovers_entries_behind_the_snapshot() -> None:
    kept = Log.recover(meta(5, 2), log_of(2, 3, first=6))
    assert (kept.base_index, kept.base_term, kept.last_index) == (5, 2, 7)


def test_recovers_entries_kept_below_the_snapshot_and_uses_the_first_as_base() -> None:
    kept = Log.recover(meta(5, 2), log_of(1, 2, 2, 3, first=3))
    assert (kept.base_index, kept.base_term, kept.last_index) == (3, 1, 6)
    assert kept.term_at(5) == 2


def test_a_log_that_ends_before_the_snapshot_was_superseded() -> None:
    kept = Log.recover(meta(5, 2), log_of(1, 1, first=2))
    assert (kept.base_index, kept.last_index, kept.last_term) == (5, 5, 2)


def test_a_log_that_disagrees_with_the_snapshot_was_superseded() -> None:
    kept = Log.recover(meta(5, 2), log_of(1, 1, 1, 1, first=3))
    assert (kept.base_index, kept.last_index, kept.last_term) == (5, 5, 2)


def test_a_gap_behind_the_snapshot_stops_the_node() -> None:
    with pytest.raises(InvariantViolation):
        Log.recover(meta(5, 2), log_of(2, first=7))
