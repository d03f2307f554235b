"""Elections: pre-vote, vote, and what a voter grants.

Guarantees
- One vote a term, on disk before the answer leaves; a candidate's own vote counts only once it is
  on disk too (thesis §3.4).
- No vote for a log that is less up to date (thesis §3.6.1).
- A pre-vote changes nothing at either side and precedes every campaign but one that the leader
  asked for, so a member that was cut off cannot depose a leader by its term (thesis §9.6).
- Whoever hears a leader refuses votes, unless that leader handed over (thesis §4.2.3).

An answer to a pre-vote also tells what the responder knows to be committed. A leader that removed
or demoted itself may have been the only one to know; it neither leads nor follows any more, and
the others would go on asking for its vote, which its longer log may refuse them, for ever.

Requests of members that are not in the configuration in force are judged like others (thesis
§4.1: the configuration here may be older than the candidate's, and ignoring it could leave a group
without any leader); removed ids are refused by the caller. Answers count only from voters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from distsync_node.errors import InvariantViolation
from distsync_node.raft.leader import Leader
from distsync_node.raft.quorum import Tally, tally
from distsync_node.raft.types import (
    PreVoteRequest,
    PreVoteResponse,
    Role,
    Term,
    VoteRequest,
    VoteResponse,
)

if TYPE_CHECKING:
    from distsync_node.raft.state import RaftState
    from distsync_node.raft.types import MemberId


class Ballot:
    """The answers to one campaign."""

    __slots__ = ("granted", "refused")

    def __init__(self) -> None:
        self.granted: set[MemberId] = set()
        self.refused: set[MemberId] = set()

    def count(self, voter: MemberId, *, granted: bool) -> None:
        """Count an answer; the first of a voter stays."""
        if voter not in self.granted and voter not in self.refused:
            (self.granted if granted else self.refused).add(voter)


def election_timeout(state: RaftState) -> None:
    """No leader was heard and no election ended for an election timeout."""
    if state.role is Role.CANDIDATE and not state.disk.hard_durable:
        # A disk slower than the timeout would otherwise start campaigns and never finish one.
        state.reset_election_timer()
    else:
        start_pre_vote(state)


def start_pre_vote(state: RaftState) -> None:
    """Ask whether an election could be won."""
    ballot = Ballot()
    ballot.count(state.member_id, granted=True)
    state.become_pre_candidate(ballot)
    request = PreVoteRequest(Term(state.term + 1), state.log.last_index, state.log.last_term)
    for voter in state.voters:
        if voter != state.member_id:
            state.send(voter, request)
    _judge_pre_vote(state, ballot)


def start_election(state: RaftState, *, transfer: bool) -> None:
    """Stand in the next term; the requests leave once that term and the own vote are durable."""
    state.become_candidate(Ballot())
    request = VoteRequest(state.term, state.log.last_index, state.log.last_term, transfer)
    for voter in state.voters:
        if voter != state.member_id:
            state.disk.stage_message(voter, request)


def handle_timeout_now(state: RaftState) -> None:
    """The leader hands over: campaign at once if that makes sense here."""
    if state.role in (Role.FOLLOWER, Role.PRE_CANDIDATE) and state.is_voter:
        start_election(state, transfer=True)


def handle_pre_vote_request(state: RaftState, sender: MemberId, message: PreVoteRequest) -> None:
    """Say whether a vote would be granted."""
    granted = (
        message.term > state.term
        and not state.hears_leader()
        and state.log.is_up_to_date(message.last_index, message.last_term)
    )
    term = message.term if granted else state.term
    commit = state.commit_index
    state.reply(sender, PreVoteResponse(term, granted, commit, state.log.term_at(commit)))


def handle_vote_request(state: RaftState, sender: MemberId, message: VoteRequest) -> None:
    """Grant or refuse a vote in the present term."""
    free = state.vote is None and state.leader is None
    granted = (state.vote == sender or free) and state.log.is_up_to_date(
        message.last_index, message.last_term
    )
    if granted:
        state.grant_vote(sender)
    state.reply(sender, VoteResponse(state.term, granted))


def handle_pre_vote_response(state: RaftState, sender: MemberId, message: PreVoteResponse) -> None:
    """Count an answer to the pre-vote under way."""
    ballot = state.ballot
    if ballot is None or state.role is not Role.PRE_CANDIDATE:
        return
    if state.log.matches(message.commit, message.commit_term):
        state.advance_commit(message.commit)
        if not state.is_voter:
            state.become_follower(state.term, None)
            return
    if message.granted and message.term != state.term + 1:
        return
    ballot.count(sender, granted=message.granted)
    _judge_pre_vote(state, ballot)


def handle_vote_response(state: RaftState, sender: MemberId, message: VoteResponse) -> None:
    """Count an answer to the campaign of the present term."""
    if state.ballot is not None and state.role is Role.CANDIDATE:
        state.ballot.count(sender, granted=message.granted)
        _judge_vote(state, state.ballot)


def own_vote_durable(state: RaftState) -> None:
    """The disk caught up: a candidate's vote for itself counts from now on."""
    if state.ballot is not None and state.role is Role.CANDIDATE:
        state.ballot.count(state.member_id, granted=True)
        _judge_vote(state, state.ballot)


def _judge_pre_vote(state: RaftState, ballot: Ballot) -> None:
    match tally(state.voters, ballot.granted, ballot.refused):
        case Tally.WON:
            start_election(state, transfer=False)
        case Tally.LOST:
            state.become_follower(state.term, None)
        case Tally.PENDING:
            pass
        case _ as unreachable:
            assert_never(unreachable)


def _judge_vote(state: RaftState, ballot: Ballot) -> None:
    match tally(state.voters, ballot.granted, ballot.refused):
        case Tally.WON:
            _lead(state)
        case Tally.LOST:
            state.become_follower(state.term, None)
        case Tally.PENDING:
            pass
        case _ as unreachable:
            assert_never(unreachable)


def _lead(state: RaftState) -> None:
    if not state.is_voter:
        raise InvariantViolation(f"{state.member_id} was elected and is no voter")
    leadership = Leader(state)
    state.become_leader(leadership)
    leadership.start()
