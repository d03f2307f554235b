"""Elections: a test for each rule of thesis §3.4, §3.6, §4.2.3 and §9.6."""

from __future__ import annotations

import random

import pytest

from distsync_node.errors import InvariantViolation
from distsync_node.raft.core import RaftCore
from distsync_node.raft.types import (
    Apply,
    ConfigOperation,
    EntryKind,
    HardState,
    LogIndex,
    MemberId,
    Persist,
    PreVoteRequest,
    RaftOptions,
    RecoveredState,
    Role,
    RoleChanged,
    Term,
    Tick,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from unit.raft.cluster import Cluster, configuration, snapshot
from unit.raft.single import (
    Single,
    accepted,
    append,
    config_entry,
    log_of,
    of,
    pre_vote_answer,
    sent,
    sent_after_write,
)

# --- Starting -------------------------------------------------------------------------------


def test_a_member_starts_as_follower_and_says_nothing() -> None:
    single = Single(term=5, vote="2")
    assert (single.core.role, single.core.term, single.core.leader) == (Role.FOLLOWER, 5, None)
    assert single.tick() == []


def test_a_term_below_the_log_is_raised_and_written() -> None:
    single = Single(term=0, entries=log_of(1, 3))
    assert single.core.term == 3
    persists = of(single.ask_pre_vote("2", 4, (3, 3)), Persist)
    assert persists[0].hard_state == HardState(Term(3), None, LogIndex(1))


# --- Pre-vote -------------------------------------------------------------------------------


def test_an_election_timeout_asks_all_voters_and_leaves_the_term() -> None:
    single = Single("123", "4", entries=log_of(1, 1))
    effects = single.time_out()
    assert single.core.role is Role.PRE_CANDIDATE
    assert single.core.term == 1
    assert sent(effects, "2") == sent(effects, "3") == [PreVoteRequest(Term(2), 3, Term(1))]
    assert sent(effects, "4") == []
    assert of(effects, Persist) == []


def test_a_tick_before_the_timeout_does_nothing() -> None:
    single = Single(timeout_ms=400)
    assert single.tick(after_ms=399) == []
    assert sent(single.tick(after_ms=1)) != []


def test_a_lost_pre_vote_leaves_a_follower_of_the_same_term() -> None:
    single = Single()
    single.time_out()
    single.receive("2", pre_vote_answer(1, granted=False))
    assert single.core.role is Role.PRE_CANDIDATE
    single.receive("3", pre_vote_answer(1, granted=False))
    assert (single.core.role, single.core.term) == (Role.FOLLOWER, 1)


def test_a_refused_pre_vote_of_a_later_term_is_followed() -> None:
    single = Single()
    single.time_out()
    single.receive("2", pre_vote_answer(7, granted=False))
    assert (single.core.role, single.core.term) == (Role.FOLLOWER, 7)


def test_a_refusal_of_an_earlier_term_counts_as_refusal() -> None:
    single = Single(term=5)
    single.time_out()
    for voter in "23":
        single.receive(voter, pre_vote_answer(3, granted=False))
    assert (single.core.role, single.core.term) == (Role.FOLLOWER, 5)


def test_granting_a_pre_vote_changes_nothing() -> None:
    single = Single(term=3)
    deadline_ms = single.core.next_deadline_ms()
    effects = single.ask_pre_vote("2", 4, (1, 1))
    assert sent(effects) == [pre_vote_answer(4, granted=True)]
    assert of(effects, Persist) == []
    assert single.core.term == 3
    assert single.core.next_deadline_ms() == deadline_ms
    assert sent(single.ask_pre_vote("3", 4, (1, 1))) == [pre_vote_answer(4, granted=True)]


@pytest.mark.parametrize("term", [2, 3])
def test_a_pre_vote_for_a_term_that_is_no_news_is_refused(term: int) -> None:
    single = Single(term=3)
    effects = single.ask_pre_vote("2", term, (9, 3))
    assert sent(effects) == [pre_vote_answer(3, granted=False)]


def test_a_pre_vote_for_an_older_log_is_refused() -> None:
    single = Single(term=3, entries=log_of(2, 3))
    effects = single.ask_pre_vote("2", 4, (9, 2))
    assert sent(effects) == [pre_vote_answer(3, granted=False)]


def test_an_answer_tells_what_is_committed() -> None:
    single = Single(term=2, entries=log_of(2, 2))
    single.receive("2", append(2, (3, 2), commit=3))
    (answer,) = sent(single.ask_pre_vote("3", 3, (9, 2)))
    assert (answer.commit, answer.commit_term) == (3, 2)


def test_a_candidate_learns_what_is_committed_if_it_holds_it() -> None:
    single = Single(entries=log_of(1, 1, 1))
    single.time_out()
    unknown = pre_vote_answer(1, granted=False, commit=(3, 2))
    assert of(single.receive("2", unknown), Apply) == []
    known = pre_vote_answer(1, granted=False, commit=(3, 1))
    effects = single.receive("3", known)
    assert [each.entries for each in of(effects, Apply)] == [log_of(1, 1)]


def test_a_candidate_that_learns_of_its_removal_stops() -> None:
    single = Single(entries=(config_entry(2, 1, ConfigOperation.REMOVE, "1"),))
    single.time_out()
    single.receive("2", pre_vote_answer(2, granted=True, commit=(2, 1)))
    assert (single.core.role, single.core.term) == (Role.FOLLOWER, 1)
    assert single.tick(after_ms=100_000) == []


def test_a_candidate_that_learns_it_is_alone_stands_at_once() -> None:
    single = Single("12", entries=(config_entry(2, 1, ConfigOperation.REMOVE, "2"),))
    single.time_out()
    single.receive("2", pre_vote_answer(1, granted=False, commit=(2, 1)))
    assert (single.core.role, single.core.term) == (Role.CANDIDATE, 2)


def test_a_late_grant_for_an_earlier_term_does_not_count() -> None:
    single = Single(term=3)
    single.time_out()
    single.receive("2", pre_vote_answer(3, granted=True))
    assert single.core.role is Role.PRE_CANDIDATE


def test_an_isolated_member_does_not_raise_its_term() -> None:
    cluster = Cluster("123")
    cluster.elect("1")
    cluster.isolate("3")
    cluster.wait(20_000)
    assert cluster["3"].term == cluster["1"].term
    cluster.heal()
    cluster.wait(1_000)
    assert cluster["1"].role is Role.LEADER
    assert cluster["3"].leader == "1"


# --- Campaign -------------------------------------------------------------------------------


def test_a_candidate_raises_its_term_and_asks_only_when_both_are_written() -> None:
    single = Single(entries=log_of(1))
    effects = single.stand()
    request = VoteRequest(Term(2), LogIndex(2), Term(1))
    assert single.core.role is Role.CANDIDATE
    assert sent(effects) == []
    assert sent_after_write(effects) == [request, request]
    assert of(effects, Persist)[0].hard_state == HardState(Term(2), MemberId("1"), LogIndex(1))


def test_the_own_vote_counts_only_once_it_is_written() -> None:
    single = Single()
    single.stand()
    single.receive("2", VoteResponse(Term(2), granted=True))
    assert single.core.role is Role.CANDIDATE
    single.write()
    assert single.core.role is Role.LEADER


def test_a_majority_of_others_is_enough() -> None:
    single = Single()
    single.stand()
    single.receive("2", VoteResponse(Term(2), granted=True))
    single.receive("3", VoteResponse(Term(2), granted=True))
    assert single.core.role is Role.LEADER


def test_a_vote_counts_once() -> None:
    single = Single("12345")
    single.stand()
    single.write()
    for _ in range(4):
        single.receive("2", VoteResponse(Term(2), granted=True))
    assert single.core.role is Role.CANDIDATE


@pytest.mark.parametrize("voter", ["4", "9"])
def test_votes_of_learners_and_strangers_do_not_count(voter: str) -> None:
    single = Single("123", "4")
    single.stand()
    single.write()
    single.receive(voter, VoteResponse(Term(2), granted=True))
    assert single.core.role is Role.CANDIDATE


def test_votes_of_an_earlier_term_do_not_count() -> None:
    single = Single(term=4)
    single.stand()
    single.write()
    single.receive("2", VoteResponse(Term(4), granted=True))
    assert single.core.role is Role.CANDIDATE


def test_late_votes_do_not_disturb_a_leader() -> None:
    single = Single()
    single.lead()
    assert sent(single.receive("3", VoteResponse(Term(2), granted=True))) == []
    assert single.core.role is Role.LEADER


def test_a_lost_election_leaves_a_follower() -> None:
    single = Single()
    single.stand()
    single.write()
    single.receive("2", VoteResponse(Term(2), granted=False))
    single.receive("3", VoteResponse(Term(2), granted=False))
    assert (single.core.role, single.core.term) == (Role.FOLLOWER, 2)


def test_an_election_without_result_starts_again_with_a_pre_vote() -> None:
    single = Single()
    single.stand()
    single.write()
    effects = single.time_out()
    assert (single.core.role, single.core.term) == (Role.PRE_CANDIDATE, 2)
    assert PreVoteRequest(Term(3), LogIndex(1), Term(1)) in sent(effects)


def test_a_candidate_waits_for_a_slow_disk() -> None:
    single = Single()
    single.stand()
    for _ in range(5):
        assert single.time_out() == []
    assert (single.core.role, single.core.term) == (Role.CANDIDATE, 2)


@pytest.mark.parametrize("role", [Role.PRE_CANDIDATE, Role.CANDIDATE])
def test_a_leader_of_the_same_term_ends_a_campaign(role: Role) -> None:
    single = Single()
    if role is Role.PRE_CANDIDATE:
        single.time_out()
    else:
        single.stand()
        single.write()
    single.receive("2", append(single.core.term, (1, 1)))
    assert (single.core.role, single.core.leader) == (Role.FOLLOWER, "2")


def test_two_leaders_in_one_term_stop_the_node() -> None:
    single = Single()
    single.lead()
    with pytest.raises(InvariantViolation):
        single.receive("2", append(2, (1, 1)))


def test_a_follower_does_not_change_leaders_within_a_term() -> None:
    single = Single(term=2)
    single.receive("2", append(2, (1, 1)))
    with pytest.raises(InvariantViolation):
        single.receive("3", append(2, (1, 1)))


def test_a_leader_starts_with_a_no_op_of_its_term_and_an_unfallen_stamp() -> None:
    single = Single(entries=log_of(1, 1))
    effects = single.lead()
    persist = of(effects, Persist)[0]
    assert [(e.index, e.term, e.kind, e.stamp_ms) for e in persist.entries] == [
        (4, 2, EntryKind.NOOP, 3)
    ]
    assert [message.entries for message in sent(effects)] == [persist.entries] * 2


def test_a_sole_voter_elects_itself_at_once() -> None:
    single = Single("1", "2")
    single.tick()
    assert single.core.role is Role.CANDIDATE
    single.write()
    assert single.core.role is Role.LEADER
    single.write()
    assert single.core.commit_index == 2


@pytest.mark.parametrize("me", ["4", "9"])
def test_learners_and_strangers_never_campaign(me: str) -> None:
    single = Single("123", "4", me=me)
    for _ in range(3):
        single.tick(after_ms=100_000)
    assert single.core.role is Role.FOLLOWER
    assert single.core.next_deadline_ms() > single.now_ms + 100_000
    single.receive("2", TimeoutNow(Term(1)))
    assert single.core.role is Role.FOLLOWER


@pytest.mark.parametrize("me", ["4", "9"])
def test_learners_and_strangers_notice_that_they_hear_their_leader_no_more(me: str) -> None:
    single = Single("123", "4", me=me)
    for _ in range(2):
        single.receive("2", append(1, (1, 1)))
        single.tick(after_ms=399)
        assert single.core.leader == "2"
        single.receive("2", append(1, (1, 1)))
        effects = single.time_out()
        assert single.core.next_deadline_ms() > single.now_ms + 100_000
        assert [(c.role, c.leader) for c in of(effects, RoleChanged)] == [(Role.FOLLOWER, None)]
        assert sent(effects) == []


def test_a_role_change_is_announced_once() -> None:
    single = Single()
    changes = of(single.time_out(), RoleChanged)
    assert [(c.role, c.term, c.leader) for c in changes] == [(Role.PRE_CANDIDATE, 1, None)]
    assert of(single.time_out(), RoleChanged) == []


def test_election_timeouts_are_spread_over_their_range() -> None:
    options = RaftOptions(election_timeout_min_ms=100, election_timeout_max_ms=200)
    recovered = RecoveredState(
        member_id=MemberId("1"),
        hard_state=HardState(Term(1), None),
        snapshot=snapshot(configuration("123")),
        entries=(),
    )
    core = RaftCore(recovered, options, random.Random(7), 0)
    now_ms, waits = 0, []
    for _ in range(200):
        waits.append(core.next_deadline_ms() - now_ms)
        now_ms = core.next_deadline_ms()
        core.step(Tick(now_ms=now_ms))
    assert 100 <= min(waits) < 110
    assert 190 < max(waits) <= 200


# --- Voting ---------------------------------------------------------------------------------


def test_a_vote_leaves_only_when_it_is_written() -> None:
    single = Single()
    effects = single.ask_vote("2", 2, (1, 1))
    assert sent(effects) == []
    assert sent_after_write(effects) == [VoteResponse(Term(2), granted=True)]
    assert of(effects, Persist)[0].hard_state == HardState(Term(2), MemberId("2"), LogIndex(1))


def test_a_repeated_request_gets_the_vote_again_after_the_first_is_written() -> None:
    single = Single()
    single.ask_vote("2", 2, (1, 1))
    waiting = single.ask_vote("2", 2, (1, 1))
    assert sent(waiting) == []
    assert sent_after_write(waiting) == [VoteResponse(Term(2), granted=True)]
    single.write()
    assert sent(single.ask_vote("2", 2, (1, 1))) == [VoteResponse(Term(2), granted=True)]


def test_there_is_one_vote_a_term() -> None:
    single = Single()
    single.ask_vote("2", 2, (1, 1))
    single.write()
    assert sent(single.ask_vote("3", 2, (9, 1))) == [VoteResponse(Term(2), granted=False)]


def test_a_vote_is_remembered_over_a_restart() -> None:
    single = Single(term=2, vote="2")
    assert sent(single.ask_vote("3", 2, (9, 1))) == [VoteResponse(Term(2), granted=False)]
    assert sent(single.ask_vote("2", 2, (9, 1))) == [VoteResponse(Term(2), granted=True)]


def test_a_new_term_brings_a_new_vote() -> None:
    single = Single(term=2, vote="2")
    effects = single.ask_vote("3", 3, (1, 1))
    assert sent_after_write(effects) == [VoteResponse(Term(3), granted=True)]


@pytest.mark.parametrize(
    ("last", "granted"), [((9, 2), False), ((2, 3), False), ((3, 3), True), ((1, 4), True)]
)
def test_no_vote_for_an_older_log(last: tuple[int, int], granted: bool) -> None:
    single = Single(term=3, entries=log_of(2, 3))
    effects = single.ask_vote("2", 4, last)
    assert sent_after_write(effects) == [VoteResponse(Term(4), granted)]
    assert single.core.term == 4


def test_granting_a_vote_restarts_the_election_timer_and_refusing_does_not() -> None:
    single = Single(entries=log_of(1), timeout_ms=400)
    single.tick(after_ms=300)
    deadline_ms = single.core.next_deadline_ms()
    single.ask_vote("2", 2, (1, 1))
    assert single.core.next_deadline_ms() == deadline_ms
    single.ask_vote("2", 3, (2, 1))
    assert single.core.next_deadline_ms() == single.now_ms + 400


def test_a_candidate_of_an_earlier_term_is_told_the_present_one() -> None:
    single = Single(term=5)
    assert sent(single.ask_vote("2", 4, (9, 4))) == [VoteResponse(Term(5), granted=False)]


def test_candidates_and_leaders_do_not_vote_for_others_in_their_term() -> None:
    single = Single()
    single.stand()
    single.write()
    assert sent(single.ask_vote("2", 2, (9, 1))) == [VoteResponse(Term(2), granted=False)]
    single.receive("3", VoteResponse(Term(2), granted=True))
    assert sent(single.ask_vote("2", 2, (9, 1))) == [VoteResponse(Term(2), granted=False)]


def test_a_candidate_this_configuration_does_not_know_may_get_a_vote() -> None:
    """It may have been added by an entry that this member has not seen (thesis §4.1)."""
    single = Single("123")
    effects = single.ask_vote("4", 2, (9, 1))
    assert sent_after_write(effects) == [VoteResponse(Term(2), granted=True)]


def test_a_learner_votes_when_asked() -> None:
    """It may have been promoted by an entry whose commit it has not learned."""
    single = Single("123", "4", me="4")
    effects = single.ask_vote("2", 2, (1, 1))
    assert sent_after_write(effects) == [VoteResponse(Term(2), granted=True)]


# --- Stickiness -----------------------------------------------------------------------------


def test_who_hears_a_leader_refuses_pre_votes_and_ignores_votes() -> None:
    single = Single(term=2)
    single.receive("2", append(2, (1, 1)))
    single.tick(after_ms=399)
    assert sent(single.ask_pre_vote("3", 3, (9, 2))) == [pre_vote_answer(2, granted=False)]
    assert single.ask_vote("3", 3, (9, 2)) == []
    assert (single.core.term, single.core.leader) == (2, "2")


def test_who_has_not_heard_the_leader_for_the_shortest_timeout_votes() -> None:
    single = Single(term=2, timeout_ms=800)
    single.receive("2", append(2, (1, 1)))
    single.tick(after_ms=400)
    assert sent(single.ask_pre_vote("3", 3, (9, 2))) == [pre_vote_answer(3, granted=True)]
    effects = single.ask_vote("3", 3, (9, 2))
    assert sent_after_write(effects) == [VoteResponse(Term(3), granted=True)]


def test_a_candidate_that_the_leader_sent_gets_votes_at_once() -> None:
    single = Single(term=2)
    single.receive("2", append(2, (1, 1)))
    effects = single.ask_vote("3", 3, (9, 2), transfer=True)
    assert sent_after_write(effects) == [VoteResponse(Term(3), granted=True)]


def test_a_leader_in_touch_with_a_quorum_refuses_votes() -> None:
    single = Single()
    single.lead_and_commit()
    term = single.core.term
    refusal = [pre_vote_answer(term, granted=False, commit=(2, 2))]
    assert sent(single.ask_pre_vote("3", term + 1, (9, 9))) == refusal
    assert single.ask_vote("3", term + 1, (9, 9)) == []
    assert single.core.role is Role.LEADER


def test_a_leader_out_of_touch_gives_way() -> None:
    single = Single()
    single.lead_and_commit()
    single.tick(after_ms=450)
    effects = single.ask_vote("3", 3, (9, 2))
    assert single.core.role is Role.FOLLOWER
    assert sent_after_write(effects) == [VoteResponse(Term(3), granted=True)]


# --- Terms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("role", list(Role))
def test_a_later_term_makes_everybody_a_follower(role: Role) -> None:
    single = Single()
    match role:
        case Role.FOLLOWER:
            pass
        case Role.PRE_CANDIDATE:
            single.time_out()
        case Role.CANDIDATE:
            single.stand()
        case Role.LEADER:
            single.lead()
    effects = single.receive("2", append(9, (1, 1)))
    assert (single.core.role, single.core.term, single.core.leader) == (Role.FOLLOWER, 9, "2")
    assert of(effects, Persist)[0].hard_state == HardState(Term(9), None, LogIndex(1))


def test_an_answer_of_a_later_term_deposes_a_leader() -> None:
    single = Single()
    single.lead_and_commit()
    single.receive("2", accepted(5, 2))
    assert (single.core.role, single.core.term, single.core.leader) == (Role.FOLLOWER, 5, None)


def test_messages_of_removed_members_are_not_heard() -> None:
    config = configuration("23")
    state = snapshot(type(config)(config.index, config.members, (MemberId("1"),)))
    single = Single(me="2", base=state)
    assert single.ask_vote("1", 9, (9, 9)) == []
    assert single.ask_pre_vote("1", 9, (9, 9)) == []
    assert single.receive("1", append(9, (1, 1))) == []
    assert single.core.term == 1


def test_own_messages_that_come_back_are_not_heard() -> None:
    single = Single()
    assert single.ask_vote("1", 9, (9, 9)) == []


# --- TimeoutNow -----------------------------------------------------------------------------


def test_who_is_handed_leadership_campaigns_without_pre_vote() -> None:
    single = Single(term=2)
    single.receive("2", append(2, (1, 1)))
    effects = single.receive("2", TimeoutNow(Term(2)))
    assert (single.core.role, single.core.term) == (Role.CANDIDATE, 3)
    assert sent(effects) == []
    request = VoteRequest(Term(3), LogIndex(1), Term(1), transfer=True)
    assert sent_after_write(effects) == [request, request]


def test_a_repeated_timeout_now_changes_nothing() -> None:
    single = Single(term=2)
    single.receive("2", TimeoutNow(Term(2)))
    assert single.receive("2", TimeoutNow(Term(2))) == []
    assert single.core.term == 3
