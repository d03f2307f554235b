"""Membership changes through the log (thesis §4)."""

from __future__ import annotations

import pytest

from distsync_node.errors import InvariantViolation
from distsync_node.raft.types import (
    ConfigOperation,
    ConfigurationChanged,
    DropReason,
    MemberId,
    ProposalAccepted,
    ProposalDropped,
    RaftEffect,
    ReadReady,
    Role,
    Send,
    Term,
    TimeoutNow,
)
from unit.raft.cluster import Cluster, member
from unit.raft.single import Single, accepted, append, config_entry, leader, of, sent

ADD, PROMOTE = ConfigOperation.ADD_LEARNER, ConfigOperation.PROMOTE
REMOVE, UPDATE, DEMOTE = ConfigOperation.REMOVE, ConfigOperation.UPDATE, ConfigOperation.DEMOTE


def dropped(effects: list[RaftEffect]) -> list[DropReason]:
    return [each.reason for each in of(effects, ProposalDropped)]


def addressees(effects: list[RaftEffect]) -> set[str]:
    return {send.to for send in of(effects, Send)}


# --- Proposing ------------------------------------------------------------------------------


def test_a_change_takes_effect_when_it_is_applied() -> None:
    single = leader()
    accept = of(single.change(ADD, member("4")), ProposalAccepted)
    assert [(a.ref, a.index) for a in accept] == [(8, 3)]
    assert single.core.configuration.learners == ()
    single.write()
    effects = single.receive("2", accepted(2, 3))
    changes = of(effects, ConfigurationChanged)
    assert [c.configuration.learners for c in changes] == [("4",)]
    assert single.core.configuration.index == 3
    assert addressees(effects) == {"4"}


def test_only_one_change_at_a_time() -> None:
    single = leader()
    single.change(ADD, member("4"))
    assert dropped(single.change(ADD, member("5"))) == [DropReason.CONFIG_IN_PROGRESS]
    single.write()
    single.receive("2", accepted(2, 3))
    assert dropped(single.change(ADD, member("5"))) == []


def test_no_change_before_the_leaders_no_op_is_committed() -> None:
    single = Single()
    single.lead()
    assert dropped(single.change(ADD, member("4"))) == [DropReason.NOT_READY]


def test_a_change_names_the_configuration_it_was_made_for() -> None:
    single = leader()
    reasons = dropped(single.change(ADD, member("4"), expected=2))
    assert reasons == [DropReason.CONFIG_INDEX_MISMATCH]
    assert dropped(single.change(ADD, member("4"), expected=1)) == []


@pytest.mark.parametrize(
    ("operation", "target"),
    [(ADD, "1"), (ADD, "2"), (PROMOTE, "2"), (PROMOTE, "9"), (REMOVE, "9"), (DEMOTE, "4")],
)
def test_a_change_that_makes_no_sense_is_dropped(operation: ConfigOperation, target: str) -> None:
    reasons = dropped(leader("123", "4").change(operation, member(target)))
    assert reasons == [DropReason.CONFIG_INVALID]


@pytest.mark.parametrize("operation", [REMOVE, DEMOTE])
def test_the_last_voter_stays(operation: ConfigOperation) -> None:
    assert dropped(leader("1", "2").change(operation, member("1"))) == [DropReason.CONFIG_INVALID]


def test_who_does_not_lead_takes_no_changes() -> None:
    assert dropped(Single().change(ADD, member("4"))) == [DropReason.NOT_LEADER]


def test_no_change_while_leadership_is_handed_over() -> None:
    single = leader()
    single.transfer("2")
    assert dropped(single.change(ADD, member("4"))) == [DropReason.TRANSFERRING]


# --- Promotion ------------------------------------------------------------------------------


def test_a_learner_that_lags_is_not_promoted() -> None:
    single = leader("123", "4", promote_max_lag=1)
    single.propose()
    single.propose()
    assert dropped(single.change(PROMOTE, member("4"))) == [DropReason.NOT_CAUGHT_UP]
    single.receive("4", accepted(2, 3))
    assert dropped(single.change(PROMOTE, member("4"))) == []


def test_a_learner_that_is_silent_is_not_promoted() -> None:
    single = leader("123", "4")
    for _ in range(9):
        for message in sent(single.time_out(), "2"):
            single.receive("2", accepted(2, 2, message.round))
    assert single.core.role is Role.LEADER
    assert dropped(single.change(PROMOTE, member("4"))) == [DropReason.NOT_CAUGHT_UP]


def test_a_learner_never_heard_is_not_promoted() -> None:
    single = leader()
    single.change(ADD, member("4"))
    single.write()
    single.receive("2", accepted(2, 3))
    assert dropped(single.change(PROMOTE, member("4"))) == [DropReason.NOT_CAUGHT_UP]


def test_a_promoted_member_counts_for_the_quorum() -> None:
    single = leader("123", "4")
    single.change(PROMOTE, member("4"))
    single.write()
    single.receive("2", accepted(2, 3))
    single.propose()
    single.write()
    single.receive("2", accepted(2, 4))
    assert single.core.commit_index == 3
    single.receive("4", accepted(2, 4))
    assert single.core.commit_index == 4


# --- Removal --------------------------------------------------------------------------------


def test_nothing_is_sent_to_a_removed_member() -> None:
    single = leader()
    single.change(REMOVE, member("3"))
    single.write()
    effects = single.receive("2", accepted(2, 3))
    assert "3" not in addressees(effects)
    assert "3" not in single.core.progress()
    assert addressees(single.time_out()) == {"2"}
    assert addressees(single.propose()) == {"2"}


def test_a_removed_member_is_not_heard() -> None:
    single = leader()
    single.change(REMOVE, member("3"))
    single.write()
    single.receive("2", accepted(2, 3))
    assert single.receive("3", accepted(9, 3)) == []
    assert single.ask_vote("3", 9, (9, 9), transfer=True) == []
    assert single.core.term == 2


def test_a_removed_id_is_never_added_again() -> None:
    single = leader()
    single.change(REMOVE, member("3"))
    single.write()
    single.receive("2", accepted(2, 3))
    assert dropped(single.change(ADD, member("3"))) == [DropReason.CONFIG_INVALID]


def test_a_smaller_quorum_commits_what_waited_for_the_larger() -> None:
    single = leader("12")
    single.change(REMOVE, member("2"))
    single.write()
    single.propose()
    single.write()
    single.receive("2", accepted(2, 3))
    assert single.core.configuration.voters == ("1",)
    assert single.core.commit_index == 4


def test_a_smaller_quorum_confirms_the_reads_that_waited_for_the_larger() -> None:
    cluster = Cluster("12")
    cluster.elect("1")
    cluster.propose_config("1", REMOVE, "2")
    cluster.read("1")
    append_to_2 = cluster.in_flight.pop(0)
    cluster.in_flight.clear()
    cluster.deliver(append_to_2)
    cluster.settle()
    assert [e.index for _, e in cluster.effects if isinstance(e, ReadReady)] == [2]


def test_a_leader_that_removes_itself_leads_until_that_is_committed() -> None:
    single = leader()
    single.change(REMOVE, member("1"))
    single.write()
    assert single.core.role is Role.LEADER
    effects = single.receive("2", accepted(2, 3))
    assert (single.core.role, single.core.leader) == (Role.FOLLOWER, None)
    commits = [m.commit for m in sent(effects, "3")]
    assert commits == [3]
    assert sent(effects, "2")[-1] == TimeoutNow(Term(2))


def test_a_leader_that_demotes_itself_becomes_a_learner() -> None:
    single = leader()
    single.change(DEMOTE, member("1"))
    single.write()
    single.receive("2", accepted(2, 3))
    assert single.core.role is Role.FOLLOWER
    assert single.core.configuration.learners == ("1",)
    assert single.tick(after_ms=100_000) == []


def test_a_removed_member_still_votes_for_those_who_do_not_know_yet() -> None:
    """Of two members the one that stays needs the vote of the one that left."""
    single = leader("12")
    single.change(REMOVE, member("1"))
    single.write()
    single.receive("2", accepted(2, 3))
    assert single.core.configuration.voters == ("2",)
    single.ask_vote("2", 3, (3, 2))
    assert single.core._state.vote == "2"


def test_a_removed_member_does_not_campaign() -> None:
    single = Single(term=2)
    single.receive("2", append(2, (1, 1), [config_entry(2, 2, REMOVE, "1")], commit=2))
    assert single.core.configuration.removed == ("1",)
    assert sent(single.tick(after_ms=100_000)) == []
    assert single.core.role is Role.FOLLOWER


def test_a_transfer_to_a_member_that_leaves_ends() -> None:
    single = leader()
    single.change(REMOVE, member("3"))
    single.transfer("3")
    assert single.core.transfer_target == "3"
    single.write()
    single.receive("2", accepted(2, 3))
    assert single.core.transfer_target is None


def test_a_heartbeat_after_a_change_does_not_wait_for_the_disk() -> None:
    single = Single(term=2)
    single.receive("2", append(2, (1, 1), [config_entry(2, 2, ADD, "4")], commit=2))
    assert sent(single.receive("2", append(2, (2, 2), commit=2))) == [accepted(2, 1)]


# --- Others ---------------------------------------------------------------------------------


def test_an_update_reaches_everybody_and_keeps_the_progress() -> None:
    single = leader()
    moved = member("2")
    single.change(UPDATE, type(moved)(moved.id, "new", "http://new:1", "", voter=False))
    single.write()
    single.receive("2", accepted(2, 3))
    known = single.core.configuration.member(MemberId("2"))
    assert known is not None
    assert (known.name, known.voter) == ("new", True)
    assert single.core.progress()[MemberId("2")].match_index == 3


def test_a_committed_change_that_does_not_fit_stops_the_node() -> None:
    single = Single(term=2)
    with pytest.raises(InvariantViolation):
        single.receive("2", append(2, (1, 1), [config_entry(2, 2, ADD, "1")], commit=2))


@pytest.mark.parametrize("leaves", ["1", "2", "3"])
def test_a_group_shrinks_to_one_and_grows_again(leaves: str) -> None:
    cluster = Cluster("123")
    cluster.elect("1")
    gone = [leaves, next(m for m in "123" if m != leaves)]
    for target in gone:
        cluster.wait(2_000)
        lead = next(m for m in "123" if cluster[m].role is Role.LEADER)
        cluster.propose_config(lead, REMOVE, target)
        cluster.wait(2_000)
    (stays,) = set("123") - set(gone)
    assert cluster[stays].role is Role.LEADER
    assert cluster[stays].configuration.voters == (stays,)
    for new in "45":
        cluster.add_machine(new)
        cluster.propose_config(stays, ADD, new)
        cluster.wait(300)
        cluster.propose_config(stays, PROMOTE, new)
        cluster.wait(300)
    cluster.propose(stays, "together")
    cluster.wait(300)
    assert cluster["4"].configuration.voters == tuple(sorted((stays, "4", "5")))
    assert cluster.payloads("4") == cluster.payloads("5") == ["together"]
