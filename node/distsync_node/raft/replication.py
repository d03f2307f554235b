"""The leader's sending side: appends, heartbeats and snapshots to every follower.

Guarantees
- A follower gets at most `max_inflight_requests` and `max_inflight_bytes` of appends ahead of its
  answers; one append while its match is unknown; one snapshot chunk at a time.
- `match_index` only ever grows, from answers of this term, which vouch for durable entries.
- What is lost is found: a heartbeat claims everything sent so far, so a follower that misses some
  of it refuses and is probed again. The confirming round of a read claims only what is known to
  match, so it is never refused merely because it overtook an append.

Source: thesis §3.5, §10.2.1; conflict hints as in the thesis' §3.5 remark on skipping terms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distsync_node.raft.log import ENTRY_OVERHEAD_BYTES
from distsync_node.raft.progress import Progress, ProgressState
from distsync_node.raft.quorum import reached_by_quorum
from distsync_node.raft.reads import RoundClock
from distsync_node.raft.types import (
    AppendRequest,
    AppendResponse,
    LogIndex,
    MemberId,
    SnapshotChunk,
    SnapshotResponse,
)

if TYPE_CHECKING:
    from distsync_node.raft.state import RaftState
    from distsync_node.raft.types import Entry


class Replicator:
    """The followers of a leader and what is sent to them."""

    __slots__ = ("_state", "peers", "progress", "rounds", "voting_peers")

    def __init__(self, state: RaftState) -> None:
        self._state = state
        self.rounds = RoundClock()
        self.progress: dict[MemberId, Progress] = {}
        self.peers: tuple[Progress, ...] = ()
        self.voting_peers: tuple[Progress, ...] = ()
        self.sync_members()

    def sync_members(self) -> None:
        """Follow the configuration: forget who left, probe who is new."""
        state = self._state
        known, self.progress = self.progress, {}
        for member in state.configuration.members:
            if member.id == state.member_id:
                continue
            follower = known.get(member.id) or Progress(
                member.id, LogIndex(state.log.last_index + 1), voter=member.voter
            )
            follower.voter = member.voter
            self.progress[member.id] = follower
        self.peers = tuple(self.progress.values())
        self.voting_peers = tuple(follower for follower in self.peers if follower.voter)

    # --- What a quorum has reached ------------------------------------------------------------

    def quorum_match(self) -> int:
        """Return the last index that is durable at a quorum of the voters."""
        matches = [follower.match_index for follower in self.voting_peers]
        matches.append(self._state.disk.durable_index)
        return reached_by_quorum(matches)

    def quorum_round(self) -> int:
        """Return the last round that a quorum, the leader included, has acknowledged."""
        acked = [follower.acked_round for follower in self.voting_peers]
        acked.append(self.rounds.current)
        return reached_by_quorum(acked)

    def quorum_contact_ms(self) -> int | None:
        """Return when the last round was sent that a quorum has acknowledged."""
        sent = [
            -1 if follower.acked_sent_ms is None else follower.acked_sent_ms
            for follower in self.voting_peers
        ]
        sent.append(self._state.now_ms)
        reached = reached_by_quorum(sent)
        return None if reached < 0 else reached

    # --- Sending ------------------------------------------------------------------------------

    def replicate(self, entry: Entry) -> None:
        """Send the entry just appended to every follower whose window is open."""
        state = self._state
        shared: AppendRequest | None = None
        for follower in self.peers:
            if follower.state is not ProgressState.REPLICATE or follower.next_index != entry.index:
                self.send_entries(follower)
            elif follower.may_send_entries(state.options):
                if shared is None:
                    shared = self._append(entry.index - 1, (entry,))
                state.send(follower.member_id, shared)
                follower.entries_sent(entry.index, len(entry.payload) + ENTRY_OVERHEAD_BYTES)
                follower.commit_sent = state.commit_index

    def send_entries(self, follower: Progress) -> None:
        """Send a follower what it lacks, as far as its window admits."""
        state = self._state
        log, options = state.log, state.options
        while follower.next_index <= log.last_index and follower.may_send_entries(options):
            if follower.next_index <= log.base_index:
                self._start_snapshot(follower)
                return
            entries, size_bytes = log.batch(
                follower.next_index, options.max_append_entries, options.max_append_bytes
            )
            state.send(follower.member_id, self._append(follower.next_index - 1, entries))
            follower.entries_sent(entries[-1].index, size_bytes)
            follower.commit_sent = min(state.commit_index, entries[-1].index)

    def send_heartbeat(self, follower: Progress) -> None:
        """Send an empty append (or chunk) that claims everything sent so far."""
        if follower.state is ProgressState.SNAPSHOT:
            self._send_chunk(follower, size_bytes=0)
        elif follower.next_index <= self._state.log.base_index:
            self._start_snapshot(follower)
        else:
            self._send_empty(follower, follower.next_index - 1)

    def send_confirmation(self, follower: Progress) -> None:
        """Send an empty append that claims only what is known to match."""
        known = follower.state is ProgressState.REPLICATE
        if known and follower.match_index >= self._state.log.base_index:
            self._send_empty(follower, follower.match_index)
        else:
            self.send_heartbeat(follower)

    def send_commit(self) -> None:
        """Tell the commit index to whoever can use it and was not told yet."""
        commit = self._state.commit_index
        for follower in self.peers:
            useful = min(commit, follower.match_index)
            if follower.commit_sent < useful and follower.state is ProgressState.REPLICATE:
                self.send_confirmation(follower)

    def _append(self, prev_index: int, entries: tuple[Entry, ...]) -> AppendRequest:
        state = self._state
        return AppendRequest(
            state.term,
            LogIndex(prev_index),
            state.log.term_at(prev_index),
            state.commit_index,
            self.rounds.current,
            entries,
        )

    def _send_empty(self, follower: Progress, prev_index: int) -> None:
        self._state.send(follower.member_id, self._append(prev_index, ()))
        told = LogIndex(min(self._state.commit_index, prev_index))
        follower.commit_sent = max(follower.commit_sent, told)

    def _start_snapshot(self, follower: Progress) -> None:
        follower.become_snapshot(self._state.snapshot, self._state.now_ms)
        self._send_chunk(follower, self._state.options.snapshot_chunk_bytes)

    def _send_chunk(self, follower: Progress, size_bytes: int) -> None:
        snapshot, offset = follower.snapshot, follower.snapshot_offset
        if snapshot is None:
            return
        chunk = SnapshotChunk(
            self._state.term,
            self.rounds.current,
            snapshot.meta,
            offset,
            len(snapshot.data),
            snapshot.data[offset : offset + size_bytes],
        )
        self._state.send(follower.member_id, chunk)

    # --- Answers ------------------------------------------------------------------------------

    def acknowledged(self, follower: Progress, round_number: int) -> bool:
        """A follower answered; returns whether it is the first to vouch for that round as voter."""
        follower.last_contact_ms = self._state.now_ms
        if not follower.acked_round < round_number <= self.rounds.current:
            return False
        follower.acked_round = round_number
        sent_ms = self.rounds.sent_ms(round_number)
        if sent_ms is not None:
            follower.acked_sent_ms = sent_ms
        return follower.voter

    def appended(self, follower: Progress, message: AppendResponse) -> bool:
        """Take an answer to an append; returns whether the follower's match grew."""
        if not message.accepted:
            self._refused(follower, message)
            return False
        grew = follower.accepted(message.match_index)
        if follower.state is ProgressState.PROBE or self._outgrew_snapshot(follower):
            follower.become_replicate()
        return grew

    def snapshot_received(self, follower: Progress, message: SnapshotResponse) -> bool:
        """Take an answer to a chunk; returns whether the follower's match grew."""
        if message.installed:
            grew = follower.accepted(message.index)
            if self._outgrew_snapshot(follower):
                follower.become_replicate()
            elif self._snapshot_is_stale(follower):
                self._start_snapshot(follower)
            return grew
        snapshot = follower.snapshot
        if snapshot is not None and snapshot.meta.index == message.index:
            self._continue_snapshot(follower, message.next_offset, len(snapshot.data))
        return False

    def _continue_snapshot(self, follower: Progress, next_offset: int, total: int) -> None:
        """Send the chunk asked for, unless it is under way already."""
        state = self._state
        if self._snapshot_is_stale(follower):
            self._start_snapshot(follower)
            return
        waited_ms = state.now_ms - follower.snapshot_sent_ms
        is_news = next_offset > follower.snapshot_offset
        if not is_news and waited_ms < state.options.election_timeout_min_ms:
            return
        follower.snapshot_offset = min(next_offset, total)
        follower.snapshot_sent_ms = state.now_ms
        if next_offset < total:
            self._send_chunk(follower, state.options.snapshot_chunk_bytes)

    def _outgrew_snapshot(self, follower: Progress) -> bool:
        """Whether a follower in SNAPSHOT can be fed from the log again."""
        return (
            follower.state is ProgressState.SNAPSHOT
            and follower.match_index >= self._state.log.base_index
        )

    def _snapshot_is_stale(self, follower: Progress) -> bool:
        """Whether the snapshot under way no longer connects to the log that is kept."""
        snapshot = follower.snapshot
        return snapshot is not None and snapshot.meta.index < self._state.log.base_index

    def _refused(self, follower: Progress, message: AppendResponse) -> None:
        refused = message.refused_index
        if follower.state is ProgressState.SNAPSHOT or refused <= follower.match_index:
            return
        if follower.state is ProgressState.PROBE and refused != follower.next_index - 1:
            return  # answers an earlier probe
        next_index = int(message.conflict_index)
        if message.conflict_term:
            own_last = self._state.log.last_index_of_term(message.conflict_term)
            if own_last is not None:
                next_index = max(next_index, own_last + 1)
        follower.become_probe(max(min(next_index, refused), 1))
