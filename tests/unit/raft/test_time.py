"""Check-quorum and quorum contact: what a leader may conclude from its clock."""

from __future__ import annotations

from distsync_node.raft.types import (
    DropReason,
    LogIndex,
    ProposalDropped,
    ReadDropped,
    Role,
    RoleChanged,
    SnapshotResponse,
    Term,
)
from unit.raft.single import Single, accepted, append, leader, of, sent


def heartbeat(single: Single, *answering: str) -> int:
    """Let a heartbeat happen and be answered; returns when it was sent."""
    effects = single.time_out()
    sent_ms = single.now_ms
    single.now_ms += 5
    for follower in answering:
        for message in sent(effects, follower):
            single.receive(follower, accepted(2, 2, message.round))
    return sent_ms


def test_a_leader_without_a_quorum_resigns_after_an_election_timeout() -> None:
    single = leader()
    single.tick(after_ms=800)
    assert single.core.role is Role.LEADER
    effects = single.tick(after_ms=1)
    assert [(c.role, c.leader) for c in of(effects, RoleChanged)] == [(Role.FOLLOWER, None)]


def test_a_leader_that_hears_a_quorum_stays() -> None:
    single = leader("12345")
    for _ in range(50):
        heartbeat(single, "2", "3")
    assert single.core.role is Role.LEADER


def test_a_minority_and_learners_do_not_keep_a_leader() -> None:
    single = leader("12345", "6")
    for _ in range(7):
        heartbeat(single, "2", "6")
    assert single.core.role is Role.LEADER
    single.tick(after_ms=100)
    assert single.core.role is Role.FOLLOWER


def test_old_answers_do_not_keep_a_leader() -> None:
    single = leader()
    for _ in range(9):
        single.time_out()
        single.receive("2", accepted(2, 2, round_number=1))
    assert single.core.role is Role.FOLLOWER


def test_a_leader_woken_after_a_pause_resigns_before_it_does_anything() -> None:
    for wake in (
        lambda single: single.propose(),
        lambda single: single.read(),
        lambda single: single.receive("2", accepted(2, 2)),
        lambda single: single.tick(),
    ):
        single = leader()
        single.now_ms += 60_000
        effects = wake(single)
        assert single.core.role is Role.FOLLOWER
        assert sent(effects) == []
        for dropped in of(effects, ProposalDropped) + of(effects, ReadDropped):
            assert dropped.reason is DropReason.NOT_LEADER


def test_a_clock_that_steps_back_is_not_followed() -> None:
    single = leader()
    sent_ms = heartbeat(single, "2")
    single.now_ms -= 5_000
    single.tick()
    assert single.core.quorum_contact_ms == sent_ms


def test_quorum_contact_is_the_time_of_sending_not_of_receiving() -> None:
    single = leader()
    sent_ms = heartbeat(single, "2")
    assert sent_ms < single.now_ms
    assert single.core.quorum_contact_ms == sent_ms


def test_an_election_is_no_quorum_contact_yet() -> None:
    single = Single()
    single.lead()
    assert single.core.quorum_contact_ms is None
    sent_ms = single.now_ms
    single.now_ms += 7
    single.receive("2", accepted(2, 1))
    assert single.core.quorum_contact_ms == sent_ms


def test_quorum_contact_takes_a_quorum() -> None:
    single = leader("12345")
    first_ms = heartbeat(single, "2", "3")
    heartbeat(single, "2")
    assert single.core.quorum_contact_ms == first_ms
    third_ms = heartbeat(single, "4", "5")
    assert single.core.quorum_contact_ms == third_ms


def test_a_refused_append_and_a_chunk_are_contact_too() -> None:
    single = leader()
    sent_ms = single.now_ms + 100
    effects = single.time_out()
    round_number = sent(effects, "2")[0].round
    answer = SnapshotResponse(Term(2), round_number, LogIndex(1), next_offset=0, installed=False)
    single.receive("2", answer)
    assert single.core.quorum_contact_ms == sent_ms


def test_a_sole_voter_is_always_in_touch() -> None:
    single = Single("1", "2")
    single.lead()
    single.now_ms += 60_000
    single.tick()
    assert single.core.role is Role.LEADER
    assert single.core.quorum_contact_ms == single.now_ms


def test_only_a_leader_has_quorum_contact() -> None:
    single = leader()
    single.receive("2", append(5, (1, 1)))
    assert single.core.quorum_contact_ms is None


def test_an_unknown_round_is_no_contact() -> None:
    single = leader()
    before_ms = single.core.quorum_contact_ms
    single.now_ms += 50
    single.receive("2", accepted(2, 2, round_number=99))
    assert single.core.quorum_contact_ms == before_ms
