"""The consensus core of one member: `step(event)` in, effects out.

Theory of operation. The core holds no clock, does no I/O and draws randomness from a generator
handed in; a shell stamps events, steps, and executes the effects in order. Equal inputs give equal
outputs. Terms are judged here, in one place (`_admit`), before a message reaches the code of a
role: `election` (votes), `follower` (appends, snapshots), `leader` (answers). What the roles share
is in `state`.

Safety rests on three things that can be read off the types: what must be durable before a message
leaves is in `Persist.then`; what must be committed before it is applied is in `Apply`; what must
be confirmed by a quorum before it is read is in `ReadReady`.

Source: Ongaro's thesis; structure learned from etcd's raft.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from distsync_node.raft import election, follower
from distsync_node.raft.invariants import check_state
from distsync_node.raft.state import RaftState, Randomness
from distsync_node.raft.types import (
    AppendRequest,
    AppendResponse,
    Compact,
    DropReason,
    LogIndex,
    MemberId,
    Persisted,
    PreVoteRequest,
    PreVoteResponse,
    ProposalDropped,
    Propose,
    ProposeConfig,
    ReadDropped,
    ReadIndex,
    Receive,
    Role,
    SnapshotChunk,
    SnapshotResponse,
    Term,
    Tick,
    TimeoutNow,
    TransferLeadership,
    VoteRequest,
    VoteResponse,
)

if TYPE_CHECKING:
    from distsync_node.raft.progress import MemberProgress
    from distsync_node.raft.types import (
        Configuration,
        RaftEffect,
        RaftEvent,
        RaftMessage,
        RaftOptions,
        RecoveredState,
    )

__all__ = ["RaftCore"]

IDLE_TICK_MS = 3_600_000  # when nothing is due


class RaftCore:
    """One member's consensus; see the module's head."""

    __slots__ = ("_state",)

    def __init__(
        self, recovered: RecoveredState, options: RaftOptions, rng: Randomness, now_ms: int
    ) -> None:
        self._state = RaftState(recovered, options, rng, now_ms)

    def step(self, event: RaftEvent) -> list[RaftEffect]:
        """Take one event and return its effects, to be executed in order.

        Raises: InvariantViolation when a promise is broken; the node must stop.
        """
        state = self._state
        effects = state.effects = []
        if event.now_ms > state.now_ms:
            state.now_ms = event.now_ms
        if state.leadership is not None and not state.leadership.has_quorum():
            state.become_follower(state.term, None)
        if state.applied_index < state.commit_index:
            state.apply_committed()  # what a restart proved to be committed
        match event:
            case Receive():
                self._receive(event.sender, event.message)
            case Propose():
                self._propose(event)
            case Persisted():
                self._persisted(event.seq)
            case ReadIndex():
                self._read(event.ref)
            case Tick():
                self._tick()
            case ProposeConfig():
                self._propose_config(event)
            case TransferLeadership():
                if state.leadership is not None:
                    state.leadership.transfer(event.target)
            case Compact():
                state.compact(event.snapshot)
            case _ as unreachable:
                assert_never(unreachable)
        state.flush()
        return effects

    def next_deadline_ms(self) -> int:
        """Return when the next Tick is wanted; a Tick before that does nothing."""
        state = self._state
        if state.applied_index < state.commit_index:
            return state.now_ms  # after a restart: what is applied may make this member a voter
        if state.leadership is not None:
            deadline_ms = state.leadership.next_deadline_ms()
            return state.now_ms + IDLE_TICK_MS if deadline_ms is None else deadline_ms
        if state.is_voter or state.leader is not None:
            return state.election_deadline_ms
        return state.now_ms + IDLE_TICK_MS

    # --- Events -------------------------------------------------------------------------------

    def _tick(self) -> None:
        state = self._state
        if state.leadership is not None:
            state.leadership.tick()
        elif state.now_ms >= state.election_deadline_ms:
            if state.is_voter:
                election.election_timeout(state)
            elif state.leader is not None:
                state.become_follower(state.term, None)  # a learner has lost its leader

    def _propose(self, event: Propose) -> None:
        leadership = self._state.leadership
        if leadership is None:
            self._drop_proposal(event.ref)
        else:
            leadership.propose(event)

    def _propose_config(self, event: ProposeConfig) -> None:
        leadership = self._state.leadership
        if leadership is None:
            self._drop_proposal(event.ref)
        else:
            leadership.propose_config(event)

    def _drop_proposal(self, ref: int) -> None:
        self._state.effects.append(ProposalDropped(ref=ref, reason=DropReason.NOT_LEADER))

    def _read(self, ref: int) -> None:
        state = self._state
        if state.leadership is None:
            state.effects.append(ReadDropped(ref=ref, reason=DropReason.NOT_LEADER))
        else:
            state.leadership.read(ref)

    def _persisted(self, seq: int) -> None:
        state = self._state
        state.disk.persisted(seq)
        if state.leadership is not None:
            state.leadership.persisted()
        elif state.disk.hard_durable:
            election.own_vote_durable(state)

    # --- Messages -----------------------------------------------------------------------------

    def _receive(self, sender: MemberId, message: RaftMessage) -> None:
        state = self._state
        if sender == state.member_id or (state.is_removed(sender) and sender != state.leader):
            return  # a leader that removed itself may finish its term
        if message.term != state.term and not self._admit(sender, message):
            return
        match message:
            case AppendRequest():
                follower.handle_append(state, sender, message)
            case AppendResponse():
                if state.leadership is not None:
                    state.leadership.append_answered(sender, message)
            case SnapshotChunk():
                follower.handle_snapshot_chunk(state, sender, message)
            case SnapshotResponse():
                if state.leadership is not None:
                    state.leadership.snapshot_answered(sender, message)
            case PreVoteRequest():
                election.handle_pre_vote_request(state, sender, message)
            case PreVoteResponse():
                election.handle_pre_vote_response(state, sender, message)
            case VoteRequest():
                election.handle_vote_request(state, sender, message)
            case VoteResponse():
                election.handle_vote_response(state, sender, message)
            case TimeoutNow():
                election.handle_timeout_now(state)
            case _ as unreachable:
                assert_never(unreachable)

    def _admit(self, sender: MemberId, message: RaftMessage) -> bool:
        """Judge a message of another term; returns whether its handler may see it."""
        if isinstance(message, PreVoteRequest):
            return True  # names a term that nobody is in yet
        if isinstance(message, PreVoteResponse) and message.granted:
            return True  # echoes the request's term
        if message.term > self._state.term:
            return self._admit_newer(sender, message)
        return self._admit_older(sender, message)

    def _admit_newer(self, sender: MemberId, message: RaftMessage) -> bool:
        state = self._state
        if isinstance(message, VoteRequest) and not message.transfer and state.hears_leader():
            return False
        leads = isinstance(message, AppendRequest | SnapshotChunk)
        state.become_follower(message.term, sender if leads else None)
        return True

    def _admit_older(self, sender: MemberId, message: RaftMessage) -> bool:
        state = self._state
        if isinstance(message, AppendRequest):
            follower.refuse_stale_append(state, sender, message)
        elif isinstance(message, SnapshotChunk):
            follower.refuse_stale_chunk(state, sender, message)
        elif isinstance(message, VoteRequest):
            state.reply(sender, VoteResponse(state.term, granted=False))
        # A refused pre-vote carries the responder's term, which may be older and still counts.
        return isinstance(message, PreVoteResponse)

    # --- What can be seen from outside --------------------------------------------------------

    @property
    def member_id(self) -> MemberId:
        """Who this is."""
        return self._state.member_id

    @property
    def role(self) -> Role:
        """Present role."""
        return self._state.role

    @property
    def term(self) -> Term:
        """Present term."""
        return self._state.term

    @property
    def leader(self) -> MemberId | None:
        """Leader of the present term, as far as known here."""
        return self._state.leader

    @property
    def commit_index(self) -> LogIndex:
        """Last index known to be committed."""
        return self._state.commit_index

    @property
    def applied_index(self) -> LogIndex:
        """Last index emitted in Apply or Restore."""
        return self._state.applied_index

    @property
    def first_index(self) -> LogIndex:
        """First index of the entries kept in memory."""
        return self._state.log.first_index

    @property
    def last_index(self) -> LogIndex:
        """Last index of the log."""
        return self._state.log.last_index

    @property
    def durable_index(self) -> LogIndex:
        """Last index known to be on this member's disk."""
        return self._state.disk.durable_index

    @property
    def configuration(self) -> Configuration:
        """The configuration in force."""
        return self._state.configuration

    @property
    def quorum_contact_ms(self) -> int | None:
        """Leader only: when the latest round was *sent* that a quorum has acknowledged.

        It is a time of the local clock, and that of the last step for a sole voter. None before
        the first acknowledged round and on other roles.
        """
        leadership = self._state.leadership
        return None if leadership is None else leadership.quorum_contact_ms

    @property
    def transfer_target(self) -> MemberId | None:
        """Leader only: to whom leadership is being handed over."""
        leadership = self._state.leadership
        return None if leadership is None else leadership.transfer_target

    def progress(self) -> dict[MemberId, MemberProgress]:
        """Return how far each other member is; empty unless this member leads."""
        leadership = self._state.leadership
        if leadership is None:
            return {}
        followers = leadership.replicator.progress
        return {member_id: progress.view() for member_id, progress in followers.items()}

    def check_invariants(self) -> None:
        """Check what must hold between steps; for tests and the simulator.

        Raises: InvariantViolation.
        """
        check_state(self._state)
