"""What only a leader does: proposals, commit, reads, check-quorum, transfer.

Guarantees
- Only entries of the own term are committed by counting, and the earlier ones with them (thesis
  §3.6.2).
- A leader without contact to a quorum for an election timeout resigns, judged on the stamps of
  events before anything else is done with them: after a pause nothing is served on old trust.
- One membership change at a time, none before the leader's no-op is committed (thesis §4.1, with
  the correction of 2015).
- A leader that is removed or demoted leads until that entry is committed, then resigns; nobody but
  it could tell the others of the commit, so it says so in its last messages.
- While leadership is handed over no proposal is taken; after an election timeout it goes on
  (thesis §3.10).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from distsync_node.raft.membership import encode_change, is_allowed
from distsync_node.raft.progress import Progress, ProgressState
from distsync_node.raft.reads import ReadQueue
from distsync_node.raft.replication import Replicator
from distsync_node.raft.types import (
    ConfigOperation,
    DropReason,
    Entry,
    EntryKind,
    LogIndex,
    MemberId,
    ProposalAccepted,
    ProposalDropped,
    ReadDropped,
    ReadReady,
    TimeoutNow,
)

if TYPE_CHECKING:
    from distsync_node.raft.state import RaftState
    from distsync_node.raft.types import (
        AppendResponse,
        Propose,
        ProposeConfig,
        SnapshotResponse,
    )


class Leader:
    """The state of one leadership; it ends with it."""

    __slots__ = (
        "_contact_floor_ms",
        "_pending_config_index",
        "_quorum_contact_ms",
        "_state",
        "_transfer_deadline_ms",
        "_uncommitted",
        "_uncommitted_bytes",
        "heartbeat_deadline_ms",
        "reads",
        "replicator",
        "transfer_target",
    )

    def __init__(self, state: RaftState) -> None:
        self._state = state
        self.replicator = Replicator(state)
        self.reads = ReadQueue()
        self.heartbeat_deadline_ms = state.now_ms
        self.transfer_target: MemberId | None = None
        self._transfer_deadline_ms = 0
        self._pending_config_index = LogIndex(0)
        self._quorum_contact_ms: int | None = None
        self._contact_floor_ms = state.now_ms  # an election is contact with a quorum
        tail = state.log.slice(state.commit_index + 1, state.log.last_index)
        self._uncommitted: deque[int] = deque(len(entry.payload) for entry in tail)
        self._uncommitted_bytes = sum(self._uncommitted)

    def start(self) -> None:
        """Append the no-op of the term and make first contact."""
        state = self._state
        self._begin_round()
        self.heartbeat_deadline_ms = state.now_ms + state.options.heartbeat_ms
        self._append(EntryKind.NOOP, state.log.last_stamp_ms, b"")

    def resign(self) -> None:
        """Drop what waits for this leadership."""
        for ref in self.reads.drain():
            self._state.effects.append(ReadDropped(ref=ref, reason=DropReason.NOT_LEADER))

    # --- Time ---------------------------------------------------------------------------------

    @property
    def is_sole_voter(self) -> bool:
        """Whether the leader is a quorum by itself."""
        return not self.replicator.voting_peers

    @property
    def quorum_contact_ms(self) -> int | None:
        """When the latest round was sent that a quorum acknowledged; None before the first."""
        return self._state.now_ms if self.is_sole_voter else self._quorum_contact_ms

    def contact_ms(self) -> int:
        """When a quorum was certainly in touch, counting the election as such."""
        contact_ms = self.quorum_contact_ms
        floor_ms = self._contact_floor_ms
        return floor_ms if contact_ms is None else max(floor_ms, contact_ms)

    def has_quorum(self) -> bool:
        """Whether a quorum was in touch within an election timeout (check-quorum)."""
        silent_ms = self._state.now_ms - self.contact_ms()
        return silent_ms <= self._state.options.election_timeout_max_ms

    def next_deadline_ms(self) -> int | None:
        """Return when this leader wants the next Tick, None when it can wait for ever."""
        deadline_ms = self.heartbeat_deadline_ms if self.replicator.peers else None
        if self.transfer_target is not None:
            transfer_ms = self._transfer_deadline_ms
            deadline_ms = transfer_ms if deadline_ms is None else min(deadline_ms, transfer_ms)
        return deadline_ms

    def tick(self) -> None:
        """Send heartbeats and end a transfer that took too long, if it is time."""
        state = self._state
        if self.transfer_target is not None and state.now_ms >= self._transfer_deadline_ms:
            self.transfer_target = None
        if state.now_ms >= self.heartbeat_deadline_ms:
            self.heartbeat_deadline_ms = state.now_ms + state.options.heartbeat_ms
            self._begin_round()
            for follower in self.replicator.peers:
                self.replicator.send_heartbeat(follower)
            self._hand_over_if_caught_up()
            self._confirm_reads()

    # --- Proposals ----------------------------------------------------------------------------

    def propose(self, event: Propose) -> None:
        """Append an entry, or say why not."""
        reason = self._refusal(len(event.payload))
        if reason is None and event.kind == EntryKind.CONFIG:
            reason = DropReason.CONFIG_INVALID  # must come as ProposeConfig, which is checked
        if reason is not None:
            self._state.effects.append(ProposalDropped(ref=event.ref, reason=reason))
            return
        self._append(event.kind, event.stamp_ms, event.payload, event.ref)

    def propose_config(self, event: ProposeConfig) -> None:
        """Append a membership change, or say why not."""
        payload = encode_change(event.change)
        reason = self._refusal(len(payload))
        if reason is None:
            reason = self._config_refusal(event)
        if reason is not None:
            self._state.effects.append(ProposalDropped(ref=event.ref, reason=reason))
            return
        self._pending_config_index = LogIndex(self._state.log.last_index + 1)
        self._append(EntryKind.CONFIG, event.stamp_ms, payload, event.ref)

    def _append(
        self, kind: EntryKind, stamp_ms: int, payload: bytes, ref: int | None = None
    ) -> None:
        state = self._state
        log = state.log
        entry = Entry(state.term, LogIndex(log.last_index + 1), kind, stamp_ms, payload)
        log.append(entry)
        state.disk.stage_entries((entry,))
        self._uncommitted.append(len(payload))
        self._uncommitted_bytes += len(payload)
        if ref is not None:
            state.effects.append(ProposalAccepted(ref=ref, term=entry.term, index=entry.index))
        self.replicator.replicate(entry)

    def _refusal(self, size_bytes: int) -> DropReason | None:
        if self.transfer_target is not None:
            return DropReason.TRANSFERRING
        pending_bytes = self._uncommitted_bytes
        if pending_bytes and pending_bytes + size_bytes > self._state.options.max_uncommitted_bytes:
            return DropReason.OVERLOADED
        return None

    def _config_refusal(self, event: ProposeConfig) -> DropReason | None:
        state = self._state
        if not self._own_term_committed():
            return DropReason.NOT_READY
        if self._pending_config_index > state.applied_index:
            return DropReason.CONFIG_IN_PROGRESS
        if event.expected_config_index not in (None, state.configuration.index):
            return DropReason.CONFIG_INDEX_MISMATCH
        if not is_allowed(state.configuration, event.change):
            return DropReason.CONFIG_INVALID
        if event.change.operation == ConfigOperation.PROMOTE and not self._is_caught_up(
            event.change.member.id
        ):
            return DropReason.NOT_CAUGHT_UP
        return None

    def _is_caught_up(self, member_id: MemberId) -> bool:
        """Whether a learner would strengthen the quorum at once: it lags little, and it lives."""
        state, follower = self._state, self.replicator.progress[member_id]
        if follower.last_contact_ms is None or follower.state is not ProgressState.REPLICATE:
            return False
        silent_ms = state.now_ms - follower.last_contact_ms
        lag = state.log.last_index - follower.match_index
        return (
            lag <= state.options.promote_max_lag
            and silent_ms <= state.options.election_timeout_max_ms
        )

    # --- Answers and commit -------------------------------------------------------------------

    def append_answered(self, sender: MemberId, message: AppendResponse) -> None:
        """A follower accepted or refused an append."""
        follower = self.replicator.progress.get(sender)
        if follower is not None:
            self._acknowledged(follower, message.round)
            self._progressed(follower, grew=self.replicator.appended(follower, message))

    def snapshot_answered(self, sender: MemberId, message: SnapshotResponse) -> None:
        """A follower took a chunk, asked for another one, or is done."""
        follower = self.replicator.progress.get(sender)
        if follower is not None:
            self._acknowledged(follower, message.round)
            self._progressed(follower, grew=self.replicator.snapshot_received(follower, message))

    def persisted(self) -> None:
        """More of the own log is durable, which counts for the quorum."""
        self._maybe_commit()
        if self._state.options.eager_commit and self._state.leadership is self:
            self.replicator.send_commit()

    def _acknowledged(self, follower: Progress, round_number: int) -> None:
        if self.replicator.acknowledged(follower, round_number):
            self._quorum_contact_ms = self.replicator.quorum_contact_ms()
            self._confirm_reads()

    def _progressed(self, follower: Progress, *, grew: bool) -> None:
        """Draw the consequences of an answer, in the order that saves messages."""
        if grew and follower.voter:
            self._maybe_commit()
            if self._state.leadership is not self:
                return
        self.replicator.send_entries(follower)
        if grew:
            if self.transfer_target == follower.member_id:
                self._hand_over_if_caught_up()
            if self._state.options.eager_commit:
                self.replicator.send_commit()

    def _maybe_commit(self) -> None:
        """Commit what a quorum holds durably, if it is of this term."""
        state = self._state
        while True:
            index = self.replicator.quorum_match()
            if index <= state.commit_index or state.log.term_at(index) != state.term:
                break
            for _ in range(index - state.commit_index):
                self._uncommitted_bytes -= self._uncommitted.popleft()
            if state.advance_commit(index):
                self._configuration_changed()
                if state.leadership is not self:
                    return
        if self.reads.wants_round:
            self._confirm_reads()

    def _own_term_committed(self) -> bool:
        state = self._state
        return state.log.term_at(state.commit_index) == state.term

    def _configuration_changed(self) -> None:
        """A membership change was applied here."""
        state, replicator = self._state, self.replicator
        replicator.sync_members()
        if not state.is_voter:
            self._take_leave()
            return
        if self.transfer_target not in state.voters:
            self.transfer_target = None
        self._contact_floor_ms = state.now_ms
        self._quorum_contact_ms = replicator.quorum_contact_ms()
        for follower in replicator.peers:
            if follower.last_contact_ms is None:
                replicator.send_heartbeat(follower)
        self._confirm_reads()

    def _take_leave(self) -> None:
        """Tell the others that the entry which ends this leadership is committed; then resign."""
        state = self._state
        for follower in self.replicator.peers:
            self.replicator.send_confirmation(follower)
        successor = self._most_advanced_voter()
        if successor is not None and successor.match_index == state.log.last_index:
            state.send(successor.member_id, TimeoutNow(state.term))
        state.become_follower(state.term, None)

    # --- Reads --------------------------------------------------------------------------------

    def read(self, ref: int) -> None:
        """Find the index at which a read that arrived now is linearizable."""
        self.reads.add(ref)
        self._confirm_reads()

    def _confirm_reads(self) -> None:
        """Answer confirmed reads; begin a round for the others unless one is under way."""
        self._answer_reads()
        if self.reads.wants_round and self._own_term_committed():
            self._begin_round()
            for follower in self.replicator.voting_peers:
                self.replicator.send_confirmation(follower)
            self._answer_reads()

    def _begin_round(self) -> None:
        round_number = self.replicator.rounds.begin(self._state.now_ms)
        if self._own_term_committed():
            self.reads.join_round(round_number, self._state.commit_index)

    def _answer_reads(self) -> None:
        if self.reads.under_way:
            for ref, index in self.reads.confirmed(self.replicator.quorum_round()):
                self._state.effects.append(ReadReady(ref=ref, index=index))

    # --- Transfer -----------------------------------------------------------------------------

    def transfer(self, target: MemberId | None) -> None:
        """Hand leadership over; does nothing when there is no such voter."""
        state = self._state
        if target is None:
            successor = self._most_advanced_voter()
        else:
            successor = self.replicator.progress.get(target)
        if successor is None or not successor.voter:
            return
        if self.transfer_target == successor.member_id:
            return
        self.transfer_target = successor.member_id
        self._transfer_deadline_ms = state.now_ms + state.options.election_timeout_max_ms
        self.replicator.send_entries(successor)
        self._hand_over_if_caught_up()

    def _hand_over_if_caught_up(self) -> None:
        if self.transfer_target is None:
            return
        successor = self.replicator.progress[self.transfer_target]
        if successor.match_index == self._state.log.last_index:
            self._state.send(successor.member_id, TimeoutNow(self._state.term))

    def _most_advanced_voter(self) -> Progress | None:
        return max(
            self.replicator.voting_peers,
            key=lambda follower: (follower.match_index, follower.last_contact_ms or 0),
            default=None,
        )
