"""The leader's side of replication: thesis §3.5, §3.6.2, §10.2.1."""

from __future__ import annotations

import pytest

from distsync_node.raft.log import ENTRY_OVERHEAD_BYTES
from distsync_node.raft.progress import ProgressState
from distsync_node.raft.types import (
    AppendRequest,
    Apply,
    DropReason,
    EntryKind,
    LogIndex,
    MemberId,
    Persist,
    ProposalAccepted,
    ProposalDropped,
    RaftMessage,
    RaftOptions,
    Role,
    Send,
    Term,
)
from unit.raft.cluster import Cluster
from unit.raft.single import (
    Single,
    accepted,
    append,
    command,
    leader,
    log_of,
    of,
    refused,
    sent,
)

FAR = MemberId("2")


def indexes(messages: list[RaftMessage]) -> list[list[int]]:
    """The entries of each append."""
    return [[e.index for e in m.entries] for m in messages if isinstance(m, AppendRequest)]


# --- Proposals ------------------------------------------------------------------------------


def test_a_proposal_leaves_in_parallel_with_the_own_write() -> None:
    single = leader()
    effects = single.propose(b"a")
    entry = command(3, 2, "a")
    request = append(2, (2, 2), [], commit=2, round_number=1)
    assert [type(effect) for effect in effects] == [ProposalAccepted, Send, Send, Persist]
    assert [(m.prev_index, m.prev_term, m.commit) for m in sent(effects)] == [
        (request.prev_index, request.prev_term, request.commit)
    ] * 2
    assert [m.entries[0].payload for m in sent(effects)] == [entry.payload] * 2
    assert of(effects, Persist)[0].then == ()
    assert [(a.ref, a.term, a.index) for a in of(effects, ProposalAccepted)] == [(7, 2, 3)]


def test_who_does_not_lead_takes_no_proposals() -> None:
    dropped = of(Single().propose(), ProposalDropped)
    assert [(d.ref, d.reason) for d in dropped] == [(7, DropReason.NOT_LEADER)]


def test_a_membership_change_cannot_come_in_as_a_command() -> None:
    dropped = of(leader().propose(b"", kind=EntryKind.CONFIG), ProposalDropped)
    assert [d.reason for d in dropped] == [DropReason.CONFIG_INVALID]


def test_too_many_uncommitted_bytes_are_refused_until_some_are_committed() -> None:
    single = leader(max_uncommitted_bytes=10)
    single.propose(b"x" * 8)
    dropped = of(single.propose(b"x" * 8), ProposalDropped)
    assert [d.reason for d in dropped] == [DropReason.OVERLOADED]
    single.write()
    single.receive("2", accepted(2, 3))
    assert of(single.propose(b"x" * 8), ProposalDropped) == []


def test_a_single_large_proposal_is_not_refused_for_ever() -> None:
    assert of(leader(max_uncommitted_bytes=10).propose(b"x" * 99), ProposalDropped) == []


def test_uncommitted_bytes_of_earlier_terms_count_for_a_new_leader() -> None:
    single = Single(
        entries=(command(2, 1, "x" * 8),), options=RaftOptions(max_uncommitted_bytes=10)
    )
    single.lead()
    dropped = of(single.propose(b"x" * 8), ProposalDropped)
    assert [d.reason for d in dropped] == [DropReason.OVERLOADED]


# --- Commit ---------------------------------------------------------------------------------


def test_an_entry_on_a_majority_of_disks_is_committed_and_applied() -> None:
    single = leader("12345")
    single.propose()
    single.write()
    assert of(single.receive("2", accepted(2, 3)), Apply) == []
    applied = of(single.receive("3", accepted(2, 3)), Apply)
    assert [[e.index for e in a.entries] for a in applied] == [[3]]


def test_the_leader_counts_itself_only_when_it_has_written() -> None:
    single = leader()
    single.propose()
    single.receive("2", accepted(2, 3))
    assert single.core.commit_index == 2
    single.write()
    assert single.core.commit_index == 3


def test_a_majority_without_the_leaders_disk_commits() -> None:
    single = leader()
    single.propose()
    single.receive("2", accepted(2, 3))
    single.receive("3", accepted(2, 3))
    assert (single.core.commit_index, single.core.durable_index) == (3, 2)


def test_learners_do_not_count() -> None:
    single = leader("123", "45")
    single.propose()
    single.write()
    single.receive("4", accepted(2, 3))
    single.receive("5", accepted(2, 3))
    assert single.core.commit_index == 2


def test_entries_of_earlier_terms_are_committed_only_with_one_of_the_own_term() -> None:
    single = Single(entries=log_of(1, 1))
    single.lead()
    single.write()
    single.receive("2", accepted(2, 3))
    assert single.core.commit_index == 1
    applied = of(single.receive("2", accepted(2, 4)), Apply)
    assert [[e.index for e in a.entries] for a in applied] == [[2, 3, 4]]


def test_answers_of_an_earlier_term_do_not_count() -> None:
    single = Single(term=4, entries=log_of(4, 4))
    single.lead()
    single.write()
    single.receive("2", accepted(4, 4))
    assert single.core.commit_index == 1
    assert single.core.progress()[FAR].match_index == 0


def test_answers_of_strangers_do_not_count() -> None:
    single = leader()
    single.propose()
    single.write()
    assert single.receive("9", accepted(2, 3)) == []
    assert single.core.commit_index == 2


def test_followers_learn_of_a_commit_with_the_next_message() -> None:
    single = leader()
    single.propose()
    single.write()
    assert sent(single.receive("2", accepted(2, 3))) == []
    assert [m.commit for m in sent(single.propose())] == [3, 3]


def test_an_eager_leader_tells_a_commit_at_once_and_once() -> None:
    single = leader(eager_commit=True)
    single.propose()
    single.write()
    first = sent(single.receive("2", accepted(2, 3)), "2")
    assert [(m.commit, m.prev_index, m.entries) for m in first] == [(3, 3, ())]
    assert [m.commit for m in sent(single.receive("3", accepted(2, 3)), "3")] == [3]
    assert sent(single.receive("3", accepted(2, 3))) == []


def test_an_eager_leader_sends_nothing_extra_when_entries_carry_the_commit() -> None:
    single = leader(eager_commit=True, max_inflight_requests=1)
    single.propose()
    single.propose()
    single.write()
    messages = sent(single.receive("2", accepted(2, 3)), "2")
    assert [(m.commit, len(m.entries)) for m in messages] == [(3, 1)]


# --- Pipelining -----------------------------------------------------------------------------


def test_appends_run_ahead_of_their_answers_up_to_the_limit() -> None:
    single = leader(max_inflight_requests=3)
    counts = [len(sent(single.propose(), "2")) for _ in range(5)]
    assert counts == [1, 1, 1, 0, 0]
    assert indexes(sent(single.receive("2", accepted(2, 4)), "2")) == [[6, 7]]


def test_bytes_in_flight_are_bounded() -> None:
    single = leader(max_inflight_bytes=150 + 2 * ENTRY_OVERHEAD_BYTES)
    counts = [len(sent(single.propose(b"x" * 100), "2")) for _ in range(4)]
    assert counts == [1, 1, 0, 0]


def test_an_append_is_bounded_in_entries_and_bytes() -> None:
    single = leader(max_inflight_requests=1, max_append_entries=2)
    for _ in range(6):
        single.propose()
    assert indexes(sent(single.receive("2", accepted(2, 3)), "2")) == [[4, 5]]
    narrow = leader(max_inflight_requests=1, max_append_bytes=3 * ENTRY_OVERHEAD_BYTES + 3)
    for _ in range(6):
        narrow.propose(b"x")
    assert indexes(sent(narrow.receive("2", accepted(2, 3)), "2")) == [[4, 5, 6]]


def test_an_unknown_match_is_probed_with_one_append_at_a_time() -> None:
    single = Single(entries=log_of(1, 1))
    assert indexes(sent(single.lead(), "2")) == [[4]]
    assert sent(single.propose(), "2") == []
    assert single.core.progress()[FAR].state is ProgressState.PROBE
    assert indexes(sent(single.receive("2", accepted(2, 4)), "2")) == [[5]]
    assert single.core.progress()[FAR].state is ProgressState.REPLICATE


def test_a_heartbeat_probes_without_entries() -> None:
    single = Single()
    single.lead()
    messages = sent(single.time_out(), "2")
    assert [(m.prev_index, m.entries) for m in messages] == [(1, ())]


# --- Repair ---------------------------------------------------------------------------------


def test_a_refusal_by_a_shorter_log_goes_back_to_its_end() -> None:
    single = Single(entries=log_of(1, 1, 1))
    single.lead()
    messages = sent(single.receive("2", refused(2, 4, (2, 0))), "2")
    assert [(m.prev_index, len(m.entries)) for m in messages] == [(1, 4)]


def test_a_refusal_of_a_term_the_leader_has_goes_to_its_end_here() -> None:
    """The follower's run of that term is longer than the leader's: they part where it ends here."""
    single = Single(term=3, entries=log_of(1, 1, 2, 2, 3, 3))
    single.lead()
    messages = sent(single.receive("2", refused(4, 7, (4, 2))), "2")
    assert [m.prev_index for m in messages] == [5]


def test_a_refusal_of_a_term_the_leader_lacks_skips_it_whole() -> None:
    single = Single(term=3, entries=log_of(1, 1, 3, 3, 3, 3))
    single.lead()
    messages = sent(single.receive("2", refused(4, 7, (4, 2))), "2")
    assert [m.prev_index for m in messages] == [3]


def test_a_repeated_refusal_is_not_answered_twice() -> None:
    single = Single(entries=log_of(1, 1, 1))
    single.lead()
    refusal = refused(2, 4, (2, 0))
    assert len(sent(single.receive("2", refusal), "2")) == 1
    assert sent(single.receive("2", refusal), "2") == []


def test_a_late_refusal_below_the_match_is_ignored() -> None:
    single = leader()
    single.propose()
    assert sent(single.receive("2", refused(2, 2, (1, 1))), "2") == []
    assert single.core.progress()[FAR].state is ProgressState.REPLICATE


def test_a_lost_append_is_found_by_the_next_and_sent_again() -> None:
    single = leader()
    single.propose()
    single.propose()
    messages = sent(single.receive("2", refused(2, 3, (3, 0))), "2")
    assert indexes(messages) == [[3, 4]]
    assert single.core.progress()[FAR].state is ProgressState.PROBE


def test_lost_appends_are_found_by_a_heartbeat() -> None:
    single = leader()
    single.propose()
    messages = sent(single.time_out(), "2")
    assert [(m.prev_index, m.entries) for m in messages] == [(3, ())]
    assert indexes(sent(single.receive("2", refused(2, 3, (3, 0))), "2")) == [[3]]


def test_a_refusal_never_leads_below_the_known_match() -> None:
    single = leader()
    single.propose()
    messages = sent(single.receive("2", refused(2, 3, (1, 1))), "2")
    assert [m.prev_index for m in messages] == [2]


def test_a_late_acceptance_does_not_lower_the_match() -> None:
    single = leader()
    single.propose()
    single.receive("2", accepted(2, 3))
    single.receive("2", accepted(2, 2))
    assert single.core.progress()[FAR].match_index == 3


@pytest.mark.parametrize("lost", ["2", "3"])
def test_all_logs_become_equal_whatever_was_lost(lost: str) -> None:
    cluster = Cluster("123", options=RaftOptions(max_inflight_requests=2, max_append_entries=3))
    cluster.elect("1")
    cluster.isolate(lost)
    for number in range(20):
        cluster.propose("1", f"entry {number}")
        cluster.settle()
    cluster.heal()
    cluster.wait(300)
    assert cluster.payloads(lost) == cluster.payloads("1") == [f"entry {n}" for n in range(20)]


# --- Heartbeats -----------------------------------------------------------------------------


def test_heartbeats_come_at_their_interval() -> None:
    single = leader("123", "4")
    for _ in range(3):
        assert single.core.next_deadline_ms() - single.now_ms <= 100
        effects = single.time_out()
        assert {send.to for send in of(effects, Send)} == {"2", "3", "4"}
        for message in sent(effects, "2"):
            single.receive("2", accepted(2, 2, message.round))
    assert single.tick(after_ms=99) == []


def test_a_leader_without_followers_wants_no_ticks() -> None:
    single = Single("1")
    single.lead()
    single.write()
    assert single.core.role is Role.LEADER
    assert single.core.next_deadline_ms() > single.now_ms + 1_000_000


def test_progress_names_every_follower_and_only_at_the_leader() -> None:
    single = leader("123", "4")
    assert set(single.core.progress()) == {"2", "3", "4"}
    single.receive("2", append(5, (1, 1)))
    assert single.core.progress() == {}


def test_progress_tells_when_a_follower_was_last_heard() -> None:
    single = Single()
    single.lead()
    assert single.core.progress()[FAR].last_contact_ms is None
    single.now_ms += 30
    single.receive("2", accepted(2, 2))
    seen = single.core.progress()[FAR]
    assert (seen.last_contact_ms, seen.match_index) == (single.now_ms, LogIndex(2))
    assert single.core.term == Term(2)
