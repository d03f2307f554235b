"""Leadership transfer (thesis §3.10)."""

from __future__ import annotations

import pytest

from distsync_node.raft.types import (
    DropReason,
    ProposalDropped,
    Role,
    Term,
    TimeoutNow,
)
from unit.raft.cluster import Cluster
from unit.raft.single import Single, accepted, leader, of, sent


def hand_overs(effects, to: str) -> int:
    return sent(effects, to).count(TimeoutNow(Term(2)))


def test_a_target_that_has_everything_campaigns_at_once() -> None:
    single = leader()
    assert hand_overs(single.transfer("3"), "3") == 1
    assert single.core.transfer_target == "3"


def test_a_target_that_lags_is_caught_up_first() -> None:
    single = leader()
    single.propose()
    assert hand_overs(single.transfer("3"), "3") == 0
    assert hand_overs(single.receive("2", accepted(2, 3)), "3") == 0
    assert hand_overs(single.receive("3", accepted(2, 3)), "3") == 1


def test_without_a_target_the_most_advanced_voter_is_taken() -> None:
    single = leader("123", "4")
    single.propose()
    single.receive("4", accepted(2, 3))
    single.receive("3", accepted(2, 3))
    single.transfer()
    assert single.core.transfer_target == "3"


@pytest.mark.parametrize("target", ["1", "4", "9"])
def test_only_another_voter_can_be_handed_leadership(target: str) -> None:
    single = leader("123", "4")
    assert single.transfer(target) == []
    assert single.core.transfer_target is None


def test_a_sole_voter_has_nobody_to_hand_over_to() -> None:
    assert leader("1", "2").transfer() == []


def test_who_does_not_lead_has_nothing_to_hand_over() -> None:
    assert Single().transfer("2") == []


def test_no_proposal_is_taken_meanwhile() -> None:
    single = leader()
    single.transfer("3")
    dropped = of(single.propose(), ProposalDropped)
    assert [d.reason for d in dropped] == [DropReason.TRANSFERRING]


def test_the_request_is_repeated_with_heartbeats() -> None:
    single = leader()
    single.transfer("3")
    assert hand_overs(single.time_out(), "3") == 1


def test_asking_again_does_not_prolong_it_and_another_target_replaces_it() -> None:
    single = leader()
    single.transfer("3")
    assert single.transfer("3") == []
    assert hand_overs(single.transfer("2"), "2") == 1
    assert single.core.transfer_target == "2"


def test_after_an_election_timeout_the_leader_goes_on() -> None:
    single = leader()
    single.transfer("3")
    for _ in range(9):
        for message in sent(single.time_out(), "2"):
            single.receive("2", accepted(2, 2, message.round))
    assert single.core.role is Role.LEADER
    assert single.core.transfer_target is None
    assert of(single.propose(), ProposalDropped) == []


def test_the_target_leads_well_before_an_election_timeout() -> None:
    cluster = Cluster("123")
    cluster.elect("1")
    start_ms = cluster.now_ms
    cluster.propose("1", "a")
    cluster.transfer("1", "3")
    cluster.settle()
    assert cluster.now_ms == start_ms
    assert cluster["3"].role is Role.LEADER
    assert cluster["1"].leader == "3"
    assert cluster.payloads("3") == ["a"]
