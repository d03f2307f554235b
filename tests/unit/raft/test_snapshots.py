"""Compaction and the transfer of snapshots (thesis §5)."""

from __future__ import annotations

import pytest

from distsync_node.errors import InvariantViolation
from distsync_node.raft.progress import ProgressState
from distsync_node.raft.types import (
    Apply,
    ConfigurationChanged,
    LogIndex,
    MemberId,
    Persist,
    RaftOptions,
    Restore,
    Snapshot,
    SnapshotChunk,
    SnapshotResponse,
    Term,
)
from unit.raft.cluster import NOWHERE, Cluster, configuration, snapshot
from unit.raft.single import (
    Single,
    accepted,
    append,
    follower,
    log_of,
    of,
    refused,
    sent,
    sent_after_write,
)

STATE = b"abcdefghij"
FAR = MemberId("2")


def state(index: int = 9, term: int = 2, data: bytes = STATE) -> Snapshot:
    return snapshot(configuration("123"), index, term, data)


def chunk(
    of_state: Snapshot, start: int, end: int, *, term: int = 2, round_number: int = 1
) -> SnapshotChunk:
    data = of_state.data[start:end]
    return SnapshotChunk(Term(term), round_number, of_state.meta, start, len(of_state.data), data)


def answer(
    index: int, next_offset: int, *, installed: bool = False, term: int = 2
) -> SnapshotResponse:
    return SnapshotResponse(Term(term), 1, LogIndex(index), next_offset, installed)


# --- Compaction -----------------------------------------------------------------------------


def test_a_snapshot_replaces_the_entries_it_covers_but_for_some() -> None:
    single = Single(term=2, entries=log_of(2, 2, 2, 2), options=RaftOptions(retained_entries=1))
    single.receive("2", append(2, (5, 2), commit=5))
    taken = state(4)
    persist = of(single.compact(taken), Persist)[0]
    assert (persist.snapshot, persist.keep_from, persist.discard_log) == (taken, 4, False)
    assert (single.core.first_index, single.core.last_index) == (4, 5)


def test_all_covered_entries_go_when_none_are_retained() -> None:
    single = Single(term=2, entries=log_of(2, 2, 2), options=RaftOptions(retained_entries=0))
    single.receive("2", append(2, (4, 2), commit=4))
    assert of(single.compact(state(4)), Persist)[0].keep_from == 5
    assert (single.core.first_index, single.core.last_index) == (5, 4)
    assert sent(single.receive("2", append(2, (4, 2)))) == [accepted(2, 4)]


def test_retained_entries_never_reach_below_what_is_there() -> None:
    single = follower(2, 2)
    single.receive("2", append(2, (3, 2), commit=3))
    assert of(single.compact(state(3)), Persist)[0].keep_from == 2


def test_an_older_snapshot_is_ignored() -> None:
    single = Single(term=2, base=state(9))
    assert single.compact(state(9)) == []
    assert single.compact(state(5)) == []


def test_a_snapshot_of_what_is_not_applied_stops_the_node() -> None:
    with pytest.raises(InvariantViolation):
        follower(2, 2).compact(state(3))


def test_a_snapshot_of_another_term_stops_the_node() -> None:
    single = follower(2, 2)
    single.receive("2", append(2, (3, 2), commit=3))
    with pytest.raises(InvariantViolation):
        single.compact(state(3, term=1))


def test_a_snapshot_with_another_configuration_stops_the_node() -> None:
    single = follower(2, 2)
    single.receive("2", append(2, (3, 2), commit=3))
    with pytest.raises(InvariantViolation):
        single.compact(snapshot(configuration("12"), 3, 2))


# --- Receiving ------------------------------------------------------------------------------


def test_chunks_are_asked_for_one_after_the_other() -> None:
    single = follower(1)
    assert sent(single.receive("2", chunk(state(), 0, 4))) == [answer(9, 4)]
    assert sent(single.receive("2", chunk(state(), 4, 8))) == [answer(9, 8)]
    assert single.core.last_index == 2


def test_the_last_chunk_restores_and_is_answered_when_written() -> None:
    single = follower(1)
    single.receive("2", chunk(state(), 0, 4))
    effects = single.receive("2", chunk(state(), 4, 10))
    assert [each.snapshot for each in of(effects, Restore)] == [state()]
    assert sent(effects) == []
    assert sent_after_write(effects) == [answer(9, 10, installed=True)]
    persist = of(effects, Persist)[0]
    assert (persist.snapshot, persist.discard_log, persist.keep_from) == (state(), True, 10)
    core = single.core
    assert (core.first_index, core.last_index, core.commit_index, core.applied_index) == (
        10,
        9,
        9,
        9,
    )
    assert core.durable_index == 1
    single.write()
    assert core.durable_index == 9


def test_appends_continue_behind_a_snapshot() -> None:
    single = follower(1)
    single.receive("2", chunk(state(), 0, 10))
    effects = single.receive("2", append(2, (9, 2), log_of(2, first=10), commit=10))
    assert [each.entries for each in of(effects, Apply)] == [log_of(2, first=10)]
    single.write()
    assert single.core.durable_index == 10


def test_a_repeated_chunk_changes_nothing() -> None:
    single = follower(1)
    single.receive("2", chunk(state(), 0, 4))
    assert sent(single.receive("2", chunk(state(), 0, 4))) == [answer(9, 4)]


def test_a_missing_chunk_is_asked_for() -> None:
    single = follower(1)
    single.receive("2", chunk(state(), 0, 4))
    assert sent(single.receive("2", chunk(state(), 8, 10))) == [answer(9, 4)]
    assert sent(Single(term=2).receive("2", chunk(state(), 4, 8))) == [answer(9, 0)]


def test_an_empty_chunk_asks_where_the_follower_is() -> None:
    single = follower(1)
    single.receive("2", chunk(state(), 0, 4))
    assert sent(single.receive("2", chunk(state(), 4, 4))) == [answer(9, 4)]


def test_an_empty_snapshot_is_complete_at_once() -> None:
    single = follower(1)
    effects = single.receive("2", chunk(state(data=b""), 0, 0))
    assert len(of(effects, Restore)) == 1


def test_a_newer_snapshot_starts_again_and_the_older_is_forgotten() -> None:
    single = follower(1)
    single.receive("2", chunk(state(9), 0, 4))
    assert sent(single.receive("2", chunk(state(12), 4, 8))) == [answer(12, 0)]
    assert sent(single.receive("2", chunk(state(12), 0, 4))) == [answer(12, 4)]
    assert sent(single.receive("2", chunk(state(9), 4, 8))) == []
    effects = single.receive("2", chunk(state(12), 4, 10))
    assert [each.snapshot.meta.index for each in of(effects, Restore)] == [12]


def test_chunks_of_different_leaders_are_not_mixed() -> None:
    single = follower(1)
    single.receive("2", chunk(state(), 0, 4))
    effects = single.receive("3", chunk(state(), 4, 10, term=3))
    assert of(effects, Restore) == []
    assert sent_after_write(effects) == [answer(9, 0, term=3)]


def test_a_chunk_that_claims_more_than_the_total_is_not_taken() -> None:
    single = follower(1)
    too_long = SnapshotChunk(Term(2), 1, state().meta, 0, 4, STATE)
    assert sent(single.receive("2", too_long)) == [answer(9, 0)]


def test_a_snapshot_whose_end_the_log_has_keeps_what_lies_behind() -> None:
    single = follower(2, 2, 2)
    effects = single.receive("2", chunk(state(3), 0, 4))
    assert of(effects, Restore) == []
    assert sent(effects) == [answer(3, 10, installed=True)]
    assert [each.entries for each in of(effects, Apply)] == [log_of(2, 2)]
    assert single.core.last_index == 4


def test_a_snapshot_of_what_is_committed_is_confirmed_only_when_that_is_written() -> None:
    single = follower()
    single.receive("2", append(2, (1, 1), log_of(2, 2), commit=3))
    effects = single.receive("2", chunk(state(3), 0, 4))
    assert sent(effects) == []
    assert sent_after_write(effects) == [answer(3, 10, installed=True)]


def test_a_snapshot_replaces_a_log_that_disagrees() -> None:
    single = follower(*[1] * 12)
    effects = single.receive("2", chunk(state(9), 0, 10))
    assert len(of(effects, Restore)) == 1
    assert single.core.last_index == 9


def test_what_was_durable_of_a_replaced_log_no_longer_counts() -> None:
    single = follower(*[1] * 12)
    assert single.core.durable_index == 13
    single.receive("2", chunk(state(9), 0, 10))
    assert sent(single.receive("2", append(2, (9, 2)))) == [accepted(2, 1)]


def test_a_chunk_of_an_earlier_term_is_refused_with_the_present_one() -> None:
    single = Single(term=5)
    assert sent(single.receive("2", chunk(state(), 0, 4))) == [answer(9, 0, term=5)]


def test_a_snapshot_brings_its_configuration() -> None:
    single = follower(1)
    grown = snapshot(configuration("1234", index=7), 9, 2, STATE)
    effects = single.receive("2", chunk(grown, 0, 10))
    assert [each.configuration for each in of(effects, ConfigurationChanged)] == [
        grown.meta.configuration
    ]
    assert single.core.configuration.voters == ("1", "2", "3", "4")


def test_a_machine_that_belongs_to_nothing_is_filled_by_a_snapshot() -> None:
    single = Single(me="4", term=0, base=NOWHERE)
    assert single.core.configuration.members == ()
    refusal = sent_after_write(single.receive("2", append(2, (9, 2))))
    assert refusal == [refused(2, 9, (1, 0))]
    single.write()
    single.receive("2", chunk(state(), 0, 10))
    assert single.core.applied_index == 9


# --- Sending --------------------------------------------------------------------------------


def sender(**options: int) -> Single:
    """A leader of term 3 whose log starts behind a snapshot of 9."""
    chosen = RaftOptions(snapshot_chunk_bytes=4, **options)  # type: ignore[arg-type]
    single = Single(term=2, base=state(9), entries=log_of(2, first=10), options=chosen)
    single.lead()
    single.write()
    return single


def offsets(single: Single, response: SnapshotResponse) -> list[tuple[int, int]]:
    messages = sent(single.receive("2", response), "2")
    return [(m.offset, m.offset + len(m.data)) for m in messages if isinstance(m, SnapshotChunk)]


def start(single: Single) -> None:
    messages = sent(single.receive("2", refused(3, 10, (4, 0))), "2")
    assert messages == [chunk(state(9), 0, 4, term=3)]


def test_a_follower_whose_entries_are_gone_gets_the_snapshot() -> None:
    single = sender()
    start(single)
    assert single.core.progress()[FAR].state is ProgressState.SNAPSHOT
    assert offsets(single, answer(9, 4, term=3)) == [(4, 8)]
    assert offsets(single, answer(9, 8, term=3)) == [(8, 10)]
    assert offsets(single, answer(9, 10, term=3)) == []
    done = sent(single.receive("2", answer(9, 10, installed=True, term=3)), "2")
    assert [[e.index for e in m.entries] for m in done] == [[10, 11]]
    assert single.core.progress()[FAR].match_index == 9


def test_an_answer_that_comes_twice_does_not_send_a_chunk_twice() -> None:
    single = sender()
    start(single)
    assert offsets(single, answer(9, 4, term=3)) == [(4, 8)]
    assert offsets(single, answer(9, 4, term=3)) == []


def test_a_lost_chunk_is_sent_again_after_a_while() -> None:
    single = sender()
    start(single)
    single.now_ms += 399
    assert offsets(single, answer(9, 0, term=3)) == []
    single.now_ms += 1
    assert offsets(single, answer(9, 0, term=3)) == [(0, 4)]


def test_a_heartbeat_during_a_transfer_is_an_empty_chunk() -> None:
    single = sender()
    start(single)
    messages = sent(single.time_out(), "2")
    assert messages == [chunk(state(9), 0, 0, term=3, round_number=2)]


def test_no_entries_go_to_a_follower_that_awaits_a_snapshot() -> None:
    single = sender()
    start(single)
    assert sent(single.propose(), "2") == []


def test_a_follower_that_turns_out_to_have_the_entries_needs_no_snapshot() -> None:
    single = sender()
    start(single)
    messages = sent(single.receive("2", accepted(3, 10)), "2")
    assert [[e.index for e in m.entries] for m in messages] == [[11]]
    assert single.core.progress()[FAR].state is ProgressState.REPLICATE


def commit_and_compact(single: Single, index: int) -> Snapshot:
    single.receive("3", accepted(3, single.core.last_index))
    taken = state(index, term=single.core._state.log.term_at(index))
    single.compact(taken)
    return taken


def test_a_newer_snapshot_restarts_a_transfer_the_log_no_longer_connects_to() -> None:
    single = sender(retained_entries=0)
    start(single)
    newer = commit_and_compact(single, 11)
    messages = sent(single.receive("2", answer(9, 4, term=3)), "2")
    assert messages == [chunk(newer, 0, 4, term=3)]


def test_a_transfer_goes_on_while_the_log_connects_to_it() -> None:
    single = sender(retained_entries=2)
    start(single)
    commit_and_compact(single, 11)
    assert offsets(single, answer(9, 4, term=3)) == [(4, 8)]


def test_an_installed_snapshot_that_is_too_old_by_then_is_followed_by_the_newer() -> None:
    single = sender(retained_entries=0)
    start(single)
    newer = commit_and_compact(single, 11)
    messages = sent(single.receive("2", answer(9, 10, installed=True, term=3)), "2")
    assert messages == [chunk(newer, 0, 4, term=3)]


def test_a_snapshot_counts_for_the_commit_once_installed() -> None:
    single = sender()
    start(single)
    single.receive("2", answer(9, 10, installed=True, term=3))
    assert single.core.commit_index == 9
    single.receive("2", accepted(3, 11))
    assert single.core.commit_index == 11


# --- Together -------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_bytes", [1, 7, 10_000])
def test_a_member_far_behind_becomes_equal(chunk_bytes: int) -> None:
    options = RaftOptions(snapshot_chunk_bytes=chunk_bytes, retained_entries=3)
    cluster = Cluster("123", options=options)
    cluster.elect("1")
    cluster.isolate("3")
    for number in range(30):
        cluster.propose("1", f"entry {number}")
        cluster.settle()
        if number % 7 == 0:
            cluster.compact("1")
    cluster.heal()
    cluster.wait(1_000)
    assert cluster.payloads("3") == cluster.payloads("1")
    cluster.crash("3")
    cluster.restart("3")
    cluster.wait(1_000)
    assert cluster.payloads("3") == cluster.payloads("1")
